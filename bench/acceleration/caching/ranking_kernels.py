"""Triton kernels that rank tokens: `fused_ranking` says when they are used. They are tested as
`models.row_kernels` are, and have no annotations for the same reason.

B batch, H heads, K queries, M keys, d width of a head, N tokens, P guidance passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERIES, KEYS, TOKENS = 64, 64, 1024


def sums(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """As `fused_ranking.sums`."""
    batch, heads, queries, width = q.shape
    out = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    _sums[(-(-queries // QUERIES), batch * heads)](
        q, k, *_masked(mask, q), out, heads, queries, k.shape[2], width, *q.stride(), *k.stride(),
        width**-0.5, MASK=mask is not None, D=_padded(width), BM=QUERIES, BN=KEYS,
    )  # fmt: skip
    return out


def received(q: Tensor, k: Tensor, mask: Tensor | None, sums: Tensor) -> Tensor:
    """Of each head, [B,H,M] float32: the mean over queries, as `fused_ranking.received` has it."""
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    out = torch.empty(batch, heads, keys, dtype=torch.float32, device=q.device)
    _received[(-(-keys // KEYS), batch * heads)](
        q, k, *_masked(mask, q), sums, out, heads, queries, keys, width, *q.stride(), *k.stride(),
        width**-0.5, MASK=mask is not None, D=_padded(width), BM=QUERIES, BN=KEYS,
    )  # fmt: skip
    return out


def entropy(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """As `fused_ranking.entropy`."""
    out = torch.empty(len(q), q.shape[2], dtype=torch.float32, device=q.device)
    into(out, None, q, k, mask)
    return out


def into(out: Tensor, rows: Tensor | None, q: Tensor, k: Tensor, mask: Tensor | None) -> None:
    """As `fused_ranking.entropy_into`; rows None: all."""
    batch, heads, queries, width = q.shape
    sums = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    _entropy[(-(-queries // QUERIES), batch)](
        q, k, *_masked(mask, q), out if rows is None else rows, sums, out, out.stride(0),
        0 if rows is None else rows.stride(0), heads, queries, k.shape[2], width, *q.stride(),
        *k.stride(), width**-0.5, SOME=rows is not None, MASK=mask is not None, D=_padded(width),
        BM=QUERIES, BN=KEYS * 2 // q.element_size(),  # float32: for GPUs of 100 kB of shared memory
    )  # fmt: skip


def scores(
    signals: Sequence[Tensor], raised: Sequence[float], passes: int, times: Tensor | None,
    clock: float, weight: float, grid: Sequence[int], window: int, bonus: float,
) -> Tensor:  # fmt: skip
    """As `fused_ranking.scores`."""
    first, second = signals[0], signals[-1]
    batch, n = first.shape
    frames, height, width = grid if window else (0, 0, 1)
    out = torch.empty(batch, n, dtype=torch.float32, device=first.device)
    _scores[(batch,)](
        first, second, out if times is None else times, out, n, batch // passes,
        first.stride(0), second.stride(0), raised[0], raised[-1], clock, weight, bonus,
        height, width, frames * height * width,
        PASSES=passes, TWO=len(signals) > 1, TIMES=times is not None, BLOCK=TOKENS,
        W=max(1, window), SQUARE=triton.next_power_of_2(max(1, window) ** 2),
    )  # fmt: skip
    return out


def _padded(width: int) -> int:
    return max(16, int(triton.next_power_of_2(width)))


def _masked(mask: Tensor | None, q: Tensor) -> tuple[Tensor, int, int]:
    """A mask by key with its steps by sample and head."""
    if mask is None:
        return q, 0, 0
    by_sample, by_head = (
        0 if size == 1 else step for size, step in zip(mask.shape[:2], mask.stride(), strict=False)
    )
    return mask, by_sample, by_head


@triton.jit  # type: ignore[untyped-decorator]
def _products(
    Q, K, MASK_AT, rows, cols, queries, keys, width,
    q_row, q_step, k_row, k_step, scale,
    MASK: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Scores of a block of queries and keys; -inf where there is no key."""
    dims = tl.arange(0, D)
    inside = (dims < width)[None]
    q_at = Q + rows[:, None] * q_row + dims[None] * q_step
    k_at = K + cols[:, None] * k_row + dims[None] * k_step
    q = tl.load(q_at, mask=(rows < queries)[:, None] & inside, other=0.0)
    k = tl.load(k_at, mask=(cols < keys)[:, None] & inside, other=0.0)
    out = tl.dot(q, tl.trans(k), input_precision="ieee").to(tl.float32) * scale
    if MASK:
        out = out + tl.load(MASK_AT + cols, mask=cols < keys, other=0.0).to(tl.float32)[None]
    return tl.where((cols < keys)[None], out, float("-inf"))


@triton.jit  # type: ignore[untyped-decorator]
def _sum_of_row(
    Q, K, MASK_AT, rows, queries, keys, width, q_row, q_step, k_row, k_step, scale,
    MASK: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The logarithm of the sum of the softmax of a block of queries, over all keys."""
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    for first in range(0, keys, BN):
        s = _products(
            Q, K, MASK_AT, rows, first + tl.arange(0, BN), queries, keys, width,
            q_row, q_step, k_row, k_step, scale, MASK, D,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(s - base[:, None]), 1)
        top = higher
    return top + tl.log(total)


@triton.jit  # type: ignore[untyped-decorator]
def _sums(
    Q, K, MASK_AT, mask_batch, mask_head, OUT, heads, queries, keys, width,
    q_batch, q_head, q_row, q_step, k_batch, k_head, k_row, k_step, scale,
    MASK: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(1).to(tl.int64)
    b, h = at // heads, at % heads
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    out = _sum_of_row(
        Q + b * q_batch + h * q_head, K + b * k_batch + h * k_head,
        MASK_AT + b * mask_batch + h * mask_head, rows, queries, keys, width,
        q_row, q_step, k_row, k_step, scale, MASK, D, BM, BN,
    )  # fmt: skip
    tl.store(OUT + at * queries + rows, out, mask=rows < queries)


@triton.jit  # type: ignore[untyped-decorator]
def _received(
    Q, K, MASK_AT, mask_batch, mask_head, SUMS, OUT, heads, queries, keys, width,
    q_batch, q_head, q_row, q_step, k_batch, k_head, k_row, k_step, scale,
    MASK: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A block of keys of one head, over queries in their order."""
    at = tl.program_id(1).to(tl.int64)
    b, h = at // heads, at % heads
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    total = tl.zeros([BN], tl.float32)
    for first in range(0, queries, BM):
        rows = first + tl.arange(0, BM)
        s = _products(
            Q + b * q_batch + h * q_head, K + b * k_batch + h * k_head,
            MASK_AT + b * mask_batch + h * mask_head, rows, cols,
            queries, keys, width, q_row, q_step, k_row, k_step, scale, MASK, D,
        )  # fmt: skip
        whole = tl.load(SUMS + at * queries + rows, mask=rows < queries, other=0.0)
        p = tl.where((rows < queries)[:, None], tl.exp(s - whole[:, None]), 0.0)
        total = total + tl.sum(p, 0)
    tl.store(OUT + at * keys + cols, total / queries, mask=cols < keys)


@triton.jit  # type: ignore[untyped-decorator]
def _entropy(
    Q, K, MASK_AT, mask_batch, mask_head, ROWS, SUMS, OUT,
    out_batch, rows_batch, heads, queries, keys, width,
    q_batch, q_head, q_row, q_step, k_batch, k_head, k_row, k_step, scale,
    SOME: tl.constexpr, MASK: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A block of queries, over all heads: the sums of their softmax first, which only this program
    reads again, then keys block by block, since all of them do not fit beside each other into the
    shared memory of every GPU."""
    b = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    for h in range(heads):
        whole = _sum_of_row(
            Q + b * q_batch + h * q_head, K + b * k_batch + h * k_head,
            MASK_AT + b * mask_batch + h * mask_head, rows, queries, keys, width,
            q_row, q_step, k_row, k_step, scale, MASK, D, BM, BN,
        )  # fmt: skip
        tl.store(SUMS + (b * heads + h) * queries + rows, whole, mask=rows < queries)
    tl.debug_barrier()
    out = tl.zeros([BM], tl.float32)
    for first in range(0, keys, BN):
        cols = first + tl.arange(0, BN)
        mean = tl.zeros([BM, BN], tl.float32)
        for h in range(heads):
            s = _products(
                Q + b * q_batch + h * q_head, K + b * k_batch + h * k_head,
                MASK_AT + b * mask_batch + h * mask_head, rows, cols,
                queries, keys, width, q_row, q_step, k_row, k_step, scale, MASK, D,
            )  # fmt: skip
            sums_at = SUMS + (b * heads + h) * queries + rows
            whole = tl.load(sums_at, mask=rows < queries, other=0.0)
            mean += tl.exp(s - whole[:, None])
        mean = mean / heads
        out -= tl.sum(mean * tl.log(tl.maximum(mean, 1e-12)), 1)
    places = rows
    if SOME:
        places = tl.load(ROWS + b * rows_batch + rows, mask=rows < queries, other=0)
    tl.store(OUT + b * out_batch + places, out, mask=rows < queries)


@triton.jit  # type: ignore[untyped-decorator]
def _signal(
    SIGNAL, sample, samples, step, tokens, there, raised,
    PASSES: tl.constexpr,
):  # fmt: skip
    """The mean of the guidance passes, and what is added to it; 0 where there is no token."""
    total = tl.load(SIGNAL + sample * step + tokens, mask=there, other=0.0)
    for p in tl.static_range(1, PASSES):
        total += tl.load(SIGNAL + (sample + p * samples) * step + tokens, mask=there, other=0.0)
    return tl.where(there, total / PASSES + raised, 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _score(
    A, B, TIMES_AT, sample, samples, a_step, b_step,
    a_raised, b_raised, a_norm, b_norm, clock, weight,
    tokens, there, PASSES: tl.constexpr, TWO: tl.constexpr, TIMES: tl.constexpr,
):  # fmt: skip
    out = _signal(A, sample, samples, a_step, tokens, there, a_raised, PASSES) / a_norm
    if TWO:
        out += _signal(B, sample, samples, b_step, tokens, there, b_raised, PASSES) / b_norm
    if TIMES:
        return out + weight * (clock - tl.load(TIMES_AT + tokens, mask=there, other=0.0))
    return out + weight * clock


@triton.jit  # type: ignore[untyped-decorator]
def _scores(
    A, B, TIMES_AT, OUT, n, samples, a_step, b_step,
    a_raised, b_raised, clock, weight, bonus,
    height, width, pictured,
    PASSES: tl.constexpr, TWO: tl.constexpr, TIMES: tl.constexpr, BLOCK: tl.constexpr,
    W: tl.constexpr, SQUARE: tl.constexpr,
):  # fmt: skip
    """One row of the batch: lengths of the signals, tokens without a window, windows."""
    at = tl.program_id(0).to(tl.int64)
    # of guidance passes that share a ranking, the sample; of one pass, the row itself
    sample = at % samples
    a_square = tl.zeros([BLOCK], tl.float32)
    b_square = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n, BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        a = _signal(A, sample, samples, a_step, tokens, tokens < n, a_raised, PASSES)
        a_square += a * a
        if TWO:
            b = _signal(B, sample, samples, b_step, tokens, tokens < n, b_raised, PASSES)
            b_square += b * b
    a_norm = tl.maximum(tl.sqrt(tl.sum(a_square, 0)), 1e-12)
    b_norm = tl.maximum(tl.sqrt(tl.sum(b_square, 0)), 1e-12)
    times = TIMES_AT + at * n
    before = n - pictured
    for first in range(0, before, BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        s = _score(
            A, B, times, sample, samples, a_step, b_step, a_raised, b_raised, a_norm, b_norm,
            clock, weight, tokens, tokens < before, PASSES, TWO, TIMES,
        )  # fmt: skip
        tl.store(OUT + at * n + tokens, s, mask=tokens < before)
    WINDOWS: tl.constexpr = BLOCK // SQUARE
    across = width // W
    down = height // W
    inner = tl.arange(0, SQUARE)
    for first in range(0, pictured // (W * W), WINDOWS):
        windows = first + tl.arange(0, WINDOWS)
        line = (windows // (across * down)) * height + (windows // across) % down * W
        corner = before + line * width + windows % across * W
        tokens = corner[:, None] + (inner // W * width + inner % W)[None]
        there = (windows < pictured // (W * W))[:, None] & (inner < W * W)[None]
        s = _score(
            A, B, times, sample, samples, a_step, b_step, a_raised, b_raised, a_norm, b_norm,
            clock, weight, tokens, there, PASSES, TWO, TIMES,
        )  # fmt: skip
        best = tl.argmax(tl.where(there, s, float("-inf")), 1, tie_break_left=True)
        s += tl.where(inner[None] == best[:, None], bonus * s, 0.0)
        tl.store(OUT + at * n + tokens, s, mask=there)
