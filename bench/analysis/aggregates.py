"""Numbers of a report that are no plain mean of one value a sample: VBench's dimensions and sums,
pooled PSNR, distances between sets."""

from __future__ import annotations

import numpy as np

from ditbench.analysis.rows import Part, Scored, unscored
from ditbench.metrics import cdfvd, fidelity, vbench
from ditbench.metrics.external.vbench import SUMS, combine
from ditbench.metrics.table import Metric
from ditbench.records.sample_blocks import EQUAL, ZEROS
from ditbench.records.scores import Scores
from ditbench.statistics import estimates as statistics
from ditbench.statistics.estimates import Array, Blocks, Estimate

ALREADY = "the value is already against none"
"""Why there is no change of a comparison with the baseline."""


def own(name: str, scores: Scores) -> tuple[Array, Array, Blocks | None]:
    """Values of a metric and the numbers of their prompts, [k] each, and the blocks that these stand
    for; k < n where `<name>@rows` says which samples have one."""
    rows = scores.arrays.get(f"{name}@rows")
    if rows is not None:
        return scores.arrays[name], scores.group[rows], None
    return scores.arrays[name], scores.arrays["group"], scores.blocks


def both(name: str, mine: Scores, theirs: Scores) -> tuple[Array, Array, Array, Blocks | None]:
    """Values of two cells on the samples that both have, and the numbers of their prompts, [k]
    each, and the blocks that these stand for."""
    rows, others = (s.arrays.get(f"{name}@rows") for s in (mine, theirs))
    if rows is None or others is None:
        return mine.arrays[name], theirs.arrays[name], mine.arrays["group"], mine.blocks
    shared, i, j = np.intersect1d(rows, others, return_indices=True)
    return mine.arrays[name][i], theirs.arrays[name][j], mine.group[shared], None


def pooled(mine: Scores) -> tuple[Part, int]:
    """What stands beside the mean PSNR: PSNR of the pooled error, and how many samples are
    identical to the un-accelerated ones."""
    errors, blocks = mine.arrays[EQUAL], mine.blocks
    mean = statistics.mean(errors, mine.arrays["group"], bounds=(0.0, 1.0), blocks=blocks)
    low, high = (
        None if x is None else fidelity.pooled(np.array([max(x, 0.0)]))
        for x in (mean.high, mean.low)
    )
    if blocks is None:
        whole, zeros = fidelity.pooled(errors), int((errors == 0).sum())
    else:
        average = np.average(errors, weights=blocks.samples, keepdims=True)
        whole, zeros = fidelity.pooled(average), int(mine.arrays[ZEROS][0])
    value = Estimate(value=whole, low=low, high=high, n=mean.n, se=None)
    return {"value": value.as_dict(), "delta": None}, zeros


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
    n = len(mine.group)
    value = Estimate(value=distance, low=None, high=None, n=n, se=None)
    return {**unscored(), "value": value.as_dict()}
