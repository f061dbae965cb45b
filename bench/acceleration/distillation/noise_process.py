"""One noise process for all models: noise prediction on a DDPM schedule and flow velocity, seen as
rectified flow, and as TrigFlow.

A state of level s, 0 (clean) to 1 (noise), is x = (1 - s) x0 + s e, whatever the model was trained
on; its velocity is v = e - x0. A variance-preserving state y = a x0 + b e, a^2 + b^2 = 1, is the
same state at another scale: x = n y with s = b / (a + b) and n = 1 / (a + b) = sqrt(s^2 + (1 -
s)^2). TrigFlow (Lu and Song 2024, arXiv:2410.11081) is that same y, its time the angle t = atan2(b,
a) and its velocity F = dy/dt = a e - b x0, which is what is elsewhere called v-prediction (Salimans
and Ho 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STEPS = 1000
"""Timesteps of a training schedule; the transformers are told times in 0..1000."""


def scale(s: Tensor) -> Tensor:
    """n: how much longer the variance-preserving state of level s is made to be the flow's."""
    return (s**2 + (1 - s) ** 2).sqrt()


def angle(s: Tensor) -> Tensor:
    """The TrigFlow time, 0..pi/2, of a level."""
    return torch.atan2(s, 1 - s)


def level_of_angle(t: Tensor) -> Tensor:
    """The level of a TrigFlow time."""
    return t.sin() / (t.sin() + t.cos())


def trig_velocity(v: Tensor, x: Tensor, s: Tensor) -> Tensor:
    """F from the flow's velocity v at state x of level s."""
    n = scale(s)
    return ((1 - 2 * s) * x + n**2 * v) / n


def flow_velocity(f: Tensor, x: Tensor, s: Tensor) -> Tensor:
    """v from F: the inverse of `trig_velocity`."""
    n = scale(s)
    return f / n - (1 - 2 * s) / n**2 * x


def wide(s: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B,1,...] so that it multiplies `like` [B,...]."""
    return s.view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True, eq=False)
class Process:
    """How a model's own states and predictions become the flow's."""

    noise: bool
    """Whether the model predicts the noise of variance-preserving states; else the flow's
    velocity."""
    alphas: Tensor | None = None
    """[1000]: products of alphas of the DDPM schedule, where the model predicts noise and timesteps
    are asked for."""

    @classmethod
    def of(cls, scheduler: Any) -> Process:
        """A pipeline's; ValueError for a scheduler of another prediction."""
        kind = scheduler.config.get("prediction_type", "flow_prediction")
        if kind == "flow_prediction":
            return cls(False)
        if kind == "epsilon":
            return cls(True, scheduler.alphas_cumprod.cpu().double())
        raise ValueError(
            f"{type(scheduler).__name__} predicts {kind}; students are trained on noise and on "
            "flow velocity"
        )

    def level(self, timestep: Tensor) -> Tensor:
        """s of timesteps 0..1000, broken ones between their neighbours."""
        if self.alphas is None:
            return timestep / STEPS
        low = timestep.floor().long().clamp(0, STEPS - 1)
        part = (timestep - low).double()
        levels = _levels(self.alphas)
        return torch.lerp(levels[low], levels[(low + 1).clamp(max=STEPS - 1)], part)

    def timestep(self, s: Tensor) -> Tensor:
        """The timestep the model is told at level s: the inverse of `level`; beyond the schedule's
        ends its last."""
        if self.alphas is None:
            return s * STEPS
        levels = _levels(self.alphas)
        high = torch.searchsorted(levels, s.double()).clamp(1, STEPS - 1)
        before, after = levels[high - 1], levels[high]
        return (high - 1 + ((s - before) / (after - before)).clamp(0, 1)).to(s.dtype)

    def state(self, y: Tensor, s: Tensor) -> Tensor:
        """The flow's state of the model's own."""
        return scale(s) * y if self.noise else y

    def own(self, x: Tensor, s: Tensor) -> Tensor:
        """The model's own state of the flow's."""
        return x / scale(s) if self.noise else x

    def velocity(self, prediction: Tensor, x: Tensor, s: Tensor) -> Tensor:
        """v of what the model predicts at the flow's state x."""
        return (prediction - x) / (1 - s) if self.noise else prediction


def process_of(scheduler: Any) -> Process:
    """A pipeline's process, also under the scheduler of a student; ValueError as `Process.of`."""
    own = getattr(scheduler, "process", None)
    return own if isinstance(own, Process) else Process.of(scheduler)


def level_of_step(scheduler: Any, step: int) -> float:
    """The level of a pipeline's states at a sampler step, counted from 0; ValueError as `Process.of`."""
    if (levels := getattr(scheduler, "levels", None)) is not None:  # of a student's own grid
        return float(levels[step])
    timestep = torch.as_tensor(scheduler.timesteps[step]).cpu().double()
    return float(Process.of(scheduler).level(timestep))


def _levels(alphas: Tensor) -> Tensor:
    a, b = alphas.sqrt(), (1 - alphas).sqrt()
    return b / (a + b)
