"""Triton kernels for sub-layers that compute some rows (`fused_rows` says when they are used) and for
those that compute none (`fused_sums`). They are tested in Triton's interpreter, by its compiler
without a GPU, and on a GPU where there is one (`pytest -m gpu`; seen to pass on an H200). Arguments
have no annotations: the compiler resolves them, and knows its own types alone.

One program has one row; sums are in float32, and what is written is rounded once.

B batch, N rows, K chosen rows, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

AT_ONCE = 4
"""Outputs that `_added` has arguments for."""


def modulated(
    x: Tensor, rows: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float,
    scale: Tensor | None, shift: Tensor | None,
) -> Tensor:  # fmt: skip
    """As `fused_rows.modulated`."""
    batch, n, width = x.shape
    count = n if rows is None else rows.shape[1]
    out = torch.empty(batch, count, width, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    _modulated[(batch * count,)](
        x, out if rows is None else rows, *(out if t is None else t for t in (weight, bias, scale, shift)),
        out, count, width, *x.stride(), 0 if rows is None else rows.stride(0),
        _step(scale), _step(shift), eps,
        GATHER=rows is not None, WEIGHT=weight is not None, BIAS=bias is not None,
        SCALE=scale is not None, SHIFT=shift is not None, BLOCK=block,
        num_warps=8 if block > 2048 else 4,
    )  # fmt: skip
    return out


def put_and_added(
    kept: Tensor, times: Tensor, order: Tensor, new: Tensor, now: float, first: bool,
    gate: Tensor | None, stream: Tensor,
) -> Tensor:  # fmt: skip
    """As `fused_rows.put_and_added`."""
    batch, n, width = stream.shape
    out = torch.empty_like(stream, memory_format=torch.contiguous_format)
    block = triton.next_power_of_2(width)
    _put_and_added[(batch * n,)](
        kept, times, order, new, out if gate is None else gate, stream, out,
        n, new.shape[1], width, now, kept.stride(0), kept.stride(1), order.stride(0),
        new.stride(0), new.stride(1), *stream.stride(), _step(gate),
        GATE=gate is not None, FIRST=first, BLOCK=block, num_warps=8 if block > 2048 else 4,
    )  # fmt: skip
    return out


def added(stream: Tensor, outputs: list[Tensor], gates: list[Tensor | None]) -> Tensor:
    """As `fused_sums.added`, of at most `fused_sums.AT_ONCE` outputs."""
    batch, n, width = stream.shape
    block = triton.next_power_of_2(width)
    out = torch.empty_like(stream, memory_format=torch.contiguous_format)
    terms: list[Any] = []
    for i in range(AT_ONCE):
        output, gate = (outputs[i], gates[i]) if i < len(outputs) else (out, None)
        terms += [output, out if gate is None else gate, *output.stride()[:2], _step(gate)]
    gated = [gate is not None for gate in gates] + [False] * (AT_ONCE - len(gates))
    _added[(batch * n,)](
        stream, out, *terms, n, width, *stream.stride(), len(outputs), *gated,
        BLOCK=block, num_warps=8 if block > 2048 else 4,
    )  # fmt: skip
    return out


def _step(by_sample: Tensor | None) -> int:
    """From one sample of [B or 1,1,D] to the next."""
    return 0 if by_sample is None or len(by_sample) == 1 else by_sample.stride(0)


@triton.jit  # type: ignore[untyped-decorator]
def _modulated(
    X, ROWS, W, B, S, T, OUT,
    count, width, x_batch, x_row, x_step, rows_batch, s_batch, t_batch,
    eps,
    GATHER: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr,
    SHIFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    batch, row = at // count, at % count
    if GATHER:
        row = tl.load(ROWS + batch * rows_batch + row)
    dims = tl.arange(0, BLOCK)
    there = dims < width
    x = tl.load(X + batch * x_batch + row * x_row + dims * x_step, mask=there, other=0.0).to(
        tl.float32
    )
    centred = tl.where(there, x - tl.sum(x, 0) / width, 0.0)
    y = centred / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    if WEIGHT:
        y = y * tl.load(W + dims, mask=there, other=0.0).to(tl.float32)
    if BIAS:
        y = y + tl.load(B + dims, mask=there, other=0.0).to(tl.float32)
    if SCALE:
        y = y * (1.0 + tl.load(S + batch * s_batch + dims, mask=there, other=0.0).to(tl.float32))
    if SHIFT:
        y = y + tl.load(T + batch * t_batch + dims, mask=there, other=0.0).to(tl.float32)
    tl.store(OUT + at * width + dims, y.to(OUT.dtype.element_ty), mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _put_and_added(
    KEPT, TIMES, ORDER, NEW, G, STREAM, OUT,
    n, count, width, now, kept_batch, kept_row, order_batch,
    new_batch, new_row, stream_batch, stream_row, stream_step, g_batch,
    GATE: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The row that is at one place of the order: the first `count` of them are new."""
    at = tl.program_id(0).to(tl.int64)
    batch, place = at // n, at % n
    row = tl.load(ORDER + batch * order_batch + place)
    dims = tl.arange(0, BLOCK)
    there = dims < width
    fresh = place + dims * 0 < count
    kept_at = KEPT + batch * kept_batch + row * kept_row + dims
    new_at = NEW + batch * new_batch + place * new_row + dims
    new = tl.load(new_at, mask=there & fresh, other=0.0)
    value = tl.where(
        fresh, new, tl.load(kept_at, mask=there & (place + dims * 0 >= count), other=0.0)
    )
    tl.store(kept_at, value, mask=there & fresh)
    time = tl.where(fresh, now, 0.0)
    at_once = (dims == 0) if FIRST else (dims == 0) & fresh
    tl.store(TIMES + batch * n + row + dims * 0, time, mask=at_once)
    added = value.to(tl.float32)
    if GATE:
        added = added * tl.load(G + batch * g_batch + dims, mask=there, other=0.0).to(tl.float32)
    stream_at = STREAM + batch * stream_batch + row * stream_row + dims * stream_step
    out = tl.load(stream_at, mask=there, other=0.0).to(tl.float32) + added
    tl.store(OUT + (batch * n + row) * width + dims, out.to(OUT.dtype.element_ty), mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _term(
    total, K, G, k_batch, k_row, g_batch, batch, row, dims,
    there, GATE: tl.constexpr,
):  # fmt: skip
    value = tl.load(K + batch * k_batch + row * k_row + dims, mask=there, other=0.0).to(tl.float32)
    if GATE:
        value = value * tl.load(G + batch * g_batch + dims, mask=there, other=0.0).to(tl.float32)
    return total + value


@triton.jit  # type: ignore[untyped-decorator]
def _added(
    STREAM, OUT,
    K0, G0, k0_batch, k0_row, g0_batch,
    K1, G1, k1_batch, k1_row, g1_batch,
    K2, G2, k2_batch, k2_row, g2_batch,
    K3, G3, k3_batch, k3_row, g3_batch,
    n, width, stream_batch, stream_row, stream_step,
    COUNT: tl.constexpr, GATE0: tl.constexpr, GATE1: tl.constexpr, GATE2: tl.constexpr,
    GATE3: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    batch, row = at // n, at % n
    dims = tl.arange(0, BLOCK)
    there = dims < width
    stream_at = STREAM + batch * stream_batch + row * stream_row + dims * stream_step
    total = tl.load(stream_at, mask=there, other=0.0).to(tl.float32)
    total = _term(total, K0, G0, k0_batch, k0_row, g0_batch, batch, row, dims, there, GATE0)
    if COUNT > 1:
        total = _term(total, K1, G1, k1_batch, k1_row, g1_batch, batch, row, dims, there, GATE1)
    if COUNT > 2:
        total = _term(total, K2, G2, k2_batch, k2_row, g2_batch, batch, row, dims, there, GATE2)
    if COUNT > 3:
        total = _term(total, K3, G3, k3_batch, k3_row, g3_batch, batch, row, dims, there, GATE3)
    tl.store(OUT + at * width + dims, total.to(OUT.dtype.element_ty), mask=there)
