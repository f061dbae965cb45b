"""Files a method had to be trained or calibrated for: made once by `prepare`, found again by everything they depend on. No torch.

A folder per artefact, `<root>/<method>/<key>/`, whole or absent: written under another name, hashed into `manifest.json`, then renamed.
`run` never trains; a cell without its artefact is refused with the command that makes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.models import models, weights_sha256
from ditbench.record import read_json, write_json
from ditbench.stack import Stack
from ditbench.workload import sampling_of

if TYPE_CHECKING:
    from ditbench.models import Model

OWN = Path("artifacts")
"""Where `prepare` writes, in the working directory."""
BUNDLED = Path(__file__).resolve().parent / "zoo" / "artifacts"
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a method of a stack must have been prepared for."""

    method: str
    recipe: dict[str, Any]
    """Everything about the method that changes the files, its version too; never a knob that only matters when it runs."""
    model: str
    weights_sha256: str
    steps: int
    below: str
    """The stack it is prepared on top of, `none` for the plain model."""
    stack: str
    """The same and the method with its knobs, as one types it."""

    @property
    def key(self) -> str:
        """Different whenever anything differs that the files depend on: weights, not the model's name; the recipe, not other knobs."""
        told = {k: v for k, v in asdict(self).items() if k not in ("model", "stack")}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Below a root."""
        return Path(self.method) / self.key

    @property
    def sentence(self) -> str:
        """What to say when it is absent."""
        return (
            f"{self.method} has not been prepared for {self.model} with {self.steps} steps"
            + ("" if self.below == "none" else f" under {self.below}")
            + f"; python run_bench.py prepare '{self.stack}' --models {self.model} does it"
        )


@dataclass(frozen=True)
class Artifact:
    """A prepared folder."""

    folder: Path
    manifest: dict[str, Any] = field(repr=False)

    def cost(self) -> dict[str, Any]:
        """What it took, for the record of a cell that uses it: key, seconds, iterations and samples; None for what was not noted.

        Iterations are those its notes tell, finishing included, or the lines of a log that has one for each.
        """
        notes, log, iterations = self.manifest["notes"], self.folder / "log.csv", None
        if "iterations" in notes:
            iterations = notes["iterations"] + notes.get("finish", 0)
        elif log.is_file() and (lines := log.read_text().splitlines()) and "iteration" in lines[0].split(","):
            iterations = len(lines) - 1
        samples = next((notes[name] for name in ("samples", "recordings") if name in notes), None)
        told = {name: self.manifest[name] for name in ("recipe", "below", "seconds", "notes")}
        return {"key": self.folder.name, "iterations": iterations, "samples": samples, **told}


def needs_of(model: Model, stack: Stack, weights: str) -> list[Need]:
    """What the methods of a stack must have been prepared for, in the order they attach."""
    return _needs(model, stack, lambda: weights_sha256(model, weights))


def needs_of_record(record: Mapping[str, Any]) -> list[Need]:
    """What a record's cell was prepared for; ValueError where its model or a method is not known here, or takes other knobs by now."""
    table = models()
    if record["model"] not in table:
        raise ValueError(f"no model {record['model']!r}")
    return _needs(
        table[record["model"]], Stack.restore(record["methods"]), lambda: str(record["run"].get("model_sha256"))
    )


def _needs(model: Model, stack: Stack, sha256: Callable[[], str]) -> list[Need]:
    found = []
    for m in stack.methods:
        if (recipe := m.recipe()) is not None:
            below = below_of(stack, m)
            found.append(
                Need(
                    method=m.name, recipe=recipe, model=model.name, weights_sha256=sha256(),
                    steps=m.adapt(below.adapt(sampling_of(model))).steps, below=str(below), stack=str(Stack((*below.methods, m))),
                )
            )  # fmt: skip
    return found


def below_of(stack: Stack, method: Any) -> Stack:
    """What a method of a stack is prepared on top of: the methods that attach before it, or nothing where it was tuned alone.

    Without those that claim what the method is `blind_to`.
    """
    if getattr(method, "tuned", "stack") == "alone":
        return Stack()
    before = stack.methods[: stack.methods.index(method)]
    return Stack(tuple(m for m in before if not m.traits.claims & getattr(method, "blind_to", frozenset())))


def find(need: Need) -> Artifact | None:
    """The artefact, from the working directory or from those that come with ditbench; None when there is none.

    Raises ValueError naming the file when one is there but damaged.
    """
    for root in (OWN, BUNDLED):
        folder = root / need.folder
        if (folder / MANIFEST).is_file():
            manifest = read_json(folder / MANIFEST)
            for name, sha in manifest["files"].items():
                path = folder / name
                if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha:
                    raise ValueError(f"{path} is damaged or missing; remove {folder}, and then: {need.sentence}")
            return Artifact(folder, manifest)
    return None


def trained_for(record: Mapping[str, Any]) -> dict[str, Artifact]:
    """What a record's cell was prepared with, by method, where it is on this machine and whole."""
    found = {}
    try:
        for need in needs_of_record(record):
            if artifact := find(need):
                found[need.method] = artifact
    except ValueError:  # a method that is not installed here, or a damaged artefact: not what the cell was run with
        return {}
    return found


def create(need: Need, make: Callable[[Path], dict[str, Any]], root: Path = OWN) -> Artifact:
    """Make an artefact: `make(folder)` writes its files and returns notes. A killed or failed making leaves nothing that `find` finds."""
    folder = root / need.folder
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    started = time.monotonic()
    try:
        notes = make(partial)
        files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(partial.iterdir())}
        manifest = asdict(need) | {"seconds": round(time.monotonic() - started, 1), "files": files, "notes": notes}
        write_json(partial / MANIFEST, manifest)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Artifact(folder, manifest)


def resolve(model: Model, stack: Stack, weights: str) -> dict[str, Artifact]:
    """The artefacts of a stack's methods by name; ValueError with the command to run when one is absent."""
    found = {}
    for need in needs_of(model, stack, weights):
        if (artifact := find(need)) is None:
            raise ValueError(need.sentence)
        found[need.method] = artifact
    return found
