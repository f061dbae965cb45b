"""Schedules that compute everything at some steps and reuse everything at the others, the steps chosen
by how far outputs move between them. No torch.

T steps, L sub-layers. `distance[s, r, l]` is how far the output of sub-layer l at step s is from its
output at step r.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ditbench.acceleration.caching.budget import DENSE
from ditbench.acceleration.caching.knapsack import Weights

Distances = NDArray[np.float64]


def common_steps(distance: Distances, count: int) -> list[int]:
    """The `count` steps, the first among them, at which computing everything leaves the least sum of
    distances between outputs and what is reused in their place: exact, by dynamic programming."""
    steps = len(distance)
    reused = np.full((steps, steps + 1), np.inf)
    """[r, e]: the sum over steps r+1 to e-1, which reuse what was computed at r."""
    for r in range(steps):
        run = np.concatenate([[0.0], distance[r + 1 :, r].sum(1)])
        reused[r, r + 1 :] = np.cumsum(run)
    best, following = reused[:, steps].copy(), []
    """Of the steps from r on, r being computed, with so many more to compute."""
    for _ in range(count - 1):
        sums = reused[:, :steps] + best
        following.append(sums.argmin(1))
        best = sums.min(1)
    chosen = [0]
    for after in reversed(following):
        chosen.append(int(after[chosen[-1]]))
    return chosen


def schedule_of(distance: Distances, weights: Weights, keep: float) -> NDArray[np.int64]:
    """Levels [T,L], reusing all or none, that spend at most `keep` of the dense total of weights
    [L,S]: common steps, and what is left of the budget on single sub-layers, each time where the sum
    of distances falls most for what it takes.

    Raises ValueError where the first step, which is dense, costs more.
    """
    steps, layers = len(distance), len(weights)
    dense = weights[:, DENSE].astype(float)
    count = int(keep * steps + 1e-6)
    if count < 1:
        raise ValueError(
            f"keep={keep} of {steps} steps cannot be met: the first step is dense and takes "
            f"{1 / steps:.3f} of the whole"
        )
    chosen = np.zeros((steps, layers), np.int64)
    chosen[common_steps(distance, min(count, steps))] = DENSE
    left = keep * dense.sum() * steps - (chosen == DENSE).sum(0) @ dense
    gains = [_best_step(distance[:, :, i], chosen[:, i]) for i in range(layers)]
    while fitting := [i for i in range(layers) if dense[i] <= left + 1e-6 and gains[i][0] > 0]:
        i = max(fitting, key=lambda i: gains[i][0] / dense[i])
        chosen[gains[i][1], i] = DENSE
        left -= dense[i]
        gains[i] = _best_step(distance[:, :, i], chosen[:, i])
    return chosen


def _best_step(distance: Distances, chosen: NDArray[np.int64]) -> tuple[float, int]:
    """How much the sum of a sub-layer's distances [T,T] falls by computing it once more, and at
    which step."""
    computed = np.flatnonzero(chosen)
    best = (0.0, -1)
    for start, end in zip(computed, [*computed[1:], len(chosen)], strict=True):
        for step in range(start + 1, end):
            gain = float((distance[step:end, start] - distance[step:end, step]).sum())
            best = max(best, (gain, step))
    return best
