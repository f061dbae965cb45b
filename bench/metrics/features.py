"""Features of a cell's samples by one extractor, stored once for all metrics that look through it:
arrays `feature.<extractor>.<feature>`.

They are an entry of the scores file like a metric's, under the name `feature.<extractor>`, and come
before the metrics made of them: a metric added later finds them there. n samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ditbench.extractors.table import find
from ditbench.metrics.samples import Sampled
from ditbench.metrics.table import Metric

VERSION = "features 1"


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
    parts = [network.features(chunk) for chunk in cell.samples.chunks()]
    arrays: dict[str, NDArray] = {
        name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }
    if "text" in names and cell.prompts is not None:
        texts, cut = network.texts(cell.prompts)
        arrays |= texts | {"cut": cut.astype(np.uint8)}
    return {f"feature.{metric.extractor}.{name}": array for name, array in arrays.items()}
