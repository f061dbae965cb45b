"""Numbers of a report that are no plain mean of one value a sample: VBench's dimensions and sums,
pooled PSNR, distances between sets."""

from __future__ import annotations

from typing import Any

import numpy as np

from ditbench.metrics import cdfvd, fidelity, vbench
from ditbench.metrics.external.vbench import SUMS, combine
from ditbench.metrics.table import Metric
from ditbench.records.scores import Scores
from ditbench.statistics import estimates as statistics
from ditbench.statistics.estimates import Array, Estimate


def own(name: str, scores: Scores) -> tuple[Array, Array]:
    """Values of a metric and the numbers of their prompts, [k] each; k < n where `<name>@rows` says
    which samples have one."""
    rows = scores.arrays.get(f"{name}@rows")
    group = scores.arrays["group"]
    return scores.arrays[name], group if rows is None else group[rows]


def both(name: str, mine: Scores, theirs: Scores) -> tuple[Array, Array, Array]:
    """Values of two cells on the samples that both have, and the numbers of their prompts, [k]
    each."""
    rows, others, group = (
        mine.arrays.get(f"{name}@rows"),
        theirs.arrays.get(f"{name}@rows"),
        mine.arrays["group"],
    )
    if rows is None or others is None:
        return mine.arrays[name], theirs.arrays[name], group
    shared, i, j = np.intersect1d(rows, others, return_indices=True)
    return mine.arrays[name][i], theirs.arrays[name][j], group[shared]


def pooled(mine: Scores) -> dict[str, Any]:
    """What stands beside the mean PSNR: PSNR of the pooled error, and how many samples are
    identical to the un-accelerated ones."""
    errors = mine.arrays["mse.vs_none"]
    mean = statistics.mean(errors, mine.arrays["group"], bounds=(0.0, 1.0))
    high, low = (
        None if x is None else fidelity.pooled(np.array([max(x, 0.0)]))
        for x in (mean.low, mean.high)
    )
    value = Estimate(value=fidelity.pooled(errors), low=low, high=high, n=mean.n, se=None)
    return {
        "parts": {"pooled": {"value": value.as_dict(), "delta": None}},
        "n_identical": int((errors == 0).sum()),
    }


def of_sets(metric: Metric) -> bool:
    """Whether a metric is made of the scores of whole sets by `fill`."""
    return metric.family == "cdfvd" or (
        metric.family == "vbench" and metric.name.partition(".")[2] in SUMS
    )


def fill(
    entry: dict[str, Any], metric: Metric, mine: Scores, theirs: Scores | None, baseline: bool
) -> Estimate | None:
    """Put value and change of a metric `of_sets` into its entry, or the reason they are missing;
    the change. `theirs`: scores to compare with.
    """
    if metric.family == "cdfvd":
        _distance(entry, mine, theirs, baseline)
        return None
    what = metric.name.partition(".")[2]
    try:
        entry["value"] = combine(vbench.scored(mine), what).as_dict()
        entry["interval"] = f"Student's t over the influence of {entry['value']['n']} prompts"
        if theirs is not None:
            delta: Estimate = combine(vbench.apart(mine, theirs), what, difference=True)
            entry["delta"] = delta.as_dict()
            return delta
    except ValueError as error:
        reason = "reason" if entry["value"] is None else "delta_reason"
        entry[reason] = entry["delta_reason"] = str(error)
    return None


def _distance(entry: dict[str, Any], mine: Scores, theirs: Scores | None, baseline: bool) -> None:
    if baseline or theirs is None or cdfvd.FEATURE not in theirs.arrays:
        entry["reason"] = (
            "this is the baseline itself"
            if baseline
            else "the baseline `none` has no such features in this run"
        )
        return
    try:
        value = cdfvd.distance(mine.arrays[cdfvd.FEATURE], theirs.arrays[cdfvd.FEATURE])
    except ValueError as error:
        entry["reason"] = str(error)
        return
    entry["value"] = Estimate(
        value=value, low=None, high=None, n=len(mine.arrays["group"]), se=None
    ).as_dict()
