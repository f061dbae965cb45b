"""Perceptual distance between two pictures: on the judge's layers in the embedded world, named
`perceptual.shapes_v1`.

The construction is LPIPS's (Zhang et al. 2018, eq. 1) without its learned weights: features of
several layers, each of unit length over the channels, squared differences, mean over places, sum
over layers. It is not LPIPS: the network is not, so the name is not.

B batch, C channels, H height, W width, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ditbench.shapes.judge import Judge

LAYERS = (1, 3, 4, 6)
"""Layers of the judge's trunk that are compared."""


class Perceptual:
    """`perceptual.shapes_v1` of one world; differentiable in both pictures."""

    name = "perceptual.shapes_v1"

    def __init__(self, judge: Judge) -> None:
        self.judge = judge.requires_grad_(False)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """[B] for pictures [B,3,H,W] or videos [B,3,T,H,W] in 0..1."""
        with torch.autocast(a.device.type, enabled=False):  # differences are small
            return torch.stack(
                [
                    (x - y).square().sum(1).flatten(1).mean(1)
                    for x, y in zip(self._layers(a), self._layers(b), strict=True)
                ]
            ).sum(0)

    def _layers(self, pixels: Tensor) -> list[Tensor]:
        seen, layers = self.judge.taken(pixels), []
        for i, layer in enumerate(self.judge.trunk):
            seen = layer(seen)
            if i in LAYERS:
                layers.append(F.normalize(seen, dim=1, eps=1e-6))
        return layers
