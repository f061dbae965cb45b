"""One metric of one cell as the report shows it: value, paired change, interval and what follows
(see `ditbench.analysis.rows`). No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ditbench.analysis import aggregates
from ditbench.analysis.rows import Part, QualityEntry, Record, Scored, Verdict, unscored
from ditbench.extractors.table import find
from ditbench.metrics.set_statistics import STATISTICS, Sets
from ditbench.metrics.table import Metric
from ditbench.records.record import MEASURED, RANDOM
from ditbench.records.scores import Scores
from ditbench.records.text import one_line
from ditbench.statistics import estimates as statistics
from ditbench.statistics import hypothesis
from ditbench.statistics.estimates import Estimate
from ditbench.statistics.frechet import settle, too_few
from ditbench.statistics.influence import contrast

MEANS = "the wider of Student's t and Hall's t for skewed values"
ASKED = "scored only when asked for: score RUN --metrics NAME"


def quality(
    metric: Metric, record: Record, none: Record | None,
    scores: Mapping[str, Scores],
    sets: Sets, margin: float | None, primary: bool,
) -> QualityEntry:  # fmt: skip
    """The entry of a metric for a cell; `none` is the baseline it may be paired with, if any."""
    scored, delta = _scored(metric, record, none, scores, sets)
    return {
        **scored,
        **_tested(delta, margin),
        "better": metric.better, "unit": metric.unit, "primary": primary,
        "against_none": metric.against_none, "margin": margin, "table": metric.table,
        "extractor": find(metric.extractor, sets.references.table).key if metric.extractor else "",
    }  # fmt: skip


def _scored(
    metric: Metric,
    record: Record,
    none: Record | None,
    scores: Mapping[str, Scores],
    sets: Sets,
) -> tuple[Scored, Estimate | None]:
    """The numbers of a metric, and its change with all that a test needs."""
    mine = scores.get(record["key"])
    reason = _missing(metric, record, mine)
    if mine is None or reason:
        return unscored(reason), None
    baseline = record["stack"] == "none"
    theirs = scores.get(none["key"]) if none is not None else None
    if metric.against_none:
        unpaired = aggregates.ALREADY
    elif baseline:
        unpaired = "this is the baseline itself"
    elif theirs is None or none is None or _missing(metric, none, theirs):
        unpaired = "the baseline `none` has no scores in this run"
    else:
        unpaired = ""
    against = None if unpaired else theirs
    try:
        if aggregates.of_sets(metric):
            other = theirs if metric.against_none else against
            scored, delta = aggregates.aggregate(metric, mine, other, baseline)
        elif metric.statistic:
            scored, delta = _statistic(metric, record, mine, against, sets)
        else:
            scored, delta = _means(metric, mine, against)
    except (KeyError, ValueError) as error:  # values that are missing, or of other samples
        return unscored(
            f"its scores are damaged ({one_line(str(error))}); score the run again"
        ), None
    if scored["level"] is None and scored["value"] is not None:
        scored = {**scored, "level": scored["value"]["value"]}
    return {**scored, "delta_reason": scored["delta_reason"] or unpaired}, delta


def _tested(delta: Estimate | None, margin: float | None) -> Verdict:
    """What a change detects and its p-values; the verdict is `ditbench.analysis.verdict.judge`'s,
    which compares all stacks."""
    mde = p = p_equivalent = None
    if delta is not None and delta.se is not None:
        mde, p = statistics.detectable(delta.se) or None, hypothesis.difference_p(delta)
        p_equivalent = None if margin is None else hypothesis.equivalence_p(delta, margin)
    return {
        "mde": mde, "p": p, "p_equivalent": p_equivalent, "p_holm": None,
        "p_equivalent_holm": None, "verdict": "", "frontier": None,
    }  # fmt: skip


def _missing(metric: Metric, record: Record, scores: Scores | None) -> str:
    if record["status"] not in MEASURED:
        return f"the cell is {record['status']}"
    if scores is None:
        random = record["run"].get("weights") == "random"  # never scored, once published
        return (ASKED if metric.asked else RANDOM) if random else "not scored yet"
    return str(scores.reasons.get(metric.name, ASKED if metric.asked else "not scored yet"))


def _means(metric: Metric, mine: Scores, against: Scores | None) -> tuple[Scored, Estimate | None]:
    """The means of a metric and its parts, and the change of the whole metric."""
    parts: dict[str, Part] = {}
    start = f"{metric.name}."
    for name in sorted(name for name in mine.arrays if name.startswith(start)):
        value, change, _ = _mean(metric, name, mine, against)
        parts[name.removeprefix(start)] = {
            "value": value.as_dict(),
            "delta": change.as_dict() if change else None,
        }
    value, delta, how = _mean(metric, metric.name, mine, against)
    scored: Scored = {
        **unscored(),
        "value": value.as_dict(),
        "delta": delta.as_dict() if delta else None,
        "interval": f"{MEANS} over {value.n} prompts{_in_blocks(mine)}{how}" if value.n > 1 else "",
        "parts": parts,
    }
    if metric.name == "psnr.vs_none":
        pooled, identical = aggregates.pooled(mine)
        scored = {**scored, "parts": {"pooled": pooled}, "n_identical": identical}
    return scored, delta


def _in_blocks(scores: Scores) -> str:
    """What is said after a number of prompts whose scores are read by block."""
    return "" if scores.blocks is None else f" in {len(scores.blocks.samples)} blocks"


def _mean(
    metric: Metric, name: str, mine: Scores, against: Scores | None
) -> tuple[Estimate, Estimate | None, str]:
    """Mean of one array of a metric, its paired change, and what else the interval of the mean
    is."""
    values, group, blocks = aggregates.own(name, mine)
    value, how = statistics.mean(values, group, bounds=metric.bounds, blocks=blocks), ""
    if value.n == len(values) and metric.bounds == (0, 1) and hypothesis.is_binary(values):
        low, high = statistics.wilson(int(values.sum()), len(values))
        value, how = replace(value, low=low, high=high), "; of the value Wilson's"
    delta = None
    if against is not None:
        values, others, group, blocks = aggregates.both(name, mine, against)
        if len(values):
            delta = statistics.delta(values, others, group, bounds=metric.bounds, blocks=blocks)
    return value, delta, how


def _statistic(
    metric: Metric,
    record: Record,
    mine: Scores,
    against: Scores | None,
    sets: Sets,
) -> tuple[Scored, Estimate | None]:
    """A statistic of the whole set, and its change."""
    try:
        reading, floor = sets.read(metric, record, mine), sets.floor(metric, record, mine)
        n, _ = sets.shape(metric, mine)
    except ValueError as error:
        return unscored(str(error)), None
    value = Estimate(value=reading.value, low=None, high=None, n=n, se=None)
    scored: Scored = {**unscored(), "value": value.as_dict(), "floor": floor}
    if metric.extractor and not STATISTICS[metric.statistic].alone:
        pointer = sets.references.pointer(metric.extractor, record["model"])
        scored = {**scored, "reference": pointer["sha256"]}
    if against is None:
        return scored, None
    try:
        delta, how, error_jackknife = statistic_delta(metric, record, mine, against, sets)
    except ValueError as error:
        return {**scored, "delta_reason": str(error)}, None
    return {
        **scored,
        "delta": delta.as_dict(),
        "level": sets.read(metric, record, against).value + delta.value,
        "interval": how,
        "se_jackknife": error_jackknife,
    }, delta


def statistic_delta(
    metric: Metric, record: Record, mine: Scores, against: Scores, sets: Sets
) -> tuple[Estimate, str, float | None]:
    """The paired difference of a statistic of the whole set, what its interval rests on, and a
    second standard error where there is one.

    ValueError says why there is none.
    """
    statistic, pair, signs = STATISTICS[metric.statistic], (mine, against), (1, -1)
    n, d = sets.shape(metric, mine)
    if statistic.each:
        values, others = (sets.each(metric, record, scores) for scores in pair)
        delta = statistics.delta(
            values, others, mine.arrays["group"], bounds=(0.0, 1.0), blocks=mine.blocks
        )
    elif not statistic.check:
        delta = contrast([sets.read(metric, record, scores) for scores in pair], signs)
    else:
        if reason := too_few(n, d):  # before the jackknife, which costs an eigenproblem per block
            raise ValueError(reason)
        jackknifed = [sets.read(metric, record, scores, check=True) for scores in pair]
        delta = settle(
            [sets.read(metric, record, scores) for scores in pair], jackknifed, signs, n, d
        )
        error = contrast(jackknifed, signs).se
        how = _units(statistic.interval, mine)
        how = how if delta.se != error else "jackknife over {n} blocks of prompts"
        return (
            delta,
            f"{how.format(n=delta.n)}, bias in n taken away by the jackknife, at n = {n}",
            error,
        )
    return delta, f"{_units(statistic.interval, mine).format(n=delta.n)}, at n = {n}", None


def _units(interval: str, scores: Scores) -> str:
    """How a difference gets its interval, where scores are read by block."""
    if scores.blocks is None:
        return interval
    return re.sub(r"^(influence.*\{n\}) prompts$", r"\1 blocks of prompts", interval)
