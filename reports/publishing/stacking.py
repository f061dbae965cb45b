"""Which methods stack, as tables for people: verdicts alone, and with what they rest on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ditbench.analysis.controls import FORMER
from ditbench.reports.sections.format import DASH, fixed, spoken

Row = Mapping[str, Any]


def verdict_table(rows: Sequence[Row]) -> str:
    """Markdown of the verdicts of the rows that `ditbench.analysis.interaction.document` gives: a
    row per combination and a column per model, one word a cell. Combinations whose methods were
    prepared alone ("frozen") are left out."""
    shown = [row for row in rows if row["reading"] != "frozen"]
    return _table(shown, lambda row: _verdict(row) if "alignment" in row else DASH)


def answer_table(rows: Sequence[Row]) -> str:
    """The same with all combinations, and beside each verdict the alignment interaction, and gamma
    by FLOPs and by measured time."""
    return _table(rows, _answer)


def _table(rows: Sequence[Row], show: Callable[[Row], str]) -> str:
    combinations = list(dict.fromkeys(_combination(row) for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    cells = {(_combination(row), row["model"]): show(row) for row in rows}
    lines = ["| combination | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    for name in combinations:
        lines.append(
            f"| {name} | " + " | ".join(cells.get((name, model), DASH) for model in models) + " |"
        )
    return "\n".join(lines) + "\n"


def _verdict(row: Row) -> str:
    """In today's words, whatever version wrote the file."""
    return FORMER.get(row["verdict"], str(row["verdict"]))


def _combination(row: Row) -> str:
    """The methods without their knobs, and whether they were prepared in the stack or alone."""
    methods = "+".join(part.partition("(")[0] for part in row["stack"].split("+"))
    return f"{methods}, frozen" if row["reading"] == "frozen" else methods


def _answer(row: Row) -> str:
    if "alignment" not in row:
        return _verdict(row)
    gamma = (
        f"gamma {fixed(row.get('gamma_flops'), 2)} (FLOPs), {spoken(row['gamma_clock'], 2)} (time)"
    )
    return f"**{_verdict(row)}** {spoken(row['alignment'], 3, signed=True)}; {gamma}"
