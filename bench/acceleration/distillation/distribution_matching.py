"""Distribution matching distillation (DMD2, Yin et al. 2024, arXiv:2405.14867): the student's samples
are moved along the difference of two scores, the frozen teacher's and that of a network which is
trained to denoise what the student makes.

Without the paper's GAN term: that wants data, and students here are trained without any.

B rows of a batch; states, velocities and clean samples are the flow's [B,...] (`noise_process`).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ditbench.acceleration.distillation.noise_process import STEPS, Process, wide
from ditbench.acceleration.distillation.recordings import Conditioning, Denoiser

RATIO = 5
"""Updates of the fake score for each of the student's: the two-time-scale rule (section 4.2; 5 on
ImageNet and SDXL)."""
EARLIEST, LATEST = 0.02, 0.98
"""Ends of the uniform timesteps at which scores are compared, as shares of the schedule (the
released code's)."""


class FakeScore:
    """The denoiser of what the student makes at the moment; begins as the teacher."""

    def __init__(self, teacher: Any, process: Process, rate: float) -> None:
        network = copy.deepcopy(teacher).float().requires_grad_(True)
        self.denoise, self.process = Denoiser(network, process), process
        self._parameters = list(network.parameters())
        self._optimiser = torch.optim.AdamW(self._parameters, lr=rate, weight_decay=0.0)

    def learn(self, clean: Tensor, asked: Conditioning, draws: torch.Generator) -> float:
        """One update on the student's clean samples; the loss, the error of what the model predicts
        (noise, or the flow's velocity)."""
        x, s, timestep, noise = noised(clean.detach(), self.process, draws, 0.0, 1.0)
        error = self.denoise(x, s, timestep, asked) - (noise - clean.detach())
        if self.process.noise:  # an error d of the velocity is one of (1 - s) d of the noise
            error = wide(1 - s, error) * error
        loss = error.square().mean()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimiser.step()
        return loss.item()


def noised(
    clean: Tensor, process: Process, draws: torch.Generator, first: float, last: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States of clean samples at timesteps that are uniform between two shares of the schedule:
    states, levels [B], timesteps [B], and the noise that was added."""
    share = first + (last - first) * torch.rand(len(clean), generator=draws)
    # the ends of a schedule of noise have no velocity
    timestep = (STEPS * share).clamp(1, STEPS - 2)
    s = process.level(timestep).to(clean.dtype)
    noise = torch.randn(clean.shape, generator=draws)
    broad = wide(s, clean)
    return (1 - broad) * clean + broad * noise, s, timestep, noise


def matching_gradient(clean: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Which way a clean sample is wrong: the clean sample that the fake score sees minus that of
    the real one, over the mean distance of the sample from the latter (DMD2's released code; Yin et
    al. 2024, arXiv:2311.18828, eq. 8). 0 where it is none."""
    apart = (clean - real).abs().flatten(1).mean(1)
    return torch.nan_to_num((fake - real) / wide(apart, clean))


def matching_loss(clean: Tensor, gradient: Tensor) -> Tensor:
    """Half the mean of squares whose gradient by `clean` is `gradient`, over the number of values;
    [B,...] both."""
    return 0.5 * (clean - (clean - gradient).detach()).square().mean()
