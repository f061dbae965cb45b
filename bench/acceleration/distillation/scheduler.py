"""The sampler of distilled students: a given grid of few timesteps, one jump between each and the
next. Fits all four pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ditbench.acceleration.distillation.noise_process import Process
from ditbench.models.precision import in_float32

Way = Literal["flow", "consistency"]
"""`flow`: follow the student's mean velocity to the next level. `consistency`: jump to the clean
sample, and noise it to the next level (multistep consistency sampling, Song et al. 2023, algorithm
1)."""
STRIDE = 7919
"""Entries the first noise is rolled by to give that of the next level."""


class FewStepScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Euler steps, or consistency sampling, over given levels.

    The noise that consistency sampling adds is the first noise rolled by a number that shares no
    factor with a latent's size: drawn once per request as the un-accelerated model's is, the same
    in any batch, and uncorrelated with itself.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, timesteps: Sequence[float], levels: Sequence[float], noise: bool, way: Way = "flow"
    ) -> None:
        """`timesteps` the student is told, and `levels` s of its states; one level more than
        timesteps, the last where it ends. `noise`: whether it predicts noise."""
        self.timesteps, self.levels, self.process = (
            torch.tensor(timesteps),
            torch.tensor(levels),
            Process(noise),
        )
        self.sigmas, self.way = self.levels, way
        self._index = 0
        self._noise: Tensor | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Begin anew. The grid is given: ValueError for another number of steps."""
        if num_inference_steps not in (None, len(self.timesteps)):
            raise ValueError(
                f"this student takes {len(self.timesteps)} steps, not {num_inference_steps}"
            )
        self.timesteps = self.timesteps.to(device)
        self._index, self._noise = 0, None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start from the first."""
        self._index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """As it is."""
        return sample

    @in_float32
    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        return_dict: bool = True,
        **_: Any,
    ) -> Any:
        """The state at the next level, and the clean sample the student sees."""
        i, self._index = self._index, self._index + 1
        here, there = self.levels[i], self.levels[i + 1]  # numbers of the host: nothing to copy
        x = self.process.state(sample, here)
        if self._noise is None:
            self._noise = sample
        v = self.process.velocity(model_output, x, here)
        clean = x - here * v
        if self.way == "flow":
            x = x + (there - here) * v
        else:
            noise = self._noise.flatten(1).roll(STRIDE * (i + 1), 1).view_as(sample)
            x = (1 - there) * clean + there * noise
        state = self.process.own(x, there)
        if not return_dict:
            return state, clean
        return DDIMSchedulerOutput(prev_sample=state, pred_original_sample=clean)
