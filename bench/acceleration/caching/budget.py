"""What every level of every sub-layer costs, and schedules that spend a share of it without being
trained. No torch.

T steps, L sub-layers, S levels; rows are (step, sub-layer), R = T L of them. Costs are
multiply-accumulates of the sub-layers, attention products included; gates and embedders run at every
step and are not in them, nor are norms and activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ditbench.acceleration.caching.knapsack import Costs, Weights, allocate
from ditbench.acceleration.caching.schedule import LEVELS, Schedule, nearest

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment
    from ditbench.models.sublayers import Sublayer

DENSE = len(LEVELS) - 1
"""The level that recomputes all tokens."""


def weights_of(at: Attachment, *, by_macs: bool = True) -> Weights:
    """`row_weights` of the generation under way."""
    frames, high, wide = at.now.grid
    return row_weights(at.sublayers, frames * high * wide, at.now.text_tokens, by_macs=by_macs)


def row_weights(
    sublayers: Sequence[Sublayer], tokens: int, text_tokens: int, *, by_macs: bool = True
) -> Weights:
    """[L,S]: multiply-accumulates of each level, or its quarters where `by_macs` is False (the
    paper's equation as it stands)."""
    if not by_macs:
        return np.tile(np.arange(len(LEVELS)), (len(sublayers), 1))
    own = {"image": tokens, "text": text_tokens, "both": tokens + text_tokens}
    weights = [
        [s.macs(tokens, kept_rows(level, own[s.spec.stream]), text_tokens).total for level in LEVELS]
        for s in sublayers
    ]  # fmt: skip
    return np.array(weights)


def kept_rows(level: float, rows: int) -> int:
    """How many of `rows` tokens a level recomputes."""
    return int(level * rows)


def solve(cost: Costs, weights: Weights, steps: int, keep: float) -> NDArray[np.int64]:
    """Levels [T,L] of least total cost [R,S] that spend `keep` of the dense total; the first step
    is dense, for nothing is kept yet.

    Raises ValueError when the first step alone costs more.
    """
    layers = len(weights)
    total, first = int(weights[:, DENSE].sum()) * steps, int(weights[:, DENSE].sum())
    if (left := int(keep * total + 1e-6) - first) < 0:
        raise ValueError(
            f"keep={keep} of {steps} steps cannot be met: the first step is dense and takes "
            f"{first / total:.3f} of the whole"
        )
    chosen = np.full((steps, layers), DENSE)
    if steps > 1:
        rest = np.tile(weights, (steps - 1, 1))
        chosen[1:] = allocate(cost[layers:], rest, left).reshape(steps - 1, layers)
    return chosen


def spent(chosen: NDArray[np.int64], weights: Weights) -> float:
    """Share of the dense cost that levels [T,L] spend."""
    return float(
        np.take_along_axis(weights[None], chosen[..., None], 2).sum()
        / (weights[:, DENSE].sum() * len(chosen))
    )


def untrained(
    how: Literal["uniform", "random"],
    names: Sequence[str],
    weights: Weights,
    steps: int,
    keep: float,
) -> Schedule:
    """A schedule without knowledge: `uniform` keeps the same share everywhere, as nearly as levels
    allow; `random` spends at random (seed 0)."""
    rows = steps * len(names)
    if how == "random":
        cost = np.random.default_rng(0).standard_normal((rows, len(LEVELS)))
    else:
        # Every row has one of the two levels the budget lies between; which rows have the upper one
        # is spread evenly.
        totals = weights.sum(0) * (steps - 1) + weights[:, DENSE].sum()
        lower = (
            int(np.flatnonzero(totals <= keep * totals[DENSE])[-1])
            if (totals <= keep * totals[DENSE]).any()
            else 0
        )
        spread = (
            np.arange(steps)[:, None] * 0.6180339887 + np.arange(len(names)) * 0.7548776662
        ) % 1
        cost = np.full((rows, len(LEVELS)), 1e3) * weights[:, DENSE].max()
        cost[:, lower] = 0.0
        upper = min(lower + 1, DENSE)
        cost[:, upper] = spread.reshape(-1) * np.tile(weights[:, upper] - weights[:, lower], steps)
    chosen = solve(cost, weights, steps, keep)
    return Schedule(sublayers=tuple(names), chosen=chosen, notes={"allocator": how, "keep": keep})


def solved(
    folder: Path,
    names: Sequence[str],
    weights: Weights,
    steps: int,
    keep: float,
    *,
    stretch: bool = False,
    anew: bool = False,
) -> Schedule:
    """The schedule a prepared table gives for a budget: the one learned where it was learned for
    that budget and steps, unless it is to be solved `anew`, else the programme's. A table of another number of steps is refused with
    ValueError; with `stretch` each step has the costs of the one nearest by share of the sampling
    done."""
    learned = Schedule.read(folder / "schedule.json")  # of a measured table all dense
    fitted = learned.fitted(names, steps, "python run_bench.py prepare diffsparse", stretch=stretch)
    if not anew and learned.steps == steps and learned.notes.get("keep") == keep:
        return fitted
    cost = (
        load_file(folder / "cost.safetensors")["cost"]
        .astype(np.float64)
        .reshape(learned.steps, len(names), -1)
    )
    table = cost[nearest(learned.steps, steps)].reshape(steps * len(names), -1)
    return Schedule(
        sublayers=tuple(names), chosen=solve(table, weights, steps, keep), notes={"keep": keep}
    )
