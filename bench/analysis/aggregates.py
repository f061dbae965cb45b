"""Numbers of a report that are no plain mean of one value a sample: VBench's dimensions and sums,
pooled PSNR, distances between sets."""

from __future__ import annotations

import numpy as np

from ditbench.analysis.rows import Part, Scored, unscored
from ditbench.metrics import cdfvd, fidelity, vbench
from ditbench.metrics.external.vbench import SUMS, combine
from ditbench.metrics.table import Metric
from ditbench.records.scores import Scores
from ditbench.statistics import estimates as statistics
from ditbench.statistics.estimates import Array, Estimate

ALREADY = "the value is already against none"
"""Why there is no change of a comparison with the baseline."""


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


def pooled(mine: Scores) -> tuple[Part, int]:
    """What stands beside the mean PSNR: PSNR of the pooled error, and how many samples are
    identical to the un-accelerated ones."""
    errors = mine.arrays["mse.vs_none"]
    mean = statistics.mean(errors, mine.arrays["group"], bounds=(0.0, 1.0))
    high, low = (
        None if x is None else fidelity.pooled(np.array([max(x, 0.0)]))
        for x in (mean.low, mean.high)
    )
    value = Estimate(value=fidelity.pooled(errors), low=low, high=high, n=mean.n, se=None)
    return {"value": value.as_dict(), "delta": None}, int((errors == 0).sum())


def of_sets(metric: Metric) -> bool:
    """Whether a metric is made of the scores of whole sets by `aggregate`."""
    return metric.family == "cdfvd" or (
        metric.family == "vbench" and metric.name.partition(".")[2] in SUMS
    )


def aggregate(
    metric: Metric, mine: Scores, theirs: Scores | None, baseline: bool
) -> tuple[Scored, Estimate | None]:
    """The numbers of a metric `of_sets`, or the reason they are missing, and its change. `theirs`:
    scores to compare with."""
    if metric.family == "cdfvd":
        return _distance(mine, theirs, baseline), None
    name = metric.name.partition(".")[2]
    try:
        value = combine(vbench.scored(mine), name)
    except ValueError as error:
        return unscored(str(error)), None
    scored: Scored = {
        **unscored(),
        "value": value.as_dict(),
        "interval": f"Student's t over the influence of {value.n} prompts",
    }
    if theirs is None:
        return scored, None
    try:
        delta = combine(vbench.apart(mine, theirs), name, difference=True)
    except ValueError as error:
        return {**scored, "delta_reason": str(error)}, None
    return {**scored, "delta": delta.as_dict()}, delta


def _distance(mine: Scores, theirs: Scores | None, baseline: bool) -> Scored:
    if baseline:
        return unscored("this is the baseline itself", ALREADY)
    if theirs is None or cdfvd.FEATURE not in theirs.arrays:
        return unscored("the baseline `none` has no such features in this run", ALREADY)
    try:
        distance = cdfvd.distance(mine.arrays[cdfvd.FEATURE], theirs.arrays[cdfvd.FEATURE])
    except ValueError as error:
        return unscored(str(error), ALREADY)
    n = len(mine.arrays["group"])
    value = Estimate(value=distance, low=None, high=None, n=n, se=None)
    return {**unscored(), "value": value.as_dict()}
