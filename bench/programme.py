"""The dynamic programme that spends one budget over all sub-layers and steps (DiffSparse, arXiv:2604.03674, eq. 6-7).

R rows, one per (step, sub-layer); S levels, the shares of tokens a row may recompute. A multiple-choice knapsack solved exactly. No torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]
"""[R,S]: what a row's level is feared to do to the sample."""
Weights = NDArray[np.int64]
"""[R,S]: what a row's level takes of the budget."""
UNITS = 4000
"""Most units a budget is divided into."""


def allocate(cost: Costs, weight: Weights, budget: int) -> NDArray[np.int64]:
    """Levels [R] of least total cost among those whose weights add up to the largest total within `budget` that can be reached.

    Exact where the budget is at most `UNITS` times the weights' greatest common divisor; beyond, weights are rounded to units and
    the remainder is settled row by row. Raises ValueError when even the lightest levels exceed the budget.
    """
    if (least := int(weight.min(1).sum())) > budget:
        raise ValueError(f"the budget cannot be met: {budget} is asked for, and the least that can be spent is {least}")
    budget = min(budget, int(weight.max(1).sum()))
    unit = int(np.gcd.reduce(weight[weight > 0], initial=0)) or 1
    if budget // unit <= UNITS:
        return _exact(cost, weight // unit, budget // unit)
    units = np.rint(weight * (UNITS / budget)).astype(np.int64)
    return _settled(_exact(cost, units, max(UNITS, int(units.min(1).sum()))), cost, weight, budget)


def _exact(cost: Costs, units: Weights, room: int) -> NDArray[np.int64]:
    rows, levels = cost.shape
    chosen = np.zeros((rows, room + 1), np.int8)
    best, new, offer = (np.full(room + 1, np.inf) for _ in range(3))  # least cost of the rows so far, by units used
    best[0] = 0.0
    for i in range(rows):
        new.fill(np.inf)
        for s in range(levels):
            if (taken := int(units[i, s])) > room:
                continue
            np.add(best[: room + 1 - taken], cost[i, s], out=offer[taken:])
            better = offer[taken:] < new[taken:]
            np.copyto(new[taken:], offer[taken:], where=better)
            np.copyto(chosen[i, taken:], s, where=better)
        best, new = new, best
    left = int(np.flatnonzero(np.isfinite(best))[-1])
    found = np.zeros(rows, np.int64)
    for i in range(rows - 1, -1, -1):
        found[i] = chosen[i, left]
        left -= int(units[i, found[i]])
    return found


def _settled(found: NDArray[np.int64], cost: Costs, weight: Weights, budget: int) -> NDArray[np.int64]:
    """Undo what rounding overspent, and spend what it left: each time the change of one row that costs least for what it moves."""
    rows = np.arange(len(found))
    over = int(weight[rows, found].sum()) - budget
    while over:
        more, extra = weight - weight[rows, found][:, None], cost - cost[rows, found][:, None]
        fits = (more < 0) if over > 0 else (more > 0) & (more <= -over)
        if not fits.any():
            break
        price = np.where(fits, extra / np.abs(np.where(fits, more, 1)), np.inf)
        i, s = np.unravel_index(int(price.argmin()), price.shape)
        over += int(more[i, s])
        found[i] = s
    return found
