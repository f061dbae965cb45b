"""The answer of `stack --json` as a table for people: a row per model, a column per combination. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ditbench.reports.wording import DASH, fixed, spoken


def answer_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of the rows that `ditbench.interaction.document` gives: in each cell the verdict, the speed interaction on FLOPs and on
    the clock, and the alignment interaction with its interval."""
    columns = list(dict.fromkeys(_column(row) for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    told = {(row["model"], _column(row)): _cell(row) for row in rows}
    lines = ["| model | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for model in models:
        lines.append("| " + " | ".join([model, *(told.get((model, column), DASH) for column in columns)]) + " |")
    return "\n".join(lines) + "\n"


def _column(row: Mapping[str, Any]) -> str:
    """The methods without their knobs, and which reading it is."""
    methods = "+".join(part.partition("(")[0] for part in row["stack"].split("+"))
    return f"{methods}, frozen" if row["reading"] == "frozen" else methods


def _cell(row: Mapping[str, Any]) -> str:
    if "alignment" not in row:
        return str(row["verdict"])
    clock = row["gamma_clock"]
    gamma = f"speed {fixed(row.get('gamma_flops'), 2)} / {fixed(clock['value'] if clock else None, 2)}"
    return f"**{row['verdict']}** {gamma}; {spoken(row['alignment'], 3, signed=True)}"
