"""A Markdown table with a column per model. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ditbench.reports.sections.format import DASH


def grid(first: str, names: Iterable[str], cells: Mapping[tuple[str, str], str]) -> str:
    """A row per name under the head `first`, a column per model, from cells by (name, model); a
    dash where there is none."""
    models = list(dict.fromkeys(model for _, model in cells))
    lines = [f"| {first} | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(cells.get((name, model), DASH) for model in models) + " |"
        for name in dict.fromkeys(names)
    ]
    return "\n".join(lines) + "\n"
