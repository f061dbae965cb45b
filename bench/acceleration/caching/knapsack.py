"""The dynamic programme that spends one budget over all sub-layers and steps (DiffSparse,
arXiv:2604.03674, eq. 6-7).

R rows, one per (step, sub-layer); S levels, the shares of tokens a row may recompute. A
multiple-choice knapsack: exact where that takes `WORK` or less; beyond, all but the rows whose
choice is least clear are decided by one price of the budget (Lagrange's multiplier), and these few
by the programme (the "core" of Pisinger 1995). No torch.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]
"""[R,S]: what a row's level is feared to do to the sample."""
Weights = NDArray[np.int64]
"""[R,S]: what a row's level takes of the budget."""
Levels = NDArray[np.int64]
"""[R]: the level chosen for each row."""
TOLERANCE = 1e-3
"""Share of a budget that may be left unspent where the programme is not exact, beyond what no
choice of levels can spend."""
WORK = 34_000_000
"""Most entries, R x S x units of budget, that are looked at."""
UNITS = 4000
"""Units of budget for which the programme is exact whatever the number of rows."""
FEW = 500_000
"""Most choices of levels that are looked at one by one."""
CORE = 20
"""Rows that the programme decides where one price decides the others."""


def allocate(cost: Costs, weight: Weights, budget: int) -> Levels:
    """Levels [R] of least total cost among those whose weights add up to the largest total within
    `budget` that can be reached.

    Exact where there are no more than `FEW` choices, or the budget is at most `UNITS`, or `WORK` /
    (R S), times the weights' greatest common divisor. Beyond, the total is never above the budget,
    and at least the largest less `TOLERANCE` of the budget; with no more than `CORE` rows no levels
    are cheaper that leave a quarter of that tolerance unspent, and with more rows none are but for
    what the price decided. Raises ValueError when even the lightest levels exceed the budget.
    """
    if (least := int(weight.min(1).sum())) > budget:
        raise ValueError(
            f"the budget cannot be met: {budget} is asked for, and the least that can be spent is "
            f"{least}"
        )
    rows, levels = weight.shape
    weight, left = weight - weight.min(1, keepdims=True), budget - least
    left = min(left, int(weight.max(1).sum()))
    if levels**rows <= FEW:
        return _one_by_one(cost, weight, left)
    unit = _unit(weight)
    if left // unit <= max(UNITS, WORK // (rows * levels)):
        best, chosen = _programme(cost, weight // unit, left // unit)
        return _traced(chosen, weight // unit, int(np.flatnonzero(np.isfinite(best))[-1]))
    spare = TOLERANCE * budget
    allocation, core = _priced(cost, weight, left)
    room = left - int(np.delete(weight[np.arange(rows), allocation], core).sum())
    allocation[core] = _within(cost[core], weight[core], room, spare)
    return allocation


def _unit(weight: Weights) -> int:
    return int(np.gcd.reduce(weight[weight > 0], initial=0)) or 1


def _programme(
    cost: Costs, units: Weights, room: int
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Least cost of all rows by units used [room+1], infinite where nothing adds up to them; and
    each row's level then [R,room+1]."""
    rows, levels = cost.shape
    chosen = np.zeros((rows, room + 1), np.int8)
    best, new, offer = (np.full(room + 1, np.inf) for _ in range(3))
    best[0], most = 0.0, 0  # the rows so far use `most` units at the most
    for i in range(rows):
        new.fill(np.inf)
        for s in range(levels):
            taken = int(units[i, s])
            if (end := min(room, most + taken) + 1) <= taken:
                continue
            np.add(best[: end - taken], cost[i, s], out=offer[taken:end])
            better = offer[taken:end] < new[taken:end]
            np.copyto(new[taken:end], offer[taken:end], where=better)
            np.copyto(chosen[i, taken:end], s, where=better)
        best, new, most = new, best, min(room, most + int(units[i].max()))
    return best, chosen


def _traced(chosen: NDArray[np.int8], units: Weights, used: int) -> Levels:
    """The levels by which all rows use so many units."""
    levels = np.zeros(len(chosen), np.int64)
    for i in range(len(chosen) - 1, -1, -1):
        levels[i] = chosen[i, used]
        used -= int(units[i, levels[i]])
    return levels


def _one_by_one(cost: Costs, weight: Weights, budget: int) -> Levels:
    """The best of all choices of levels."""
    totals, costs = (reduce(np.add.outer, table).ravel() for table in (list(weight), list(cost)))
    most = totals[totals <= budget].max()
    best = int(np.where(totals == most, costs, np.inf).argmin())
    return np.array(np.unravel_index(best, (cost.shape[1],) * len(cost)))


def _priced(cost: Costs, weight: Weights, budget: int) -> tuple[Levels, Levels]:
    """Levels [R] of least cost + price x weight within the budget, at the price from which on they
    are; and the rows, `CORE` at the most, that the price decides least clearly: at it or near it
    they would as well have another level."""
    rows, levels = cost.shape
    one, two = np.triu_indices(levels, 1)
    more, dearer = weight[:, two] - weight[:, one], cost[:, two] - cost[:, one]
    # at which some row is torn between two levels
    prices = np.unique(-dearer[more != 0] / more[more != 0])
    between = np.concatenate([[prices[0] - 1], (prices[1:] + prices[:-1]) / 2, [prices[-1] + 1]])

    def at(price: float) -> tuple[Levels, Levels]:
        levels = (cost + price * weight).argmin(1)
        return levels, weight[np.arange(rows), levels]

    low, high = 0, len(between) - 1  # too much is spent at the low price, and not at the high one
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at(between[middle])[1].sum() <= budget else (middle, high)
    (dear, spends), (allocation, saves) = at(between[low]), at(between[high])
    torn = np.flatnonzero(dear != allocation)
    fit = int((np.cumsum(spends[torn] - saves[torn]) <= budget - saves.sum()).sum())
    allocation[torn[:fit]] = dear[torn[:fit]]
    paid = cost + prices[low] * weight
    regret = (
        np.where(weight != weight[np.arange(rows), allocation][:, None], paid, np.inf).min(1)
        - paid[np.arange(rows), allocation]
    )
    away = np.zeros(rows)
    regret[torn], away[torn] = 0.0, np.abs(np.arange(len(torn)) - fit + 0.5)
    return allocation, np.lexsort((away, regret))[:CORE]


def _within(cost: Costs, weight: Weights, room: int, spare: float) -> Levels:
    """Levels of least cost among those found whose weights add up to no more than `room`, and no
    less than the most that is found to fit into it less `spare`."""
    weight, room = weight - weight.min(1, keepdims=True), room - int(weight.min(1).sum())
    room, unit = min(room, int(weight.max(1).sum())), _unit(weight)
    if room // unit <= WORK // cost.size:
        best, chosen = _programme(cost, weight // unit, room // unit)
        most = int(np.flatnonzero(np.isfinite(best))[-1])
        first = max(0, most - int(spare / unit))
        return _traced(chosen, weight // unit, most - int(best[first : most + 1][::-1].argmin()))
    # Weights are rounded down to units, so that everything which fits is looked at; what does not
    # fit after all is passed over.
    size = room / (WORK // (4 * cost.size))
    units, limit = (weight / size).astype(np.int64), int(room / size)
    totals, lightest = _programme(weight.astype(np.float64), units, limit)
    fits = np.flatnonzero(totals <= room)
    most = totals[fits].max()
    best, chosen = _programme(cost, units, limit)
    rows, least = np.arange(len(cost)), most - spare / 2
    start = max(0, int(least / size) - len(cost))
    likely = (np.flatnonzero(np.isfinite(best[start:])) + start)[::-1]
    for used in likely[best[likely].argsort(kind="stable")]:
        allocation = _traced(chosen, units, int(used))
        if least <= weight[rows, allocation].sum() <= room:
            return allocation
    return _traced(lightest, units, int(fits[totals[fits].argmax()]))
