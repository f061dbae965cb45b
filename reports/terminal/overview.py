"""The report on the terminal: a table per model, then the reasons of what did not run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ditbench.analysis.quality import ASKED
from ditbench.metrics.table import metrics
from ditbench.records.record import SHOWN
from ditbench.reports.sections.findings import findings
from ditbench.reports.sections.format import DASH, interval, number, places_of, size, times, value
from ditbench.reports.sections.rows import ReportRow, status, unmeasured, without_difference
from ditbench.reports.sections.section import Report, Section
from ditbench.reports.terminal.table import console

DIM, BAD, WARN = "dim", "red", "yellow"
MIN_STACK = 16
"""Characters the stack's column keeps on a narrow terminal."""


@dataclass(frozen=True)
class Column:
    """A column of the report's table; cells have two lines, the number and its interval."""

    head: str
    cell: Callable[[ReportRow], tuple[str, str]]
    rank: int
    """The highest ranks go first when the terminal is narrow."""


def _estimate(name: str) -> Callable[[ReportRow], tuple[str, str]]:
    def cell(row: Any) -> tuple[str, str]:
        return (
            (times(row[name]["value"]), "" if row["baseline"] else interval(row[name], 2))
            if row[name]
            else (DASH, "")
        )

    return cell


def _time(row: ReportRow) -> tuple[str, str]:
    told = row["timing"]["call_s"]
    return number(told["value"] if told else None), ""


def _judged(metric: str) -> Callable[[ReportRow], tuple[str, str]]:
    """Value and paired change on one line, the change's interval on the next."""
    places = places_of(metric)

    def cell(row: ReportRow) -> tuple[str, str]:
        entry = row["quality"].get(metric)
        if entry is None or entry["value"] is None:
            return DASH, ""
        change = f"  {value(entry['delta'], places, signed=True)}" if entry["delta"] else ""
        return value(entry["value"], places) + change, interval(entry["delta"], places, signed=True)

    return cell


def _alone(metric: str) -> Callable[[ReportRow], tuple[str, str]]:
    places = places_of(metric)

    def cell(row: ReportRow) -> tuple[str, str]:
        entry = row["quality"].get(metric)
        return value(entry["value"] if entry else None, places), ""

    return cell


COLUMNS = (
    Column("speed-up\ncall", _estimate("speedup_call"), 0),
    Column("speed-up\ndenoise", _estimate("speedup_denoise"), 5),
    Column("speed-up\nFLOPs", lambda row: (times(row["speedup_flops"]), ""), 3),
    Column("s/sample", _time, 2),
    Column("peak\nmemory", lambda row: (size(row["memory"].get("peak_bytes")), ""), 4),
    Column("alignment\nand change", _judged("align.shapes_v1"), 0),
    Column("Frechet dist.\nand change", _judged("fd.shapes_v1"), 1),
    Column("PSNR\ndB", _alone("psnr.vs_none"), 6),
    Column("SSIM", _alone("ssim.vs_none"), 7),
)


def show(report: Report) -> None:
    """Print every model's table, what was left out, and where the page is."""
    out = console()
    for section in report.sections:
        for model in section.models:
            _show_model(
                out,
                section,
                model,
                title=f"{section.name}: {model}" if len(report.sections) > 1 else model,
            )
        for sentence in section.remarks:
            out.print(Text(f"{section.name}: {sentence}", style=DIM))
        for sentence in section.left_out:
            out.print(Text(f"left out of {section.name}: {sentence}", style=WARN))
        if not section.rows:
            out.print(Text(f"{section.name} has no records yet"))
    out.print(Text(f"page, figures and tables: {report.page}"), soft_wrap=True)


def _show_model(out: Console, section: Section, model: str, title: str) -> None:
    rows = section.models[model]
    filled = [c for c in COLUMNS if any(c.cell(row)[0] != DASH for row in rows)]
    columns = _fitting(filled, rows, out.width)
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=Text(title, style="bold"),
        title_justify="left",
    )
    table.add_column("stack", overflow="fold", min_width=8)
    for column in columns:
        table.add_column(column.head, justify="right", no_wrap=True)
    room = max(MIN_STACK, out.width - sum(_needed(column, rows) for column in columns) - 1)
    for row in rows:
        cells = [_two_lines(*column.cell(row), bad=row["status"] != SHOWN) for column in columns]
        table.add_row(_stack(row, room), *cells)
    out.print()
    out.print(table)
    out.print(Text(section.caption(model), style=DIM))
    out.print(
        Text(
            "change = this minus none, same requests and noise; [95 % interval]; more in the "
            "tables",
            style=DIM,
        )
    )
    if hidden := [c.head.replace("\n", " ") for c in filled if c not in columns]:
        out.print(Text(f"not shown for want of width: {', '.join(hidden)}", style=DIM))
    for finding in findings(section, model):
        out.print(Text(finding, style=DIM))
    for note, stacks in _notes(rows).items():
        out.print(Text(f"{', '.join(stacks)}: {note}", style=WARN))


def _notes(rows: Sequence[ReportRow]) -> dict[str, list[str]]:
    """Each note once, with the stacks it is about."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for note in row["notes"]:
            found.setdefault(note, []).append(row["stack"])
    for metric in rows[0]["quality"] if rows else ():
        had = any(row["quality"][metric]["value"] for row in rows)
        for row in rows:
            entry = row["quality"][metric]
            first = entry["table"] == "" or had
            if first and row["status"] == SHOWN and entry["value"] is None and not row["baseline"]:
                found.setdefault(f"no {metric}: {entry['reason']}", []).append(row["stack"])
    measured = [row["stack"] for row in rows if row["status"] == SHOWN]
    found |= {sentence: measured[1:] for sentence in without_difference(rows)}
    for reason, names in unmeasured(rows, first=False).items():
        asked = [name for name in names if reason != ASKED and metrics()[name].asked]
        if asked:
            found[f"no {', '.join(asked)}: {reason}"] = measured
    return found


def _stack(row: ReportRow, room: int) -> Text:
    told = status(row)
    text = Text("\n".join(_broken(row["stack"], room)), style="bold" if row["baseline"] else "")
    if told != SHOWN:
        text.append(f"\n{told}", style=BAD if told in ("failed", "oom") else WARN)
    return text


def _broken(stack: str, room: int) -> list[str]:
    """A stack's text in lines of at most `room`, broken after a plus, before a bracket, or anywhere
    at need."""
    lines = [""]
    for piece in re.split(r"(?<=\+)|(?=\()", stack):
        if lines[-1] and len(lines[-1]) + len(piece) > room:
            lines.append("")
        for start in range(0, len(piece), room):
            if start:
                lines.append("")
            lines[-1] += piece[start : start + room]
    return lines


def _two_lines(first: str, second: str, bad: bool) -> Text:
    text = Text(first, style=DIM if bad or first == DASH else "")
    return text.append(f"\n{second}", style=DIM) if second else text


def _fitting(columns: Sequence[Column], rows: Sequence[ReportRow], width: int) -> list[Column]:
    """The columns that leave the stack's name `MIN_STACK` characters."""
    kept = list(columns)
    while kept and MIN_STACK + 1 + sum(_needed(column, rows) for column in kept) > width:
        kept.remove(max(kept, key=lambda column: column.rank))
    return kept


def _needed(column: Column, rows: Sequence[ReportRow]) -> int:
    lines = column.head.split("\n") + [line for row in rows for line in column.cell(row)]
    return max(len(line) for line in lines) + 1
