"""Learning which sub-layers run and how the outputs of the others are forecast, together, by
back-propagation through the whole sampling.

A pass of the loop samples with shares between forecast and computed outputs, so that every share and
every coefficient has a gradient; a price keeps their sum within the budget. The shares are then
rounded by the knapsack, and the coefficients go on alone. Weights of the model never change.

T steps, L sub-layers, P guidance passes, O order, G groups of channels.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from ditbench.acceleration.caching.budget import DENSE, weights_of
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
from ditbench.method.half_done import NO_JOURNAL, Journal

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


class Learning:
    """One training: what is sampled, compared and moved."""

    def __init__(
        self,
        paint: Any,
        draw: Callable[[int, int], dict[str, Any]],
        distance: Callable[[Tensor, Tensor], Tensor],
        steps: int,
        recipe: Recipe,
        tell: Callable[[dict[str, Any]], None],
        journal: Journal = NO_JOURNAL,
    ) -> None:
        self.journal = journal
        self.paint, self.draw, self.distance = paint, draw, distance
        self.steps, self.recipe, self.tell = steps, recipe, tell
        self.log: list[dict[str, Any]] = []
        self.trial_seeds = [recipe.seed + 100_000 + i for i in range(recipe.trials)]
        self.plain: list[Tensor] = []
        self.teachers: dict[int, Tensor] = {}
        """Samples without acceleration, by seed: both stages draw the same requests."""

    def loss(self, seed: int, controls: Controls) -> tuple[Tensor, float]:
        """On the requests of a seed: the logarithms of the distance and of the squared error, so that both
        count by their ratios; and the distance."""
        if seed not in self.teachers:
            with torch.no_grad():
                arguments = self.draw(seed, self.recipe.batch)
                self.teachers[seed] = self.paint(None, arguments, self.steps)
        teacher = self.teachers[seed]
        with torch.enable_grad():
            arguments = self.draw(seed, self.recipe.batch)  # generators are spent
            samples = self.paint(controls, arguments, self.steps)
            far = self.distance(teacher, samples).mean()
            error = (teacher - samples).square().mean()
            return torch.log(far + 1e-3) + torch.log(error + 1e-6), float(far.detach())

    def slopes(
        self, seed: int, controls: Controls, inputs: Sequence[Tensor]
    ) -> tuple[float, list[Tensor]]:
        """The distance on the requests of a seed, and the gradients of the loss by `inputs`, of
        which `controls` are made."""

        def compute() -> NDArray[np.float64]:
            loss, far = self.loss(seed, controls)
            # of so few steps that nothing is skipped after two computed ones
            none = tuple(torch.zeros_like(x) for x in inputs)
            gradients = torch.autograd.grad(loss, list(inputs)) if loss.requires_grad else none
            return np.concatenate([[far], *(g.cpu().double().numpy().ravel() for g in gradients)])

        far, *flat = self.journal(compute, (seed, _digest(*inputs)))
        parts = np.split(np.array(flat), np.cumsum([x.numel() for x in inputs])[:-1])
        made = [torch.from_numpy(part) for part in parts]
        pairs = zip(made, inputs, strict=True)
        return float(far), [part.reshape(x.shape).to(x) for part, x in pairs]

    @torch.no_grad()
    def look_at_plain(self) -> None:
        """Sample the held-out requests without acceleration, before any trial: a generation also
        says what sizes there are."""
        num = max(self.recipe.trial_batch, self.recipe.batch)
        self.plain = [
            self.paint(None, self.draw(seed, num), self.steps) for seed in self.trial_seeds
        ]

    def trial(self, controls: Controls) -> float:
        """Mean distance on the held-out requests."""
        return float(
            self.journal(
                lambda: self._far(controls), _digest(controls.shares, controls.coefficients)
            )
        )

    @torch.no_grad()
    def _far(self, controls: Controls) -> float:
        num = max(self.recipe.trial_batch, self.recipe.batch)
        parts = [
            self.distance(plain, self.paint(controls, self.draw(seed, num), self.steps))
            for plain, seed in zip(self.plain, self.trial_seeds, strict=True)
        ]
        return float(torch.cat(parts).mean())

    def note(self, stage: int, iteration: int, loss: float | None, held_out: float | None) -> None:
        """A line of the log."""
        row = {"stage": stage, "iteration": iteration, "loss": loss, "held_out": held_out}
        self.log.append(row)
        self.tell(row)


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
    recipe, steps = learning.recipe, learning.steps
    scores = start_scores(grams, weights, recipe, mask)
    fixed = recipe.learns == "coefficients"
    if fixed and mask is None:
        mask = evenly(steps, weights, recipe.keep)
    first = mask if fixed and mask is not None else round_to_budget(scores, weights, recipe.keep)
    start, begun = start_table(recipe, grams, first, passes, device), float("inf")
    if recipe.begin == "best":

        def far(of: tuple[Scores, Tensor]) -> float:
            rounded = round_to_budget(of[0], weights, recipe.keep)
            return learning.trial(Controls(_shares(rounded, device), of[1]))

        tried = beginnings(recipe, grams, weights, passes, device)
        distances = [far(of) for of in tried]
        scores, start = tried[int(np.argmin(distances))]
        first, begun = round_to_budget(scores, weights, recipe.keep), min(distances)
    table = SharedTable(start)
    optimiser = torch.optim.Adam(table.parameters(), lr=recipe.rate_coefficients, betas=BETAS)
    if not fixed:
        initial_scores, initial_mask = scores, first
        scores = _together(learning, scores, weights, table, optimiser, device)
        first = round_to_budget(scores, weights, recipe.keep)
        coefficients = (table() if recipe.learns == "both" else start).detach()
        now, before = (
            learning.trial(Controls(_shares(mask, device), coefficients))
            for mask in (first, initial_mask)
        )
        learning.note(1, recipe.together, None, now)
        if before < now:  # what it started from is better on held-out requests
            scores, first = initial_scores, initial_mask
        if begun < min(now, before):  # and so are its coefficients
            scores, first, table = initial_scores, initial_mask, SharedTable(start)
            optimiser = torch.optim.Adam(
                table.parameters(), lr=recipe.rate_coefficients, betas=BETAS
            )
    if recipe.learns == "schedule":
        start = start_table(recipe, grams, first, passes, device)
        held_out = learning.trial(Controls(_shares(first, device), start))
        learning.note(2, 0, None, held_out)
        return Learned(scores, first, start.cpu().numpy(), held_out, learning.log)
    learned = _alone(learning, scores, first, table, optimiser, device)
    return learned


def _digest(*tensors: Tensor) -> str:
    """Of their values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


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
    of = recipe.stage1 + recipe.stage2 + 2
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
    notes = {"keep": recipe.keep, "held_out": learned.held_out, "spent": spent}
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
