"""Reference sets for metrics that look through an extractor: made from pictures, kept in a file,
told to a run. No torch but to make.

A file holds for every feature of one extractor `<feature>.mean` [d] and `<feature>.root` [d, d]
(lower triangular factor of the covariance, divisor n - 1) of all pictures, and `<feature>.rows` [at
most ROWS, d] of the first. Its metadata say which extractor made it, by key, and a run refuses
another's. ADM's npz files (`mu`, `sigma`, for sFID `mu_s`, `sigma_s`) are read as they are. n
pictures, d features.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ditbench.extractors.table import Extractor, Table, extractors, find
from ditbench.models.table import models
from ditbench.records.checks import COUNT, Values, check, read_references
from ditbench.records.files import file_sha256, replacing, write_json
from ditbench.records.reading import parse_json, regular
from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder
from ditbench.records.text import one_line
from ditbench.statistics.frechet import Reference, factor
from ditbench.suggest import suggest

SCHEMA = 1
METADATA = {"schema": int, "extractor": str, "key": str, "n": Values(COUNT)}
"""What a reference file says of itself; n by feature."""
ROWS = 10_000
"""Pictures whose features are kept, for statistics that need more than moments."""
ADM = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
"""Feature of `tf2015` -> arrays of ADM's reference batches."""


def write(
    path: Path,
    extractor: Extractor,
    references: Mapping[str, Reference],
    rows: Mapping[str, NDArray],
) -> None:
    """Write a reference file, whole or not at all: `held` and `rows` by feature."""
    arrays = {f"{feature}.mean": r.mean for feature, r in references.items()} | {
        f"{f}.root": r.root for f, r in references.items()
    }
    arrays |= {f"{feature}.rows": np.asarray(table, np.float32) for feature, table in rows.items()}
    metadata = {
        "schema": SCHEMA,
        "extractor": extractor.name,
        "key": extractor.key,
        "n": {f: r.n for f, r in references.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_file(
            {name: np.ascontiguousarray(a) for name, a in arrays.items()},
            partial,
            {"reference": json.dumps(metadata)},
        )


def read(path: Path, extractor: Extractor, feature: str) -> Reference:
    """The reference of one feature. ValueError: no such file, damaged, made by another extractor,
    or without that feature."""
    if not path.is_file():
        raise ValueError(f"there is no reference file {path}")
    if path.suffix == ".npz":
        return _read_adm(path, extractor, feature)
    metadata = describe(path)
    if metadata["key"] != extractor.key:
        raise ValueError(
            f"{path} was made by {metadata['extractor']} (key {metadata['key'][:8]}), not by "
            f"{extractor.name} (key {extractor.key[:8]})"
        )
    try:
        with safe_open(path, "np") as f:
            names = set(f.keys())
            if f"{feature}.mean" not in names:
                raise ValueError(f"{path} has no {feature} of {extractor.name}")
            rows = f.get_tensor(f"{feature}.rows") if f"{feature}.rows" in names else None
            mean, root = f.get_tensor(f"{feature}.mean"), f.get_tensor(f"{feature}.root")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({one_line(str(error))})") from error
    d = len(mean) if mean.ndim == 1 else -1
    if root.shape != (d, d) or (rows is not None and rows.shape[1:] != (d,)):
        raise ValueError(f"{path} is damaged ({feature} has arrays that do not fit)")
    if not all(np.isfinite(a).all() for a in (mean, root, *([] if rows is None else [rows]))):
        raise ValueError(f"{path} is damaged ({feature} holds what is no finite number)")
    return Reference(n=metadata["n"].get(feature, 0), mean=mean, root=root, features=rows)


def describe(path: Path) -> dict[str, Any]:
    """What a reference file says of itself: extractor, key, n by feature; ValueError when it is
    none, or damaged."""
    try:
        with safe_open(regular(path), "np") as f:
            text = f.metadata()["reference"]
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no reference file, or damaged ({one_line(str(error))})"
        ) from error
    metadata: dict[str, Any] = check(parse_json(text, str(path)), METADATA, str(path))
    if metadata["schema"] != SCHEMA:
        raise ValueError(f"{path} was written by another version of ditbench")
    return metadata


def _read_adm(path: Path, extractor: Extractor, feature: str) -> Reference:
    official = extractors()["tf2015"]
    if (extractor.architecture, extractor.preprocessing) != (
        official.architecture,
        official.preprocessing,
    ):
        raise ValueError(
            f"{path} is a reference of Inception's features, and cannot be one of {extractor.name}"
        )
    if feature not in ADM:
        raise ValueError(
            f"{path} has no {feature} of {extractor.name}; `reference build` makes them from its "
            "pictures"
        )
    try:
        with np.load(path) as arrays:
            mean, covariance = (np.asarray(arrays[name], np.float64) for name in ADM[feature])
    except KeyError as error:
        raise ValueError(
            f"{path} has no array {error}; `reference build` makes moments from its pictures"
        ) from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    return from_moments(mean, covariance)


def from_moments(mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> Reference:
    """A reference from published moments, whose n nobody says: it counts as 0."""
    return Reference(n=0, mean=mean, root=factor((covariance + covariance.T) / 2))


def examine(
    texts: Sequence[str], requested: Collection[str] | None = None, table: Table | None = None
) -> list[tuple[str, str, Path]]:
    """(model or "", extractor, path) of references told as FILE or MODEL=FILE; ValueError when one
    cannot be used, or is of a model that is none of those `asked` for (default: of all there
    are)."""
    references, known = [], models() if requested is None else requested
    for text in texts:
        model, name = ("", text) if Path(text).is_file() else text.rpartition("=")[::2]
        if model and model not in known:
            raise ValueError(
                f"reference: {text!r} is for {model}, which is not asked for; "
                f"{suggest(model, known)}"
            )
        path = Path(name).resolve()
        if not path.is_file():
            raise ValueError(f"reference: there is no file {name!r}")
        maker = "tf2015"
        if path.suffix != ".npz":
            said = describe(path)
            maker, key = said["extractor"], find(said["extractor"], table).key
            if said["key"] != key:
                raise ValueError(
                    f"reference: {name} was made by a {maker} of key {said['key'][:8]}, here it is "
                    f"{key[:8]}"
                )
        references.append((model, maker, path))
    return references


def tell(folder: Path, texts: Sequence[str], table: Table | None = None) -> None:
    """Remember references for a run; ValueError as `examine`, and then none is kept.

    The run keeps absolute paths and sha256s in `references.json`; what it was told before of others
    stays.
    """
    pointers = RunFolder(folder).references
    known = read_references(pointers)
    of_run = {record["model"] for record in read_run(folder).records}
    for model, maker, path in examine(texts, {*models(), *of_run}, table):
        known.setdefault(model, {})[maker] = {"path": str(path), "sha256": file_sha256(path)}
    if texts:
        write_json(pointers, known)


class ReferenceSets:
    """The references of a run, each read once."""

    def __init__(self, folder: Path | None = None, table: Table | None = None) -> None:
        self.folder, self.table = folder, table
        self._read: dict[tuple[str, str], Reference | str] = {}

    @cached_property
    def _pointers(self) -> dict[str, dict[str, dict[str, str]]]:
        return read_references(RunFolder(self.folder).references) if self.folder else {}

    def pointer(self, extractor: str, model: str) -> dict[str, str]:
        """Path and sha256 of a model's reference for an extractor; ValueError when the run has
        none."""
        for name in (model, ""):
            if extractor in self._pointers.get(name, {}):
                return self._pointers[name][extractor]
        raise ValueError(
            f"the run was told no reference of {extractor} (score RUN --reference FILE)"
        )

    def reference(self, extractor: str, features: str, model: str) -> Reference:
        """A model's reference for an array of an extractor's features; ValueError says why there is
        none."""
        pointer = self.pointer(extractor, model)
        at = (pointer["path"], features)
        if at not in self._read:
            try:
                self._read[at] = self._checked(pointer, extractor, features)
            except ValueError as error:
                self._read[at] = str(error)
        reference = self._read[at]
        if isinstance(reference, str):
            raise ValueError(reference)
        return reference

    def _checked(self, pointer: dict[str, str], extractor: str, features: str) -> Reference:
        path = Path(pointer["path"])
        if path.is_file() and file_sha256(path) != pointer["sha256"]:
            raise ValueError(f"{path} is not the file the run was told (its sha256 is another)")
        return read(
            path, find(extractor, self.table), features.removeprefix(f"feature.{extractor}.")
        )
