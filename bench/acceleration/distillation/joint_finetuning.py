"""The last stage of a student that is made to skip work: its weights and a schedule of keep ratios
are trained together, back-propagated from the pixels of its own sparse sampling.

A student that was trained dense and is made sparse afterwards has never seen the states that its
skipped sub-layers lead to. Here it does, as caches that are trained with a distillation do, and the
schedule may move to what the trained weights can bear. DiffSparse (arXiv:2604.03674) trains
schedules alone.

T steps, L sub-layers, S levels; R = T L rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from ditbench.acceleration.caching import learn_schedule
from ditbench.acceleration.caching.budget import solve, spent, weights_of
from ditbench.acceleration.caching.learn_schedule import Levels, one_hot_levels, scaled
from ditbench.acceleration.caching.schedule import Schedule
from ditbench.acceleration.caching.soft_cache import studio
from ditbench.acceleration.distillation.low_rank import train
from ditbench.acceleration.distillation.pixel_finetuning import PIXELS, in_place
from ditbench.acceleration.distillation.training_loop import fit
from ditbench.method.stack import Stack
from ditbench.models.differentiable import paint

if TYPE_CHECKING:
    from ditbench.acceleration.caching.knapsack import Costs
    from ditbench.method.prepare import Workroom

SEED, HELD_OUT, HELD_OUT_BATCHES = 40_000, 90_000, 6
"""First streams of requests: of no other stage's, nor of the schedule's; and how many are held
out."""
SELECTOR = "attention"
"""What ranks tokens: the default of the method that samples by the schedule."""


@dataclass(frozen=True, kw_only=True)
class JointRecipe:
    """How weights and schedule are trained together. All numbers are ours, none was tuned."""

    keep: float
    """Share of the sub-layers' multiply-accumulates of the student's own sampling, its dense first
    step included; 1: no schedule, the same training of a dense student, which is the control."""
    stage1: int = 30
    stage2: int = 90
    """Iterations of the schedule that it begins with, of the student as it is: those of
    `learn_schedule`."""
    iterations: int = 300
    draws: int = 120
    """Batches of requests that the iterations take in turn: painting the teacher's samples takes
    longer than an iteration."""
    batch: int = 8
    """Pictures, or half as many videos."""
    rate: float = 3e-5
    """Of the weights: that of the last stage of a dense student."""
    average: float = 0.98
    moving: float = 0.6
    """Share of the iterations after which the schedule stays."""
    table_rate: float = 0.1
    """What an entry of the table of average gradient moves by in an iteration, at first; it falls to
    nothing along a line."""
    momentum: float = 0.9


def finish_jointly(
    room: Workroom, student: Any, scheduler: Any, distance: Callable[[Tensor, Tensor], Tensor],
    folder: Path, recipe: JointRecipe, *,
    teacher_steps: int, out: Path,
) -> dict[str, float]:  # fmt: skip
    """Train `student` in place under `scheduler`, sparse, on what the pipeline's own transformer
    paints in `teacher_steps`; a log in `folder`, `schedule.json` and `cost.safetensors` in `out`.

    The schedule is first learned for the student as it is. Returns the mean distance from the
    teacher's samples of held-out requests before (`held_out_before`) and after (`held_out`), and the
    share that is `spent`. Raises ValueError for a budget that the dense first step exceeds.
    """
    pipe, steps = room.pipe, len(scheduler.timesteps)
    batch = max(1, recipe.batch // (1 if room.model.frames == 1 else 2))

    def draw(seed: int, num: int) -> dict[str, Any]:
        return room.draw(seed, num, steps=steps, guidance=1.0)

    seeds = [*range(SEED, SEED + recipe.draws), *range(HELD_OUT, HELD_OUT + HELD_OUT_BATCHES)]
    targets = {}
    with torch.no_grad():  # before anything is attached, which would count the teacher's steps
        for seed in seeds:
            targets[seed] = paint(pipe, room.draw(seed, batch, steps=teacher_steps))
            room.tell({"done": len(targets), "of": len(seeds)})
    with in_place(pipe, student, scheduler):
        table = _Table(recipe, steps)
        if recipe.keep < 1:
            table.begin(pipe, draw, distance, room.tell)
        with studio(pipe, Stack(), SELECTOR, checkpointed=False) as (trainee, painted):
            table.names = tuple(s.name for s in trainee.at.sublayers)

            def samples(levels: Tensor | None, seed: int) -> Tensor:
                pixels: Tensor = painted(levels, draw(seed, batch), steps)
                return pixels

            def loss_of(step: int) -> Tensor:
                levels, seed = table.levels(trainee, step, room.device), SEED + step % recipe.draws
                made, target = samples(levels, seed), targets[seed]
                return distance(target, made).mean() + PIXELS * (made - target).square().mean()

            @torch.no_grad()
            def held_out() -> float:
                levels = None if recipe.keep == 1 else table.hot(room.device)
                parts = [distance(targets[s], samples(levels, s)) for s in seeds[recipe.draws :]]
                return float(torch.cat(parts).mean())

            samples(None, HELD_OUT)  # a generation says what sizes there are
            table.solve_for(trainee)
            notes = {"held_out_before": held_out()}
            train(student)
            with torch.enable_grad():
                fit(
                    student, loss_of, steps=recipe.iterations, lr=recipe.rate, folder=folder,
                    average=recipe.average, weight_decay=0.0, warm_up=20, every=20, tell=room.tell,
                )  # fmt: skip
            notes["held_out"] = held_out()
            if recipe.keep < 1:
                notes["spent"] = table.write(trainee, out, notes)
    return notes


class _Table:
    """The costs that the schedule is solved from, and how they follow the gradient."""

    def __init__(self, recipe: JointRecipe, steps: int) -> None:
        self.recipe, self.steps = recipe, steps
        self.names: tuple[str, ...] = ()
        self.cost: Costs = np.zeros((0, 0))
        self.chosen: Levels = np.zeros((0, 0), np.int64)
        self._velocity: Costs = np.zeros(())
        self._last: Tensor | None = None
        """[T,L,S]: the levels of the last iteration, whose gradient is there once it is over."""

    def begin(self, pipe: Any, draw: Any, distance: Any, tell: Any) -> None:
        """Learn the schedule of the student as it is."""
        own = self.recipe
        recipe = learn_schedule.Recipe(
            keep=own.keep, stage1=own.stage1, stage2=own.stage2, checkpointed=False
        )
        of = own.stage1 + own.stage2 + 1
        done = itertools.count(1)
        learned = learn_schedule.learn(
            pipe, draw, distance, self.steps, recipe,
            tell=lambda row: tell(row | {"done": next(done), "of": of}),
        )  # fmt: skip
        self.cost, self.chosen = learned.cost, learned.schedule.chosen
        self._velocity = np.zeros_like(self.cost)

    def solve_for(self, trainee: Any) -> None:
        """The levels of least cost."""
        if self.recipe.keep < 1:
            self.chosen = solve(self.cost, weights_of(trainee.at), self.steps, self.recipe.keep)

    def hot(self, device: Any) -> Tensor:
        """[T,L,S] of the levels as they are."""
        return one_hot_levels(self.chosen, device)

    def levels(self, trainee: Any, step: int, device: Any) -> Tensor | None:
        """[T,L,S] of an iteration, moved by the gradient of the one before; None: all dense."""
        recipe = self.recipe
        if recipe.keep == 1:
            return None
        moves = round(recipe.moving * recipe.iterations)
        if self._last is not None and self._last.grad is not None:
            g = self._last.grad.cpu()
            change = (g - g.gather(2, torch.from_numpy(self.chosen)[..., None])).flatten(0, 1)
            push = scaled(change.double().numpy())
            self._velocity = recipe.momentum * self._velocity + (1 - recipe.momentum) * push
            self.cost = self.cost + recipe.table_rate * (1 - step / moves) * self._velocity
            self.solve_for(trainee)
        self._last = self.hot(device).requires_grad_(True) if step < moves - 1 else None
        return self.hot(device) if self._last is None else self._last

    def write(self, trainee: Any, folder: Path, notes: dict[str, float]) -> float:
        """The schedule and its table; the share that is spent."""
        share = round(spent(self.chosen, weights_of(trainee.at)), 4)
        about = {"keep": self.recipe.keep, "spent": share, "held_out": notes["held_out"]}
        schedule = Schedule(sublayers=self.names, chosen=self.chosen, notes=about)
        schedule.write(folder / "schedule.json")
        save_file({"cost": self.cost.astype(np.float32)}, folder / "cost.safetensors")
        return share
