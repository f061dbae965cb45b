"""Attention in E4M3 over tiles as one Triton kernel (FPSAttention, arXiv:2506.04648, has such a one; this
is ours): products of eight-bit numbers, only blocks of which some pair is kept, the softmax on the
way. For NVIDIA GPUs of compute capability 8.9 and newer; everywhere in Triton's interpreter, which
tests use. On an H200 it ran, and differed from its arithmetic by more than that does in Triton's
interpreter: products of eight-bit numbers are not summed in whole float32 there.

B batch, H heads, K queries, M keys, d width of a head, T tiles, b and h: B and H, or 1.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST = 448.0
"""Of E4M3; weights, at most 1, have this as their one scale."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Then weights are rounded before they are cast: the interpreter of Triton 3.9 loses the carry where a
mantissa is rounded up to the next power of two (7.9 becomes 4)."""
QUERIES, KEYS = 64, 64
"""Tokens of a block."""


def fp8_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, query_tiles: Tensor, key_tiles: Tensor
) -> Tensor:
    """[B,H,K,d]: q [B,H,K,d] attends to k, v [B,H,M,d] where `mask` [b,h,T,T] keeps the key's tile for
    the query's (`query_tiles` [b,K], `key_tiles` [M]).

    Queries and keys are rounded with a scale for each tile and head, values for each channel of a
    head, weights, as they are before the division by their sum, with the scale of 448. The softmax is
    taken block by block, so that a weight is rounded relative to the largest score so far, and not to
    that of its row. A query needs a key at least.
    """
    batch, heads, queries, width = q.shape
    keys, padded = k.shape[2], max(32, triton.next_power_of_2(width))
    asking = query_tiles.expand(batch, -1).contiguous()
    q8, q_scale = _by_tile(q, asking, mask.shape[-1], padded)
    k8, k_scale = _by_tile(k, key_tiles.expand(batch, -1), mask.shape[-1], padded)
    v_scale = v.float().abs().amax(2).clamp(min=1e-12) / LARGEST  # [B,H,d]
    v8 = _padded(v.float() / v_scale[:, :, None], padded).to(torch.float8_e4m3fn)
    counts, order = _blocks(mask, asking, key_tiles)
    out = torch.empty(batch, heads, queries, width, dtype=q.dtype, device=q.device)
    grid = (-(-queries // QUERIES), batch * heads)
    _attend[grid](
        q8, k8, v8, q_scale, k_scale, v_scale.contiguous(), asking, key_tiles.contiguous(),
        mask.to(torch.int8).contiguous(), counts, order, out,
        heads, queries, keys, mask.shape[-1], grid[0], -(-keys // KEYS),
        len(mask) > 1, mask.shape[1] > 1, len(counts) > 1, counts.shape[1] > 1,
        width**-0.5, LARGEST, width, D=padded, BM=QUERIES, BN=KEYS, FIRST=INTERPRETED,
    )  # fmt: skip
    return out


def _by_tile(x: Tensor, tiles: Tensor, count: int, padded: int) -> tuple[Tensor, Tensor]:
    """x [B,H,M,d] as E4M3 [B,H,M,padded], and the scale of each token [B,H,M]; `tiles` [B,M]."""
    reach = x.float().abs().amax(-1)
    at = tiles[:, None].expand_as(reach)
    largest = torch.zeros(*reach.shape[:2], count, device=x.device)
    largest.scatter_reduce_(2, at, reach, "amax")
    scale = largest.gather(2, at).clamp(min=1e-12) / LARGEST
    return _padded(x.float() / scale[..., None], padded).to(torch.float8_e4m3fn), scale


def _padded(x: Tensor, width: int) -> Tensor:
    clamped = x.clamp(-LARGEST, LARGEST)
    return torch.nn.functional.pad(clamped, (0, width - x.shape[-1])).contiguous()


def _blocks(mask: Tensor, query_tiles: Tensor, key_tiles: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys have a pair that is kept with each block of queries, int32 [b,h,blocks],
    and their numbers, those first [b,h,blocks,blocks of keys]."""

    def within(tiles: Tensor, size: int) -> Tensor:
        """[b,blocks,T] which tiles have tokens in a block."""
        number = -(-tiles.shape[1] // size)
        there = torch.zeros(len(tiles), number, mask.shape[-1], device=tiles.device)
        blocks = torch.arange(tiles.shape[1], device=tiles.device) // size
        there[torch.arange(len(tiles), device=tiles.device)[:, None], blocks, tiles] = 1.0
        return there

    rows, columns = within(query_tiles, QUERIES), within(key_tiles[None], KEYS)
    some = rows[:, None] @ mask.float() @ columns[:, None].mT > 0
    order = some.to(torch.int32).sort(dim=-1, descending=True, stable=True).indices
    return some.sum(-1).to(torch.int32).contiguous(), order.to(torch.int32).contiguous()


@triton.jit  # type: ignore[untyped-decorator]
def _nearest(x):
    """float32 of 0 to 448 rounded to what E4M3 has, ties to even: three bits after the first, and
    multiples of 2^-9 below 2^-6."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
    small = (x + 24576.0) - 24576.0  # whose last place is 2^-9
    return tl.where(x < 0.015625, small, bits.to(tl.float32, bitcast=True))


@triton.jit  # type: ignore[untyped-decorator]
def _attend(
    Q, K, V, Q_SCALE, K_SCALE, V_SCALE, Q_TILES, K_TILES,
    MASK, COUNTS, ORDER, OUT,
    heads, queries, keys, tiles, q_blocks, k_blocks,
    mask_by_batch, mask_by_head, blocks_by_batch, blocks_by_head,
    scale, largest, width,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head of one sample."""
    m, at = tl.program_id(0), tl.program_id(1)
    b, h = at // heads, at % heads
    rows, dims = m * BM + tl.arange(0, BM), tl.arange(0, D)
    there = rows < queries
    q = tl.load(Q + (at * queries + rows)[:, None] * D + dims[None], mask=there[:, None], other=0.0)
    q_scale = tl.load(Q_SCALE + at * queries + rows, mask=there, other=0.0) * scale
    q_tiles = tl.load(Q_TILES + b * queries + rows, mask=there, other=0)
    mask_heads = tl.where(mask_by_head, heads, 1)
    mask_at = (b * mask_by_batch * mask_heads + h * mask_by_head) * tiles * tiles
    block_heads = tl.where(blocks_by_head, heads, 1)
    block_at = (b * blocks_by_batch * block_heads + h * blocks_by_head) * q_blocks + m
    out = tl.zeros([BM, D], tl.float32)
    total = tl.zeros([BM], tl.float32)
    top = tl.full([BM], float("-inf"), tl.float32)
    for i in range(tl.load(COUNTS + block_at)):
        cols = tl.load(ORDER + block_at * k_blocks + i) * BN + tl.arange(0, BN)
        held = cols < keys
        places = (at * keys + cols)[:, None] * D + dims[None]
        k = tl.load(K + places, mask=held[:, None], other=0.0)
        v = tl.load(V + places, mask=held[:, None], other=0.0)
        k_scale = tl.load(K_SCALE + at * keys + cols, mask=held, other=0.0)
        k_tiles = tl.load(K_TILES + cols, mask=held, other=0)
        kept = tl.load(MASK + mask_at + q_tiles[:, None] * tiles + k_tiles[None]) != 0
        scores = tl.dot(q, tl.trans(k)).to(tl.float32) * q_scale[:, None] * k_scale[None]
        scores = tl.where(kept & held[None], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing kept of a row so far
        weights = tl.exp(scores - base[:, None])
        shrunk = tl.exp(top - base)
        total = total * shrunk + tl.sum(weights, 1)
        weights = weights * largest
        if FIRST:
            weights = _nearest(weights)
        out = out * shrunk[:, None] + tl.dot(weights.to(tl.float8e4nv), v).to(tl.float32)
        top = higher
    v_scale = tl.load(V_SCALE + at * width + dims, mask=dims < width, other=0.0)
    out = out / largest * v_scale[None] / total[:, None]
    place = OUT + (at * queries + rows)[:, None] * width + dims[None]
    tl.store(place, out.to(OUT.dtype.element_ty), mask=there[:, None] & (dims < width)[None])
