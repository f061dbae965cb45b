"""Methods at matched compute, and the noise floor they are seen against, as tables for people. No
torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ditbench.reports.sections.format import fixed, number

ORDER = ("fewer_steps", "fora", "toca", "duca", "teacache", "taylorseer")
BETTER, WORSE = "▼", "▲"


def matched_table(rows: Sequence[Mapping[str, str]], budget: str) -> str:
    """Markdown of the rows of a `matched.csv` at one budget: perceptual distance to the
    un-accelerated sample, change of the Fréchet distance. A mark says that `diffsparse` is better
    (▼) or worse (▲) than this by the 95 % interval of the paired difference."""
    mine = [row for row in rows if row["budget"] == budget]
    models = list(dict.fromkeys(row["model"] for row in mine))
    cells = {(row["method"], row["model"]): _cell(row) for row in mine}
    methods = sorted(dict.fromkeys(row["method"] for row in mine), key=_place)
    lines = ["| method | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(cells.get((name, model), "-") for model in models) + " |"
        for name in methods
    ]
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


FLOOR = {
    "rerun": "batch in two parts",
    "rerun(attention='math')": "other attention",
    "rerun(seed=1)": "other noise",
    "diffsparse": "diffsparse",
}
"""Columns of `floor_table`, by stack."""


def floor_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown of the rows of a `noise-floor.csv`: by model and metric the un-accelerated value,
    what changes when only rounding does, when the noise does, and with `diffsparse`, and the change
    that 80 % of runs as large would find there."""
    lines = [
        "| model | metric | none | " + " | ".join(FLOOR.values()) + " | detectable |",
        "|---" * 8 + "|",
    ]
    for model, metric in dict.fromkeys((row["model"], row["metric"]) for row in rows):
        cells = {
            row["stack"]: row for row in rows if (row["model"], row["metric"]) == (model, metric)
        }
        one, *_ = cells.values()
        changes = [_change(cells.get(stack)) for stack in FLOOR]
        detectable = (
            number(float(cells["diffsparse"]["detectable"]))
            if cells["diffsparse"]["detectable"]
            else "-"
        )
        lines.append(
            "| "
            + " | ".join([model, metric, number(float(one["none"])), *changes, detectable])
            + " |"
        )
    return "\n".join(lines) + "\n"


def _change(row: Mapping[str, str] | None) -> str:
    if row is None or not row["delta"]:
        return "-"
    value, low, high = (float(row[name]) for name in ("delta", "low", "high"))
    places = 3 if row["metric"].startswith(("align", "precision", "recall")) else 2
    return f"{fixed(value, places, signed=True)} [{fixed(low, places, signed=True)}, {fixed(high, places, signed=True)}]"
