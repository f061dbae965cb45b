"""Statistics of sets in the scores of a cell: each as an array beside the per-sample values, so that
features are not wanted, which a published run has none of. No torch.

METRIC@read      the statistic: value, unbiased value (NaN: none), units behind its parts (0: its
                 own), then the parts, as `ditbench.metrics.statistic_cache.array_of` has them
METRIC@check     the same of its check, where it has one
METRIC@each      values of 0 or 1 whose mean the statistic is, where it is such a mean
METRIC@floor     what perfect samples would score at this n, where that is said
FEATURES@shape   shape of the features that were left out
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ditbench.metrics.statistic_cache import array_of, reading_of
from ditbench.records.scores import Scores
from ditbench.statistics.estimates import Array
from ditbench.statistics.influence import Reading

ARRAYS = ("read", "read.head", "check", "check.head", "each", "floor")
"""After a metric's name and an @."""
FEW = 64
"""Arrays of more distinct numbers are rounded to single precision."""


def published_reading(
    scores: Scores, metric: str, what: Literal["read", "check"]
) -> Reading | None:
    """A statistic as a published run has it; None where there is none."""
    stored = scores.arrays.get(f"{metric}@{what}")
    if stored is None:
        return None
    head = scores.arrays[f"{metric}@{what}.head"]
    return reading_of(np.concatenate([head, stored.astype(np.float64)]))


def published_each(scores: Scores, metric: str) -> Array | None:
    """The 0s and 1s of a statistic as a published run has them."""
    stored = scores.arrays.get(f"{metric}@each")
    return None if stored is None else stored.astype(np.float64)


def published_floor(scores: Scores, metric: str) -> float | None:
    """What perfect samples would score, as a published run has it."""
    stored = scores.arrays.get(f"{metric}@floor")
    return None if stored is None else float(stored[0])


def parts_of(reading: Reading, name: str) -> dict[str, NDArray[Any]]:
    """The arrays of a reading: what stands before its parts, and the parts."""
    numbers = array_of(reading)
    return {f"{name}.head": numbers[:3], name: numbers[3:]}


def is_statistic(name: str, metrics: Container[str]) -> bool:
    """Whether an array is one of a statistic of a metric of these names."""
    metric, at, what = name.partition("@")
    return bool(at) and metric in metrics and what.partition("@")[0] in ARRAYS


def rounded(array: NDArray[Any]) -> NDArray[Any]:
    """In single precision, but for arrays of few distinct numbers, which compress as they are."""
    few = array.dtype != np.float64 or len(np.unique(array)) <= FEW
    return array if few else array.astype(np.float32)
