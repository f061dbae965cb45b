"""Searches for the steps that a fixed schedule computes: simulated annealing and hill climbing on a
measured loss, and a dynamic programme on accumulated errors. No torch.

T steps. The first step is computed in every schedule; nothing else is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ditbench.acceleration.caching.fixed_steps import Steps

WINDOW = 3
"""Steps that a computed one moves at most in a shift (BudCache, arXiv:2606.13496)."""
LOCAL = 0.7
"""How often a proposal is a shift (arXiv:2609.39343); otherwise any two steps are exchanged."""
PROBES = 8
"""Exchanges that the first temperature is taken from. Ours; arXiv:2609.39343 has 50."""
COOLING = 100
"""The first temperature over the last. Ours: arXiv:2609.39343 begins ten times higher, with ten times
the trials; a tenth of them would be spent before anything is refused."""
APART, FINALISTS = 4, 3
"""Steps in which finalists differ at least, and how many there are (arXiv:2609.39343)."""


class Spent(Exception):
    """All trials are made."""


@dataclass
class Trials:
    """Losses of the schedules that were tried, each measured once."""

    measure: Callable[[Steps], float]
    most: int
    """Schedules to try; one more raises `Spent`."""
    losses: dict[Steps, float] = field(default_factory=dict)
    """In the order they were tried."""

    def __call__(self, chosen: Steps) -> float:
        """The loss of a schedule."""
        if chosen not in self.losses:
            if len(self.losses) >= self.most:
                raise Spent
            self.losses[chosen] = self.measure(chosen)
        return self.losses[chosen]

    @property
    def best(self) -> Steps:
        """The schedule of least loss so far."""
        return min(self.losses, key=self.losses.__getitem__)


def moved(chosen: Steps, source: int, target: int) -> Steps:
    """A schedule that computes `target` in place of `source`."""
    return tuple(sorted({*chosen, target} - {source}))


def neighbours(chosen: Steps, steps: int, window: int = WINDOW) -> Iterator[Steps]:
    """All schedules in which one computed step, not the first, has moved to a free one at most
    `window` away."""
    for source in chosen[1:]:
        for target in range(max(1, source - window), min(steps, source + window + 1)):
            if target not in chosen:
                yield moved(chosen, source, target)


def proposal(chosen: Steps, steps: int, rng: Generator, local: float = LOCAL) -> Steps:
    """A schedule that computes a free step, drawn, in place of a computed one: with probability
    `local` one within the window, where there is any."""
    target = int(rng.choice([step for step in range(1, steps) if step not in chosen]))
    near = [step for step in chosen[1:] if abs(step - target) <= WINDOW]
    sources = near if near and rng.random() < local else chosen[1:]
    return moved(chosen, int(rng.choice(sources)), target)


def anneal(trials: Trials, start: Steps, steps: int, rng: Generator, length: int) -> Steps:
    """Simulated annealing of `length` proposals from `start`: a worse schedule is taken with
    probability exp(-difference / temperature), the temperature falling by one factor from the median
    difference that an exchange makes to a hundredth of it. Returns the best schedule; raises `Spent`.
    """
    here = trials(start)
    probes = [proposal(start, steps, rng, local=0.0) for _ in range(PROBES)]
    hottest = float(np.median([abs(trials(probe) - here) for probe in probes])) or 1e-12
    for i in range(length):
        temperature = hottest * COOLING ** -(i / length)
        other = proposal(start, steps, rng)
        worse = trials(other) - here
        if worse <= 0 or rng.random() < math.exp(-worse / temperature):
            start, here = other, trials(other)
    return trials.best


def climb(trials: Trials, start: Steps, steps: int, rng: Generator) -> Steps:
    """Hill climbing: the first neighbour that is better, in an order drawn anew, until none is.
    Returns the schedule; raises `Spent`.

    The sources go through all neighbours and take the best; with a twentieth of their trials that
    is a pass or two.
    """
    here, improved = trials(start), True
    while improved:
        improved = False
        around = list(neighbours(start, steps))
        for i in rng.permutation(len(around)).tolist():
            if trials(around[i]) < here:
                start, here, improved = around[i], trials(around[i]), True
                break
    return start


def search(
    trials: Trials, how: str, starts: list[Steps], steps: int, rng: Generator
) -> list[Steps]:
    """The finalists of a search: the best schedule, then the best of those that differ from it, and
    from one another, in at least `APART` steps. `starts` are tried first, and the best of them is
    where it begins."""
    try:
        for start in starts:
            trials(start)
        if 1 < len(starts[0]) < steps:
            if how == "annealing":
                anneal(trials, trials.best, steps, rng, trials.most // 2)
            while True:  # restarts, from a schedule two exchanges away
                climb(trials, trials.best, steps, rng)
                start = proposal(proposal(trials.best, steps, rng), steps, rng)
                if not set(neighbours(start, steps)) - trials.losses.keys():
                    break
                climb(trials, start, steps, rng)
    except Spent:
        pass
    return finalists(trials)


def finalists(trials: Trials) -> list[Steps]:
    """The best schedules tried, each `APART` steps from those before it."""
    chosen: list[Steps] = []
    for steps in sorted(trials.losses, key=trials.losses.__getitem__):
        if all(len(set(steps) ^ set(other)) >= APART for other in chosen):
            chosen.append(steps)
    return chosen[:FINALISTS]


def least_error(error: NDArray[np.float64], count: int) -> Steps:
    """The `count` steps, first and last among them, of least accumulated error (CEM,
    arXiv:2512.23258): best(t, k) = min over gaps g of best(t - g, k - 1) + cost(g - 1, t).

    `error[n, t]` is how far step t is from the computed step n before it, 0 for n = 0; the cost of n
    replaced steps before t is the sum of error[n] up to t, times n^2. Gaps are the rounded T / count
    and one less or more, as in its code; where no schedule has such gaps, two less or more, and so
    on. Its code knows no gaps above ten.
    """
    steps = error.shape[1]
    if count == 1:
        return (0,)
    cost = np.cumsum(error, 1) * (np.arange(len(error)) ** 2)[:, None]
    usual = round(steps / count)
    for spread in range(1, steps):
        gaps = range(max(1, usual - spread), min(steps - 1, usual + spread) + 1)
        if chosen := _shortest(cost, count, gaps):
            return chosen
    raise ValueError(f"no {count} of {steps} steps from the first to the last")


def _shortest(cost: NDArray[np.float64], count: int, gaps: range) -> Steps | None:
    steps = cost.shape[1]
    best = np.full((steps, count + 1), np.inf)
    previous = np.full((steps, count + 1), -1)
    best[0, 1] = 0.0
    for k in range(2, count + 1):
        for t in range(1, steps):
            for gap in (g for g in gaps if g <= t):
                total = best[t - gap, k - 1] + cost[gap - 1, t]
                if total < best[t, k]:
                    best[t, k], previous[t, k] = total, t - gap
    if not np.isfinite(best[-1, count]):
        return None
    chosen = [steps - 1]
    for k in range(count, 1, -1):
        chosen.append(int(previous[chosen[-1], k]))
    return tuple(reversed(chosen))
