"""A pipeline whose sub-layers blend computed outputs with forecasts, and the coefficients that are
learned on it.

T steps, L sub-layers, P guidance passes, O order, G groups of channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ditbench.acceleration.caching.forecast import ForecastCache
from ditbench.acceleration.caching.soft_cache import Student

LOWEST, HIGHEST = -0.5, 2.0
"""Between which coefficients stay."""


@dataclass
class Controls:
    """What the student samples by: shares [T,L], and coefficients [T,L,P,O,G]. Shares without a
    gradient are all 0 or 1, and what is skipped is not run."""

    shares: Tensor
    coefficients: Tensor


class ForecastStudent(Student):
    """A pipeline whose sub-layers blend computed outputs with forecasts."""

    levels: Controls | None

    def __init__(self, order: int, checkpointed: bool) -> None:
        super().__init__("", checkpointed)
        self.order = order

    def cache_for(self, pipeline: Any) -> ForecastCache:
        """Forecasts by the controls' coefficients."""
        return ForecastCache(self.at, self.order, self._coefficients)

    def _coefficients(self, sublayer: Any, _device: Any) -> Tensor:
        assert self.levels is not None
        return self.levels.coefficients[self.at.now.step, sublayer.index]

    def output(self, cache: ForecastCache, sublayer: Any, run: Any, hidden: Tensor) -> Any:
        """A sub-layer's output at the step under way."""
        assert self.levels is not None
        share = self.levels.shares[self.at.now.step, sublayer.index]
        if sublayer not in cache:
            return cache.compute(sublayer, run)
        if share.requires_grad:
            return cache.blend(sublayer, run, share)
        return cache.compute(sublayer, run) if share else cache.forecast(sublayer)


class SharedTable(torch.nn.Module):
    """Coefficients [T,L,P,O,G] as a sum of what is common to a sub-layer's steps, to a step's
    sub-layers, and own: what a row learns while it is skipped serves its neighbours too."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.start = start
        self.of_sublayer = torch.nn.Parameter(torch.zeros_like(start[:1]))
        self.of_step = torch.nn.Parameter(torch.zeros_like(start[:, :1]))
        self.own = torch.nn.Parameter(torch.zeros_like(start))

    def forward(self) -> Tensor:
        """The coefficients."""
        moved: Tensor = self.start + self.of_sublayer + self.of_step + self.own
        return moved.clamp(LOWEST, HIGHEST)
