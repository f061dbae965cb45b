"""Features of a cell's samples by one extractor, stored once for all metrics that look through it:
arrays `feature.<extractor>.<feature>`.

They are an entry of the scores file like a metric's, under the name `feature.<extractor>`, and come
before the metrics made of them: a metric added later finds them there. n samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from ditbench.extractors.table import find
from ditbench.metrics.samples import Sampled
from ditbench.metrics.table import Metric
from ditbench.records.files import replacing

VERSION = "features 1"


PART = 4096
"""Samples whose features are written together: what a `score` that is stopped may lose."""


class PartlyExtracted:
    """The features of a cell by the part, each in a file, so that an extraction that is stopped goes
    on from the last."""

    def __init__(self, cell: Sampled, metric: Metric) -> None:
        self._cell, self._waiting, self._files = cell, list[dict[str, NDArray]](), list[Path]()
        if self._apart:
            of = f"{fingerprint(cell, metric)} {cell.samples.sha256}"
            self._name = f"{metric.extractor}-{hashlib.sha256(of.encode()).hexdigest()[:16]}"

    @property
    def _apart(self) -> bool:
        return self._cell.parts is not None and len(self._cell.samples) > PART

    def missing(self) -> Iterator[NDArray[np.uint8]]:
        """Chunks of samples without features, in order."""
        done, start = self._find(), 0
        for chunk in self._cell.samples.chunks():
            rest = chunk[max(0, done - start) :]
            start += len(chunk)
            if len(rest):
                yield rest

    def _find(self) -> int:
        """How many samples, from the first, have features in files."""
        done = 0
        while self._apart and (path := self._path(done)).is_file():
            try:
                with safe_open(path, "np") as f:
                    num = min(f.get_slice(name).get_shape()[0] for name in f.keys())  # noqa: SIM118
            except (SafetensorError, OSError, ValueError):
                break
            self._files.append(path)
            done += num
        self._done = done
        return done

    def _path(self, start: int) -> Path:
        assert self._cell.parts is not None
        return self._cell.parts / f"{self._name}-{start:09d}.safetensors"

    def add(self, arrays: dict[str, NDArray]) -> None:
        """Features of the next chunk."""
        self._waiting.append(arrays)
        waiting = sum(len(next(iter(part.values()))) for part in self._waiting)
        if self._apart and waiting >= PART:
            path = self._path(self._done)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                save_file(_joined(self._waiting), partial)
            self._files.append(path)
            self._done += waiting
            self._waiting = []

    def whole(self) -> dict[str, NDArray]:
        """The features of all samples."""
        return _joined([*map(load_file, self._files), *self._waiting])


def _joined(parts: Sequence[dict[str, NDArray]]) -> dict[str, NDArray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def before(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics, and before them the entries for the features they are made of."""
    names = dict.fromkeys(metric.extractor for metric in metrics if metric.extractor)
    return [*(_entry(name) for name in names), *metrics]


def _entry(extractor: str) -> Metric:
    return Metric(
        name=f"feature.{extractor}",
        family="features",
        better="",
        unit="",
        doc="",
        needs="",
        extractor=extractor,
    )


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has no features of the metric's extractor, or "": they are there already, or can
    be had."""
    if any(name.startswith(f"feature.{metric.extractor}.") for name in cell.features):
        return ""
    if cell.samples.num_frames > 1:
        return f"{metric.extractor} reads pictures, and these samples are videos"
    return cell.shelf.refuse(metric.extractor)


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """Names everything the features depend on besides the samples: the extractor's key, and the
    prompts where it reads them."""
    extractor = find(metric.extractor, cell.shelf.table)
    prompts = repr(cell.prompts) if "text" in extractor.features else ""
    return hashlib.sha256(f"{VERSION} {extractor.key} {prompts}".encode()).hexdigest()


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray]:
    """Every picture feature, float32 [n, d]; where there are prompts and the network reads them,
    their features and `cut` [n] too."""
    network, names = (
        cell.shelf.network(metric.extractor),
        find(metric.extractor, cell.shelf.table).features,
    )
    part = PartlyExtracted(cell, metric)
    for chunk in part.missing():
        part.add(network.features(chunk))
    arrays = part.whole()
    if "text" in names and cell.prompts is not None:
        texts, cut = network.texts(cell.prompts)
        arrays |= texts | {"cut": cut.astype(np.uint8)}
    return {f"feature.{metric.extractor}.{name}": array for name, array in arrays.items()}
