"""Attention maps as selectors look at them: never the whole map of a long sequence at once.

B batch, H heads, K queries, M keys, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from ditbench.models.sublayers import Sublayer

MAP = 1 << 26
"""Numbers of an attention map, all heads and samples, above which it is made in pieces: of FLUX at
1024x1024 the whole has 510 million, of Wan at 480p and 81 frames 13 billion."""
CACHED_MAP = 1 << 20
"""The same on a CPU, whose caches then hold a piece: at 1,024 tokens that takes a quarter of the time of
the whole in float32, a seventh in bfloat16."""
QUERIES = 64
"""The fewest queries of a piece there: with fewer the keys, which no cache holds, are read too often. A piece
then has some of the heads."""


class Watch(TorchFunctionMode):
    """Sees queries [B,H,K,d] and keys [B,H,M,d] on their way into attention, rotated and
    normalised."""

    seen: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k = (
                args[i] if len(args) > i else kwargs[name]
                for i, name in enumerate(("query", "key"))
            )
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            self.seen = q.detach(), k.detach(), mask
        return func(*args, **kwargs)


def maps_of(q: Tensor, k: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
    """The attention map of q [B,H,K,d] and k [B,H,M,d], [B,K,M] float32, the mean over heads:
    whole, or a run of queries at a time where it would have more than `MAP` numbers by head. The
    products are made in the model's dtype, as it attends."""
    batch, heads, count, width = q.shape
    numbers = batch * heads * k.shape[2]
    on_cpu = q.device.type == "cpu"
    most = min(MAP, CACHED_MAP) if on_cpu else MAP
    if count * numbers <= most:
        # else a product on a CPU copies them, element by element
        k = k.contiguous() if on_cpu else k
        yield _mean_map((q @ k.transpose(-1, -2)) * width**-0.5, mask)
        return
    q = q * width**-0.5  # the queries, which are smaller than the map
    size = max(1, most // numbers)
    if on_cpu:
        size = min(count, max(QUERIES, size))
        yield from in_pieces_of_heads(q, k, mask, size, max(1, most * heads // (numbers * size)))
    else:
        yield from in_pieces(q, k, mask, size)


def in_pieces(q: Tensor, k: Tensor, mask: Tensor | None, size: int) -> Iterator[Tensor]:
    """The map of `size` queries at a time; these are scaled."""
    for first in range(0, q.shape[2], size):
        rows = slice(first, first + size)
        yield _mean_map(q[:, :, rows] @ k.transpose(-1, -2), _rows_of(mask, rows))


def in_pieces_of_heads(
    q: Tensor, k: Tensor, mask: Tensor | None, size: int, together: int
) -> Iterator[Tensor]:
    """The same, of so many heads at a time."""
    _, heads, count, _ = q.shape
    k = k.expand(-1, heads, -1, -1)  # one head of keys for all queries is what attention takes too
    # heads first: part of them lie together then, and no product copies the keys
    q, k = q.transpose(0, 1).contiguous(), k.transpose(0, 1).contiguous().transpose(-1, -2)
    if mask is not None:
        mask = mask.expand(1, *mask.shape) if mask.ndim == 3 else mask
        mask = mask.transpose(0, 1) if mask.ndim == 4 else mask
    for first in range(0, count, size):
        rows = slice(first, first + size)
        part, parts = _rows_of(mask, rows), []
        for head in range(0, heads, together):
            at = slice(head, head + together)
            of_heads = part if part is None or part.ndim < 4 or len(part) == 1 else part[at]
            parts.append(_probabilities(q[at, :, rows] @ k[at], of_heads).sum(0))
        yield sum(parts[1:], parts[0]) / heads


def _rows_of(mask: Tensor | None, rows: slice) -> Tensor | None:
    return mask if mask is None or mask.shape[-2] == 1 else mask[..., rows, :]


def _mean_map(scores: Tensor, mask: Tensor | None) -> Tensor:
    return _probabilities(scores, mask).mean(1)


def _probabilities(scores: Tensor, mask: Tensor | None) -> Tensor:
    scores = scores if mask is None else scores + additive(mask, scores)
    return scores.softmax(-1, dtype=torch.float32)


def received_by(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """How much the keys are attended to, [B,M] float32: the mean over queries."""
    first, *others = (
        probability.mean(1) if probability.shape[1] == q.shape[2] else probability.sum(1)
        for probability in maps_of(q, k, mask)
    )
    return sum(others, first) / q.shape[2] if others else first


def entropy_of(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """How widely the queries attend, [B,K] float32."""
    parts = [-(p * p.clamp(min=1e-12).log()).sum(-1) for p in maps_of(q, k, mask)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def queries_at(q: Tensor, rows: Tensor, text: int, text_first: bool) -> Tensor:
    """Queries [B,H,T+K,d] of the `text` tokens, all of them, and of the chosen `rows` [B,K] of the
    others, in the order of `q`."""
    whole = torch.arange(text, device=rows.device).expand(len(rows), -1)
    if text_first:
        at = torch.cat([whole, rows + text], 1)[:, None, :, None]
    else:
        at = torch.cat([rows, whole + q.shape[2] - text], 1)[:, None, :, None]
    return q.gather(2, at.expand(-1, q.shape[1], -1, q.shape[3]))


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as what is added to scores shaped as `like`."""
    return (
        torch.zeros_like(like).masked_fill(~mask, float("-inf"))
        if mask.dtype == torch.bool
        else mask
    )


def own_rows(sublayer: Sublayer, signal: Tensor, n: int) -> Tensor:
    """The part [B,N] of a signal over text and image that belongs to this sub-layer's stream."""
    if signal.shape[1] == n:
        return signal
    at_start = (sublayer.stream == "text") == sublayer.text_first
    return signal[:, :n] if at_start else signal[:, signal.shape[1] - n :]
