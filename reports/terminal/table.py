"""Tables on the terminal: colour where there is a terminal, plain text elsewhere, never wider than
the space there is."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ditbench.reports.sections.format import DASH, number

PLAIN_WIDTH = 120
"""Columns where the output is no terminal and COLUMNS says nothing."""
WORD = 20
"""Characters a column of text keeps at least, if it has as many; what is shorter is never
broken."""


def console() -> Console:
    """Stdout: as wide as the terminal, or `PLAIN_WIDTH` where there is none."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    width = int(os.environ["COLUMNS"]) if os.environ.get("COLUMNS", "").isdigit() else PLAIN_WIDTH
    return Console(highlight=False, width=max(width, 40), no_color=True, force_terminal=False)


def print_rows(rows: Sequence[dict[str, Any]], caption: str = "") -> None:
    """Print rows of any plain table; the first column is never cut or broken."""
    out = console()
    if rows:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        heads = list(dict.fromkeys(head for row in rows for head in row))
        for i, head in enumerate(heads):
            numeric = all(isinstance(row.get(head), int | float | None) for row in rows)
            widest = max(len(_plain(row.get(head))) for row in rows)
            whole = i == 0 or numeric or widest <= WORD
            table.add_column(
                head,
                justify="right" if numeric else "left",
                no_wrap=whole,
                min_width=min(widest, WORD),
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(Text(_plain(row.get(head))) for head in heads))
        out.print(table)
    if caption:
        out.print(Text(caption, style="dim"))


def show_rows(
    rows: Sequence[dict[str, Any]], as_json: bool, caption: str, hide: Sequence[str] = ()
) -> None:
    """Print rows without the columns to `hide` and those that are empty throughout; then, if asked,
    all of it as JSON."""
    heads = dict.fromkeys(h for row in rows for h in row)
    filled = [h for h in heads if h not in hide and any(row.get(h) for row in rows)]
    print_rows([{h: row.get(h) for h in filled} for row in rows], caption)
    if as_json:
        print(json.dumps(rows))  # noqa: T201


def _plain(told: Any) -> str:
    if told is None:
        return DASH
    if isinstance(told, bool):
        return "yes" if told else "no"
    if isinstance(told, int) and abs(told) >= 1_000_000:
        power = min((len(str(abs(told))) - 1) // 3, 5)
        return f"{told / 1000**power:.5g} {' kMGTP'[power]}"
    if isinstance(told, float):
        return number(told, 5)
    if isinstance(told, list | tuple):
        return ", ".join(map(str, told))
    if isinstance(told, dict):
        return ", ".join(f"{name} {what}" for name, what in told.items())
    return str(told)
