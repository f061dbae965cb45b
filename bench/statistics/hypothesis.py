"""Tests of one difference, and Holm's adjustment for several. numpy and scipy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from ditbench.statistics.estimates import LEVEL, Estimate, two_sided_p

ALPHA = 1 - LEVEL


def difference_p(delta: Estimate) -> float | None:
    """p-value of "no difference": `estimates.two_sided_p`, which the interval beside it never
    contradicts."""
    return two_sided_p(delta)


def equivalence_p(delta: Estimate, margin: float) -> float | None:
    """p-value of "the difference is no smaller than the margin", the larger of `exceeds_p`'s on
    both sides (TOST, Schuirmann 1987).

    None where `exceeds_p` gives none.
    """
    sides = [exceeds_p(delta, -margin), exceeds_p(mirrored(delta), -margin)]
    return None if None in sides else max(p for p in sides if p is not None)


def exceeds_p(delta: Estimate, least: float) -> float | None:
    """One-sided p-value of "the difference is `least` or less".

    Student's t on the G units and one imagined unit more, which has the lowest value that a unit
    can have: a loss that has not been seen is not taken for one that cannot happen. And never below
    the chance of as small a loss as this where a share of the units loses all it can and the others
    nothing, so many that their mean is `least` (the binomial; without a loss (1 - share)^G): of all
    that lose as much on average such units are the hardest to see. So it never falls when a loss
    gets larger. Without `bounds` of a unit: Student's t on the units alone. None without a standard
    error, or without spread and bounds.
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
    """p-values adjusted so that rejecting those at most alpha errs anywhere in a share alpha of
    families (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    raised = np.asarray(p, np.float64)[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [float(x) for x in adjusted]
