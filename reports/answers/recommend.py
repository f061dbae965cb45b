"""The stack of a run to use under limits. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ditbench.analysis.primary import primary_of
from ditbench.analysis.rows import Interval, QualityEntry, Row
from ditbench.metrics.table import Metric
from ditbench.records.record import SHOWN
from ditbench.reports.sections.format import (
    count,
    decimals,
    fixed,
    interval,
    number,
    size,
    spoken,
    times,
)
from ditbench.reports.sections.rows import ReportRow, doubts, status
from ditbench.reports.sections.section import Section
from ditbench.suggest import suggest


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a stack must keep to. Limits of quality and of the speed-up hold for the whole 95 %
    interval, not for its middle."""

    max_memory_gb: float | None = None
    """Of peak memory, in 10^9 bytes."""
    max_seconds: float | None = None
    """Per sample, the median call."""
    min_speedup: float | None = None
    """Of the measured call, over that of `none`."""
    min_alignment: float | None = None
    """Primary score minus that of `none`: alignment, or on a full-size model ImageReward or the CLIP
    score."""
    max_frechet: float | None = None
    """Primary distance minus that of `none`: Fréchet distance, or FID on a full-size model."""


YES, NO, SUSPECT = "yes", "no", "suspect"
"""Whether a stack qualifies. Suspect: all that does not rest on times allows it, and its times are
not to be trusted."""


def recommend(
    section: Section, limits: Limits, models: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for every accelerated stack of a run, the fastest that qualifies first, and a sentence
    for each model: of `models`, or of all. ValueError for a model that the run does not have.

    A stack qualifies when it keeps to the limits, its measured call is faster than that of `none`
    by a 95 % interval, and no primary metric without a limit has the verdict `worse`. Times that
    are suspect neither qualify nor disqualify it: its row says `suspect`, and what to do.
    """
    for name in models:
        if name not in section.models:
            near = suggest(name, section.models)
            raise ValueError(f"no model {name!r} in {section.name}; {near}")
    lines, sentences = [], []
    for model, rows in section.models.items():
        if models and model not in models:
            continue
        judged = [(row, *_judged(row, limits)) for row in rows if not row["baseline"]]
        judged.sort(key=lambda one: ((YES, SUSPECT, NO).index(one[1]), -_factor(one[0])))
        lines += [_line(model, *one) for one in judged]
        sentences.append(f"{model}: {_sentence(judged)}")
    return lines, sentences


def _judged(row: ReportRow, limits: Limits) -> tuple[str, str]:
    """Whether a stack qualifies, and why it does not or what is to be done; "" where it does."""
    timed = not (row["suspect"] and row["speedup_call"])
    reason = _obstacle(row, limits)
    reason = reason or (_seconds_obstacle(row, limits) if timed else "")
    reason = reason or _quality_obstacle(row, limits)
    reason = reason or (_speed_obstacle(row, limits) if timed else "")
    if reason or timed:
        return (NO, reason) if reason else (YES, "")
    return SUSPECT, "; ".join(doubts(row))


def _obstacle(row: Row, limits: Limits) -> str:
    """Why a stack does not qualify by its status or memory, or ""."""
    if row["status"] != SHOWN:
        return f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"])
    if limits.max_memory_gb is None:
        return ""
    peak = row["memory"].get("peak_bytes")
    if peak is None:
        return "its peak memory was not measured"
    if peak > limits.max_memory_gb * 1e9:
        return f"peak memory {size(peak)} is above {number(limits.max_memory_gb)} GB"
    return ""


def _quality_obstacle(row: Row, limits: Limits) -> str:
    """The same by its quality."""
    primary = primary_of([row])
    for metric, limit, side in (
        (primary.score.name, limits.min_alignment, "low"),
        (primary.distance.name, limits.max_frechet, "high"),
    ):
        if limit is not None and (
            reason := _beyond_limit(row["quality"].get(metric), metric, limit, side)
        ):
            return reason
    for primary_metric, given, flag in (
        (primary.score, limits.min_alignment, "--min-alignment"),
        (primary.distance, limits.max_frechet, "--max-frechet"),
    ):
        entry = row["quality"].get(primary_metric.name)
        if given is None and entry is not None and entry["verdict"] == "worse":
            change = spoken(entry["delta"], primary_metric.decimals, signed=True)
            return f"{primary_metric.label} is worse: {change}; {flag} says how much may be lost"
    return ""


def _seconds_obstacle(row: Row, limits: Limits) -> str:
    """The same by its time."""
    if limits.max_seconds is None:
        return ""
    call = row["timing"]["call_s"]
    if call is not None and call["value"] <= limits.max_seconds:
        return ""
    words = "not measured" if call is None else f"{number(call['value'])} s"
    return f"time per sample ({words}) is above {number(limits.max_seconds)} s"


def _speed_obstacle(row: Row, limits: Limits) -> str:
    """The same by its speed-up."""
    speed = row["speedup_call"]
    if speed is None:
        return "no measured speed-up"
    if speed["low"] is None or speed["low"] <= 1:
        return f"not shown to be faster than none: {times(speed['value'])} {interval(speed, 2)}".rstrip()
    if limits.min_speedup is not None and speed["low"] < limits.min_speedup:
        words = f"{times(speed['value'])} {interval(speed, 2)}"
        return f"speed-up {words}: it may be below {times(limits.min_speedup)}"
    return ""


def _beyond_limit(entry: QualityEntry | None, metric: str, limit: float, side: str) -> str:
    if entry is None:
        return f"no {metric} in this run"
    if entry["delta"] is None:
        return f"no change of {metric}: {entry['delta_reason'] or entry['reason']}"
    bound = entry["delta"]["low"] if side == "low" else entry["delta"]["high"]
    places = decimals(metric)
    if bound is None:
        return f"the change of {metric} carries no interval at this n"
    if (bound < limit) if side == "low" else (bound > limit):
        change = spoken(entry["delta"], places, signed=True)
        return f"change of {metric} {change}: it may be {'below' if side == 'low' else 'above'} {fixed(limit, places, signed=True)}"
    return ""


def _sentence(judged: Sequence[tuple[ReportRow, str, str]]) -> str:
    if not judged:
        return "nothing but the un-accelerated model was run"
    suspect = [row for row, qualifies, _ in judged if qualifies == SUSPECT]
    left_open = ""
    if suspect:
        reasons = dict.fromkeys(doubt for row in suspect for doubt in doubts(row))
        left_open = (
            f"; the times of {_listed(suspect)} are suspect, which settles nothing: "
            f"{'; '.join(reasons)}"
        )
    qualified = [row for row, qualifies, _ in judged if qualifies == YES]
    if not qualified:
        none = (
            "no stack qualifies" if len(judged) > 1 else f"{judged[0][0]['stack']} does not qualify"
        )
        if suspect:
            none = "no stack is known to qualify"
        return none + left_open
    best, *others = qualified
    sentence = f"use {best['stack']}: {spoken(best['speedup_call'], 2)} times as fast"
    score, change = _score(best)
    if change is not None:
        sentence += f", {score.label} {spoken(change, score.decimals, signed=True)}"
    if best["memory"].get("peak_bytes"):
        sentence += f", peak {size(best['memory']['peak_bytes'])}"
    close = [row["stack"] for row in others if _reach(row)[1] >= _reach(best)[0]]
    if close:
        sentence += f"; no significant difference in speed: {', '.join(close)}"
    return sentence + left_open


def _listed(rows: Sequence[Row]) -> str:
    """Stacks by name, where they are no more than three."""
    if len(rows) > 3:
        return count(len(rows), "stack")
    return ", ".join(row["stack"] for row in rows)


def _reach(row: Row) -> tuple[float, float]:
    """The interval of a speed-up; without end where there is none."""
    speed = row["speedup_call"]
    if speed is None or speed["low"] is None or speed["high"] is None:
        return -math.inf, math.inf
    return speed["low"], speed["high"]


def _score(row: Row) -> tuple[Metric, Interval | None]:
    """The primary score of a row's model, and its change."""
    score = primary_of([row]).score
    entry = row["quality"].get(score.name)
    return score, entry["delta"] if entry else None


def _factor(row: Row) -> float:
    return float(row["speedup_call"]["value"]) if row["speedup_call"] else 0.0


def _line(model: str, row: Row, qualifies: str, reason: str) -> dict[str, Any]:
    shown = row["status"] == SHOWN
    score, change = _score(row)
    return {
        "model": model, "stack": row["stack"], "qualifies": qualifies,
        "speedup_call": spoken(row["speedup_call"], 2) if row["speedup_call"] else "",
        f"{score.label} minus none": spoken(change, score.decimals, signed=True) if change else "",
        "peak": size(row["memory"].get("peak_bytes")) if shown else "", "n": row["num_samples"],
        "reason": reason,
        "status": status(row),
    }  # fmt: skip
