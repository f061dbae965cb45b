"""From a paired difference to a word: better, worse, equivalent or inconclusive. No torch.

G independent units (prompts, or blocks of them) are behind an estimate; every test is two-sided unless it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from ditbench.statistics import LEVEL, Estimate, two_sided_p

ALPHA = 1 - LEVEL
WORDS = ("better", "worse", "equivalent", "inconclusive")
RULE = (
    f"verdict: equivalent, where the difference to none lies within the margin stated before the run (two one-sided tests, {ALPHA:.0%}, on "
    "the prompts and one imagined prompt at the worst end of the metric's range); else better or worse, where it differs from nothing "
    f"(two-sided, {ALPHA:.0%}) and is no smaller than the margin; else inconclusive. For alignment and Fréchet distance, the primary "
    "metrics, the p-values of both tests are adjusted by Holm across the stacks of the model and both metrics; the other metrics' are "
    "not. detectable: the difference that 80 % of such runs would find."
)


def difference_p(delta: Estimate) -> float | None:
    """p-value of "no difference": `statistics.two_sided_p`, which the interval beside it never contradicts."""
    return two_sided_p(delta)


def equivalence_p(delta: Estimate, margin: float) -> float | None:
    """p-value of "the difference is no smaller than the margin", the larger of `exceeds_p`'s on both sides (TOST, Schuirmann 1987).

    None where `exceeds_p` gives none.
    """
    sides = [exceeds_p(delta, -margin), exceeds_p(mirrored(delta), -margin)]
    return None if None in sides else max(p for p in sides if p is not None)


def exceeds_p(delta: Estimate, least: float) -> float | None:
    """One-sided p-value of "the difference is `least` or less".

    Student's t on the G units and one imagined unit more, which has the lowest value that a unit can have: a loss that has not been seen
    is not taken for one that cannot happen. And never below the chance of as small a loss as this where a share of the units loses all it
    can and the others nothing, so many that their mean is `least` (the binomial; without a loss (1 - share)^G): of all that lose as much
    on average such units are the hardest to see. So it never falls when a loss gets larger. Without `bounds` of a unit: Student's t on
    the units alone. None without a standard error, or without spread and bounds.
    """
    if delta.se is None or (delta.se == 0 and delta.bounds is None):
        return None
    mean, num = delta.value, float(delta.effective or delta.n)
    variance, rare = delta.se**2 * num, 0.0
    if delta.bounds is not None:
        lowest = delta.bounds[0]
        apart = mean - lowest
        if mean <= least or apart <= 0:
            rare = 1.0
        elif mean < 0:
            lost = num * mean / lowest
            rare = float(special.betainc(num - lost, lost + 1, 1 - least / lowest))
        else:
            rare = (1 - (mean - least) / apart) ** num
        variance = ((num - 1) * variance + num / (num + 1) * apart**2) / num
        mean, num = (num * mean + lowest) / (num + 1), num + 1
    if variance == 0:
        return 1.0
    return max(rare, float(special.stdtr(num - 1, -(mean - least) / np.sqrt(variance / num))))


def mirrored(delta: Estimate) -> Estimate:
    """The same with its sign turned round."""
    low, high = (None if x is None else -x for x in (delta.high, delta.low))
    bounds = None if delta.bounds is None else (-delta.bounds[1], -delta.bounds[0])
    return replace(delta, value=-delta.value, low=low, high=high, skew=-delta.skew, bounds=bounds)


def is_binary(values: ArrayLike) -> bool:
    """Whether all values are 0 or 1."""
    return bool(np.isin(np.asarray(values), (0, 1)).all())


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that rejecting those at most alpha errs anywhere in a share alpha of families (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    raised = np.asarray(p, np.float64)[order] * (len(p) - np.arange(len(p)))
    found = np.empty(len(p))
    found[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [float(x) for x in found]


def decide(value: float, better: str, p: float | None, p_equivalent: float | None, margin: float | None = None) -> str:
    """The verdict on a difference `value` of a metric whose `better` is "higher" or "lower", by `RULE`; "" without p-values, or where
    neither is better. `margin`: the least difference that counts, where one was stated."""
    if p is None or better not in ("higher", "lower"):
        return ""
    if p_equivalent is not None and p_equivalent <= ALPHA:
        return "equivalent"
    if p > ALPHA or abs(value) < (margin or 0.0):
        return "inconclusive"
    return "better" if (value > 0) == (better == "higher") else "worse"


def judge(rows: Sequence[Mapping[str, Any]]) -> None:
    """Give the entries of `quality` in the rows of one run their verdicts, in place: the one step that looks at all stacks together.

    Uses each entry's delta, p and p_equivalent, and of primary metrics adjusts them (see `ditbench.summary`). An inert row has
    nothing to be judged; a labelled one, such as a noise floor, claims nothing, and so costs the others nothing.
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
