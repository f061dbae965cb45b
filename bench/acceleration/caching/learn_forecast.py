"""Learning which sub-layers run and how the outputs of the others are forecast, together, by
back-propagation through the whole sampling.

A pass of the loop samples with shares between forecast and computed outputs, so that every share and
every coefficient has a gradient; a price keeps their sum within the budget. The shares are then
rounded by the knapsack, and the coefficients go on alone. Weights of the model never change.

T steps, L sub-layers, P guidance passes, O order, G groups of channels.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from ditbench.acceleration.caching.budget import DENSE, weights_of
from ditbench.acceleration.caching.forecast_loss import Learning
from ditbench.acceleration.caching.forecast_plan import FILE
from ditbench.acceleration.caching.forecast_plan import MADE_BY as PREPARE
from ditbench.acceleration.caching.forecast_recipe import (
    Recipe,
    beginnings,
    start_scores,
    start_table,
)
from ditbench.acceleration.caching.forecast_student import Controls, ForecastStudent, SharedTable
from ditbench.acceleration.caching.learning_at_size import demands, distance_for, settings_for
from ditbench.acceleration.caching.local_forecast import (
    Grams,
    grams_of,
    local_coefficients,
)
from ditbench.acceleration.caching.schedule import Schedule
from ditbench.acceleration.caching.soft_cache import studio_of
from ditbench.acceleration.caching.whole_rows import (
    Mask,
    Scores,
    evenly,
    mask_of_schedule,
    round_to_budget,
    schedule_of_mask,
    soft_mask,
    spent_by,
)
from ditbench.method.half_done import Journal

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom


BETAS = (0.8, 0.95)
"""Of Adam."""


@dataclass
class Learned:
    """What came of it."""

    scores: Scores
    """[T,L]: what the mask was rounded from; one for any other budget can be."""
    mask: Mask
    coefficients: NDArray[np.float32]
    """[T,L,P,O,G]: the best on held-out requests."""
    held_out: float = float("inf")
    log: list[dict[str, Any]] = field(default_factory=list)
    start: str = ""
    """Which of the beginnings it was learned from."""


def learn(
    learning: Learning,
    weights: NDArray[np.int64],
    grams: Grams,
    mask: Mask | None,
    passes: int,
    device: Any,
) -> Learned:
    """Learn by `learning.recipe` for sub-layers of `weights` [L], from the local fit of `grams`, and
    from a schedule `mask` [T,L] if there is one.

    Raises ValueError for a budget that cannot be met.
    """
    recipe = learning.recipe
    scores = start_scores(grams, weights, recipe, mask)
    fixed = recipe.learns == "coefficients"
    if fixed and mask is None:
        mask = evenly(learning.steps, weights, recipe.keep)
    first = mask if fixed and mask is not None else round_to_budget(scores, weights, recipe.keep)
    starts = [_Start(scores, first, start_table(recipe, grams, first, passes, device))]
    if recipe.begin == "best":
        tried = [
            _Start(scores, round_to_budget(scores, weights, recipe.keep), table, name)
            for name, scores, table in beginnings(recipe, grams, weights, passes, device)
        ]
        for of in tried:
            of.held_out = learning.trial(Controls(_shares(of.mask, device), of.coefficients))
        nearest = min(tried, key=lambda of: of.held_out)
        starts = tried[:1] if nearest is tried[0] else [tried[0], nearest]
    return min(
        (_learn_from(start, learning, weights, grams, passes, device) for start in starts),
        key=lambda learned: learned.held_out,
    )


@dataclass
class _Start:
    """What a training starts from."""

    scores: Scores
    mask: Mask
    coefficients: Tensor
    """[T,L,P,O,G]."""
    name: str = ""
    held_out: float = float("inf")
    """Mean distance on held-out requests, where it was looked at."""


def _learn_from(
    start: _Start, learning: Learning, weights: NDArray[np.int64], grams: Grams, passes: int,
    device: Any,
) -> Learned:  # fmt: skip
    """One training; where it leads to nothing better on held-out requests, its start."""
    recipe, scores, mask = learning.recipe, start.scores, start.mask
    learning.log = []

    def fresh() -> tuple[SharedTable, torch.optim.Optimizer]:
        table = SharedTable(start.coefficients)
        rate = recipe.rate_coefficients
        return table, torch.optim.Adam(table.parameters(), lr=rate, betas=BETAS)

    table, optimiser = fresh()
    if recipe.learns in ("both", "schedule"):
        scores = _together(learning, scores, weights, table, optimiser, device)
        mask = round_to_budget(scores, weights, recipe.keep)
        coefficients = (table() if recipe.learns == "both" else start.coefficients).detach()
        now, before = (
            learning.trial(Controls(_shares(of, device), coefficients)) for of in (mask, start.mask)
        )
        learning.note(1, recipe.together, None, now)
        if before < now:  # what it started from is better on held-out requests
            scores, mask = start.scores, start.mask
        if start.held_out < min(now, before):  # and so are its coefficients
            scores, mask = start.scores, start.mask
            table, optimiser = fresh()
    if recipe.learns in ("schedule", "nothing"):
        under = start_table(recipe, grams, mask, passes, device)
        held_out = learning.trial(Controls(_shares(mask, device), under))
        learning.note(2, 0, None, held_out)
        learned = Learned(scores, mask, under.cpu().numpy(), held_out, learning.log)
    else:
        learned = _alone(learning, scores, mask, table, optimiser, device)
    learned.start = start.name
    return learned


def _shares(shares: NDArray[Any], device: Any) -> Tensor:
    return torch.from_numpy(np.asarray(shares, np.float32)).to(device)


def _together(
    learning: Learning,
    scores: Scores,
    weights: NDArray[np.int64],
    table: SharedTable,
    optimiser: torch.optim.Optimizer,
    device: Any,
) -> Scores:
    """Move scores and coefficients along the gradients of shares and coefficients."""
    recipe, velocity = learning.recipe, np.zeros_like(scores)
    moves_coefficients = recipe.learns == "both"
    for i in range(recipe.together):
        left = 1 - i / recipe.together
        if recipe.soft:
            shares = soft_mask(scores, weights, recipe.keep, max(recipe.temperature * left, 1e-3))
        else:
            shares = round_to_budget(scores, weights, recipe.keep).astype(float)
        leaf = _shares(shares, device).requires_grad_(True)
        coefficients = table() if moves_coefficients else table.start
        moved = list(table.parameters()) if moves_coefficients else []
        seed = recipe.seed + i % recipe.draws
        far, (slope, *slopes) = learning.slopes(seed, Controls(leaf, coefficients), [leaf, *moved])
        for parameter, of in zip(moved, slopes, strict=True):
            parameter.grad = of
        push = -slope[1:].cpu().double().numpy()
        push = push / (np.sqrt((push**2).mean()) + 1e-30)
        velocity[1:] = recipe.momentum * velocity[1:] + (1 - recipe.momentum) * push
        scores = scores + recipe.rate * left * velocity
        if moves_coefficients:
            torch.nn.utils.clip_grad_norm_(table.parameters(), 1.0)
            optimiser.step()
        held_out = None
        if i % 10 == 0:
            rounded = round_to_budget(scores, weights, recipe.keep)
            held_out = learning.trial(Controls(_shares(rounded, device), coefficients.detach()))
        learning.note(1, i, far, held_out)
    return scores


def _alone(
    learning: Learning, scores: Scores, mask: Mask, table: SharedTable,
    optimiser: torch.optim.Optimizer, device: Any,
) -> Learned:  # fmt: skip
    """Move the coefficients on a schedule that stays; the best of all looks at the held-out requests
    is taken."""
    recipe, shares = learning.recipe, _shares(mask, device)
    learned = Learned(scores, mask, table().detach().cpu().numpy())

    def look() -> float:
        held_out = learning.trial(Controls(shares, table().detach()))
        if held_out < learned.held_out:
            learned.held_out = held_out
            learned.coefficients = table().detach().cpu().numpy()
        return held_out

    for i in range(recipe.alone):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate_coefficients * max(0.05, 1 - i / recipe.alone)
        held_out = look() if i % 10 == 0 else None
        parameters, seed = list(table.parameters()), recipe.seed + i % recipe.draws
        far, slopes = learning.slopes(seed, Controls(shares, table()), parameters)
        for parameter, of in zip(parameters, slopes, strict=True):
            parameter.grad = of
        torch.nn.utils.clip_grad_norm_(table.parameters(), 1.0)
        optimiser.step()
        learning.note(2, i, far, held_out)
    learning.note(2, recipe.alone, None, look())
    learned.log = learning.log
    return learned


def prepare_forecast(
    folder: Path, room: Workroom, recipe: Recipe, start: str = ""
) -> dict[str, Any]:
    """Learn by a recipe for a model, from the schedule in the file `start` if there is one, and write
    `schedule.json`, `forecast.safetensors` and `log.csv`."""
    distance = distance_for(room)
    recipe = replace(recipe, **settings_for(room, recipe.batch))
    names, grams = grams_of(room)
    if not room.model.world:
        room.tell({"done": 0, "of": 1, "note": demands(room, recipe, recipe.order + 1)})
    mask = None
    if start:
        mask = mask_of_schedule(Schedule.read(Path(start)).fitted(names, room.calls, PREPARE))
    of = (recipe.stage1 + recipe.stage2 + 2) * (2 if recipe.begin == "best" else 1)
    done = iter(range(1, of + 1))

    def tell(row: dict[str, Any]) -> None:
        room.tell(row | {"done": next(done), "of": of})

    student = ForecastStudent(recipe.order, recipe.checkpointed)
    with studio_of(
        student, room.pipe, room.below, room.prepared, distance.decoded, room.grid
    ) as paint:
        journal = Journal(room.half_done)
        learning = Learning(paint, room.draw, distance, room.calls, recipe, tell, journal)
        learning.look_at_plain()
        weights = weights_of(student.at)[:, DENSE]
        learned = learn(learning, weights, grams, mask, len(grams), room.device)
    spent = round(spent_by(learned.mask, weights), 4)
    notes: dict[str, Any] = {"keep": recipe.keep, "held_out": learned.held_out, "spent": spent}
    if learned.start:
        notes["start"] = learned.start
    schedule_of_mask(names, learned.mask, notes).write(folder / "schedule.json")
    local = local_coefficients(grams, learned.mask, recipe.order, learned.coefficients.shape[2])
    tables: dict[str, NDArray[Any]] = {
        "scores": learned.scores,
        "learned": learned.coefficients,
        "local": np.repeat(local[..., None], recipe.groups, -1),
    }
    save_file({k: v.astype(np.float32) for k, v in tables.items()}, folder / FILE)
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, ["stage", "iteration", "loss", "held_out"])
        writer.writeheader()
        writer.writerows(learned.log)
    return {"distance": distance.name} | notes
