"""One metric of one cell as the report shows it: value, paired change, interval and what follows
(see `ditbench.analysis.summary`). No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from ditbench.analysis import aggregates as combined
from ditbench.analysis.set_statistics import STATISTICS, Sets
from ditbench.extractors.table import find
from ditbench.metrics.table import Metric, module_of
from ditbench.records.record import MEASURED
from ditbench.records.scores import Scores
from ditbench.statistics import estimates as statistics
from ditbench.statistics import hypothesis
from ditbench.statistics.estimates import Estimate
from ditbench.statistics.frechet import Reference, settle, too_few
from ditbench.statistics.influence import contrast

FLOORED = 256
"""Features up to which perfection at this n is simulated in every report: beyond, it costs
minutes."""
MEANS = "the wider of Student's t and Hall's t for skewed values"
ASKED = "scored only when asked for: score RUN --metrics NAME"


def quality(
    metric: Metric, record: Mapping[str, Any], none: Mapping[str, Any] | None,
    scores: Mapping[str, Scores],
    sets: Sets, margin: float | None,
) -> dict[str, Any]:  # fmt: skip
    """The entry of `quality` for a cell; `none` is the baseline it may be paired with, if any."""
    entry: dict[str, Any] = {
        "value": None, "delta": None, "mde": None, "better": metric.better, "unit": metric.unit,
        "interval": "", "level": None,
        "reason": "", "delta_reason": "", "floor": None, "se_jackknife": None,
        "primary": metric.primary,
        "against_none": metric.against_none, "margin": margin,
        "p": None, "p_equivalent": None, "p_holm": None, "p_equivalent_holm": None, "verdict": "",
        "parts": {},
        "table": metric.table, "n_identical": None, "extractor": "", "reference": "",
    }  # fmt: skip
    if metric.extractor:
        entry["extractor"] = find(metric.extractor, sets.references.table).key
    mine = scores.get(record["key"])
    entry["reason"] = entry["delta_reason"] = _missing(metric, record, mine)
    if mine is None or entry["reason"]:
        return entry
    theirs = scores.get(none["key"]) if none is not None else None
    if metric.against_none:
        entry["delta_reason"] = "the value is already against none"
    elif record["stack"] == "none":
        entry["delta_reason"] = "this is the baseline itself"
    elif theirs is None or none is None or _missing(metric, none, theirs):
        entry["delta_reason"] = "the baseline `none` has no scores in this run"
    against = None if entry["delta_reason"] else theirs
    if combined.of_sets(metric):
        delta = combined.fill(
            entry,
            metric,
            mine,
            theirs if metric.against_none else against,
            record["stack"] == "none",
        )
    elif metric.statistic:
        delta = _statistic(entry, metric, record, mine, against, sets)
    else:
        delta = _means(entry, metric, mine, against)
    if entry["value"] is not None and entry["level"] is None:
        entry["level"] = entry["value"]["value"]
    if delta is not None and delta.se is not None:
        entry["mde"] = statistics.detectable(delta.se) or None
        entry["p"] = hypothesis.difference_p(delta)
        entry["p_equivalent"] = None if margin is None else hypothesis.equivalence_p(delta, margin)
    return entry


def _missing(metric: Metric, record: Mapping[str, Any], scores: Scores | None) -> str:
    if record["status"] not in MEASURED:
        return f"the cell is {record['status']}"
    if scores is None:
        return "not scored yet"
    return str(scores.reasons.get(metric.name, ASKED if metric.asked else "not scored yet"))


def _means(
    entry: dict[str, Any], metric: Metric, mine: Scores, against: Scores | None
) -> Estimate | None:
    """Fill in the means of a metric and its parts; the difference of the whole metric."""
    names = [metric.name] + sorted(
        name for name in mine.arrays if name.startswith(metric.name + ".")
    )
    whole = None
    for name in names:
        values, group = combined.own(name, mine)
        into = (
            entry
            if name == metric.name
            else entry["parts"].setdefault(name.removeprefix(metric.name + "."), {"delta": None})
        )
        value = statistics.mean(values, group, bounds=metric.bounds)
        binary = value.n == len(values) and metric.bounds == (0, 1) and hypothesis.is_binary(values)
        if binary:
            low, high = statistics.wilson(int(values.sum()), len(values))
            value = replace(value, low=low, high=high)
        into["value"] = value.as_dict()
        if against is not None:
            values, others, group = combined.both(name, mine, against)
            if not len(values):
                continue
            delta = statistics.delta(values, others, group, bounds=metric.bounds)
            into["delta"] = delta.as_dict()
            if name == metric.name:
                whole = delta
        if name == metric.name and value.n > 1:
            entry["interval"] = f"{MEANS} over {value.n} prompts" + (
                "; of the value Wilson's" if binary else ""
            )
    if metric.name == "psnr.vs_none":
        entry |= combined.pooled(mine)
    return whole


def _statistic(
    entry: dict[str, Any],
    metric: Metric,
    record: Mapping[str, Any],
    mine: Scores,
    against: Scores | None,
    sets: Sets,
) -> Estimate | None:
    """Fill in a statistic of the whole set; its difference."""
    statistic, features = STATISTICS[metric.statistic], mine.arrays[metric.features]
    try:
        reading, held = sets.read(metric, record, mine), sets.reference(metric, record)
    except ValueError as error:
        entry["reason"] = entry["delta_reason"] = str(error)
        return None
    entry["value"] = Estimate(
        value=reading.value, low=None, high=None, n=len(features), se=None
    ).as_dict()
    if held is not None and statistic.floor and features.shape[1] <= FLOORED:
        entry["floor"] = statistic.floor(len(features), held)
    if metric.extractor and held is not None:
        entry["reference"] = sets.references.pointer(metric.extractor, record["model"])["sha256"]
    if against is None:
        return None
    try:
        delta, entry["interval"], entry["se_jackknife"] = statistic_delta(
            metric, record, mine, against, sets
        )
    except ValueError as error:
        entry["delta_reason"] = str(error)
        return None
    entry["delta"] = delta.as_dict()
    entry["level"] = sets.read(metric, record, against).value + delta.value
    return delta


def statistic_delta(
    metric: Metric, record: Mapping[str, Any], mine: Scores, against: Scores, sets: Sets
) -> tuple[Estimate, str, float | None]:
    """The paired difference of a statistic of the whole set, what its interval rests on, and a
    second standard error where there is one.

    ValueError says why there is none.
    """
    statistic, pair, signs = STATISTICS[metric.statistic], (mine, against), (1, -1)
    n, d = mine.arrays[metric.features].shape
    if statistic.each:
        values, others = (sets.each(metric, record, scores) for scores in pair)
        delta = statistics.delta(values, others, mine.arrays["group"], bounds=(0.0, 1.0))
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
        how = statistic.interval if delta.se != error else "jackknife over {n} blocks of prompts"
        return (
            delta,
            f"{how.format(n=delta.n)}, bias in n taken away by the jackknife, at n = {n}",
            error,
        )
    return delta, f"{statistic.interval.format(n=delta.n)}, at n = {n}", None


def held(references: Mapping[str, Reference], world: str) -> Reference:
    """A world's reference among those given; ValueError when it is not there."""
    if world not in references:
        raise ValueError(f"no reference for the world {world}")
    return references[world]


@cache
def reference_of(world: str, family: str = "shapes_features") -> Reference:
    """The reference a metric family has for a world, read once; ValueError when it is missing or
    damaged."""
    found: Reference = module_of(family).reference(world)
    return found
