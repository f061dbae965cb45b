"""What tokens are ranked by as few kernels: how much keys are attended to, how widely queries attend,
and the score that these, waiting and windows give. Used where `fused_rows.kernel_of` says `triton`; the
kernels are in `ranking_kernels`, and the reference is torch's operations in `attention_map`,
`selectors` and `token_cache`, from which they differ in the last bits. No attention map is in memory.

B batch, H heads, K queries, M keys, d width of a head, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ditbench.models.fused_rows import kernel_of, seen_by_others


def by_kernel(q: Tensor, k: Tensor, mask: Tensor | None) -> bool:
    """Whether the kernels take this attention: masks by key, in float, or none."""
    if kernel_of(q.device) != "triton":
        return False
    if mask is None:
        return True
    by_key = mask.ndim == 4 and mask.shape[2] == 1 and mask.stride(-1) == 1
    return by_key and mask.is_floating_point() and mask.shape[3] == k.shape[2]


def received(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """[B,M] float32: the mean over heads and queries of the weight of each key, q [B,H,K,d] and k
    [B,H,M,d]; in two kernels, the first of which has the sums of the softmax [B,H,K], and the mean
    over heads: one head after the other they would be too few programs to fill a GPU."""
    total = _call(q, "attention_sums", q, k, mask)
    return _call(q, "attention_received", q, k, mask, total).mean(1)


def entropy(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """[B,K] float32: the entropy of the mean over heads of each query's weights."""
    return _call(q, "attention_entropy", q, k, mask)


def entropy_into(out: Tensor, rows: Tensor, q: Tensor, k: Tensor, mask: Tensor | None) -> None:
    """The same, written into the `rows` [B,K] of `out` [B,N]."""
    if seen_by_others(q):
        torch.ops.ditbench.attention_entropy_into(out, rows, q, k, mask)
    else:
        _kernel("attention_entropy_into", out, rows, q, k, mask)


def scores(
    signals: Sequence[Tensor], raised: Sequence[float], passes: int, times: Tensor | None,
    clock: float, weight: float, grid: Sequence[int], window: int, bonus: float,
) -> Tensor:  # fmt: skip
    """[B,N] float32: the sum of one or two signals [B,N], each the mean over `passes` guidance passes
    plus what it is `raised` by, divided by its length; plus `weight` times clock - times [B,N] (None:
    times are 0); and for the last frames x height x width tokens of `grid` the best of every `window`
    x `window` is raised by `bonus` times itself (window 0: no bonus)."""
    given = (list(signals), list(raised), passes, times, clock, weight, list(grid), window, bonus)
    return _call(signals[0], "token_scores", *given)


def _call(looked_at: Tensor, name: str, *given: Any) -> Tensor:
    if seen_by_others(looked_at):
        out: Tensor = getattr(torch.ops.ditbench, name)(*given)
    else:
        out = _kernel(name, *given)
    return out


def _kernel(name: str, *given: Any) -> Any:
    from ditbench.acceleration.caching import ranking_kernels

    out: Any = getattr(ranking_kernels, name.rpartition("_")[2])(*given)
    return out


@torch.library.custom_op("ditbench::attention_sums", mutates_args=())
def _sums(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    out: Tensor = _kernel("sums", q, k, mask)
    return out


@_sums.register_fake
def _sums_shape(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("ditbench::attention_received", mutates_args=())
def _received(q: Tensor, k: Tensor, mask: Tensor | None, sums: Tensor) -> Tensor:
    out: Tensor = _kernel("received", q, k, mask, sums)
    return out


@_received.register_fake
def _received_shape(q: Tensor, k: Tensor, *_: Any) -> Tensor:
    return q.new_empty(*q.shape[:2], k.shape[2], dtype=torch.float32)


@torch.library.custom_op("ditbench::attention_entropy", mutates_args=())
def _entropy(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    out: Tensor = _kernel("entropy", q, k, mask)
    return out


@_entropy.register_fake
def _entropy_shape(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(len(q), q.shape[2], dtype=torch.float32)


@torch.library.custom_op("ditbench::attention_entropy_into", mutates_args=("out",))
def _entropy_into(out: Tensor, rows: Tensor, q: Tensor, k: Tensor, mask: Tensor | None) -> None:
    _kernel("attention_entropy_into", out, rows, q, k, mask)


@_entropy_into.register_fake
def _nothing(*_: Any) -> None:
    return None


@torch.library.custom_op("ditbench::token_scores", mutates_args=())
def _scores(
    signals: Sequence[Tensor], raised: Sequence[float], passes: int, times: Tensor | None,
    clock: float, weight: float, grid: Sequence[int], window: int, bonus: float,
) -> Tensor:  # fmt: skip
    out: Tensor = _kernel(
        "scores", signals, raised, passes, times, clock, weight, grid, window, bonus
    )
    return out


@_scores.register_fake
def _scores_shape(signals: Sequence[Tensor], *_: Any) -> Tensor:
    return signals[0].new_empty(signals[0].shape)


def _one_product(q: Any, k: Any, *_: Any, **__: Any) -> int:
    """Queries times keys, from the shapes of tensors or from those themselves."""
    (batch, heads, queries, width), keys = getattr(q, "shape", q), getattr(k, "shape", k)[2]
    return int(2 * batch * heads * queries * keys * width)


for _name in ("attention_sums", "attention_received"):
    register_flop_formula(getattr(torch.ops.ditbench, _name), get_raw=True)(_one_product)


@register_flop_formula(torch.ops.ditbench.attention_entropy, get_raw=True)  # type: ignore[untyped-decorator]
def _two_products(q: Any, k: Any, *_: Any, **__: Any) -> int:
    """The kernel works out scores for the sums of the softmax, and again for the weights."""
    return 2 * _one_product(q, k)


@register_flop_formula(torch.ops.ditbench.attention_entropy_into, get_raw=True)  # type: ignore[untyped-decorator]
def _its_products(_out: Any, _rows: Any, q: Any, k: Any, *_: Any, **__: Any) -> int:
    return _two_products(q, k)
