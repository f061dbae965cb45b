"""The recipe of a forecasting schedule, and what its learning starts from.

T steps, L sub-layers, P guidance passes, O order, G groups of channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditbench.acceleration.caching.forecast_student import HIGHEST, LOWEST
from ditbench.acceleration.caching.local_forecast import (
    Grams,
    best_common_steps,
    local_coefficients,
    local_errors,
)
from ditbench.acceleration.caching.whole_rows import Mask, Scores, evenly, round_to_budget

STEPS = 20
"""Sampler steps that a recipe's numbers of iterations are for."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How schedule and coefficients are come by. All of it is ours."""

    learns: Literal["both", "schedule", "coefficients", "nothing"] = "both"
    coefficients: Literal["learned", "local", "zero", "one"] = "learned"
    """Where the schedule alone is learned, under which."""
    keep: float = 0.46
    """Share of the sub-layers' multiply-accumulates that is spent."""
    order: int = 1
    groups: int = 1
    """Groups of channels with coefficients of their own."""
    apart: bool = True
    """Whether guidance passes have coefficients of their own."""
    together: int = 20
    """Iterations in which schedule and coefficients move."""
    alone: int = 32
    """Iterations of the coefficients on the rounded schedule."""
    rate: float = 0.1
    """What a score of average gradient moves by in an iteration; falls to nothing along a line."""
    head_start: float = 0.3
    """Score of what the schedule computes that learning starts from."""
    temperature: float = 0.1
    """Of the shares at the start, in units of scores; falls to nothing along a line."""
    soft: bool = True
    momentum: float = 0.9
    rate_coefficients: float = 0.03
    """Of Adam."""
    begin: Literal["squares", "best"] = "squares"
    """What learning starts from: the local least squares; or these and, in a second training, the
    nearest of `beginnings` on held-out requests, on which the better of the two is chosen."""
    start: float = 0.5
    """Share of the least-squares coefficients that learning starts from."""
    batch: int = 2
    draws: int = 32
    """Batches of requests that are drawn; iterations take turns."""
    trials: int = 1
    """Batches of held-out requests that the best coefficients are chosen by."""
    trial_batch: int = 16
    seed: int = 0
    checkpointed: bool = True

    def for_steps(self, steps: int) -> Recipe:
        """Of fewer steps than `STEPS` more iterations, held-out batches and draws, as many as take as
        long: so few steps that are far apart have more to learn from each other."""
        more = max(1.0, STEPS / steps)
        scaled = {
            name: round(getattr(self, name) * more)
            for name in ("together", "alone", "draws", "trials")
        }
        return replace(self, **scaled)

    @property
    def stage1(self) -> int:
        """Iterations of the first stage, as `learning_at_size` names them."""
        return self.together if self.learns in ("both", "schedule") else 0

    @property
    def stage2(self) -> int:
        """Iterations of the second stage."""
        return self.alone if self.learns in ("both", "coefficients") else 0

    @property
    def allocator(self) -> str:
        """What `learning_at_size.demands` asks for."""
        return "learned"


def start_scores(
    grams: Grams, weights: NDArray[np.int64], recipe: Recipe, mask: Mask | None
) -> Scores:
    """[T,L]: `head_start` for what a schedule computes, by default the common steps between which
    the forecasts are off least, and less for the others, by how far they are off locally."""
    steps = grams.shape[-1]
    if mask is None:
        count = max(1, min(steps, int(recipe.keep * steps + 1e-6)))
        mask = np.zeros((steps, len(weights)), bool)
        mask[best_common_steps(grams, count, recipe.order)] = True
    errors = np.sqrt(local_errors(grams, mask, min(recipe.order, 1)))
    scores: Scores = recipe.head_start * mask + 0.1 * errors / (errors.std() + 1e-12)
    return scores


MEANINGS = {"learned": "least-squares forecasts", "zero": "reuse", "one": "extrapolation"}
"""What the coefficients that learning starts from are, in words."""


def beginnings(
    recipe: Recipe, grams: Grams, weights: NDArray[np.int64], passes: int, device: Any
) -> list[tuple[str, Scores, Tensor]]:
    """Name, scores [T,L] and coefficients [T,L,P,O,G] of what learning may start from: at the steps of
    least local error, and at even ones, the share `start` of the local coefficients, reuse, and the
    whole extrapolation. The first is what `begin="squares"` starts from."""
    even = evenly(grams.shape[-1], weights, recipe.keep)
    made = []
    for steps, given in (("least-squares steps", None), ("even steps", even)):
        scores = start_scores(grams, weights, recipe, given)
        mask = round_to_budget(scores, weights, recipe.keep)
        for coefficients in ("learned", "zero", "one"):
            like = replace(recipe, coefficients=coefficients)
            table = start_table(like, grams, mask, passes, device)
            made.append((f"{steps}, {MEANINGS[coefficients]}", scores, table))
    return made


def start_table(recipe: Recipe, grams: Grams, mask: Mask, passes: int, device: Any) -> Tensor:
    """[T,L,P,O,G]: what learning starts from, or what the schedule alone is learned under."""
    local = local_coefficients(grams, mask, recipe.order, passes if recipe.apart else 1)
    scale = {"learned": recipe.start, "local": 1.0, "zero": 0.0, "one": 0.0}[recipe.coefficients]
    table = scale * local + (recipe.coefficients == "one")
    start = torch.from_numpy(table).float().clamp(LOWEST, HIGHEST)[..., None]
    return start.repeat(1, 1, 1, 1, recipe.groups).to(device)
