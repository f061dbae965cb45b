"""The report on the terminal: a table per model, then the reasons of what did not run."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ditbench.analysis.alone import not_alone, sentences
from ditbench.analysis.interaction import VERDICTS
from ditbench.analysis.primary import primary_of
from ditbench.analysis.quality import ASKED
from ditbench.analysis.rows import QualityEntry, Row
from ditbench.metrics.table import metrics
from ditbench.records.record import RANDOM, SHOWN
from ditbench.reports.sections.findings import findings
from ditbench.reports.sections.format import DASH, decimals, interval, value
from ditbench.reports.sections.rows import ReportRow, status, unmeasured, without_difference
from ditbench.reports.sections.section import Report, Section
from ditbench.reports.tables import columns
from ditbench.reports.tables.columns import Column, Show, TableCell, in_order
from ditbench.reports.terminal.table import SEPARATOR, broken, console, longest_piece

DIM, BAD, WARN = "dim", "red", "yellow"
MIN_STACK = 12
"""Characters the stack's column keeps on a narrow terminal, and more where names need them."""


Shown = Column[ReportRow]


def columns_of(rows: Sequence[ReportRow]) -> list[Shown]:
    """Speed and memory, then value and change of the primary metrics, then what compares with none
    in the first table."""
    chosen = in_order(columns.COLUMNS, "terminal")
    names = metrics()
    for rank, metric in enumerate(primary_of(rows).names):
        chosen.append(_metric(metric, f"{names[metric].label}\nand change", rank))
    alone = [name for name in names if name.endswith(".vs_none") and not names[name].table]
    for rank, metric in enumerate(alone, 6):
        head = f"{names[metric].label}\n{names[metric].unit}".strip()
        chosen.append(_metric(metric, head, rank))
    return chosen


def _metric(metric: str, head: str, rank: int) -> Shown:
    """Value and paired change on one line, the change's interval and its verdict on the next."""
    places = decimals(metric)

    def cell(entry: QualityEntry | None, _: Row) -> TableCell:
        if entry is None or entry["value"] is None:
            return DASH, ""
        change = f"  {value(entry['delta'], places, signed=True)}" if entry["delta"] else ""
        below = interval(entry["delta"], places, signed=True), entry["verdict"]
        return value(entry["value"], places) + change, "\n".join(filter(None, below))

    show = Show(line=lambda entry: value(entry and entry["value"], places), cell=cell)
    return Column(
        name=metric, value=lambda row: row["quality"].get(metric), show=show, rank=rank,
        where={"terminal": rank}, heads={"terminal": head},
    )  # fmt: skip


def _cell(column: Shown, row: ReportRow) -> tuple[str, str]:
    first, second, *_ = column.show.cell(column.value(row), row)
    return first, second if column.show.interval_in_terminal else ""


def _head(column: Shown, rows: Sequence[ReportRow]) -> str:
    return column.head("terminal", rows[0])


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
    filled = [c for c in columns_of(rows) if any(_cell(c, row)[0] != DASH for row in rows)]
    shown = _fitting(filled, rows, out.width)
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, len(SEPARATOR) - 1, 0, 0),
        title=Text(title, style="bold"),
        title_justify="left",
    )
    table.add_column("stack", overflow="fold", min_width=8)
    for column in shown:
        table.add_column(_head(column, rows), justify="right", no_wrap=True)
    room = out.width - sum(_needed(column, rows) for column in shown)
    combined = _verdicts(section, model)
    for row in rows:
        cells = [_two_lines(*_cell(column, row), bad=row["status"] != SHOWN) for column in shown]
        table.add_row(_stack(row, room, combined.get(row["stack"], "")), *cells)
    out.print()
    out.print(table)
    out.print(Text(section.caption(model), style=DIM))
    out.print(
        Text(
            "change = this minus none, same requests and noise; [95 % interval], and its verdict; "
            "more in the tables",
            style=DIM,
        )
    )
    if combined:
        text = (
            "under the name of a combination: whether its methods stack, by the rules in the tables"
        )
        out.print(Text(text, style=DIM))
    for sentence in _unjudged(section, rows):
        out.print(Text(sentence, style=DIM))
    if hidden := [_head(c, rows).replace("\n", " ") for c in filled if c not in shown]:
        out.print(Text(f"not shown for want of width: {', '.join(hidden)}", style=DIM))
    for finding in findings(section, model):
        out.print(Text(finding, style=DIM))
    for note, stacks in _notes(rows).items():
        several = len(stacks) > 3 and set(stacks) == {row["stack"] for row in rows}
        of = "all" if several else ", ".join(stacks)
        out.print(Text(f"{of}: {note}", style=WARN))


def _notes(rows: Sequence[ReportRow]) -> dict[str, list[str]]:
    """Each note once, with the stacks it is about."""
    stacks_of: dict[str, list[str]] = {}
    for row in rows:
        for note in row["notes"]:
            stacks_of.setdefault(note, []).append(row["stack"])
    missing: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for metric in rows[0]["quality"] if rows else ():
        had = any(row["quality"][metric]["value"] for row in rows)
        without: dict[str, list[str]] = {}
        for row in rows:
            entry = row["quality"][metric]
            first = entry["table"] == "" or had
            if first and row["status"] == SHOWN and entry["value"] is None and not row["baseline"]:
                without.setdefault(entry["reason"], []).append(row["stack"])
        for reason, stacks in without.items():
            missing.setdefault((reason, tuple(stacks)), []).append(metric)
    for (reason, of), names in missing.items():
        what = "quality" if reason == RANDOM else ", ".join(names)
        stacks_of.setdefault(f"no {what}: {reason}", []).extend(of)
    measured = [row["stack"] for row in rows if row["status"] == SHOWN]
    stacks_of |= {sentence: measured[1:] for sentence in without_difference(rows)}
    for reason, names in unmeasured(rows, first=False).items():
        by_name = [name for name in names if reason != ASKED and metrics()[name].asked]
        if by_name:
            stacks_of[f"no {', '.join(by_name)}: {reason}"] = measured
    return stacks_of


def _verdicts(section: Section, model: str) -> dict[str, str]:
    """A word for each stack whose methods were run alone too: whether they stack."""
    return {
        row["stack"]: row["verdict"] if row["verdict"] in VERDICTS else "not measured"
        for row in section.stacking
        if row["model"] == model
    }


def _unjudged(section: Section, rows: Sequence[ReportRow]) -> list[str]:
    """A sentence for each combination whose methods were not all run alone."""
    return sentences(
        not_alone({row["stack"]: section.records[row["key"]]["methods"] for row in rows})
    )


def _stack(row: ReportRow, room: int, verdict: str) -> Text:
    word = status(row)
    text = Text("\n".join(broken(row["stack"], room)), style="bold" if row["baseline"] else "")
    if word != SHOWN:
        text.append(f"\n{word}", style=BAD if word in ("failed", "oom") else WARN)
    if verdict and row["status"] == SHOWN:
        text.append(f"\n{verdict}")
    return text


def _two_lines(first: str, second: str, bad: bool) -> Text:
    text = Text(first, style=DIM if bad or first == DASH else "")
    return text.append(f"\n{second}", style=DIM) if second else text


def _fitting(columns: Sequence[Shown], rows: Sequence[ReportRow], width: int) -> list[Shown]:
    """The columns that leave the stack's name `MIN_STACK` characters, and as many as its longest part
    has."""
    fitting = list(columns)
    least = max(MIN_STACK, longest_piece(row["stack"] for row in rows))
    while fitting and least + sum(_needed(column, rows) for column in fitting) > width:
        fitting.remove(max(fitting, key=lambda column: column.rank))
    return fitting


def _needed(column: Shown, rows: Sequence[ReportRow]) -> int:
    lines = _head(column, rows).split("\n")
    lines += [line for row in rows for text in _cell(column, row) for line in text.split("\n")]
    return max(len(line) for line in lines) + len(SEPARATOR)
