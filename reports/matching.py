"""Methods at matched compute as a table for people: a row per method, a column per model. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ditbench.reports.wording import fixed

ORDER = ("fewer_steps", "fora", "toca", "duca", "teacache", "taylorseer")
BETTER, WORSE = "▼", "▲"


def matched_table(rows: Sequence[Mapping[str, str]], budget: str) -> str:
    """Markdown of the rows of a `matched.csv` at one budget: perceptual distance to the un-accelerated sample, change of the Fréchet
    distance. A mark says that `diffsparse` is better (▼) or worse (▲) than this by the 95 % interval of the paired difference."""
    mine = [row for row in rows if row["budget"] == budget]
    models = list(dict.fromkeys(row["model"] for row in mine))
    found = {(row["method"], row["model"]): _cell(row) for row in mine}
    methods = sorted(dict.fromkeys(row["method"] for row in mine), key=_place)
    lines = ["| method | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(found.get((name, model), "-") for model in models) + " |" for name in methods]
    return "\n".join(lines) + "\n"


def _place(method: str) -> tuple[int, str]:
    return (ORDER.index(method) if method in ORDER else len(ORDER), method)


def _cell(row: Mapping[str, str]) -> str:
    perceptual = fixed(float(row["perceptual"])) + _mark(row, "perceptual")
    return f"{perceptual}; {fixed(float(row['frechet_change']), 0, signed=True)}{_mark(row, 'frechet')}"


def _mark(row: Mapping[str, str], metric: str) -> str:
    low, high = (row[f"diffsparse_minus_it_{metric}_{end}"] for end in ("low", "high"))
    if not low or float(low) <= 0 <= float(high):
        return ""
    return f" {BETTER if float(high) < 0 else WORSE}"
