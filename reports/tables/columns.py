"""The columns of speed and memory, for every table that has them: a new column is one row of
`COLUMNS`. Those of the metrics are in `ditbench.reports.tables.metric_columns`.

A face is a table for one purpose: "csv" (full precision), "sheet" (Markdown and LaTeX), "glance"
(first table of the page), "page" (the page's details), "terminal".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ditbench.analysis.rows import Interval, Row
from ditbench.reports.sections import format
from ditbench.reports.sections.format import DASH, fixed, interval, number, spoken, times
from ditbench.reports.sections.rows import ReportRow
from ditbench.reports.tables.sheet import spread

T = TypeVar("T")
TableCell = tuple[str, str] | tuple[str, str, str]
"""A number, in smaller type under it its interval, and what it rests on, for who hovers over it."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """How tables for people write one kind of value."""

    line: Callable[[Any], str]
    """On one line."""
    cell: Callable[[Any, Row], TableCell]
    """On two, for a row."""
    interval_in_terminal: bool = True
    """Whether the terminal has room for the second."""


def plain(write: Callable[[Any], str]) -> Show:
    """A value without an interval."""
    return Show(line=write, cell=lambda value, row: (write(value), ""))


@dataclass(frozen=True, kw_only=True)
class Column(Generic[T]):
    """One quantity."""

    name: str
    """In CSVs; what has an interval has columns for both ends too."""
    value: Callable[[T], Any]
    """What CSVs hold: a number, an estimate with its interval, or text; None where there is
    none."""
    show: Show = field(default_factory=lambda: plain(format.text))
    where: Mapping[str, float]
    """The faces that have it, and its place among their columns."""
    heads: Mapping[str, str | Callable[[T], str]] = field(default_factory=dict)
    """Its head by face, where that is not the name; "" for a `T` that does not have the column."""
    counted: bool = False
    """Whether CSVs have the number of units behind the estimate."""
    is_estimate: bool = False
    """Whether the value is an estimate with an interval."""
    optional: bool = False
    """Whether CSVs have it only where a row has a value, as all other tables do."""
    rank: int = 0
    """Columns of the highest ranks are dropped first from a narrow terminal."""

    def head(self, face: str, of: T) -> str:
        """What stands over it in a face."""
        head = self.heads.get(face, self.name)
        return head if isinstance(head, str) else head(of)


def in_order(columns: Iterable[Column[T]], face: str) -> list[Column[T]]:
    """The columns of a face, in its order."""
    return sorted((c for c in columns if face in c.where), key=lambda c: c.where[face])


def without_unused(columns: Iterable[Column[T]], rows: Sequence[T]) -> list[Column[T]]:
    """The columns without the optional ones that no row has a value of."""
    return [c for c in columns if not c.optional or any(c.value(row) is not None for row in rows)]


def csv_line(columns: Iterable[Column[T]], of: T) -> dict[str, Any]:
    """The part of a CSV's line that `columns` fill."""
    line: dict[str, Any] = {}
    for column in in_order(columns, "csv"):
        value = column.value(of)
        if column.is_estimate:
            line |= spread(column.name, value, counted=column.counted)
        else:
            line[column.name] = value
    return line


def seconds_with_interval(estimate: Interval | None) -> str:
    """Seconds per sample with their interval."""
    return DASH if estimate is None else " ".join(filter(None, _seconds(estimate)))


def _seconds(estimate: Interval | None) -> tuple[str, str]:
    if estimate is None:
        return DASH, ""
    low, high = estimate["low"], estimate["high"]
    return number(estimate["value"]), f"[{number(low)}, {number(high)}]" if low is not None else ""


def _ratio(write: Callable[[float], str]) -> Show:
    """A ratio of times to those of the baseline; the baseline's own has no interval."""

    def cell(estimate: Interval | None, row: Row) -> TableCell:
        if estimate is None:
            return DASH, ""
        if row["baseline"]:
            return write(estimate["value"]), ""
        over = row["speedup_interval"]
        how = f"interval over {over}" if over else "no interval"
        shown = write(estimate["value"]), interval(estimate, 2)
        return *shown, f"paired inside rounds; {how}"

    return Show(line=lambda estimate: spoken(estimate, 2), cell=cell)


SPEEDUP = _ratio(times)
FRACTION = _ratio(lambda ratio: fixed(ratio, 2))
FACTOR, SHARE, SIZE = plain(times), plain(format.share), plain(format.size)
SECONDS = Show(
    line=seconds_with_interval,
    cell=lambda estimate, row: _seconds(estimate),
    interval_in_terminal=False,
)
PLAIN_SECONDS = plain(lambda value: DASH if value is None else f"{number(value)} s")
GFLOPS = plain(lambda flops: number(flops / 1e9) if flops else DASH)


def _flops(name: str, place: int) -> Column[ReportRow]:
    return Column(name=name, value=lambda row: row["flops"].get(name), where={"csv": place})


def _stage(stage: str, csv: int, page: int) -> Column[ReportRow]:
    return Column(
        name=f"{stage}_s", value=lambda row: row["timing"][f"{stage}_s"], show=SECONDS,
        is_estimate=True, where={"csv": csv, "page": page}, heads={"page": f"{stage}\ns/sample"},
    )  # fmt: skip


COLUMNS: Sequence[Column[ReportRow]] = (
    Column(name="run", value=lambda row: row["run"], where={"csv": 1}),
    Column(name="model", value=lambda row: row["model"], where={"csv": 2}),
    Column(name="stack", value=lambda row: row["stack"], where={"csv": 3}),
    Column(name="status", value=lambda row: row["status"], where={"csv": 4}),
    Column(name="reason", value=lambda row: row["reason"], where={"csv": 5}),
    Column(name="suspect", value=lambda row: row["suspect"], where={"csv": 6}),
    Column(
        name="call_s", value=lambda row: row["timing"]["call_s"], show=SECONDS,
        is_estimate=True, counted=True, rank=2,
        where={"csv": 10, "sheet": 1, "glance": 4, "page": 8, "terminal": 4},
        heads={
            "sheet": "s/sample", "glance": "seconds\nper sample", "page": "call\ns/sample",
            "terminal": "s/sample",
        },
    ),
    _stage("text", 11, 9), _stage("denoise", 12, 10), _stage("decode", 13, 11),
    Column(
        name="share_denoise", value=lambda row: row["share"]["denoise"], show=SHARE,
        where={"csv": 14, "sheet": 7, "page": 12},
        heads={"sheet": "denoise share", "page": "denoise\nshare"},
    ),
    Column(
        name="speedup_flops", value=lambda row: row["speedup_flops"], show=FACTOR, rank=3,
        where={"csv": 20, "sheet": 2, "glance": 3, "page": 1, "terminal": 3},
        heads={"terminal": "speed-up\nFLOPs"},
    ),
    Column(
        name="speedup_predicted", value=lambda row: row["speedup_predicted"], show=FACTOR,
        where={"csv": 21, "sheet": 3, "page": 2},
    ),
    Column(
        name="speedup_denoise", value=lambda row: row["speedup_denoise"], show=SPEEDUP,
        is_estimate=True, counted=True, rank=5,
        where={"csv": 22, "sheet": 4, "glance": 2, "page": 3, "terminal": 2},
        heads={"terminal": "speed-up\ndenoise"},
    ),
    Column(
        name="speedup_call", value=lambda row: row["speedup_call"], show=SPEEDUP,
        is_estimate=True, counted=True, rank=0,
        where={"csv": 23, "sheet": 5, "glance": 1, "page": 4, "terminal": 1},
        heads={"terminal": "speed-up\ncall"},
    ),
    Column(
        name="speedup_over_compile", value=lambda row: row["speedup_over_compile"], show=SPEEDUP,
        is_estimate=True, counted=True, optional=True, rank=1,
        where={"csv": 23.5, "sheet": 5.5, "glance": 1.5, "page": 4.5, "terminal": 1.5},
        heads={"glance": "over\ncompile", "terminal": "speed-up\nover compile"},
    ),
    Column(
        name="speedup_interval", value=lambda row: row["speedup_interval"],
        where={"csv": 24, "page": 7}, heads={"page": "intervals over"},
    ),
    Column(
        name="realised", value=lambda row: row["realised"], show=FRACTION, is_estimate=True,
        where={"csv": 25, "sheet": 6, "page": 5},
    ),
    Column(
        name="realised_call", value=lambda row: row["realised_call"], show=FRACTION,
        is_estimate=True, where={"csv": 26, "page": 6},
    ),
    Column(
        name="flops", value=lambda row: row["flops"].get("flops"), show=GFLOPS,
        where={"csv": 30, "sheet": 8, "page": 13},
        heads={"sheet": "GFLOPs", "page": "GFLOPs\nper sample"},
    ),
    _flops("linear_macs", 31), _flops("attention_macs", 32), _flops("conv_macs", 33),
    _flops("forwards", 34),
    Column(
        name="weights_bytes", value=lambda row: row["memory"].get("weights_bytes"), show=SIZE,
        where={"csv": 40, "sheet": 9, "page": 14},
        heads={"sheet": "weights", "page": "weights"},
    ),
    Column(
        name="cache_bytes", value=lambda row: row["memory"].get("cache_bytes"), show=SIZE,
        where={"csv": 41, "sheet": 10, "page": 15},
        heads={"sheet": "cache", "page": "kept by\nmethods"},
    ),
    Column(
        name="peak_bytes", value=lambda row: row["memory"].get("peak_bytes"), show=SIZE, rank=4,
        where={"csv": 42, "sheet": 11, "glance": 5, "page": 17, "terminal": 5},
        heads={
            "sheet": "peak", "glance": "peak\nmemory", "page": "peak",
            "terminal": "peak\nmemory",
        },
    ),
    Column(
        name="before_bytes", value=lambda row: row["memory"].get("before_bytes"), show=SIZE,
        where={"csv": 43, "page": 16}, heads={"page": "before"},
    ),
    Column(
        name="reserved_bytes", value=lambda row: row["memory"].get("reserved_bytes"),
        where={"csv": 44},
    ),
    Column(name="memory_source", value=lambda row: row["memory"].get("source"), where={"csv": 45}),
    Column(
        name="first_call_s", value=lambda row: row["first_call_s"], show=PLAIN_SECONDS,
        where={"csv": 46, "page": 18}, heads={"page": "first call"},
    ),
    Column(
        name="compile_s", value=lambda row: row["compile_s"], show=PLAIN_SECONDS, optional=True,
        where={"csv": 46.5, "sheet": 11.5, "glance": 6, "page": 18.5, "terminal": 6}, rank=4,
        heads={
            "sheet": "compiling", "glance": "compiling", "page": "compiling", "terminal": "compiling",
        },
    ),
    Column(
        name="load_s", value=lambda row: row["load_s"], show=PLAIN_SECONDS,
        where={"csv": 47, "page": 19}, heads={"page": "load"},
    ),
    Column(name="drift", value=lambda row: row["drift"], where={"csv": 48}),
    Column(name="drift_bound", value=lambda row: row["drift_bound"], where={"csv": 49}),
    Column(name="rounds", value=lambda row: row["rounds"], where={"sheet": 12}),
)  # fmt: skip


def lines(row: ReportRow) -> dict[str, str]:
    """Speed and memory of a row for Markdown and LaTeX."""
    return {c.head("sheet", row): c.show.line(c.value(row)) for c in in_order(COLUMNS, "sheet")}


def cells(face: str, row: ReportRow) -> dict[str, TableCell]:
    """Speed and memory of a row for a table of the page."""
    return {c.head(face, row): c.show.cell(c.value(row), row) for c in in_order(COLUMNS, face)}
