"""The scores of a cell: per-sample values, statistics of the set and features, and where they came
from. Written by `score`. No torch.

scores/KEY.safetensors holds all but the features: what a report reads. The features, of many
samples a gigabyte a cell, are in features/KEY.safetensors, and are looked up there where a report
misses a statistic. Older folders have them in the scores file.
"""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
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
from ditbench.records.sample_blocks import (
    FEATURE,
    GROUPS,
    PROMPTS,
    SAMPLES,
    Blocked,
    blocks_of,
    by_block,
)
from ditbench.records.score_arrays import checksums, not_as_written, wrong_array
from ditbench.records.text import one_line
from ditbench.statistics.estimates import Blocks
from ditbench.statistics.influence import MOST

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
    statistics: Mapping[str, str] = field(default_factory=dict)
    """Metric -> what its statistic was worked out from and by (`ditbench.metrics.set_statistics`);
    empty where they are said to be current by other means, as in a published run."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Metric -> why its statistic is missing although there are features."""

    @property
    def blocks(self) -> Blocks | None:
        """The blocks whose means stand in place of values; None where the values themselves do."""
        if (samples := self.arrays.get(SAMPLES)) is None:
            return None
        return Blocks(samples, int(self.arrays[PROMPTS][0]))

    @property
    def group(self) -> NDArray[Any]:
        """[n] the number of each sample's prompt, where values are read by block too."""
        by_sample = self.arrays.get(GROUPS)
        return self.arrays["group"] if by_sample is None else by_sample

    def as_values(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values [n] as these scores have others: as they are, or as means of blocks."""
        blocked = self.blocks is not None and len(values) != len(self.arrays["group"])
        return by_block(values, self.group) if blocked else values

    def fits(self, num: int | None) -> bool:
        """Whether the values are of `num` samples, where that is known, or there are none."""
        if not (num and self.arrays):
            return True
        n = len(self.group) if self.blocks is None else int(self.blocks.samples.sum())
        return n == num

    def shape_of(self, features: str) -> tuple[int, ...] | None:
        """Shape of an array of features, which a published run has without the array; None where
        there is no such array."""
        if (shape := self.arrays.get(features + SHAPE)) is not None:
            return tuple(shape.tolist())
        if features not in self.arrays:
            return None
        for arrays in self.arrays.maps if isinstance(self.arrays, ChainMap) else (self.arrays,):
            if isinstance(arrays, _StoredArrays) and features in arrays:
                return arrays.shape(features)
        return self.arrays[features].shape

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
        self._names = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        array: NDArray[Any] = self._file.get_tensor(name)
        return array

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array, which is not read for it."""
        return tuple(self._file.get_slice(name).get_shape())

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_file(path: Path, whole: bool = False) -> Scores:
    """A scores file; ValueError when it is damaged or of another schema version. `whole`: features,
    and values that reports read by block, are compared with their checksums too."""
    try:
        with safe_open(regular(path, path.parents[1]), "np") as f:
            text = f.metadata()["scores"]
        document, arrays = _checked(text, str(path)), _StoredArrays(path)
        trouble = wrong_array(arrays) or not_as_written(text, arrays, str(path), whole=whole)
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged ({one_line(str(error))})") from error
    if trouble:
        raise ValueError(f"{path} is damaged ({trouble})")
    return Scores(arrays=arrays, **document)


def read_bytes(content: bytes, place: str) -> Scores:
    """The content of a scores file, all of it read at once; ValueError as `read_file`, with
    `place` for its path."""
    try:
        text = content[8 : 8 + int.from_bytes(content[:8], "little")].decode()
        text = parse_json(text, place)["__metadata__"]["scores"]
        document, arrays = _checked(text, place), load(content)
        trouble = wrong_array(arrays) or not_as_written(text, arrays, place, whole=True)
    except UNREADABLE as error:
        raise ValueError(f"{place} is damaged ({one_line(str(error))})") from error
    if trouble:
        raise ValueError(f"{place} is damaged ({trouble})")
    return Scores(arrays=arrays, **document)


def _checked(text: str, place: str) -> dict[str, Any]:
    """The metadata of a scores file as arguments of `Scores`; ValueError, KeyError or TypeError for
    other text."""
    metadata = check(parse_json(text, place, clean=True), {"schema": int, **SCORES}, place)
    if metadata.pop("schema") != SCHEMA:
        raise ValueError(f"{place} was written by another version of ditbench")
    return {name: metadata[name] for name in metadata if f"{name}?" in SCORES or name in SCORES}


class _Together(ChainMap[str, "NDArray[Any]"]):
    """Arrays of several files, none of which is read before it is asked for."""

    def __init__(self, *maps: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(*maps)  # type: ignore[arg-type]  # nothing is ever set


def read_cell(files: RunFolder, key: str) -> Scores:
    """The scores of a cell with its features, those that are of the same samples and made by the
    same extractors; ValueError as `read_file`, of features too."""
    scores, path = read_file(files.scores(key)), files.features(key)
    if not path.is_file():
        return scores
    features = read_file(path)
    same = all(scores.fingerprints.get(m) == of for m, of in features.fingerprints.items())
    if features.samples_sha256 != scores.samples_sha256 or not same:
        return scores
    return replace(scores, arrays=_Together(scores.arrays, features.arrays))


def write_cell(files: RunFolder, key: str, scores: Scores, features: bool = True) -> None:
    """Write the scores of a cell, and its features to a file of their own, unless those that lie
    there are said to be these (`features=False`). Each file is written atomically, and the features
    first: a cell that is left between the two has features that are not taken for the others'."""
    apart = [n for n in scores.arrays if n.startswith(FEATURE) and not n.endswith(SHAPE)]
    if features and apart:
        owners = [m for m, names in scores.owned.items() if {*names} & {*apart}]
        write_file(
            files.features(key),
            Scores(
                samples_sha256=scores.samples_sha256,
                arrays={name: scores.arrays[name] for name in apart},
                reasons={m: scores.reasons[m] for m in owners},
                fingerprints={m: scores.fingerprints[m] for m in owners},
                owned={m: scores.owned[m] for m in owners},
            ),
        )
    values = {name: scores.arrays[name] for name in scores.arrays if name not in {*apart}}
    write_file(files.scores(key), replace(scores, arrays=values | blocks_of(values)))


def write_file(path: Path, scores: Scores) -> None:
    """Write one file atomically."""
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
    document |= {n: of for n in ("statistics", "unread") if (of := getattr(scores, n))}
    arrays = {name: np.ascontiguousarray(a) for name, a in scores.arrays.items()}
    # one entry: several are written in no fixed order, and the same scores have the same bytes
    document["checksums"] = checksums(document, arrays)
    return arrays, {"scores": json.dumps(document, sort_keys=True)}


def read_scores(folder: Path, records: Iterable[Mapping[str, Any]] = ()) -> dict[str, Scores]:
    """Scores of a run by cell key; a cell without scores, or with a damaged file of them, is not
    among them, nor are scores of another number of samples than one of `records` has. Of more than
    `MOST` samples the means of blocks stand in place of the values."""
    scores, files = {}, RunFolder(folder)
    for path in files.all_scores():
        try:
            scores[path.stem] = _read_by_report(files, path.stem)
        except (ValueError, FileNotFoundError):
            continue  # `score` names it and makes it again
    scores |= _published(files.published_scores)
    num = {record["key"]: record["run"].get("num_samples") for record in records}
    return {key: s for key, s in scores.items() if s.fits(num.get(key))}


def _read_by_report(files: RunFolder, key: str) -> Scores:
    try:
        scores = read_cell(files, key)
    except ValueError:  # the features alone may be damaged
        scores = read_file(files.scores(key))
    group = scores.shape_of("group")
    return replace(scores, arrays=Blocked(scores.arrays)) if group and group[0] > MOST else scores


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
