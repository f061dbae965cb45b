"""Some rows of a sub-layer: what diffusers cannot do by itself. Queries of the chosen rows, keys
and values of all tokens.

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
`anatomy.Sublayer.reroute`."""


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
    """Rows of self-attention in DiT and PixArt, by diffusers' own cross-attention path."""
    kwargs["encoder_hidden_states"] = hidden  # keys and values of all tokens
    return forward(take(hidden, rows), **kwargs)


def wan_attention(
    module: nn.Module,
    _forward: Run,
    rows: Tensor,
    hidden: Tensor,
    _context: None,
    mask: None,
    rotary: tuple[Tensor, Tensor],
) -> Tensor:
    """Rows of self-attention in Wan: [B,K,D]."""
    attn: Any = module
    _refuse_mask(mask)
    q = attn.norm_q(attn.to_q(take(hidden, rows))).unflatten(2, (attn.heads, -1))  # [B,K,H,d]
    k = attn.norm_k(attn.to_k(hidden)).unflatten(2, (attn.heads, -1))  # [B,N,H,d]
    v = attn.to_v(hidden).unflatten(2, (attn.heads, -1))
    cos, sin = rotary  # [1,N,1,d]
    q = _rotate(q, _at_rows(cos, rows), _at_rows(sin, rows))
    out: Tensor = attn.to_out[1](attn.to_out[0](_attend(attn, q, _rotate(k, cos, sin), v)))
    return out


def joint_attention(
    module: nn.Module,
    _forward: Run,
    rows: Tensor,
    hidden: Tensor,
    *,
    encoder_hidden_states: Tensor,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Image rows [B,K,D] of the joint attention of a FLUX double block, and its text [B,T,D], which
    is computed whole."""
    attn: Any = module
    text, t = encoder_hidden_states, encoder_hidden_states.shape[1]
    own_q, own_k, own_v = _flux_qkv(
        attn, ("to_q", "norm_q"), ("to_k", "norm_k"), "to_v", take(hidden, rows), hidden
    )
    added = (("add_q_proj", "norm_added_q"), ("add_k_proj", "norm_added_k"), "add_v_proj")
    text_q, text_k, text_v = _flux_qkv(attn, *added, text, text)
    whole = torch.arange(t, device=rows.device).expand(len(rows), -1)
    out = _flux_attend(
        attn,
        torch.cat([text_q, own_q], 1),
        torch.cat([text_k, own_k], 1),
        torch.cat([text_v, own_v], 1),
        torch.cat([whole, rows + t], 1),
        **kwargs,
    )
    return attn.to_out[1](attn.to_out[0](out[:, t:].contiguous())), attn.to_add_out(
        out[:, :t].contiguous()
    )


def single_attention(attn: Any, rows: Tensor, hidden: Tensor, **kwargs: Any) -> Tensor:
    """Attention of a FLUX single block for some rows of text and image: [B,K,D]."""
    q, k, v = _flux_qkv(
        attn, ("to_q", "norm_q"), ("to_k", "norm_k"), "to_v", take(hidden, rows), hidden
    )
    return _flux_attend(attn, q, k, v, rows, **kwargs)


BY_FAMILY: dict[tuple[str, str], Callable[..., Any]] = {
    ("dit", "self"): self_attention,
    ("pixart", "self"): self_attention,
    ("wan", "self"): wan_attention,
    ("flux", "joint"): joint_attention,
}
"""(family, kind) -> how its rows are computed, where that is not token by token."""


def _flux_qkv(
    attn: Any, q: tuple[str, str], k: tuple[str, str], v: str, some: Tensor, every: Tensor
) -> tuple[Tensor, ...]:
    def split(name: str, x: Tensor) -> Tensor:
        out: Tensor = attn.get_submodule(name)(x).unflatten(-1, (-1, attn.head_dim))  # [B,.,H,d]
        return out

    return (
        attn.get_submodule(q[1])(split(q[0], some)),
        attn.get_submodule(k[1])(split(k[0], every)),
        split(v, every),
    )


def _flux_attend(
    attn: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_at: Tensor,
    image_rotary_emb: Any = None,
    attention_mask: None = None,
    **more: Any,
) -> Tensor:
    """Rotate and attend; `q_at` [B,K] are the queries' places in text + image."""
    _refuse_mask(attention_mask, **more)
    cos, sin = (f[None, :, None, :].to(q.device) for f in image_rotary_emb)  # [1,T+N,1,d]
    return _attend(
        attn, _rotate(q, _at_rows(cos, q_at), _at_rows(sin, q_at)), _rotate(k, cos, sin), v
    )


def _attend(attn: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention through the same backend as the processor's own: [B,K,H,d] -> [B,K,D]."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    out: Tensor = dispatch_attention_fn(q, k, v, backend=attn.processor._attention_backend)
    return out.flatten(2).type_as(q)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs (Su et al. 2021, eq. 34): x [B,.,H,d], cos and sin [1
    or B,.,1,d]."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    return (x * cos + torch.stack([-imaginary, real], -1).flatten(-2) * sin).type_as(x)


def _at_rows(frequencies: Tensor, rows: Tensor) -> Tensor:
    """[1,N,1,d], [B,K] -> [B,K,1,d]."""
    return frequencies[0].expand(-1, 1, -1)[rows]


def _refuse_mask(mask: Any, **more: Any) -> None:
    if mask is not None or any(value is not None for value in more.values()):
        raise ValueError(
            "some rows of a masked or otherwise conditioned attention cannot be computed; run all "
            "of them"
        )
