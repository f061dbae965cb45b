"""Schedules of sub-layers that run on all tokens or not at all. No torch.

T steps, L sub-layers. A mask [T,L] is True where a sub-layer runs; weights [L] are its
multiply-accumulates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.acceleration.caching.budget import DENSE
from ditbench.acceleration.caching.knapsack import allocate
from ditbench.acceleration.caching.schedule import Schedule

Mask = NDArray[np.bool_]
Scores = NDArray[np.float64]
"""[T,L]: how much it is worth to run a sub-layer at a step."""


def budget_of(weights: NDArray[np.int64], steps: int, keep: float) -> int:
    """Multiply-accumulates left after the first step, which is dense; ValueError where there are
    less than none."""
    one = int(weights.sum())
    if (left := int(keep * one * steps + 1e-6) - one) < 0:
        raise ValueError(
            f"keep={keep} of {steps} steps cannot be met: the first step is dense and takes "
            f"{1 / steps:.3f} of the whole"
        )
    return left


def round_to_budget(scores: Scores, weights: NDArray[np.int64], keep: float) -> Mask:
    """The mask of the highest sum of scores [T,L] that spends `keep` of the dense total, by the
    knapsack; the first step is dense. ValueError where that alone is too much."""
    steps, layers = scores.shape
    left = budget_of(weights, steps, keep)
    mask = np.ones((steps, layers), bool)
    if steps > 1:
        cost = np.stack([np.zeros_like(scores[1:]), -scores[1:]], -1).reshape(-1, 2)
        weight = np.stack([np.zeros_like(weights), weights], -1)
        chosen = allocate(cost, np.tile(weight, (steps - 1, 1)), left)
        mask[1:] = chosen.reshape(steps - 1, layers) == 1
    return mask


def soft_mask(
    scores: Scores, weights: NDArray[np.int64], keep: float, temperature: float
) -> NDArray[np.float64]:
    """Shares [T,L], 0..1, that spend `keep` of the dense total: the logistic function of scores
    less a price for the weight, over the temperature; the first step is dense."""
    steps = len(scores)
    left, heavy = budget_of(weights, steps, keep), weights / weights.mean()

    def at(price: float) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = 0.5 + 0.5 * np.tanh(
            (scores[1:] - price * heavy) / (2 * temperature)
        )
        return shares

    bound = float(np.abs(scores).max()) / float(heavy.min()) + 50 * temperature
    low, high = -bound, bound
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if (at(middle) @ weights).sum() <= left else (middle, high)
    return np.concatenate([np.ones((1, scores.shape[1])), at(high)])


def evenly(steps: int, weights: NDArray[np.int64], keep: float) -> Mask:
    """All sub-layers at steps as evenly spaced as the budget allows, and what is left of it on
    single ones half way between."""
    count = max(1, int(keep * steps + 1e-6))
    full = np.unique(np.floor(np.arange(count) * steps / count).astype(int))
    scores = np.zeros((steps, len(weights)))
    since = np.arange(steps) - full[np.searchsorted(full, np.arange(steps), "right") - 1]
    scores += since[:, None] * 1e-3 * weights / weights.mean()
    scores[full] = 1e3
    return round_to_budget(scores, weights, keep)


def spent_by(mask: Mask, weights: NDArray[np.int64]) -> float:
    """Share of the dense total that a mask [T,L] spends."""
    return float((mask @ weights).sum() / (weights.sum() * len(mask)))


def schedule_of_mask(names: Sequence[str], mask: Mask, notes: dict[str, Any]) -> Schedule:
    """As a schedule of levels: the highest or the lowest."""
    return Schedule(sublayers=tuple(names), chosen=np.where(mask, DENSE, 0), notes=notes)


def mask_of_schedule(schedule: Schedule) -> Mask:
    """A schedule rounded to all or nothing: from half of the tokens on all are computed; the first
    step is dense."""
    mask: Mask = schedule.keep >= 0.5
    mask[0] = True
    return mask
