"""Statistics of network features of the whole set: FID and its kin. The features are
`ditbench.metrics.features`' to extract.

The reference is the run's, told with `--reference` (`ditbench.extractors.references`).
"""

from __future__ import annotations

from numpy.typing import NDArray

from ditbench.metrics import features
from ditbench.metrics.samples import Sampled
from ditbench.metrics.table import Metric


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has no features to make it of, or ""."""
    return features.refuse(cell, metric)


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """That of the features."""
    return features.fingerprint(cell, metric)


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray]:
    """Nothing of its own; ValueError when the features could not be had."""
    if metric.features not in cell.features:
        raise ValueError(f"there are no features of {metric.extractor} of these samples")
    return {}
