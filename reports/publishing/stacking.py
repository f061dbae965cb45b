"""The stacking table of the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ditbench.reports.sections.format import DASH, fixed, spoken


def answer_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of the rows that `ditbench.analysis.interaction.document` gives, a row per
    combination and a column per model: the verdict, the alignment interaction, and gamma on FLOPs
    and on the clock."""
    combinations = list(dict.fromkeys(_combination(row) for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    told = {(_combination(row), row["model"]): _cell(row) for row in rows}
    lines = ["| together | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    for name in combinations:
        lines.append(
            f"| {name} | " + " | ".join(told.get((name, model), DASH) for model in models) + " |"
        )
    return "\n".join(lines) + "\n"


def _combination(row: Mapping[str, Any]) -> str:
    """The methods without their knobs, and which reading it is."""
    methods = "+".join(part.partition("(")[0] for part in row["stack"].split("+"))
    return f"{methods}, frozen" if row["reading"] == "frozen" else methods


def _cell(row: Mapping[str, Any]) -> str:
    if "alignment" not in row:
        return str(row["verdict"])
    gamma = f"gamma {fixed(row.get('gamma_flops'), 2)}, clock {spoken(row['gamma_clock'], 2)}"
    return f"**{row['verdict']}** {spoken(row['alignment'], 3, signed=True)}; {gamma}"
