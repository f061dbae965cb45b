"""Some rows of a sub-layer: what diffusers cannot do by itself. Queries of the chosen rows, keys
and values of all tokens. What only one family needs is in its file of `families`.

B batch, N image tokens, T text tokens, K chosen rows, H heads, D width, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[..., Any]
"""`run()` computes every row, `run(rows)` with rows [B,K] int64 only those. See
`sublayers.Sublayer.reroute`."""


@dataclass(frozen=True)
class SingleRun:
    """A `Run` of a FLUX single block, with its halves."""

    attention: Callable[[Tensor | None], Tensor]
    """Rows [B,K], None for all -> their attention [B,K,D]."""
    project: Callable[[Tensor, Tensor | None], Tensor]
    """Attention [B,K,D] and its rows -> the output: their MLP, and the projection of both."""

    def __call__(self, rows: Tensor | None = None) -> Tensor:
        """The output for these rows, [B,K,D]."""
        return self.project(self.attention(rows), rows)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """The chosen rows: [B,N,D], [B,K] -> [B,K,D]."""
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def put(x: Tensor, rows: Tensor, value: Tensor) -> Tensor:
    """A copy of `x` [B,N,D] whose `rows` [B,K] are `value` [B,K,D]."""
    return x.scatter(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]), value)


def tokenwise(
    _module: nn.Module, forward: Run, rows: Tensor, hidden: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Rows of what treats every token alone: MLPs, and cross-attention, whose keys are the text."""
    return forward(take(hidden, rows), *args, **kwargs)


def self_attention(
    _module: nn.Module,
    forward: Run,
    rows: Tensor,
    hidden: Tensor,
    _context: None = None,
    **kwargs: Any,
) -> Any:
    """Rows of self-attention without positions inside it, by diffusers' own cross-attention
    path."""
    kwargs["encoder_hidden_states"] = hidden  # keys and values of all tokens
    return forward(take(hidden, rows), **kwargs)


def undeclared(family: str, kind: str) -> Callable[..., Any]:
    """What computes some rows of an attention whose family does not say how: a ValueError."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError(
            f"family {family} does not declare how some rows of {kind!r} are computed; run all of "
            "them"
        )

    return refuse


def attend(attn: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention through the same backend as the processor's own: [B,K,H,d] -> [B,K,D]."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    out: Tensor = dispatch_attention_fn(q, k, v, backend=attn.processor._attention_backend)
    return out.flatten(2).type_as(q)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs (Su et al. 2021, eq. 34): x [B,.,H,d], cos and sin [1
    or B,.,1,d]."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    return (x * cos + torch.stack([-imaginary, real], -1).flatten(-2) * sin).type_as(x)


def at_rows(frequencies: Tensor, rows: Tensor) -> Tensor:
    """[1,N,1,d], [B,K] -> [B,K,1,d]."""
    return frequencies[0].expand(-1, 1, -1)[rows]


def refuse_mask(mask: Any, **more: Any) -> None:
    """ValueError unless the mask and everything else an attention is called with are None."""
    if mask is not None or any(value is not None for value in more.values()):
        raise ValueError(
            "some rows of a masked or otherwise conditioned attention cannot be computed; run all "
            "of them"
        )
