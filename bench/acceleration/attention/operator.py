"""Attention of queries to tiles of keys: one operation of torch, with its FLOPs by its mask.

B batch, H heads, K queries, M keys, d width of a head, T tiles, b and h: B and H, or 1 where all
have the same mask. The tiles of text are tiles as any other.

Kernels: `dense` is torch's attention under a mask by token, the reference, which computes every
product; `flex` is torch's flex_attention, compiled, which leaves out blocks of 128 x 128 tokens in
which nothing is kept; `triton` is eight-bit attention alone (`fp8_kernel`), in blocks of 64 x 64. All
count as the products of the pairs of tokens that the mask keeps; a block that holds some of them
computes the others too, and its time has them.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

BLOCK = 128
"""Tokens of a block of flex_attention."""
PIECE = 1 << 26
"""Numbers of a mask by token, all heads and samples, above which queries attend in pieces."""
E4M3 = 448.0
"""The largest number of the eight-bit format."""
BY_VALUES = -1
"""`pairs` where they follow from the values of the mask."""


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    query_tiles: Tensor,
    key_tiles: Tensor,
    *,
    pairs: int = BY_VALUES,
    kernel: str = "dense",
    rounded: bool = False,
) -> Tensor:
    """[B,H,K,d]: q [B,H,K,d] attends to k, v [B,H,M,d] where `mask` [b,h,T,T] keeps the key's tile
    for the query's; `query_tiles` [b,K] and `key_tiles` [M] int64 are the tiles of tokens.

    `pairs`: pairs of a query and a key that one head of one sample keeps, where they are known
    without a look at the mask. `rounded`: weights in E4M3 by the fixed scale of 448; under `triton`
    queries and keys by tile and values by channel too. A query needs a key at least. With gradients
    it is made of torch's own operations, and counts as those do.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return _dense(q, k, v, mask, query_tiles, key_tiles, rounded)
    out: Tensor = torch.ops.ditbench.block_attention(
        q, k, v, mask, query_tiles, key_tiles, pairs, kernel, rounded
    )
    return out


@torch.library.custom_op("ditbench::block_attention", mutates_args=())
def _block_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, query_tiles: Tensor, key_tiles: Tensor,
    pairs: int, kernel: str, rounded: bool,
) -> Tensor:  # fmt: skip
    if kernel == "triton":
        from ditbench.acceleration.attention.fp8_kernel import fp8_attention

        return fp8_attention(q, k, v, mask, query_tiles, key_tiles)
    if kernel == "flex" and not rounded:
        return _flex(q, k, v, mask, query_tiles, key_tiles)
    return _dense(q, k, v, mask, query_tiles, key_tiles, rounded).contiguous()


@_block_attention.register_fake
def _shape_of_it(q: Tensor, *_: Any) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@register_flop_formula(torch.ops.ditbench.block_attention, get_raw=True)  # type: ignore[untyped-decorator]
def flops_of(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, query_tiles: Tensor, key_tiles: Tensor,
    pairs: int, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Two products of d multiply-accumulates for each pair that is kept. Where the pairs follow from
    values, those are looked at; on a simulated device all pairs count."""
    batch, heads, queries, width = q.shape
    if pairs == BY_VALUES and isinstance(mask, FakeTensor):
        pairs = queries * k.shape[2]
    if pairs != BY_VALUES:
        return 4 * width * batch * heads * pairs
    sizes = torch.bincount(key_tiles, minlength=mask.shape[-1])
    kept = (mask * sizes).sum(-1).expand(batch, heads, -1)  # [B,H,T] keys of a query in that tile
    total = kept.gather(2, query_tiles.expand(batch, -1)[:, None].expand(-1, heads, -1)).sum()
    return 4 * width * int(total)


def no_triton(device: torch.device) -> str | None:
    """Why the kernel `triton` cannot run on a device, in words; None where it can."""
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return f"it wants a GPU of NVIDIA and not {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 9):
        return f"E4M3 products want compute capability 8.9, and this GPU has {major}.{minor}"
    return None


def by_token(mask: Tensor, query_tiles: Tensor, key_tiles: Tensor) -> Tensor:
    """[b,h,K,M] whether a query attends to a key, of a mask [b,h,T,T] by tile."""
    batch, heads, _, tiles = mask.shape
    at = query_tiles[:, None, :, None].expand(-1, heads, -1, tiles)
    rows = mask.expand(max(batch, len(at)), -1, -1, -1)
    by_tile = torch.gather(rows, 2, at.expand(len(rows), -1, -1, -1))
    return by_tile[..., key_tiles]


def _dense(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, query_tiles: Tensor, key_tiles: Tensor,
    rounded: bool,
) -> Tensor:  # fmt: skip
    attend = _rounded if rounded else _masked
    batch, heads = max(len(mask), len(query_tiles)), mask.shape[1]
    size = max(1, PIECE // ((len(q) * q.shape[1] if rounded else batch * heads) * k.shape[2]))
    parts = [
        attend(part, k, v, by_token(mask, tiles, key_tiles))
        for part, tiles in zip(q.split(size, 2), query_tiles.split(size, 1), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _masked(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


def _rounded(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Weights before their division by the row's sum, at most 1, as a kernel has them at hand."""
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~allowed, float("-inf"))
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    mixed = in_e4m3(weights, torch.ones_like(weights[..., :1])) @ v.float()
    out: Tensor = (mixed / weights.sum(-1, keepdim=True)).to(q.dtype)
    return out


def in_e4m3(x: Tensor, largest: Tensor) -> Tensor:
    """`x` as E4M3 has it, of which `largest` becomes 448; the gradient is that of `x` (straight
    through)."""
    scale = largest.clamp(min=1e-12) / E4M3
    scaled = (x / scale).clamp(-E4M3, E4M3)
    rounded = scaled.to(torch.float8_e4m3fn).to(x.dtype) * scale
    return x + (rounded - x).detach() if x.requires_grad else rounded


def _flex(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, query_tiles: Tensor, key_tiles: Tensor
) -> Tensor:
    """Tokens in the order of their tiles, so that blocks hold few tiles."""
    if len(query_tiles) > 1:
        raise ValueError("flex_attention takes the same queries of all samples; use kernel='dense'")
    to_q, to_k = query_tiles[0].argsort(stable=True), key_tiles.argsort(stable=True)
    tiles_q, tiles_k = query_tiles[0][to_q], key_tiles[to_k]
    heads = mask.shape[1]
    batch = len(mask)

    def keeps(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        at_b, at_h = (b if batch > 1 else b * 0), (h if heads > 1 else h * 0)
        return mask[at_b, at_h, tiles_q[i], tiles_k[j]]

    blocks = _blocks(mask, tiles_q, tiles_k, keeps)
    out: Tensor = _compiled()(q[:, :, to_q], k[:, :, to_k], v[:, :, to_k], block_mask=blocks)
    return out[:, :, to_q.argsort()].contiguous()


def _blocks(mask: Tensor, tiles_q: Tensor, tiles_k: Tensor, keeps: Any) -> Any:
    """The block mask, worked out from tiles: a mask by token of a video has a billion numbers."""
    from torch.nn.attention.flex_attention import BlockMask

    def within(tiles: Tensor) -> Tensor:
        """[blocks,T] which tiles have tokens in a block."""
        blocks = torch.arange(len(tiles), device=tiles.device) // BLOCK
        there = torch.zeros(
            -(-len(tiles) // BLOCK), mask.shape[-1], dtype=torch.float32, device=tiles.device
        )
        there[blocks, tiles] = 1.0
        return there

    rows, columns = within(tiles_q), within(tiles_k).T
    some = rows @ mask.float() @ columns > 0  # [b,h,blocks of queries, blocks of keys]
    all_of = rows @ (~mask).float() @ columns == 0
    # the last block is short, and its rest is masked by flex_attention only where it asks `keeps`
    if len(tiles_q) % BLOCK:
        all_of[..., -1, :] = False
    if len(tiles_k) % BLOCK:
        all_of[..., :, -1] = False
    counts, order = _ordered(some & ~all_of)
    full_counts, full_order = _ordered(all_of)
    return BlockMask.from_kv_blocks(
        counts, order, full_counts, full_order, BLOCK_SIZE=BLOCK, mask_mod=keeps,
        seq_lengths=(len(tiles_q), len(tiles_k)), compute_q_blocks=False,  # which gradients want
    )  # fmt: skip


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and their numbers, those first."""
    counts = blocks.sum(-1).to(torch.int32)
    order = blocks.to(torch.int32).sort(dim=-1, descending=True, stable=True).indices
    return counts, order.to(torch.int32).contiguous()


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
