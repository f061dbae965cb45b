"""The networks whose features metrics are computed on: the table `extractors.toml`, and where their
files are. No torch.

An extractor is what the key (architecture, sha256 of the files, preprocessing) names: another file
or another resize is another extractor. Files are looked for in the folder that
`DITBENCH_EXTRACTORS` names (in it, or in a folder of the extractor's name in it), then in the
caches of the Hugging Face hub and of torch; nothing is ever downloaded. A file whose sha256 is not
the pinned one is refused, never used under another name.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ditbench import ZOO
from ditbench.records.files import digest
from ditbench.suggest import suggest

FOLDER = "DITBENCH_EXTRACTORS"
"""Environment variable: the folder with extractors' files."""
RESERVED = ("fid", "sfid", "kid", "is", "fvd", "lpips", "clipscore", "vbench", "imagereward")
"""Words of a metric's name that belong to published results: only with pinned files and their
preprocessing."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A row of the table."""

    name: str
    architecture: str
    """Module of `ditbench.extractors.networks` that builds it."""
    preprocessing: str
    """How a picture becomes its input: a name in `ditbench.extractors.networks.preprocessing`."""
    files: Mapping[str, str]
    """File name -> sha256, empty where it is not known; the weights come first."""
    features: Mapping[str, int]
    """What it gives of a picture (or prompt) -> how many numbers."""
    published: str
    """Where the files are to be had."""
    licence: str
    """Of the weights; empty where it has to be read there."""
    shape: Mapping[str, Any] = field(default_factory=dict)
    """Sizes of the architecture."""
    hub: str = ""
    """Repository on the Hugging Face hub."""
    revision: str = ""
    not_built: str = ""
    """Why there is no network behind this row, or ""."""

    @property
    def pinned(self) -> bool:
        """Whether the sha256 of every file is known."""
        return all(self.files.values())

    @property
    def key(self) -> str:
        """sha256 over architecture, sizes, files and preprocessing: what features of this extractor
        are comparable by."""
        parts = [self.architecture, self.shape, dict(self.files), self.preprocessing]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


Table = Mapping[str, Extractor]


@cache
def extractors() -> Table:
    """All rows by name."""
    return read_table(Path(__file__).parent / "extractors.toml")


def read_table(path: Path) -> Table:
    """The rows of a TOML file as `extractors.toml` is one."""
    return {
        name: Extractor(name=name, **row)
        for name, row in tomllib.loads(path.read_text(encoding="utf-8")).items()
    }


def find(name: str, table: Table | None = None) -> Extractor:
    """A row; ValueError lists the known names when there is none."""
    table = extractors() if table is None else table
    if name not in table:
        raise ValueError(f"no extractor {name!r}; {suggest(name, table)}")
    return table[name]


def locate(extractor: Extractor, folder: Path | None = None) -> dict[str, Path]:
    """File name -> path of everything the extractor needs; ValueError names what is missing, its
    hash and where it is published.

    Looks only; `verified` says whether they are the right files.
    """
    paths, missing = {}, []
    for name, sha256 in extractor.files.items():
        path = next((p for p in _places(extractor, name, folder) if p.is_file()), None)
        if path is None:
            missing.append(f"{name} (sha256 {sha256 or 'not known'})")
        else:
            paths[name] = path
    if missing:
        raise ValueError(
            f"{extractor.name} lacks {', '.join(missing)}; published at {extractor.published}; "
            f"put it into a folder {extractor.name}/ of the one that {FOLDER} names"
        )
    return paths


def _places(extractor: Extractor, name: str, folder: Path | None) -> list[Path]:
    places = []
    if folder or os.environ.get(FOLDER):
        root = folder or Path(os.environ[FOLDER])
        places += [root / extractor.name / name, root / name]
    if extractor.architecture == "judge":
        places.append(ZOO / "judge" / name)
    if extractor.hub:
        from huggingface_hub import try_to_load_from_cache

        # None: the main branch as it was when it was fetched
        for revision in (
            extractor.revision,
            None,
        ):
            cached = try_to_load_from_cache(extractor.hub, name, revision=revision)
            places += [Path(cached)] if isinstance(cached, str) else []
    return [*places, torch_hub() / name]


def torch_hub() -> Path:
    """Where torch keeps the weights it downloads."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        Path(os.environ.get("TORCH_HOME") or caches / "torch").expanduser() / "hub" / "checkpoints"
    )


def verified(extractor: Extractor, folder: Path | None = None) -> dict[str, Path]:
    """`locate`, with the sha256 of every file checked; ValueError in one sentence when the
    extractor cannot be used.

    That is: no network behind it, no pinned hash, a file missing, or a file with another hash.
    """
    if extractor.not_built:
        raise ValueError(
            f"{extractor.name} cannot be run: {extractor.not_built} (published at "
            f"{extractor.published})"
        )
    if not extractor.pinned:
        raise ValueError(
            f"{extractor.name} is not pinned: the sha256 of its published files is not known here"
        )
    paths = locate(extractor, folder)
    for name, path in paths.items():
        got = digest(path)
        if got != extractor.files[name]:
            raise ValueError(
                f"{path} is not the {name} of {extractor.name}: its sha256 is {got}, expected "
                f"{extractor.files[name]}"
            )
    return paths


def unnamed(metric: str, extractor: Extractor | None) -> str:
    """Why a metric may not be called so: it bears a reserved word without a pinned extractor in its
    name; "" when it may.

    A reserved word counts wherever it stands in the name between separators, in any case.
    """
    words = metric.lower().replace("_", ".").replace("-", ".").split(".")
    taken = [word for word in words if word in RESERVED]
    if not taken:
        return ""
    if extractor is None or extractor.name not in metric:
        return f"{metric!r} bears {taken[0].upper()} without naming the extractor whose files are pinned"
    return (
        ""
        if extractor.pinned
        else f"{metric!r} bears {taken[0].upper()}, and {extractor.name} is not pinned"
    )
