"""DINOv2 (Oquab et al. 2023) as transformers has it: the class token after the last normalisation.

Positions are interpolated from 518 to 224 pixels as transformers does it; dgm-eval's come from the
original code, which shifts the grid by a tenth of a patch, so numbers agree closely and not
exactly.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ditbench.extractors.networks.pretrained import assembled
from ditbench.extractors.table import Extractor


def build(extractor: Extractor, paths: dict[str, Path]) -> nn.Module:
    """The network with its weights; ValueError when they are of another architecture."""
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2(
        assembled(Dinov2Model, Dinov2Config(**extractor.shape), next(iter(paths.values())))
    )


class Dinov2(nn.Module):
    """Pixels [n, 3, h, w] -> `cls` [n, d]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def read(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The class token."""
        return {"cls": self.model(pixels).last_hidden_state[:, 0]}
