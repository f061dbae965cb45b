"""What moved between two runs beyond noise: qualities sample by sample, speed-ups, FLOPs and
memory. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ditbench.analysis.primary import primary_metrics
from ditbench.analysis.quality import statistic_delta
from ditbench.analysis.rows import Row
from ditbench.extractors.references import ReferenceSets
from ditbench.metrics.set_statistics import Sets, reference_of
from ditbench.metrics.table import Metric, metrics
from ditbench.records.environment import differing
from ditbench.records.record import SHOWN, environments_of
from ditbench.records.scores import Scores, read_scores
from ditbench.records.settings import CHOICES, DEFAULTS, LABELS
from ditbench.reports.sections.format import DASH, fixed, number, spoken
from ditbench.reports.sections.section import Section
from ditbench.statistics import estimates as statistics
from ditbench.statistics import times
from ditbench.statistics.estimates import Estimate

PAIRED = ("requests_sha256", "num_samples", "dtype", "weights", "vae")
"""What two cells of a stack must share for their samples to be compared."""
TIMED_ALIKE = ("batch_size", "dtype", *CHOICES)
"""What they must share, besides the environment, for times and memory to be compared."""


@dataclass(frozen=True, kw_only=True)
class Gates:
    """How far a quantity may move to the worse before it is a regression; beyond noise it must have
    moved too."""

    alignment: float = 0.01
    """Loss of the primary score (alignment; ImageReward or CLIP score), in its unit."""
    slowdown: float = 0.05
    """Share of the speed-up over `none` that is lost."""
    memory: float = 0.05
    """Share by which the peak has grown."""
    flops: float = 0.01
    """Share by which they have grown."""


def compare(a: Section, b: Section, gates: Gates) -> list[dict[str, Any]]:
    """A row for each model, stack and quantity of both runs: before, after, change with its
    interval, verdict.

    Verdicts: `identical`, `changed` (where neither way is better), `better`, `worse` (the interval
    of the change excludes zero), `regression` (worse, and past the gate), `inconclusive`, or `not
    compared` with the field that differs. A stack that only one of them has is a row with the
    verdict `only before` or `only after`. ValueError when the runs share no cell.
    """
    scores = (
        read_scores(a.folder, a.records.values()),
        read_scores(b.folder, b.records.values()),
    )
    before, after = (
        {(row["model"], row["stack"]): row for row in section.rows} for section in (a, b)
    )
    if not before.keys() & after.keys():
        raise ValueError(f"{a.name} and {b.name} have no model and stack in common")
    rows = []
    for model, stack in dict.fromkeys((*after, *before)):
        old, new = before.get((model, stack)), after.get((model, stack))
        if old is not None and new is not None:
            lines = _cells(old, new, a, b, scores, gates)
        else:
            one, other = (row["status"] if row else "" for row in (old, new))
            lines = [_line("row", one, other, "", "only before" if old else "only after")]
        rows += [{"model": model, "stack": stack} | line for line in lines]
    return rows


def _cells(
    old: Row,
    new: Row,
    a: Section,
    b: Section,
    scores: tuple[Mapping[str, Scores], Mapping[str, Scores]],
    gates: Gates,
) -> list[dict[str, Any]]:
    if old["status"] != SHOWN or new["status"] != SHOWN:
        if old["status"] == new["status"]:
            return []
        worse = old["status"] == SHOWN
        status_after = f"{new['status']}: {new['reason']}" if new["reason"] else new["status"]
        return [
            _line("status", old["status"], status_after, "", "regression" if worse else "better")
        ]
    one, other = a.records[old["key"]], b.records[new["key"]]
    lines = []
    if unlike := _unlike(one, other, PAIRED):
        lines.append(
            _line("quality", "", "", "", f"not compared: not the same {', '.join(unlike)}")
        )
    else:
        lines += _qualities(one, other, scores, gates, b.folder)
    unlike = differing(*(e for record in (one, other) for e in environments_of(record)))
    unlike += _unlike(one, other, TIMED_ALIKE)
    if unlike:
        lines.append(
            _line("times and memory", "", "", "", f"not compared: not the same {', '.join(unlike)}")
        )
    else:
        lines += [
            *_speed(old, new, gates),
            *_peak(old["memory"], new["memory"], gates.memory),
        ]
    return [*lines, *_growth("flops", old["flops"], new["flops"], gates.flops)]


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Those of the settings in which two records differ, as reports call them."""
    older = {name: DEFAULTS[name] for name in CHOICES}  # records without them
    first, second = (older | dict(record["run"]) for record in (one, other))
    return [LABELS[name] for name in names if first.get(name) != second.get(name)]


def _qualities(
    one: Mapping[str, Any],
    other: Mapping[str, Any],
    scores: tuple[Mapping[str, Scores], Mapping[str, Scores]],
    gates: Gates,
    folder: Path,
) -> list[dict[str, Any]]:
    """`folder` of the run after: what it was told as references serves both."""
    mine, theirs = scores[0].get(one["key"]), scores[1].get(other["key"])
    if mine is None or theirs is None:
        return [_line("quality", "", "", "", "not compared: one of them is not scored")]
    lines, sets = [], Sets(reference_of, ReferenceSets(folder))
    score = primary_metrics([mine, theirs]).score.name
    for metric in metrics().values():
        try:
            change = _change(metric, mine, theirs, other, sets)
        except ValueError as error:
            lines.append(_line(metric.name, "", "", "", f"not compared: {error}"))
            continue
        if change is not None:
            before, after, moved = change
            gate = gates.alignment if metric.name == score else None
            places = metric.decimals
            verdict = _verdict(moved, 1 if metric.better == "higher" else -1, gate)
            if metric.better == "neither" and verdict in ("better", "worse"):
                verdict = "changed"
            words = spoken(moved.as_dict(), places, signed=True)
            pair = [
                np.float32(s.arrays.get(metric.name, s.arrays["group"])) for s in (mine, theirs)
            ]
            # an interval would be about samples that were not drawn
            if moved.se == 0 and moved.value == 0 and np.array_equal(pair[0], pair[1]):
                verdict, words = "identical", ""
            lines.append(
                _line(metric.name, fixed(before, places), fixed(after, places), words, verdict)
            )
    return lines


def _change(
    metric: Metric, mine: Scores, theirs: Scores, record: Mapping[str, Any], sets: Sets
) -> tuple[float, float, Estimate] | None:
    """Before, after, and the paired change; None where either has no such metric. ValueError says
    why there is no change."""
    if any(s.reasons.get(metric.name, "missing") for s in (mine, theirs)):
        return None
    group = theirs.arrays["group"]
    if metric.statistic:
        before, after = (sets.read(metric, record, s).value for s in (mine, theirs))
        moved, _, _ = statistic_delta(metric, record, theirs, mine, sets)
        return before, after, moved
    if metric.name not in mine.arrays or metric.name not in theirs.arrays:
        return None
    # published runs hold single precision
    old, new = (s.arrays[metric.name].astype(np.float32).astype(float) for s in (mine, theirs))
    moved = statistics.delta(new, old, group, bounds=metric.bounds, blocks=theirs.blocks)
    weights = None if theirs.blocks is None else theirs.blocks.samples
    before, after = (float(np.average(values, weights=weights)) for values in (old, new))
    return before, after, moved


def _speed(old: Row, new: Row, gates: Gates) -> list[dict[str, Any]]:
    """The speed-up over each run's own baseline: what drifts between the runs drifts for both."""
    if old["baseline"] or old["speedup_call"] is None or new["speedup_call"] is None:
        return []
    ratio = times.quotient(new["speedup_call"], old["speedup_call"])
    before, after = (spoken(row["speedup_call"], 2) for row in (old, new))
    if old["suspect"] or new["suspect"]:
        reason = "not compared: times that are suspect (see the notes of the reports)"
        return [_line("speedup_call", before, after, DASH, reason)]
    if ratio is None:
        return [
            _line("speedup_call", before, after, DASH, "inconclusive: one of them has no interval")
        ]
    shifted = Estimate(
        value=ratio.value - 1, low=None if ratio.low is None else ratio.low - 1,
        high=None if ratio.high is None else ratio.high - 1, n=ratio.n, se=ratio.se,
    )  # fmt: skip
    return [
        _line(
            "speedup_call",
            before,
            after,
            f"x {spoken(ratio.as_dict(), 3)}",
            _verdict(shifted, 1, gates.slowdown),
        )
    ]


def _peak(old: Mapping[str, Any], new: Mapping[str, Any], gate: float) -> list[dict[str, Any]]:
    """The growth of peak memory, or why it is not compared."""
    if reason := new.get("peak_missing") or old.get("peak_missing"):
        return [_line("peak_bytes", "", "", "", f"not compared: {reason}")]
    return _growth("peak_bytes", old, new, gate)


def _growth(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], gate: float
) -> list[dict[str, Any]]:
    """Counted, not sampled: any difference counts, past the gate as a regression."""
    before, after = old.get(name), new.get(name)
    if not before or not after:
        return []
    grown = after / before - 1
    verdict = (
        "identical"
        if grown == 0
        else "regression"
        if grown > gate
        else "better"
        if grown < -gate
        else "inconclusive"
    )
    return [
        _line(
            name, number(before), number(after), f"{fixed(100 * grown, 1, signed=True)} %", verdict
        )
    ]


def _verdict(change: Estimate, better: int, gate: float | None) -> str:
    if change.low is None or change.high is None:
        return "inconclusive: no interval at this n"
    low, high = (change.low, change.high) if better > 0 else (-change.high, -change.low)
    if low > 0:
        return "better"
    if high >= 0:
        return "inconclusive"
    return "regression" if gate is not None and better * change.value < -gate else "worse"


def _line(quantity: str, before: str, after: str, change: str, verdict: str) -> dict[str, Any]:
    return {
        "quantity": quantity,
        "verdict": verdict,
        "before": before,
        "after": after,
        "change": change,
    }
