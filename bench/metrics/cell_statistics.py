"""The statistics of a cell's features, put beside its per-sample values when it is scored, so that a
report reads no features. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.metrics.published_statistics import is_statistic
from ditbench.metrics.set_statistics import Sets
from ditbench.metrics.table import metrics
from ditbench.records.score_arrays import BLOCKS
from ditbench.records.scores import SHAPE, Scores


def with_statistics(record: Mapping[str, Any], scores: Scores, sets: Sets) -> Scores:
    """The scores with every statistic of their features as it is to be now, each with what it was
    worked out from, or the reason there is none; the same object where all were there.

    A statistic whose reference is missing is left out: a report says so.
    """
    table = metrics()
    sources: dict[str, str] = {}
    unread: dict[str, str] = {}
    made: dict[str, NDArray[Any]] = {}
    for metric in table.values():
        if not metric.statistic or metric.features not in scores.arrays:
            continue
        if scores.reasons.get(metric.name, "not scored"):
            continue
        try:
            sources[metric.name] = sets.source(metric, record, scores)
        except ValueError:
            continue
        if scores.statistics.get(metric.name) == sources[metric.name]:
            if metric.name in scores.unread:
                unread[metric.name] = scores.unread[metric.name]
            continue
        try:
            arrays = sets.all_of(metric, record, scores)
        except ValueError as error:
            unread[metric.name] = str(error)
        else:
            made |= {f"{metric.name}@{name}": array for name, array in arrays.items()}
        made[metric.features + SHAPE] = np.array(scores.shape_of(metric.features))
    if sources == scores.statistics and unread == scores.unread:
        return scores
    current = {m for m, source in sources.items() if scores.statistics.get(m) == source}
    others = {
        name: scores.arrays[name]
        for name in scores.arrays
        if not name.endswith(BLOCKS)
        and (not is_statistic(name, table) or name.partition("@")[0] in current)
    }
    return replace(scores, arrays=others | made, statistics=sources, unread=unread)
