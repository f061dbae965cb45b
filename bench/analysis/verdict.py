"""From a paired difference to a word: better, worse, equivalent or inconclusive. No torch.

G independent units (prompts, or blocks of them) are behind an estimate; every test is two-sided
unless it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


def judge(rows: Sequence[Mapping[str, Any]]) -> None:
    """Give the entries of `quality` in the rows of one run their verdicts, in place: the one step
    that looks at all stacks together.

    Uses each entry's delta, p and p_equivalent, and of primary metrics adjusts them (see
    `ditbench.analysis.summary`). An inert row has nothing to be judged; a labelled one, such as a
    noise floor, claims nothing, and so costs the others nothing.
    """
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model and row["status"] == "ok"]
        entries = [
            (e, e["primary"] and not row["label"])
            for row in mine
            for e in row["quality"].values()
            if e["delta"] is not None
        ]
        for given in ("p", "p_equivalent"):
            family = [e for e, adjusted in entries if adjusted and e[given] is not None]
            for entry, p in zip(family, holm([e[given] for e in family]), strict=True):
                entry[f"{given}_holm"] = p
        for e, adjusted in entries:
            which = ("p_holm", "p_equivalent_holm") if adjusted else ("p", "p_equivalent")
            p, p_equivalent = (e[name] for name in which)
            e["verdict"] = decide(e["delta"]["value"], e["better"], p, p_equivalent, e["margin"])
