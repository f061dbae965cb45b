"""From a paired difference to a word: better, worse, equivalent or inconclusive. No torch.

G independent units (prompts, or blocks of them) are behind an estimate; every test is two-sided
unless it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from ditbench.analysis.rows import QualityEntry, Row
from ditbench.statistics.hypothesis import ALPHA, holm

WORDS = ("better", "worse", "equivalent", "inconclusive")
RULE = (
    "verdict: equivalent, where the difference to none lies within the margin stated before the "
    f"run (two one-sided tests, {ALPHA:.0%}, on "
    "the prompts and one imagined prompt at the worst end of the metric's range); else better or "
    "worse, where it differs from nothing "
    f"(two-sided, {ALPHA:.0%}) and is no smaller than the margin; else inconclusive. For alignment "
    "and Fréchet distance, the primary "
    "metrics, the p-values of both tests are adjusted by Holm across the stacks of the model and "
    "both metrics; the other metrics' are "
    "not. detectable: the difference that 80 % of such runs would find."
)

AnyRow = TypeVar("AnyRow", bound=Row)
Place = tuple[int, str]
"""Number of a row, and a metric."""


def decide(
    value: float,
    better: str,
    p: float | None,
    p_equivalent: float | None,
    margin: float | None = None,
) -> str:
    """The verdict on a difference `value` of a metric whose `better` is "higher" or "lower", by
    `RULE`; "" without p-values, or where neither is better. `margin`: the least difference that
    counts, where one was stated."""
    if p is None or better not in ("higher", "lower"):
        return ""
    if p_equivalent is not None and p_equivalent <= ALPHA:
        return "equivalent"
    if p > ALPHA or abs(value) < (margin or 0.0):
        return "inconclusive"
    return "better" if (value > 0) == (better == "higher") else "worse"


def judge(rows: Sequence[AnyRow]) -> list[AnyRow]:
    """The rows of one run with verdicts on their changes: the one step that compares all stacks.

    The p-values of primary metrics are adjusted first (see `ditbench.analysis.rows`). An inert row
    has nothing to be judged; a labelled one, such as a noise floor, claims nothing, and so costs
    the others nothing.
    """
    changes = [
        (i, metric)
        for i, row in enumerate(rows)
        if row["status"] == "ok"
        for metric, entry in row["quality"].items()
        if entry["delta"] is not None
    ]
    adjusted = [at for at in changes if _entry(rows, at)["primary"] and not rows[at[0]]["label"]]
    p: dict[Place, float] = {}
    p_equivalent: dict[Place, float] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        family = [at for at in adjusted if rows[at[0]]["model"] == model]
        p |= _holm({at: _entry(rows, at)["p"] for at in family})
        p_equivalent |= _holm({at: _entry(rows, at)["p_equivalent"] for at in family})
    judged = [dict(row["quality"]) for row in rows]
    for at in changes:
        entry = _entry(rows, at)
        entry = {**entry, "p_holm": p.get(at), "p_equivalent_holm": p_equivalent.get(at)}
        decisive = (
            (entry["p_holm"], entry["p_equivalent_holm"])
            if at in adjusted
            else (entry["p"], entry["p_equivalent"])
        )
        change = entry["delta"]["value"] if entry["delta"] else 0.0
        word = decide(change, entry["better"], *decisive, entry["margin"])
        judged[at[0]][at[1]] = {**entry, "verdict": word}
    return [replaced(row, quality) for row, quality in zip(rows, judged, strict=True)]


def _entry(rows: Sequence[Row], at: Place) -> QualityEntry:
    return rows[at[0]]["quality"][at[1]]


def _holm(p: Mapping[Place, float | None]) -> dict[Place, float]:
    known = {at: value for at, value in p.items() if value is not None}
    return dict(zip(known, holm(list(known.values())), strict=True))


def replaced(row: AnyRow, quality: dict[str, QualityEntry]) -> AnyRow:
    """The row with other entries of its metrics."""
    other = row.copy()
    other["quality"] = quality
    return other
