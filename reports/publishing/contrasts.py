"""Cells of a run set against another stack than `none`, and the noise floor, as tables for people.
No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from math import inf
from statistics import fmean

from ditbench.analysis.primary import primary_of
from ditbench.analysis.quality import statistic_delta
from ditbench.analysis.trainings import over_trainings, without_training
from ditbench.extractors.references import ReferenceSets
from ditbench.method.dial import NEAR
from ditbench.method.stack import Stack
from ditbench.metrics.set_statistics import Sets, sets_of
from ditbench.metrics.table import Metric, metrics
from ditbench.records.record import SHOWN
from ditbench.records.scores import Scores, read_scores
from ditbench.reports.publishing.grid import grid
from ditbench.reports.sections.format import DASH, decimals, fixed, number, spoken
from ditbench.reports.sections.rows import ReportRow
from ditbench.reports.sections.section import Section
from ditbench.statistics import estimates as statistics
from ditbench.statistics.estimates import Estimate

PERCEPTUAL = "perceptual.shapes_v1"
ONE_POINT = 0.01
"""Of the FLOPs: stacks that save as much are taken to save alike."""
BETTER, WORSE = "▼", "▲"
FLOOR = {
    "rerun": "batch in two parts",
    "rerun(attention='math')": "other attention",
    "rerun(seed=1)": "other noise",
    "diffsparse": "diffsparse",
}
"""Columns of `floor_table`, by stack."""
FLOOR_METRICS = ("align", "fd", "mmd", "precision", "recall")


@dataclass(frozen=True, kw_only=True)
class Contrasts:
    """Paired differences between any two cells of a run."""

    section: Section
    scores: Mapping[str, Scores]
    sets: Sets

    @classmethod
    def of(cls, section: Section) -> Contrasts:
        """Of a run."""
        return cls(
            section=section,
            scores=read_scores(section.folder, section.records.values()),
            sets=sets_of(None, ReferenceSets(section.folder)),
        )

    def difference(self, metric: Metric, row: ReportRow, other: ReportRow) -> Estimate | None:
        """A metric of `row` minus that of `other`, on the same requests; None where either has
        none."""
        mine, theirs = self.scores.get(row["key"]), self.scores.get(other["key"])
        if mine is None or theirs is None:
            return None
        if metric.statistic:
            record = self.section.records[row["key"]]
            try:
                return statistic_delta(metric, record, mine, theirs, self.sets)[0]
            except ValueError:
                return None
        if metric.name not in mine.arrays or metric.name not in theirs.arrays:
            return None
        pair = mine.arrays[metric.name], theirs.arrays[metric.name]
        return statistics.delta(
            *pair, mine.arrays["group"], bounds=metric.bounds, blocks=mine.blocks
        )


def matched_table(section: Section, budget: str, against: str) -> str:
    """Markdown of the stacks that save about the fraction `budget` of FLOPs: perceptual distance
    to the un-accelerated sample, change of the Fréchet distance.

    A mark says that the stack named `against` is better (▼) or worse (▲) than this by the 95 %
    interval of the paired difference. What a stack saves, per cent, stands where that is more than
    one point from what `against` does. Names are without the knobs that set the budget. Trainings of
    one recipe are one row: their mean, with the spread between them in the interval. ValueError
    when `against` is not there.
    """
    contrasts, cells = Contrasts.of(section), {}
    for model, rows in section.models.items():
        near = _near(rows, float(budget))
        if against not in near:
            raise ValueError(f"{model} has no {against} that saves {budget}")
        for name, trainings in near.items():
            cells[name, model] = _cell(trainings, near[against], contrasts)
    return grid("method", sorted(name for name, _ in cells), cells)


def _near(rows: Sequence[ReportRow], budget: float) -> dict[str, list[ReportRow]]:
    """By name, the trainings of the stack that saves about the budget, and of several of one name
    of the one that saves nearest to it."""
    by_stack: dict[str, list[ReportRow]] = {}
    for row in rows:
        if _off(row, budget) <= NEAR:
            by_stack.setdefault(without_training(row["stack"]), []).append(row)
    near: dict[str, list[ReportRow]] = {}
    for stack, trainings in by_stack.items():
        name = _without_dial(stack)
        if name not in near or _off(trainings[0], budget) < _off(near[name][0], budget):
            near[name] = trainings
    return near


def _off(row: ReportRow, budget: float) -> float:
    """How far the fraction of FLOPs that a row saves is from the budget; infinite for a row without
    results."""
    if row["status"] != SHOWN or not row["speedup_flops"]:
        return inf
    return float(abs(1 - 1 / row["speedup_flops"] - budget))


def _without_dial(stack: str) -> str:
    """A stack with the knobs that set how much is computed at their defaults, also of a method that
    another one replays."""
    methods = []
    for m in Stack.parse(stack).methods:
        usual = {field.name: field.default for field in fields(m)}
        dial = m.dial[0] if m.dial else ""
        plain = {dial: usual[dial]} if dial else {}
        if isinstance(of := getattr(m, "of", None), str):
            plain["of"] = _without_dial(of)
        methods.append(replace(m, **plain))
    return str(Stack.of(*methods))


def _cell(
    trainings: Sequence[ReportRow], against: Sequence[ReportRow], contrasts: Contrasts
) -> str:
    distance = primary_of(trainings).distance
    perceptual = fixed(_mean(_value(row, PERCEPTUAL) for row in trainings))
    change = fixed(_mean(_change(row, distance.name) for row in trainings), 0, signed=True)
    marks = [_mark(contrasts, name, against, trainings) for name in (PERCEPTUAL, distance.name)]
    saved, own = (_mean(map(_saved, rows)) for rows in (trainings, against))
    off = saved is not None and own is not None and abs(saved - own) > ONE_POINT
    savings = f"; {100 * saved:.1f} %" if off and saved is not None else ""
    return f"{perceptual}{marks[0]}; {change}{marks[1]}{savings}"


def _saved(row: ReportRow) -> float | None:
    """Fraction of FLOPs."""
    return 1 - 1 / row["speedup_flops"] if row["speedup_flops"] else None


def _mean(values: Iterable[float | None]) -> float | None:
    """None where one of them is."""
    numbers = list(values)
    known = [number for number in numbers if number is not None]
    return fmean(known) if known and len(known) == len(numbers) else None


def _value(row: ReportRow, metric: str) -> float | None:
    value = row["quality"][metric]["value"]
    return value["value"] if value else None


def _change(row: ReportRow, metric: str) -> float | None:
    delta = row["quality"][metric]["delta"]
    return delta["value"] if delta else None


def _mark(
    contrasts: Contrasts, metric: str, against: Sequence[ReportRow], trainings: Sequence[ReportRow]
) -> str:
    """Of metrics that are better when lower. Trainings are paired in their order; a stack with one
    is set against each of the other's."""
    if against[0]["key"] == trainings[0]["key"]:
        return ""
    pairs = zip_longest(against, trainings)
    each = [
        contrasts.difference(metrics()[metric], mine or against[0], theirs or trainings[0])
        for mine, theirs in pairs
    ]
    changes = [change for change in each if change is not None]
    if len(changes) < len(each):
        return ""
    change = changes[0]
    if len(changes) > 1:
        try:
            change = over_trainings(changes).recipe
        except ValueError:
            return ""
    if change.low is None or change.high is None:
        return ""
    return f" {BETTER}" if change.high < 0 else f" {WORSE}" if change.low > 0 else ""


def against_table(section: Section, against: str, *stacks: str) -> str:
    """Markdown of stacks minus the stack `against`, paired, with 95 % intervals: alignment, the
    Fréchet distance and, where a model has it, the perceptual distance to the un-accelerated samples,
    which both are better when lower. ValueError for a stack that was not run."""
    contrasts, cells = Contrasts.of(section), {}
    for model, rows in section.models.items():
        by_stack = {row["stack"].replace(" ", ""): row for row in rows}  # as a marker names them
        if unknown := [name for name in (against, *stacks) if name not in by_stack]:
            raise ValueError(f"{model} was not run with {unknown[0]}")
        primary = primary_of(rows)
        for stack in stacks:
            for metric, words, places in (
                (primary.score, "alignment", 3),
                (primary.distance, "Fréchet", 0),
                (metrics()[PERCEPTUAL], "perceptual", 3),
            ):
                change = contrasts.difference(metric, by_stack[stack], by_stack[against])
                cells[f"{stack}: {words}", model] = (
                    DASH if change is None else spoken(change.as_dict(), places, signed=True)
                )
    return grid(f"minus {against}", (name for name, _ in cells), cells)


def floor_table(section: Section) -> str:
    """Markdown of the noise floor: by model and metric the un-accelerated value, what changes when
    only rounding does, when the noise does, and with `diffsparse`, and the change that 80 % of runs
    as large would find there."""
    lines = [
        "| model | metric | none | " + " | ".join(FLOOR.values()) + " | detectable |",
        "|---" * 8 + "|",
    ]
    names = [f"{family}.shapes_v1" for family in FLOOR_METRICS]
    for model, rows in section.models.items():
        by_stack = {row["stack"]: row for row in rows}
        for metric in names:
            entries = {
                stack: by_stack[stack]["quality"][metric] for stack in FLOOR if stack in by_stack
            }
            changes = [
                spoken(entries[stack]["delta"], decimals(metric), signed=True)
                if stack in entries
                else DASH
                for stack in FLOOR
            ]
            detectable = entries["diffsparse"]["mde"] if "diffsparse" in entries else None
            cells = [model, metric, number(_value(by_stack["none"], metric)), *changes]
            lines.append("| " + " | ".join([*cells, number(detectable)]) + " |")
    return "\n".join(lines) + "\n"
