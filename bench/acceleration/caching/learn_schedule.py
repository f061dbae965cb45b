"""Learning a schedule of keep ratios by back-propagation through the whole sampling (DiffSparse,
arXiv:2604.03674).

The student computes every sub-layer densely and blends new with kept outputs by the mask its levels
choose, so that what another level would have changed has a gradient. Weights of the model never
change; only a table of costs is learned.

B batch, T steps, L sub-layers, S levels; R = T L rows.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn.functional import one_hot

from ditbench.acceleration.caching.budget import DENSE, solve, spent, weights_of
from ditbench.acceleration.caching.knapsack import Costs, Weights
from ditbench.acceleration.caching.learning_at_size import demands, distance_for, settings_for
from ditbench.acceleration.caching.schedule import LEVELS, Schedule
from ditbench.acceleration.caching.soft_cache import Student, studio
from ditbench.method.half_done import NO_JOURNAL, Journal
from ditbench.method.stack import Stack

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom

Levels = NDArray[np.int64]
"""[T,L]: which level."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a schedule is come by. Rates are what an entry of average gradient moves by in an
    iteration."""

    allocator: Literal["learned", "sensitivity"] = "learned"
    """By back-propagation; or by trying every level of every row alone, without gradients, which
    knows neither stages nor rates."""
    keep: float = 0.46
    """Share of the sub-layers' multiply-accumulates the schedule may spend (the paper: 0.57, 0.46,
    0.41)."""
    selector: str = "attention"
    by_macs: bool = True
    """The paper's equation counts rows alike; its tables match multiply-accumulates."""
    stage1: int = 30
    """Iterations with whole full steps. Ours: the paper does not say."""
    stage2: int = 90
    """Iterations without them. Ours."""
    full_share: float = 1 / 3
    """Share of the steps that are full in stage 1. Ours."""
    rate_steps: float = 0.01
    """Stage 1, step table (the paper's, for AdamW)."""
    rate_layers: float = 0.1
    """Stage 1, layer table. Ours, as stage 2: the paper's 1.0 is for AdamW on a table of another
    scale."""
    rate: float = 0.1
    """Stage 2 (the paper's); falls to nothing along a line."""
    delta: float = 10.0
    """How much cheaper full steps are made at the start of stage 2 (the paper's best), counted in
    `rate`."""
    momentum: float = 0.9
    """Ours: one scale for the whole table, because the programme compares rows with each other and
    AdamW's scale of its own for every entry takes that away."""
    batch: int = 4
    """Requests an iteration, drawn anew for each. Ours."""
    trials: int = 1
    """Batches of held-out requests that the best schedule is chosen by. Ours."""
    trial_batch: int = 16
    seed: int = 0
    checkpointed: bool = True
    """Recompute each transformer run in the backward pass, and in it each block, instead of keeping
    activations."""


@dataclass
class Learned:
    """What came of it."""

    cost: Costs
    """[R,S]: the table the schedule was solved from; one for any other budget can be solved from
    it."""
    schedule: Schedule
    """The best on held-out requests."""
    log: list[dict[str, Any]] = field(default_factory=list)


def learn(
    pipe: Any, draw: Callable[[int, int], dict[str, Any]],
    distance: Callable[[Tensor, Tensor], Tensor], steps: int, recipe: Recipe,
    below: Stack | None = None, prepared: Mapping[str, Path] | None = None,
    tell: Callable[[dict[str, Any]], None] = lambda row: None,
    decoded: bool = True, grid: tuple[int, int, int] | None = None,
    journal: Journal = NO_JOURNAL,
) -> Learned:  # fmt: skip
    """Learn or measure a schedule for `steps` steps of `pipe` under the stack `below`, with what
    that was `prepared` with.

    `draw(seed, n)` gives the call arguments of n training requests, `distance(a, b)` [n] of two
    batches of pixels, or of latents where samples are not `decoded`. `tell` hears of every
    iteration, `journal` has those of a command that was stopped. Raises ValueError for a budget
    that cannot be met.
    """
    settings = recipe.selector, recipe.checkpointed, prepared, decoded, grid
    with studio(pipe, below or Stack(), *settings) as (student, paint):
        trial = _Trial(paint, draw, distance, steps, recipe, pipe.transformer.device, journal)
        names, layers = tuple(s.name for s in student.at.sublayers), len(student.at.sublayers)
        weights = weights_of(student.at, by_macs=recipe.by_macs)
        found = Learned(
            cost=np.zeros((steps * layers, len(LEVELS))),
            schedule=Schedule(sublayers=names, chosen=np.zeros((1, layers), np.int64)),
        )
        best = float("inf")

        def kept(chosen: Levels, held_out: float) -> Schedule:
            notes = asdict(recipe) | {
                "held_out": held_out,
                "spent": round(spent(chosen, weights), 4),
            }
            return Schedule(sublayers=names, chosen=chosen.copy(), notes=notes)

        if recipe.allocator == "sensitivity":
            found.cost = _sensitivity(student, trial, layers, recipe, tell)
            chosen = solve(found.cost, weights, steps, recipe.keep)
            found.schedule = kept(chosen, trial(chosen))
            return found

        def slope(chosen: Levels, iteration: int) -> tuple[float, Costs]:
            """Loss on fresh requests, and [R,S] how it would change were a row's level another."""
            both = journal(lambda: slope_now(chosen, iteration), (iteration, chosen.tobytes()))
            return float(both[0]), both[1:].reshape(-1, len(LEVELS))

        def slope_now(chosen: Levels, iteration: int) -> Costs:
            """[1+RS]: the loss before the rest."""
            arguments = draw(recipe.seed + iteration, recipe.batch)
            with torch.no_grad():
                teacher = paint(None, arguments, steps)
            levels = one_hot_levels(chosen, pipe.transformer.device).requires_grad_(True)
            again = draw(recipe.seed + iteration, recipe.batch)  # generators are spent
            with torch.enable_grad():
                loss = distance(teacher, paint(levels, again, steps)).mean()
                g = torch.autograd.grad(loss, levels)[0].cpu()
            change = (g - g.gather(2, torch.from_numpy(chosen)[..., None])).flatten(0, 1)
            return np.append(loss.item(), change.double().numpy())

        def note(
            stage: int,
            iteration: int,
            loss: float | None,
            chosen: Levels,
            table: Costs,
            last: bool = False,
        ) -> None:
            nonlocal best
            row: dict[str, Any] = {
                "stage": stage,
                "iteration": iteration,
                "loss": loss,
                "held_out": None,
            }
            if last or iteration % 10 == 0:
                row["held_out"] = trial(chosen)
                if row["held_out"] < best:
                    best = row["held_out"]
                    found.schedule, found.cost = kept(chosen, best), table.copy()
            found.log.append(row)
            tell(row)

        full, cost = _stage1(steps, layers, weights, recipe, slope, note)
        cost = cost.reshape(steps, layers, -1)
        cost[full, :, DENSE] -= recipe.delta * recipe.rate  # eq. 8
        cost = cost.reshape(steps * layers, -1)
        velocity = np.zeros_like(cost)
        for i in range(recipe.stage2):
            chosen = solve(cost, weights, steps, recipe.keep)
            loss, change = slope(chosen, 10_000 + i)
            note(2, i, loss, chosen, cost)
            velocity = recipe.momentum * velocity + (1 - recipe.momentum) * scaled(change)
            cost = cost + recipe.rate * (1 - i / recipe.stage2) * velocity
        note(2, recipe.stage2, None, solve(cost, weights, steps, recipe.keep), cost, last=True)
    return found


class _Trial:
    """How far a schedule's samples of the held-out requests are from the un-accelerated ones."""

    def __init__(
        self, paint: Any, draw: Any, distance: Any, steps: int, recipe: Recipe, device: Any,
        journal: Journal,
    ) -> None:  # fmt: skip
        self.journal = journal
        self.paint, self.draw, self.distance, self.steps = paint, draw, distance, steps
        self.num, self.device = max(recipe.trial_batch, recipe.batch), device
        self.seeds = [recipe.seed + 100_000 + i for i in range(recipe.trials)]
        with torch.no_grad():
            self.plain = [self._samples(None, seed) for seed in self.seeds]

    def __call__(self, chosen: Levels) -> float:
        return float(self.journal(lambda: self._far(chosen), chosen.tobytes()))

    @torch.no_grad()
    def _far(self, chosen: Levels) -> float:
        levels = one_hot_levels(chosen, self.device)
        pairs = zip(self.plain, self.seeds, strict=True)
        parts = [self.distance(plain, self._samples(levels, seed)) for plain, seed in pairs]
        return float(torch.cat(parts).mean())

    def _samples(self, levels: Tensor | None, seed: int) -> Tensor:
        # drawn anew: generators are spent
        pixels: Tensor = self.paint(levels, self.draw(seed, self.num), self.steps)
        return pixels


def _stage1(
    steps: int, layers: int, weights: Weights, recipe: Recipe, slope: Any, note: Any
) -> tuple[list[int], Costs]:
    """Full steps and the other rows apart: positions of the full steps, and the layer table
    [R,S]."""
    num = max(1, min(round(recipe.full_share * steps), int(recipe.keep * steps)))
    even = np.round(np.linspace(0, steps - 1, num + 1)[:-1]).astype(int)
    step_cost = np.ones(steps) * 1e-3  # of being full; the lowest are full
    step_cost[even] = 0.0
    step_cost[0] = -1e9
    cost = np.zeros((steps * layers, len(LEVELS)))
    velocity, pushed = np.zeros_like(cost), np.zeros(steps)
    for i in range(recipe.stage1):
        full = sorted(np.argsort(step_cost, kind="stable")[:num].tolist())
        forced, chosen, rest = _with_full(full, cost, weights, steps, recipe.keep)
        loss, change = slope(chosen, i)
        by_step = change.reshape(steps, layers, -1)
        gain = by_step[:, :, DENSE].sum(1)  # of making a step full
        # of making a full step like the rest
        loss_of = np.take_along_axis(by_step, rest[..., None], 2)[..., 0].sum(1)
        push = np.where(np.isin(np.arange(steps), full), -loss_of, gain)
        pushed = recipe.momentum * pushed + (1 - recipe.momentum) * scaled(push)
        velocity = recipe.momentum * velocity + (1 - recipe.momentum) * scaled(change)
        step_cost[1:] += recipe.rate_steps * pushed[1:]
        cost = cost + recipe.rate_layers * velocity
        note(1, i, loss, chosen, forced)
    return sorted(np.argsort(step_cost, kind="stable")[:num].tolist()), cost


def _with_full(
    full: Sequence[int], cost: Costs, weights: Weights, steps: int, keep: float
) -> tuple[Costs, Levels, Levels]:
    """The table with the steps `full` made as good as free, the levels [T,L] it gives, and the
    cheapest level below dense of every row, were there no budget."""
    layers = len(weights)
    forced = cost.reshape(steps, layers, -1).copy()
    forced[list(full), :, DENSE] -= 1e6
    chosen = solve(forced.reshape(steps * layers, -1), weights, steps, keep)
    free = cost.reshape(steps, layers, -1)[..., :DENSE].argmin(2)
    return forced.reshape(steps * layers, -1), chosen, free


def scaled(change: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divided by its root mean square: one scale for the whole table."""
    unit: NDArray[np.float64] = change / (np.sqrt((change**2).mean()) + 1e-30)
    return unit


def one_hot_levels(chosen: Levels, device: Any) -> Tensor:
    """[T,L,S] of levels [T,L], float32."""
    return one_hot(torch.from_numpy(chosen), len(LEVELS)).float().to(device)


def _sensitivity(
    student: Student, trial: _Trial, layers: int, recipe: Recipe,
    tell: Callable[[dict[str, Any]], None],
) -> Costs:  # fmt: skip
    """[R,S]: how far the samples move when one row alone has a level, all others being dense. What
    comes before the row's step is not computed again."""
    steps, cost = trial.steps, np.zeros((trial.steps, layers, len(LEVELS)))

    def painted(levels: Tensor | None) -> Tensor:
        pixels: Tensor = trial.paint(levels, trial.draw(recipe.seed, recipe.batch), steps)
        return pixels

    with torch.no_grad():
        with student.recording():
            plain = painted(None)
        for t in range(1, steps):
            for layer, level in itertools.product(range(layers), range(DENSE)):
                chosen = np.full((steps, layers), DENSE)
                chosen[t, layer] = level
                with student.replaying(t - 1):  # the step before fills the cache
                    cost[t, layer, level] = float(
                        trial.distance(plain, painted(one_hot_levels(chosen, trial.device))).mean()
                    )
            tell({"done": t, "of": steps - 1})
    return cost.reshape(steps * layers, -1)


def prepare_schedule(
    allocator: str,
    folder: Path,
    room: Workroom,
    *,
    keep: float,
    selector: str,
    by_macs: bool,
    **more: Any,
) -> dict[str, Any]:
    """Learn or measure a table for a model, and write `cost.safetensors`, `schedule.json`,
    `log.csv`.

    What is not `folder` or `room` is the recipe's.
    """
    settings: dict[str, Any] = {
        "allocator": allocator, "keep": keep, "selector": selector, "by_macs": by_macs,
        **settings_for(room, Recipe.batch),
    }  # fmt: skip
    recipe = Recipe(**settings | more)
    distance = distance_for(room)
    if not room.model.world:
        room.tell({"done": 0, "of": 1, "note": demands(room, recipe)})
    of = recipe.stage1 + recipe.stage2 + 1
    done = iter(range(1, of + 1))

    def tell(row: dict[str, Any]) -> None:
        room.tell(row if "done" in row else row | {"done": next(done), "of": of})

    found = learn(
        room.pipe, room.draw, distance, room.calls, recipe, room.below, room.prepared, tell,
        distance.decoded, room.grid, Journal(room.half_done),
    )  # fmt: skip
    save_file({"cost": found.cost.astype(np.float32)}, folder / "cost.safetensors")
    found.schedule.write(folder / "schedule.json")
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, ["stage", "iteration", "loss", "held_out"])
        writer.writeheader()
        writer.writerows(found.log)
    return {"keep": keep, "distance": distance.name} | {
        k: found.schedule.notes[k] for k in ("held_out", "spent")
    }
