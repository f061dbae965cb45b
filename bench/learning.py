"""Learning a schedule of keep ratios by back-propagation through the whole sampling (DiffSparse, arXiv:2604.03674, sections 3.3-3.4).

The student computes every sub-layer densely and blends new with kept outputs by the mask its levels choose, so that what another level
would have changed has a gradient. Weights of the model never change; only a table of costs is learned.

B batch, T steps, L sub-layers, S levels; R = T L rows.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn.functional import one_hot

from ditbench.budget import DENSE, row_weights, solve
from ditbench.perceptual import Perceptual
from ditbench.rules import Selector
from ditbench.schedule import LEVELS, Schedule
from ditbench.stack import Stack
from ditbench.student import Student, studio

if TYPE_CHECKING:
    from ditbench.prepare import Workroom

Costs = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a schedule is learned."""

    keep: float = 0.46
    """Share of the sub-layers' multiply-accumulates the schedule may spend (the paper: 0.57, 0.46, 0.41)."""
    selector: Selector = "attention"
    by_macs: bool = True
    """The paper's equation counts rows alike; its tables match multiply-accumulates."""
    stage1: int = 40
    """Iterations with whole full steps. Ours: the paper does not say."""
    stage2: int = 120
    """Iterations without them. Ours."""
    full_share: float = 1 / 3
    """Share of the steps that are full in stage 1. Ours."""
    rate_steps: float = 0.01
    """Stage 1, step table (the paper's, for AdamW)."""
    rate_layers: float = 1.0
    """Stage 1, layer table (the paper's)."""
    rate: float = 0.1
    """Stage 2 (the paper's)."""
    delta: float = 10.0
    """How much cheaper full steps are made at the start of stage 2 (the paper's best)."""
    momentum: float = 0.9
    """Ours: one scale for the whole table, because the programme compares rows with each other and AdamW's scale of its own for every
    entry takes that away."""
    batch: int = 8
    seed: int = 0
    checkpointed: bool = True
    """Recompute each transformer run in the backward pass instead of keeping its activations."""


@dataclass
class Learned:
    """What came of a training."""

    cost: Costs
    """[R,S]: the table, from which a schedule for any budget can be solved again."""
    schedule: Schedule
    """The best on held-out requests."""
    log: list[dict[str, Any]] = field(default_factory=list)


def learn(
    pipe: Any,
    draw: Callable[[int, int], dict[str, Any]],
    distance: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    recipe: Recipe,
    below: Stack | None = None,
    tell: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Learned:
    """Learn a schedule for `steps` steps of `pipe` under the stack `below`.

    `draw(seed, n)` gives the call arguments of n training requests, `distance(a, b)` [n] of two batches of pixels. `tell` hears of
    every iteration. Raises ValueError for a budget that cannot be met.
    """
    with studio(pipe, below or Stack(), recipe.selector, recipe.checkpointed) as (student, paint):
        trial = draw(recipe.seed + 900_000, max(16, recipe.batch))
        with torch.no_grad():
            held_out = paint(None, trial, steps)
        at = student.at
        names, layers = tuple(s.name for s in at.sublayers), len(at.sublayers)
        frames, high, wide = at.now.grid
        weights = row_weights(at.sublayers, frames * high * wide, at.now.text_tokens, by_macs=recipe.by_macs)
        found = Learned(
            cost=np.zeros((steps * layers, len(LEVELS))),
            schedule=Schedule(sublayers=names, chosen=np.zeros((1, layers), np.int64)),
        )
        best = float("inf")

        def score(chosen: NDArray[np.int64]) -> float:
            with torch.no_grad():
                return float(distance(held_out, paint(_hot(chosen), trial, steps)).mean())

        def slope(chosen: NDArray[np.int64], iteration: int) -> tuple[float, Costs]:
            """Loss on fresh requests, and [R,S] how it would change were a row's level another."""
            arguments = draw(recipe.seed + iteration, recipe.batch)
            with torch.no_grad():
                teacher = paint(None, arguments, steps)
            levels = _hot(chosen).requires_grad_(True)
            again = draw(recipe.seed + iteration, recipe.batch)  # generators are spent
            with torch.enable_grad():
                loss = distance(teacher, paint(levels, again, steps)).mean()
                (g,) = torch.autograd.grad(loss, levels)
            change = (g - g.gather(2, torch.from_numpy(chosen)[..., None])).flatten(0, 1).double().numpy()
            return float(loss), change

        def note(stage: int, iteration: int, loss: float, chosen: NDArray[np.int64], look: bool) -> None:
            nonlocal best
            row: dict[str, Any] = {"stage": stage, "iteration": iteration, "loss": loss, "held_out": None}
            if look:
                row["held_out"] = score(chosen)
                if row["held_out"] < best:
                    best = row["held_out"]
                    notes = asdict(recipe) | {"held_out": best, "distance": getattr(distance, "name", "")}
                    found.schedule = Schedule(sublayers=names, chosen=chosen.copy(), notes=notes)
            found.log.append(row)
            tell(row)

        full, cost = _stage1(steps, layers, weights, recipe, slope, note)
        cost = cost.reshape(steps, layers, -1)
        cost[full, :, DENSE] -= recipe.delta * recipe.rate  # eq. 8, in units of a step of the table
        found.cost = cost.reshape(steps * layers, -1)
        velocity = np.zeros_like(found.cost)
        for i in range(recipe.stage2):
            chosen = solve(found.cost, weights, steps, recipe.keep)
            loss, change = slope(chosen, 10_000 + i)
            velocity = recipe.momentum * velocity + (1 - recipe.momentum) * _scaled(change)
            found.cost = found.cost + recipe.rate * (1 - i / recipe.stage2) * velocity
            note(2, i, loss, chosen, i % 10 == 0)
        note(2, recipe.stage2, float("nan"), solve(found.cost, weights, steps, recipe.keep), True)
    return found


def _stage1(steps: int, layers: int, weights: Any, recipe: Recipe, slope: Any, note: Any) -> tuple[list[int], Costs]:
    """Full steps and the other rows apart: positions of the full steps, and the layer table [R,S]."""
    num = max(1, min(round(recipe.full_share * steps), int(recipe.keep * steps)))
    even = np.round(np.linspace(0, steps - 1, num + 1)[:-1]).astype(int)
    step_cost = np.ones(steps) * 1e-3  # of being full; the lowest are full
    step_cost[even] = 0.0
    step_cost[0] = -1e9
    cost = np.tile(np.array(LEVELS)[None] * 0.0, (steps * layers, 1))
    velocity, pushed = np.zeros_like(cost), np.zeros(steps)
    for i in range(recipe.stage1):
        full = sorted(np.argsort(step_cost, kind="stable")[:num].tolist())
        chosen, rest = _with_full(full, cost, weights, steps, recipe.keep)
        loss, change = slope(chosen, i)
        by_step = change.reshape(steps, layers, -1)
        gain = by_step[:, :, DENSE].sum(1)  # of making a step full
        loss_of = np.take_along_axis(by_step, rest[..., None], 2)[..., 0].sum(1)  # of making a full step like the rest
        push = np.where(np.isin(np.arange(steps), full), -loss_of, gain)
        pushed = recipe.momentum * pushed + (1 - recipe.momentum) * _scaled(push)
        velocity = recipe.momentum * velocity + (1 - recipe.momentum) * _scaled(change)
        step_cost[1:] += recipe.rate_steps * pushed[1:]
        cost = cost + recipe.rate_layers * recipe.rate * velocity
        note(1, i, loss, chosen, i % 10 == 0)
    return sorted(np.argsort(step_cost, kind="stable")[:num].tolist()), cost


def _with_full(
    full: Sequence[int], cost: Costs, weights: Any, steps: int, keep: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Levels [T,L] with the steps `full` dense, and what the others' programme would give those steps."""
    layers = len(weights)
    forced = cost.reshape(steps, layers, -1).copy()
    forced[list(full), :, DENSE] -= 1e6
    chosen = solve(forced.reshape(steps * layers, -1), weights, steps, keep)
    free = cost.reshape(steps, layers, -1)[..., :DENSE].argmin(2)
    return chosen, free


def _scaled(change: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divided by its root mean square: one scale for the whole table."""
    scaled: NDArray[np.float64] = change / (np.sqrt((change**2).mean()) + 1e-30)
    return scaled


def _hot(chosen: NDArray[np.int64]) -> Tensor:
    return one_hot(torch.from_numpy(chosen), len(LEVELS)).float()


def _sensitive(student: Student, paint: Any, room: Workroom, distance: Any, steps: int, recipe: Recipe) -> Learned:
    """The table of distances to the un-accelerated samples when one row alone has another level than dense: no gradients."""
    with torch.no_grad():
        plain = paint(None, room.draw(recipe.seed, recipe.batch), steps)
        at = student.at
        layers = len(at.sublayers)
        frames, high, wide = at.now.grid
        weights = row_weights(at.sublayers, frames * high * wide, at.now.text_tokens, by_macs=recipe.by_macs)
        cost = np.zeros((steps, layers, len(LEVELS)))
        for t in range(1, steps):
            for layer in range(layers):
                for level in range(DENSE):
                    chosen = np.full((steps, layers), DENSE)
                    chosen[t, layer] = level
                    painted = paint(_hot(chosen), room.draw(recipe.seed, recipe.batch), steps)
                    cost[t, layer, level] = float(distance(plain, painted).mean())
            room.tell({"done": t, "of": steps - 1})
    table = cost.reshape(steps * layers, -1)
    chosen = solve(table, weights, steps, recipe.keep)
    names = tuple(s.name for s in at.sublayers)
    return Learned(
        cost=table,
        schedule=Schedule(sublayers=names, chosen=chosen, notes={"allocator": "sensitivity", "keep": recipe.keep}),
    )


def prepare_schedule(
    how: str, folder: Path, room: Workroom, *, keep: float, selector: Selector, by_macs: bool, **more: Any
) -> dict[str, Any]:
    """Learn (`how="learned"`) or measure (`"sensitivity"`) a table for a model, and write `cost.safetensors`, `schedule.json`, `log.csv`.

    `more` overrides the recipe. Raises ValueError for a model without a world: its perceptual distance is not here yet.
    """
    if not room.model.world:
        raise ValueError(
            f"{room.model.name}: schedules are learned on the tiny models so far, whose perceptual distance is the judge's"
        )
    recipe = Recipe(keep=keep, selector=selector, by_macs=by_macs, **more)
    distance, steps = Perceptual(room.model.world), room.sampling.steps
    if how == "learned":
        of = recipe.stage1 + recipe.stage2 + 1
        done = iter(range(1, of + 1))
        found = learn(
            room.pipe, room.draw, distance, steps, recipe, room.below, lambda row: room.tell(row | {"done": next(done), "of": of})
        )  # fmt: skip
    else:
        with studio(room.pipe, room.below, selector, False) as (student, paint):
            found = _sensitive(student, paint, room, distance, steps, recipe)
    save_file({"cost": found.cost.astype(np.float32)}, folder / "cost.safetensors")
    found.schedule.write(folder / "schedule.json")
    with (folder / "log.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, ["stage", "iteration", "loss", "held_out"])
        writer.writeheader()
        writer.writerows(found.log)
    return {"keep": keep, "held_out": found.schedule.notes.get("held_out"), "distance": distance.name}
