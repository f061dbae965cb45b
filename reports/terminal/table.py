"""Tables on the terminal: colour where there is a terminal, plain text elsewhere, never wider than
the space there is."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ditbench.records.files import json_text
from ditbench.records.text import UNSHOWN, clean
from ditbench.reports.sections.format import DASH, number

PLAIN_WIDTH = 120
"""Columns where the output is no terminal and COLUMNS says nothing."""
WORD = 20
"""Characters up to which a text is never broken."""
TEXT = 16
"""Characters a column of longer texts keeps at least."""
NAME = 36
"""Characters a piece of a name has at most before it is broken anywhere."""
NAME_BREAK = r"(?<=[\w)]\+)|(?<= )|(?=\()"
HEAD_BREAK = r"(?<=[_ ])"
STACK = "stack"
"""Head of the column that names a row beside its model."""
SEPARATOR = "  "
"""What lies between two columns."""


class Terminal(Console):
    """A console that lets nothing through that a terminal would obey, but for its own colours."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of what is printed, their texts clean."""
        segments = list(super().render(renderable, options))
        if not UNSHOWN.search("".join([segment.text for segment in segments])):
            return segments
        return [s if s.control else Segment(clean(s.text), s.style) for s in segments]

    def on_broken_pipe(self) -> None:
        """Leave it to the command, which ends well when nobody reads on."""
        raise BrokenPipeError


def console() -> Console:
    """Stdout: as wide as the terminal, or `PLAIN_WIDTH` where there is none."""
    if sys.stdout.isatty():
        return Terminal(highlight=False)
    width = int(os.environ["COLUMNS"]) if os.environ.get("COLUMNS", "").isdigit() else PLAIN_WIDTH
    return Terminal(highlight=False, width=max(width, 40), no_color=True, force_terminal=False)


def print_rows(rows: Sequence[dict[str, Any]], caption: str = "") -> None:
    """Print rows of any plain table within the width there is: lines end between words, and within
    one after a plus or before a bracket. The widest columns that do not fit are printed below the
    table, row by row."""
    out = console()
    if rows:
        heads = list(dict.fromkeys(head for row in rows for head in row))
        columns = [_column(head, [row.get(head) for row in rows]) for head in heads]
        names = _names(columns)
        inside, rest = list(columns), [column for column in columns if column not in names]
        while rest and _missing(inside, out.width) > 0:
            widest = max(rest, key=lambda column: (not column.numeric, column.widest))
            rest.remove(widest)
            inside.remove(widest)
        table = Table(
            box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, len(SEPARATOR) - 1, 0, 0)
        )
        cells = []
        for column, width in zip(inside, _widths(inside, out.width), strict=True):
            table.add_column(
                "\n".join(broken(column.head, width, HEAD_BREAK)),
                justify="right" if column.numeric else "left",
                width=width,
                overflow="fold",
            )
            cells.append(["\n".join(_lines(cell, width)) for cell in column.cells])
        for row in zip(*cells, strict=True):
            table.add_row(*map(Text, row))
        out.print(table)
        for line in _below(names, [column for column in columns if column not in inside]):
            out.print(Text(line, overflow="fold"))
    if caption:
        out.print(Text(caption, style="dim"))


@dataclass(frozen=True)
class _Column:
    head: str
    cells: tuple[str, ...]
    numeric: bool
    least: int
    """Characters it is never narrower than."""
    widest: int
    """Characters it needs to have each cell on one line."""


def _column(head: str, values: Sequence[Any]) -> _Column:
    cells = tuple(map(_plain, values))
    numeric = all(isinstance(value, int | float | None) for value in values)
    longest = max(map(len, cells))
    least = longest
    if not numeric and longest > WORD:
        least = max(longest_piece(cells), TEXT if any(" " in cell for cell in cells) else 0)
    least = max(least, *map(len, re.split(HEAD_BREAK, head)))
    return _Column(head, cells, numeric, least, max(longest, len(head)))


def _missing(columns: Sequence[_Column], width: int) -> int:
    """Characters that the narrowest columns need beyond `width`."""
    return sum(c.least for c in columns) + len(SEPARATOR) * (len(columns) - 1) - width


def _widths(columns: Sequence[_Column], width: int) -> list[int]:
    """Characters of each column: what is left over goes to names first, then evenly to the others,
    those that need least first."""
    spare = max(-_missing(columns, width), 0)
    widths = [min(column.least, width) for column in columns]
    order = sorted(
        range(len(columns)), key=lambda i: (i != 0, columns[i].widest - columns[i].least)
    )
    for n, i in enumerate(order):
        share = spare if i == 0 else spare // (len(order) - n)
        more = min(columns[i].widest - columns[i].least, share)
        widths[i] += more
        spare -= more
    return widths


def _names(columns: Sequence[_Column]) -> Sequence[_Column]:
    """The columns that name a row: the first, and the second where that is the stack or the first
    names several."""
    unique = len(set(columns[0].cells)) == len(columns[0].cells)
    stacks = len(columns) > 1 and columns[1].head == STACK
    return columns[: 1 if unique and not stacks else 2]


def _below(names: Sequence[_Column], outside: Sequence[_Column]) -> list[str]:
    """A line for each row with what it has in the columns `outside` the table."""
    lines = []
    for i in range(len(names[0].cells)):
        facts = [f"{c.head}: {c.cells[i]}" for c in outside if c.cells[i] not in ("", DASH)]
        if facts:
            lines.append(f"{' '.join(c.cells[i] for c in names)}: {'; '.join(facts)}")
    return lines


def _lines(cell: str, width: int) -> list[str]:
    return [line for part in cell.split("\n") for line in broken(part, width)]


def longest_piece(names: Iterable[str]) -> int:
    """Characters of the longest part of names that `broken` keeps on one line, at most `NAME`."""
    pieces = (piece.rstrip() for name in names for piece in re.split(NAME_BREAK, name))
    return min(max(map(len, pieces), default=0), NAME)


def broken(name: str, width: int, at: str = NAME_BREAK) -> list[str]:
    """A name or text in lines of at most `width` characters: broken between words, after the plus of
    a stack, before a bracket, or anywhere at need."""
    lines = [""]
    for piece in re.split(at, name):
        word = piece.rstrip(" ")
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        while len(word) > width:
            lines[-1], word = word[:width], word[width:]
            lines.append("")
        lines[-1] += word + " " * (len(piece) - len(piece.rstrip(" ")))
    return [line.rstrip(" ") for line in lines]


def show_rows(
    rows: Sequence[dict[str, Any]], as_json: bool, caption: str, hide: Sequence[str] = ()
) -> None:
    """Print rows without the columns to `hide` and those that are empty throughout; then, if asked,
    all of it as JSON."""
    heads = dict.fromkeys(h for row in rows for h in row)
    filled = [h for h in heads if h not in hide and any(row.get(h) for row in rows)]
    print_rows([{h: row.get(h) for h in filled} for row in rows], caption)
    if as_json:
        print(json_text(rows))  # noqa: T201


def _plain(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 1_000_000:
        power = min((len(str(abs(value))) - 1) // 3, 5)
        return f"{value / 1000**power:.5g} {' kMGTP'[power]}"
    if isinstance(value, float):
        rounded_before = abs(value) >= 1e-3 and value == float(f"{value:.4g}")
        return f"{value:g}" if rounded_before else number(value, 5)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {what}" for name, what in value.items())
    return str(value)
