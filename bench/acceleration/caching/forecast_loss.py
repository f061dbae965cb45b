"""What a training of forecasts looks at: the loss of a batch of training requests with its gradients,
and the distance on held-out ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditbench.acceleration.caching.forecast_recipe import Recipe
from ditbench.acceleration.caching.forecast_student import Controls
from ditbench.method.half_done import NO_JOURNAL, Journal


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
            # coefficients have none where nothing is skipped after two computed steps, or of order 0
            gradients: list[Tensor | None] = [None] * len(inputs)
            if loss.requires_grad:
                gradients = list(torch.autograd.grad(loss, list(inputs), allow_unused=True))
            pairs = zip(inputs, gradients, strict=True)
            flat = [torch.zeros_like(x) if g is None else g for x, g in pairs]
            return np.concatenate([[far], *(g.cpu().double().numpy().ravel() for g in flat)])

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


def _digest(*tensors: Tensor) -> str:
    """Of their values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
