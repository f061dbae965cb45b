"""Any metric of a cell as a value and what each prompt adds to it, so that means and statistics of
the set can be resampled and paired alike. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from ditbench.analysis import aggregates
from ditbench.analysis.rows import Record
from ditbench.metrics.set_statistics import Sets
from ditbench.metrics.table import metrics
from ditbench.records.scores import Scores
from ditbench.statistics.estimates import Array
from ditbench.statistics.influence import Reading, members
from ditbench.statistics.ranks import RESAMPLES


def reading_of(name: str, record: Record, scores: Scores, sets: Sets) -> Reading | None:
    """A metric of a cell; None where the cell was not scored with it, or its values are not all
    finite."""
    metric = metrics()[name]
    if metric.statistic:
        try:
            read = sets.read(metric, record, scores)
        except ValueError:
            return None
        return read if np.isfinite(read.value) and np.isfinite(read.parts).all() else None
    if name not in scores.arrays:
        return None
    values, group, blocks = aggregates.own(name, scores)
    values = np.asarray(values, np.float64)
    if not len(values) or not np.isfinite(values).all():
        return None
    weights = np.ones(len(values)) if blocks is None else blocks.samples
    value, member = float(np.average(values, weights=weights)), members(len(values), group)
    parts = np.bincount(member, weights=weights * (values - value)) / weights.sum()
    return Reading(value=value, parts=parts)


Name = TypeVar("Name")


def draw_again(
    readings: Mapping[Name, Reading], seed: int, draws: int = RESAMPLES
) -> dict[Name, Array]:
    """Values [draws] of each reading when the prompts are drawn again with replacement, the same ones
    for all readings of as many units; to first order, from what each adds."""
    weights: dict[int, Array] = {}
    again = {}
    for name, reading in readings.items():
        num = len(reading.parts)
        if num not in weights:
            rng = np.random.default_rng([seed, num])
            weights[num] = rng.multinomial(num, np.full(num, 1 / num), size=draws).astype(float)
        again[name] = reading.value + weights[num] @ np.asarray(reading.parts, np.float64)
    return again
