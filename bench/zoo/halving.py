"""A transformer of half the width that begins with half of a trained one's channels."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

TO_HEADS = re.compile(r"\.(to_[qkv]|add_[qkv]_proj)\.")
"""Layers whose outputs are heads; the inputs of the next two patterns' are."""
OF_HEADS = re.compile(r"\.(to_out\.0|to_add_out)\.weight$")
OF_HEADS_AND_MLP = re.compile(r"^single_transformer_blocks\.\d+\.proj_out\.weight$")


def begin_with_half(small: nn.Module, large: nn.Module) -> None:
    """Give `small` every second channel of `large`, and the first half of its heads: both are of one
    class, `small` of half as many heads.

    Every second channel, because those of DiT's sine-cosine positions are then the smaller model's
    own. Weights that sum over half as many inputs are multiplied by sqrt(2).
    """
    given = dict(large.named_parameters())
    with torch.no_grad():
        for name, own in small.named_parameters():
            value: Tensor = given[name].data
            if value.dim() > 1 and value.shape[1] != own.shape[1]:
                value = value.index_select(1, _inputs(name, value)) * math.sqrt(2)
            if value.shape[0] != own.shape[0]:
                value = value.index_select(0, _outputs(name, value))
            own.copy_(value)


def _outputs(name: str, value: Tensor) -> Tensor:
    size = len(value)
    return torch.arange(size // 2) if TO_HEADS.search(name) else torch.arange(0, size, 2)


def _inputs(name: str, value: Tensor) -> Tensor:
    size = value.shape[1]
    if OF_HEADS.search(name):
        return torch.arange(size // 2)
    if OF_HEADS_AND_MLP.search(name):  # heads, then a hidden layer of four times their width
        width = size // 5
        return torch.cat([torch.arange(width // 2), torch.arange(width, size, 2)])
    return torch.arange(0, size, 2)
