"""The columns of the quality metrics, generated for every metric: value, change against none,
detectable change, margin, verdict and frontier. For every table that has them (see
`ditbench.reports.tables.columns`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ditbench.analysis.rows import Interval, Part, QualityEntry
from ditbench.reports.sections.format import (
    DASH,
    decimals,
    fixed,
    interval,
    number,
    short,
    spoken,
    value,
)
from ditbench.reports.sections.rows import ReportRow
from ditbench.reports.tables.columns import Column, TableCell, in_order

DIRECTION = {"higher": "higher is better", "lower": "lower is better"}
SECOND_MINUS_FIRST = "alignment minus none, second judge minus first"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric of a row, or a part of one."""

    row: ReportRow
    metric: str
    part: str = ""
    """"" for the whole metric."""

    @property
    def entry(self) -> QualityEntry:
        """Of the whole metric."""
        return self.row["quality"][self.metric]

    @property
    def numbers(self) -> Part | QualityEntry:
        """Value and change."""
        return self.entry["parts"][self.part] if self.part else self.entry

    @property
    def second(self) -> Interval | None:
        """The second judge's change minus the first's."""
        of_judge = self.metric == "align.shapes_check_v1" and not self.part
        return self.row["second_judge"] if of_judge else None

    @property
    def label(self) -> str:
        """In heads where there is little room."""
        video = self.entry["table"] == "video"
        name = self.metric.partition(".")[2] if video else short(self.metric)
        return f"{name} {self.part}".strip()


def _whole(name: str) -> Any:
    """A key of the entry, which parts do not have."""
    return lambda m: None if m.part else m.entry[name]


def _entry(name: str) -> Any:
    """A key of the entry, for its parts too."""
    return lambda m: m.entry[name]


def _glance_value(m: Measure) -> str:
    compares = m.metric.endswith(".vs_none")
    below = m.entry["unit"] if compares else DIRECTION.get(m.entry["better"], "")
    return f"{m.metric}\n{below}".strip()


def _in_details(m: Measure) -> bool:
    """Whether the page's details have the value: not where the first table has the same."""
    first = m.metric.endswith(".vs_none") and m.entry["table"] == ""
    return bool(m.numbers["value"]) and (bool(m.part) or not first)


COLUMNS: Sequence[Column[Measure]] = (
    Column(
        name="value", value=lambda m: m.numbers["value"], is_estimate=True, counted=True,
        where={"csv": 1, "sheet": 1, "glance": 1, "page": 1},
        heads={
            "sheet": lambda m: m.metric,
            "glance": _glance_value,
            "page": lambda m: m.label if _in_details(m) else "",
        },
    ),
    Column(
        name="delta", value=lambda m: m.numbers["delta"], is_estimate=True, counted=True,
        where={"csv": 2, "sheet": 2, "glance": 2, "page": 2},
        heads={
            "sheet": lambda m: "" if m.entry["against_none"] else f"{m.metric} minus none",
            "glance": lambda m: "" if m.metric.endswith(".vs_none") else f"{m.label}\nminus none",
            "page": lambda m: f"{m.label}\nminus none" if _in_details(m) else "",
        },
    ),
    Column(
        name="delta_minus_first_judge", value=lambda m: m.second, is_estimate=True,
        where={"csv": 3, "sheet": 7},
        heads={
            "sheet": lambda m: SECOND_MINUS_FIRST if m.metric == "align.shapes_check_v1" else ""
        },
    ),
    Column(
        name="mde", value=_whole("mde"), where={"csv": 4, "sheet": 3, "page": 3},
        heads={
            "sheet": lambda m: "" if m.entry["against_none"] else f"{m.metric} detectable",
            "page": lambda m: f"{m.label}\ndetectable" if m.entry["mde"] is not None else "",
        },
    ),
    Column(name="se_jackknife", value=_whole("se_jackknife"), where={"csv": 5}),
    Column(
        name="frontier", value=_whole("frontier"), where={"csv": 6, "sheet": 6, "page": 6},
        heads={
            "sheet": lambda m: f"{m.metric} on frontier" if m.entry["primary"] else "",
            "page": lambda m: f"{m.label}\non frontier" if m.entry["primary"] else "",
        },
    ),
    Column(
        name="verdict", value=_whole("verdict"),
        where={"csv": 7, "sheet": 5, "glance": 5, "page": 5},
        heads={
            "sheet": lambda m: "" if m.entry["against_none"] else f"{m.metric} verdict",
            "glance": lambda m: "" if m.metric.endswith(".vs_none") else f"{m.label}\nverdict",
            "page": lambda m: f"{m.label}\nverdict" if m.entry["mde"] is not None else "",
        },
    ),
    Column(
        name="margin", value=_whole("margin"), where={"csv": 8, "page": 4},
        heads={"page": lambda m: f"{m.label}\nmargin" if m.entry["mde"] is not None else ""},
    ),
    Column(name="p", value=_whole("p"), where={"csv": 9}),
    Column(name="p_equivalent", value=_whole("p_equivalent"), where={"csv": 10}),
    Column(name="p_holm", value=_whole("p_holm"), where={"csv": 11}),
    Column(name="p_equivalent_holm", value=_whole("p_equivalent_holm"), where={"csv": 12}),
    Column(name="better", value=_entry("better"), where={"csv": 13}),
    Column(name="unit", value=_entry("unit"), where={"csv": 14}),
    Column(name="interval", value=_entry("interval"), where={"csv": 15}),
    Column(name="reason", value=_entry("reason"), where={"csv": 16}),
    Column(name="delta_reason", value=_entry("delta_reason"), where={"csv": 17}),
    Column(name="extractor", value=_entry("extractor"), where={"csv": 18}),
    Column(name="reference", value=_entry("reference"), where={"csv": 19}),
    Column(name="label", value=lambda m: m.row["label"], where={"csv": 20}),
    Column(name="n_identical", value=_whole("n_identical"), where={"csv": 21}),
)  # fmt: skip
PARTED = ("value", "delta")
"""Columns that the page has for parts of a metric too."""


def lines(row: ReportRow, tables: Collection[str]) -> dict[str, str]:
    """The metrics of some tables of a row for Markdown and LaTeX."""
    line: dict[str, str] = {}
    for metric, entry in row["quality"].items():
        if entry["table"] in tables:
            measure = Measure(row=row, metric=metric)
            line |= {head: _line(c, measure) for c, head in _headed("sheet", measure)}
    return line | {"n": str(row["num_samples"])}


def glance(row: ReportRow, table: str) -> dict[str, TableCell]:
    """The metrics of one table of a row for the page; of the first table those that are primary or
    compare with none: the others are in the details."""
    line: dict[str, TableCell] = {}
    for metric, entry in row["quality"].items():
        first = entry["primary"] or (entry["against_none"] and not entry["table"])
        if (entry["table"] == table) if table else first:
            measure = Measure(row=row, metric=metric)
            for column, head in _headed("glance", measure):
                line[head] = (*_cell(column, measure), _rests_on(column, measure))
    return line


def details(row: ReportRow) -> dict[str, TableCell]:
    """Every metric and its parts for the page, with what could be detected, the verdict and the
    record key."""
    line: dict[str, TableCell] = {}
    for metric, entry in row["quality"].items():
        if entry["table"] == "video":
            continue
        whole = Measure(row=row, metric=metric)
        parts = [Measure(row=row, metric=metric, part=part) for part in entry["parts"]]
        for measure in (whole, *parts):
            line |= {
                head: _cell(c, measure) for c, head in _headed("page", measure) if c.name in PARTED
            }
        line |= {h: _cell(c, whole) for c, h in _headed("page", whole) if c.name not in PARTED}
    return line | {"n": (str(row["num_samples"]), ""), "record key": (row["key"], "")}


def _headed(face: str, measure: Measure) -> Iterator[tuple[Column[Measure], str]]:
    for column in in_order(COLUMNS, face):
        if head := column.head(face, measure):
            yield column, head


def _line(column: Column[Measure], measure: Measure) -> str:
    """On one line."""
    if column.is_estimate:
        estimate, places = column.value(measure), decimals(measure.metric)
        return spoken(estimate, places, signed=column.name != "value")
    return _cell(column, measure)[0]


def _cell(column: Column[Measure], measure: Measure) -> tuple[str, str]:
    """On two lines, an interval on the second."""
    number, places = column.value(measure), decimals(measure.metric)
    if column.is_estimate:
        signed = column.name != "value"
        return value(number, places, signed), interval(number, places, signed)
    if column.name == "verdict":
        return number or DASH, ""
    return fixed(number, 2 if column.name == "frontier" else places), ""


def _rests_on(column: Column[Measure], measure: Measure) -> str:
    """What a number rests on: its n and how its interval was made, or why there is none."""
    if not column.is_estimate:
        return ""
    entry, estimate = measure.entry, column.value(measure)
    if estimate is None:
        return entry["reason"] if column.name == "value" else entry["delta_reason"]
    how = entry["interval"] if estimate["low"] is not None else ""
    made = "; ".join(filter(None, (f"n = {estimate['n']}", how)))
    p = entry["p"] if entry["p_holm"] is None else entry["p_holm"]
    return f"{made}; p = {number(p, 2)}" if column.name == "delta" and p is not None else made
