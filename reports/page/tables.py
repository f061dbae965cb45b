"""Tables and lists of the page as HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from ditbench.records.record import SHOWN
from ditbench.reports.sections.format import DASH
from ditbench.reports.sections.rows import ReportRow, labelled, status
from ditbench.reports.sections.section import file_name
from ditbench.reports.tables.columns import TableCell
from ditbench.reports.tables.sheet import KEY, Sheet


def row_anchor(section: str, key: str) -> str:
    """The `id` of a row of the first table of its model, by section and record key."""
    return file_name(f"row--{section}--{key}")


def table_of(
    rows: Sequence[ReportRow], cells: Callable[[ReportRow], dict[str, TableCell]], label: str,
    section: str = "",
) -> str:  # fmt: skip
    """A row for each stack, with the columns that any of them fills; those that did not run have
    their reason instead. Rows have the `id` of `row_anchor` where `section` is named."""
    shown = [cells(row) if row["status"] == SHOWN else {} for row in rows]
    heads = list(dict.fromkeys(head for line in shown for head in line))
    heads = [head for head in heads if any(line.get(head, (DASH, ""))[0] != DASH for line in shown)]
    parts = [
        '<thead><tr><th scope="col">stack</th>'
        + "".join(f'<th scope="col">{_broken(head)}</th>' for head in heads)
        + "</tr></thead>"
    ]
    for row, line in zip(rows, shown, strict=True):
        word = status(row)
        mark = f' <span class="mark {escape(word)}">{escape(word)}</span>' if word != SHOWN else ""
        kind = "baseline" if row["baseline"] else "away" if row["status"] != SHOWN else ""
        stack = escape(labelled(row)).replace("+", "+<wbr>").replace("(", "<wbr>(")
        name = f'<th scope="row" title="{escape(row["key"])}">{stack}{mark}</th>'
        if row["status"] != SHOWN:
            filled = f'<td class="reason" colspan="{max(1, len(heads))}"><span>{escape(row["reason"] or word)}</span></td>'
        else:
            filled = "".join(_filled(*line.get(head, (DASH, ""))) for head in heads)
        start = f' id="{row_anchor(section, row["key"])}"' if section else ""
        start += f' class="{kind}"' if kind else ""
        parts.append(f"<tr{start}>{name}{filled}</tr>")
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>{"".join(parts)}</table></div>'


def _filled(first: str, second: str, hover: str = "") -> str:
    start = f'<td title="{escape(hover)}">' if hover else "<td>"
    return (
        f"{start}{escape(first)}<small>{escape(second)}</small></td>"
        if second
        else f"{start}{escape(first)}</td>"
    )


def _broken(head: str) -> str:
    return "<br>".join(
        escape(line).replace("speedup_", "speedup_<wbr>") for line in head.split("\n")
    )


def fold_sheet(sheet: Sheet, model: str) -> str:
    """What a sheet has about a model, folded up; empty where it has nothing."""
    parts = []
    for block in sheet.blocks:
        if block.model == model:
            first, *heads = (head for head in block.lines[0] if head != KEY)
            body = "".join(f'<th scope="col">{_broken(head)}</th>' for head in (first, *heads))
            body = f"<thead><tr>{body}</tr></thead>"
            for line in block.lines:
                name = f'<th scope="row" title="{escape(line.get(KEY, ""))}">{escape(line[first])}</th>'
                body += f"<tr>{name}{''.join(_filled(*_apart(line[head])) for head in heads)}</tr>"
            kind = ' class="imported"' if block.italic else ""
            parts += [f'<p class="quiet">{escape(block.caption)}.</p>'] if block.italic else []
            label = escape(f"{model}: {sheet.title}")
            parts.append(
                f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table{kind}>{body}</table></div>'
            )
            parts += [list_of(block.notes)] if block.notes else []
    words = "".join(f"<p>{escape(sentence)}</p>" for sentence in (sheet.convention, *sheet.rules))
    return (
        f"<details><summary>{escape(sheet.title)}</summary>{words}{''.join(parts)}</details>"
        if parts
        else ""
    )


def _apart(text: str) -> TableCell:
    """A number and its interval."""
    number, bracket, interval = text.partition(" [")
    return number, f"[{interval}" if bracket else ""


def list_of(sentences: Sequence[str]) -> str:
    """Sentences as a list."""
    return (
        '<ul class="notes">'
        + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
        + "</ul>"
    )
