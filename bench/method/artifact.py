"""Files a method had to be trained or calibrated for: made once by `prepare`, found again by
everything they depend on. No torch.

A folder per artefact, `<root>/<method>/<key>/`, whole or absent: written under another name, hashed
into `manifest.json`, then renamed. `run` never trains; a cell without its artefact is refused with
the command that makes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ditbench import ZOO
from ditbench.records.checks import AMOUNT, COUNT, NAME, Names, check
from ditbench.records.facts import plain
from ditbench.records.files import file_sha256, read_json, write_json

OWN = Path("artifacts")
"""Where `prepare` writes, in the working directory."""
BUNDLED = ZOO / "artifacts"
MANIFEST = "manifest.json"
SHAPE = {
    "files": Names(str), "recipe": dict, "below": str, "seconds": AMOUNT,
    "notes": {
        "iterations?": COUNT, "finish?": COUNT, "joint_iterations?": COUNT, "start_seconds?": AMOUNT,
    }, "steps?": COUNT, "method?": NAME,
    "model?": NAME, "stack?": str, "flags?": [str], "weights_sha256?": str,
}  # fmt: skip
"""What the manifest of an artefact looks like."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a method of a stack must have been prepared for."""

    method: str
    recipe: dict[str, Any]
    """Everything about the method that changes the files, its version too; never a knob that only
    matters when it runs."""
    model: str
    weights_sha256: str
    steps: int
    sampling: dict[str, Any]
    """What it is prepared with, as the stack below adapts it: steps, guidance, size."""
    below: str
    """The stack it is prepared on top of, `none` for the plain model."""
    content: dict[str, Any]
    """sha256 of what `below` and the method are made of: `prepared`, artefacts by method, "" for
    one that is absent; `inputs`, files that knobs below name, by method; `sources`, files the
    methods are declared in, where they do not come with ditbench; `prompts`, the file that
    full-size text models are asked for."""
    stack: str
    """The stack below and the method with its knobs, as one types it."""
    flags: tuple[str, ...] = ()
    """What else the command that makes it needs: weights and plug-ins."""
    hopeless: str = ""
    """Why it cannot be made, in words; empty where it can."""

    @property
    def key(self) -> str:
        """Different whenever anything differs that the files depend on: weights, not the model's
        name; the recipe, not other knobs."""
        parts = {
            k: v
            for k, v in asdict(self).items()
            if k not in ("model", "stack", "flags", "hopeless")
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Below a root."""
        return Path(self.method) / self.key

    @property
    def sentence(self) -> str:
        """What to say when it is absent."""
        under = "" if self.below == "none" else f" under {self.below}"
        reasons = (
            f"{self.method} has not been prepared for {self.model} with {self.steps} steps{under}"
        )
        if self.hopeless:
            return f"{reasons}, and cannot be: {self.hopeless}"
        return f"{reasons}; {command_for(self.stack, self.model, self.flags)} does it"


def command_for(stack: str, model: str, flags: Sequence[str] = ()) -> str:
    """The command that prepares a stack for a model, for a shell."""
    return f"python run_bench.py prepare {quoted(stack)} --models {' '.join(map(shlex.quote, (model, *flags)))}"


def quoted(text: str) -> str:
    """A stack in quotes, as a shell reads it back."""
    return f"'{text}'" if "'" not in text else shlex.quote(text)


@dataclass(frozen=True)
class Artifact:
    """A prepared folder."""

    folder: Path
    manifest: dict[str, Any] = field(repr=False)

    @property
    def sha256(self) -> str:
        """Of the names and contents of its files: trained again, it is another one under the same
        key."""
        return hashlib.sha256(
            json.dumps(self.manifest["files"], sort_keys=True).encode()
        ).hexdigest()

    def cost(self) -> dict[str, Any]:
        """What it took, for the record of a cell that uses it: key, sha256, seconds, iterations and
        samples, those of what it went on from too; None for what was not noted.

        Iterations are those its notes tell, finishing included, or the lines of a log that has one
        for each.
        """
        notes, log, iterations = self.manifest["notes"], self.folder / "log.csv", None
        if "iterations" in notes:
            iterations = sum(
                notes.get(name, 0) for name in ("iterations", "finish", "joint_iterations")
            )
        elif (
            log.is_file()
            and (lines := log.read_text(encoding="utf-8").splitlines())
            and "iteration" in lines[0].split(",")
        ):
            iterations = len(lines) - 1
        samples = next((notes[name] for name in ("samples", "recordings") if name in notes), None)
        cost = {name: self.manifest[name] for name in ("recipe", "below", "seconds", "notes")}
        cost["seconds"] += notes.get("start_seconds", 0)
        return {
            "key": self.folder.name,
            "sha256": self.sha256,
            "iterations": iterations,
            "samples": samples,
            **cost,
        }


def find(need: Need, root: Path | None = None) -> Artifact | None:
    """The artefact, from `root`, the working directory or those that come with ditbench; None when
    there is none.

    Raises ValueError naming the file when one is there but damaged.
    """
    for place in ((root,) if root else ()) + (OWN, BUNDLED):
        try:
            artifact = _read(place / need.folder)
        except ValueError as error:
            raise ValueError(
                f"{error}; remove {place / need.folder}, and then: {need.sentence}"
            ) from None
        if artifact:
            return artifact
    return None


def _read(folder: Path) -> Artifact | None:
    """The artefact in a folder, None when it has no manifest; ValueError naming the file that is
    damaged or missing."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest = check(read_json(folder / MANIFEST), SHAPE, str(folder / MANIFEST))
    for name, sha in manifest["files"].items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != sha:
            raise ValueError(f"{path} is damaged or missing")
    return Artifact(folder, manifest)


def bundled(method: str) -> list[Artifact]:
    """What comes with ditbench of a method's artefacts, whole, in the order of their keys."""
    folders = sorted((BUNDLED / method).glob("*"))
    return [artifact for folder in folders if (artifact := _read(folder))]


def trained_for(record: Mapping[str, Any]) -> dict[str, Artifact]:
    """What a record's cell was prepared with, by method, where the very files it names are on this
    machine and whole."""
    rows = {}
    for method, cost in (record.get("artifacts") or {}).items():
        for root in (OWN, BUNDLED):
            try:
                artifact = _read(root / method / str(cost.get("key", "")))
            except ValueError:  # damaged: not what the cell was run with
                continue
            if artifact and artifact.sha256 == cost.get("sha256"):
                rows[method] = artifact
                break
    return rows


def create(
    need: Need, make: Callable[[Path], dict[str, Any]], root: Path = OWN, earlier: float = 0.0
) -> Artifact:
    """Make an artefact: `make(folder)` writes its files and returns notes. A killed or failed
    making leaves nothing that `find` finds; `earlier` are the seconds of those it goes on from."""
    folder = root / need.folder
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    started = time.monotonic()
    try:
        notes = {
            name: plain(f"the note {name} of {need.method}'s preparation", value)
            for name, value in make(partial).items()
        }
        files = {p.name: file_sha256(p) for p in sorted(partial.iterdir())}
        need_fields = {k: v for k, v in asdict(need).items() if k != "hopeless"}
        manifest = need_fields | {
            "seconds": round(earlier + time.monotonic() - started, 1),
            "files": files,
            "notes": notes,
        }
        write_json(partial / MANIFEST, manifest)
        for name in files:  # libraries give their files other permissions than the umask's
            (partial / name).chmod((partial / MANIFEST).stat().st_mode & 0o777)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Artifact(folder, manifest)
