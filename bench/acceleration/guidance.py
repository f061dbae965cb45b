"""What methods share that leave guidance passes out: the noise level of each step, and the
difference of the two passes kept for later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.method.attachment import Attachment


def timesteps_of(scheduler: Any, num_steps: int) -> Tensor:
    """Timesteps, 1000 noise to 0 picture, of the sampling under way: float64 [T] on the host.

    On a device without values (meta, or the simulated one) those that a scheduler of the same
    configuration sets for as many steps.
    """
    import torch

    timesteps = scheduler.timesteps
    if timesteps.device.type in ("meta", "gpu"):
        other = type(scheduler).from_config(scheduler.config)
        other.set_timesteps(num_steps)
        timesteps = other.timesteps
    return torch.as_tensor(timesteps).cpu().double()


def noise_levels(scheduler: Any, num_steps: int) -> Tensor:
    """Standard deviation of the noise over that of the signal's factor at each step, float64 [T]:
    sigma as Karras et al. 2022 (arXiv:2206.00364) have it, sqrt(1 - a) / sqrt(a) on a DDPM schedule
    of cumulative alphas a, and s / (1 - s) of a flow's level s.

    ValueError for a scheduler that predicts neither noise nor flow velocity.
    """
    from ditbench.acceleration.distillation.noise_process import Process

    level = Process.of(scheduler).level(timesteps_of(scheduler, num_steps))
    return level / (1 - level).clamp(min=1e-9)


def predicted(prediction: Tensor, channels: int) -> Tensor:
    """The predicted noise or velocity of an output [B,C,...]: its first channels, where the
    transformer returns a variance besides."""
    return prediction[:, :channels]


def similarity(conditional: Tensor, unconditional: Tensor) -> Tensor:
    """Cosine similarity of two predictions [B,...] sample by sample, over all their entries:
    float32 [B]."""
    import torch

    return torch.cosine_similarity(conditional.float().flatten(1), unconditional.float().flatten(1))


class KeptDifference:
    """What guidance adds: the conditional less the unconditional prediction of the last step that
    computed both, [B,...]."""

    def __init__(self, at: Attachment) -> None:
        self._store: dict[str, Tensor] = {}
        at.keeps(self._store, rows=False)

    def __bool__(self) -> bool:
        return bool(self._store)

    def keep(self, conditional: Tensor, unconditional: Tensor) -> None:
        """Keep that of this step."""
        self._store["difference"] = conditional - unconditional

    def stand_in(self, conditional: Tensor) -> Tensor:
        """The unconditional prediction that has the kept difference to this conditional one."""
        return conditional - self._store["difference"]
