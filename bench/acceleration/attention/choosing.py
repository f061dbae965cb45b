"""Tiles chosen by values: the means of queries and keys of tiles say which attend to which.

B batch, H heads, K queries, M keys, d width of a head, T image tiles; the text is one tile more.
Products of means are made by torch's own operations, so that a count of FLOPs has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ditbench.acceleration.attention.sparse_attention import Call, Layout


def means(x: Tensor, tiles: Tensor, count: int) -> Tensor:
    """[B,H,count,d] float32: the mean of x [B,H,K,d] over the tokens of each tile; `tiles` [b,K].
    Zeros for a tile of which there is none."""
    batch, heads, tokens, width = x.shape
    at = tiles.expand(batch, tokens)
    total = x.new_zeros((batch, heads, count, width), dtype=torch.float32)
    total.scatter_add_(2, at[:, None, :, None].expand_as(x), x.float())
    sizes = x.new_zeros((batch, count), dtype=torch.float32)
    sizes.scatter_add_(1, at, torch.ones_like(at, dtype=torch.float32))
    return total / sizes.clamp(min=1)[:, None, :, None]


def mass(call: Call, layout: Layout) -> Tensor:
    """[B,H,T,T] float32: the share of a query tile's attention to the image that each tile of keys
    would have if all its tokens were its mean."""
    count = layout.tiles - bool(layout.text)
    q = means(call.q, call.queries(layout), layout.tiles)[:, :, :count]
    k = means(call.k, layout.of_tokens[None], layout.tiles)[:, :, :count]
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weighted: Tensor = scores + layout.sizes[:count].log()
    return weighted.softmax(-1)


def needed(shares: Tensor, wanted: float) -> Tensor:
    """[B,H,T] int64: how many tiles, largest first, a query tile needs for the share `wanted` of its
    mass; one at least."""
    ordered = shares.sort(dim=-1, descending=True).values
    before = ordered.cumsum(-1) - ordered
    return (before < wanted).sum(-1).clamp(min=1)


def largest(shares: Tensor, counts: Tensor) -> Tensor:
    """[B,H,T,T] bool: the `counts` [B,H or 1,T or 1] largest tiles of each query tile."""
    rank = shares.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return rank < counts[..., None]


def with_text(kept: Tensor, layout: Layout) -> Tensor:
    """A mask [b,h,T,T] over image tiles with the text, which attends and is attended to whole."""
    return torch.nn.functional.pad(kept, (0, 1, 0, 1), value=True) if layout.text else kept
