"""Queries, keys and values as eight-bit attention has them (E4M3), in the dtype they come in.

B batch, H heads, M tokens, d width of a head, T tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditbench.acceleration.attention.operator import in_e4m3


def by_tile(x: Tensor, tiles: Tensor, count: int) -> Tensor:
    """x [B,H,M,d] with one scale for each tile of tokens and head; `tiles` [b,M] int64."""
    reach = x.detach().abs().amax(-1)  # [B,H,M]
    at = tiles.expand(len(x), -1)[:, None].expand_as(reach)
    largest = torch.zeros_like(reach[..., :1]).expand(-1, -1, count).contiguous()
    largest.scatter_reduce_(2, at, reach, "amax")
    return in_e4m3(x, largest.gather(2, at)[..., None])


def by_channel(x: Tensor) -> Tensor:
    """x [B,H,M,d] with one scale for each channel of a head."""
    return in_e4m3(x, x.detach().abs().amax(2, keepdim=True))
