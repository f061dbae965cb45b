"""The scores file of a cell: per-sample values and features, and where they came from. Written by
`score`. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save, save_file

from ditbench.records.checks import SCORES, check
from ditbench.records.files import replacing
from ditbench.records.published_files import members
from ditbench.records.reading import parse_json, regular
from ditbench.records.run_folder import RunFolder
from ditbench.records.score_arrays import GROUP, wrong_array
from ditbench.records.text import cleaned, one_line

SCHEMA = 1
SHAPE = "@shape"
"""After the name of an array of features that a published run leaves out: its shape."""

UNREADABLE = (
    SafetensorError, OSError, MemoryError, KeyError, TypeError, AttributeError, OverflowError, UnicodeDecodeError,
    json.JSONDecodeError,
)  # fmt: skip
"""What reading a file raises that is no whole scores file."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Per-sample values of one cell."""

    samples_sha256: str
    """Of the samples they are of."""
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """By name, [n, ...] in request order; `group` [n] numbers the prompts."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Metric -> why it is missing, "" where it is there."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Metric -> what it was computed from besides the samples."""
    owned: Mapping[str, list[str]] = field(default_factory=dict)
    """Metric -> names of its arrays."""

    def fits(self, num: int | None) -> bool:
        """Whether the values are of `num` samples, where that is known, or there are none."""
        return not (num and self.arrays) or len(self.arrays[GROUP]) == num

    def shape_of(self, features: str) -> tuple[int, ...] | None:
        """Shape of an array of features, which a published run has without the array; None where
        there is no such array."""
        if (shape := self.arrays.get(features + SHAPE)) is not None:
            return tuple(shape.tolist())
        array = self.arrays.get(features)
        return None if array is None else array.shape

    def having(
        self, metric: str, reason: str, fingerprint: str, arrays: Mapping[str, NDArray[Any]]
    ) -> Scores:
        """These scores with a metric's arrays, or the reason it has none, in place of its earlier
        ones."""
        shared = {name for other, names in self.owned.items() if other != metric for name in names}
        gone = set(self.owned.get(metric, [])) - shared
        others = {name: a for name, a in self.arrays.items() if name not in gone}
        return Scores(
            samples_sha256=self.samples_sha256,
            arrays=others | dict(arrays),
            reasons={**self.reasons, metric: reason},
            fingerprints={**self.fingerprints, metric: fingerprint},
            owned={**self.owned, metric: sorted(arrays)},
        )


class _StoredArrays(Mapping[str, NDArray[Any]]):
    """Arrays of an open file, each read when it is asked for: a cell's network features may be a
    gigabyte.

    A file that takes this one's place changes nothing: it is the one that was opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, "np")
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        array: NDArray[Any] = self._file.get_tensor(name)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_file(path: Path) -> Scores:
    """A scores file; ValueError when it is damaged or of another schema version."""
    try:
        with safe_open(regular(path, path.parents[1]), "np") as f:
            metadata = _checked(f.metadata()["scores"], str(path))
        arrays = _StoredArrays(path)
        trouble = wrong_array(arrays)
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged ({one_line(str(error))})") from error
    if trouble:
        raise ValueError(f"{path} is damaged ({trouble})")
    return Scores(arrays=arrays, **metadata)


def read_bytes(content: bytes, place: str) -> Scores:
    """The content of a scores file, all of it read at once; ValueError as `read_file`, with
    `place` for its path."""
    try:
        text = content[8 : 8 + int.from_bytes(content[:8], "little")].decode()
        metadata = _checked(parse_json(text, place)["__metadata__"]["scores"], place)
        arrays = load(content)
        trouble = wrong_array(arrays)
    except UNREADABLE as error:
        raise ValueError(f"{place} is damaged ({one_line(str(error))})") from error
    if trouble:
        raise ValueError(f"{place} is damaged ({trouble})")
    return Scores(arrays=arrays, **metadata)


def _checked(text: str, place: str) -> dict[str, Any]:
    """The metadata of a scores file as arguments of `Scores`; ValueError, KeyError or TypeError for
    other text."""
    metadata = check(cleaned(parse_json(text, place)), {"schema": int, **SCORES}, place)
    if metadata.pop("schema") != SCHEMA:
        raise ValueError(f"{place} was written by another version of ditbench")
    return {name: metadata[name] for name in metadata if f"{name}?" in SCORES or name in SCORES}


def write_file(path: Path, scores: Scores) -> None:
    """Write a scores file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays, metadata = _parts(scores)
    with replacing(path) as partial:
        save_file(arrays, partial, metadata)


def as_bytes(scores: Scores) -> bytes:
    """What `write_file` writes."""
    arrays, metadata = _parts(scores)
    return save(arrays, metadata)


def _parts(scores: Scores) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays and the metadata of a scores file."""
    names = ("samples_sha256", "reasons", "fingerprints", "owned")
    document = {name: getattr(scores, name) for name in names} | {"schema": SCHEMA}
    arrays = {name: np.ascontiguousarray(a) for name, a in scores.arrays.items()}
    return arrays, {"scores": json.dumps(document, sort_keys=True)}


def read_scores(folder: Path, records: Iterable[Mapping[str, Any]] = ()) -> dict[str, Scores]:
    """Scores of a run by cell key; a cell without scores, or with a damaged file of them, is not
    among them, nor are scores of another number of samples than one of `records` has."""
    scores = {}
    for path in RunFolder(folder).all_scores():
        try:
            scores[path.stem] = read_file(path)
        except (ValueError, FileNotFoundError):
            continue  # `score` names it and makes it again
    scores |= _published(RunFolder(folder).published_scores)
    num = {record["key"]: record["run"].get("num_samples") for record in records}
    return {key: s for key, s in scores.items() if s.fits(num.get(key))}


def _published(path: Path) -> dict[str, Scores]:
    """Scores of a published run by cell key; none of a file that is missing or damaged, nor of a
    member that is."""
    scores = {}
    try:
        content, _ = members(path)
    except ValueError:
        return {}
    for name, of_name in content.items():
        with suppress(ValueError):
            scores[Path(name).stem] = read_bytes(of_name, f"{path}/{name}")
    return scores
