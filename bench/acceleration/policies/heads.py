"""Policy heads: small networks that look at latents and the time, and say how likely each action is.

After RAPID3 (arXiv:2509.22323), of which the order of layers is known: convolution, adaptive layer
norm by the time, pooling over the picture, linear. Widths, the activation and the first policy are
ours. n samples, C channels of a latent, T frames, H height, W width in latents (of FLUX in tokens).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Beta, Categorical, Distribution
from torch.nn import functional as F

WIDTH, TIME = 24, 32
"""Channels inside of a head, and numbers that the time is written with. Ours."""
FIRST_ALPHA, FIRST_BETA = 18.0, 2.0
"""The Beta distribution that step-skip begins with: a has the mean 0.9. Ours."""
FIRST_SHARE = 0.7
"""Probability of a choice's first option before training. Ours."""


class Head(nn.Module):
    """A policy of one kind of action. `options`: how many there are to choose from; 0: an action in
    0..1, by a Beta distribution."""

    def __init__(self, channels: int, options: int) -> None:
        super().__init__()
        self.options = options
        self.conv = nn.Conv3d(channels, WIDTH, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Sequential(nn.Linear(TIME, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))
        self.out = nn.Linear(WIDTH, options or 2)
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            self.out.bias.copy_(_first_bias(options))

    def forward(self, latents: Tensor, time: Tensor) -> Tensor:
        """[n, options], logits; of a Beta distribution [n, 2], its alpha and beta, above 1.

        `latents` [n,C,T,H,W], `time` [n] in 0..1.
        """
        seen = self.conv(latents.float()).movedim(1, -1)  # [n,T,H,W,WIDTH]
        scale, shift = self.time(_written(time))[:, None, None, None].chunk(2, -1)
        seen = F.silu(F.layer_norm(seen, (WIDTH,)) * (1 + scale) + shift)
        out: Tensor = self.out(seen.mean((1, 2, 3)))
        return out if self.options else 1 + F.softplus(out)

    def policy(self, latents: Tensor, time: Tensor) -> Distribution:
        """The distribution of the action, [n]."""
        out = self(latents, time)
        if self.options:
            return Categorical(logits=out)
        return Beta(out[:, 0], out[:, 1])


def likeliest(policy: Distribution) -> Tensor:
    """The action that is taken where nothing is drawn, [n]: the likeliest of a choice, the mean of a
    Beta distribution."""
    action: Tensor = policy.mean if isinstance(policy, Beta) else policy.probs.argmax(-1)  # type: ignore[attr-defined]
    return action


def _first_bias(options: int) -> Tensor:
    if not options:
        return (torch.tensor([FIRST_ALPHA, FIRST_BETA]) - 1).expm1().log()  # of softplus
    rest = (1 - FIRST_SHARE) / max(1, options - 1)
    return torch.tensor([FIRST_SHARE] + [rest] * (options - 1)).log()


def _written(time: Tensor) -> Tensor:
    """[n, TIME]: sines and cosines of a time in 0..1."""
    waves = torch.exp(torch.linspace(0, math.log(100.0), TIME // 2, device=time.device))
    angles = time.float()[:, None] * waves * math.pi
    return torch.cat([angles.sin(), angles.cos()], 1)


def make_heads(options: Mapping[str, int], channels: int, seed: int = 0) -> nn.ModuleDict:
    """Untrained heads by name, with as many options each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleDict({name: Head(channels, n) for name, n in options.items()})


def write_heads(heads: nn.ModuleDict, path: Path) -> None:
    """Write their weights (safetensors)."""
    save_file({k: v.detach().cpu().contiguous() for k, v in heads.state_dict().items()}, path)


def read_heads(path: Path, options: Mapping[str, int], channels: int) -> nn.ModuleDict:
    """What `write_heads` wrote; ValueError, naming the file, where it holds other heads, or heads
    for another number of channels."""
    heads = make_heads(options, channels)
    try:
        heads.load_state_dict(load_file(path))
    except Exception as error:  # of safetensors, torch or the disk
        kind = type(error).__name__
        raise ValueError(
            f"{path} holds no heads {', '.join(options)} for {channels} channels ({kind})"
        ) from None
    heads.eval().requires_grad_(False)
    return heads


def on_grid(latents: Tensor, grid: Sequence[int]) -> Tensor:
    """[n,C,T,H,W] of latents [n,C,H,W], [n,C,T,H,W], or of tokens [n,N,C] on the grid (T,H,W)."""
    if latents.dim() == 3:
        frames, rows, columns = grid
        spread: Tensor = latents.movedim(1, -1).unflatten(-1, (frames, rows, columns))
        return spread
    return latents[:, :, None] if latents.dim() == 4 else latents


def channels_of(transformer: Any) -> int:
    """Channels of a transformer's latents (of FLUX of its tokens), which heads look at."""
    return int(transformer.config.in_channels)
