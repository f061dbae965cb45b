"""Number formats for which there is no kernel here: values are rounded to them and multiplied in
the model's own format, so that quality is what it would be, and nothing is faster or smaller.

B batch, N and M tokens, H heads, d width of a head; groups lie along the last dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CAUTION = (
    "simulated format: values are rounded to it and multiplied in the model's own, so that no "
    "speed-up and no saving of memory is to be expected"
)
"""What is said of every row of these methods."""
E4M3, E2M1 = 448.0, 6.0
"""Largest finite values."""
PIECE = 2**26
"""Entries of an attention map that are held at a time."""


def to_e4m3(x: Tensor) -> Tensor:
    """Rounded to the nearest value of E4M3, beyond its range the largest; in x's own dtype."""
    return x.clamp(-E4M3, E4M3).to(torch.float8_e4m3fn).to(x.dtype)


def to_e2m1(x: Tensor) -> Tensor:
    """Rounded to the nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6 with either sign; of two as near, the
    one whose last bit is 0, as in IEEE 754."""
    size = x.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0)).to(x.dtype)
    return ((size / step).round() * step).clamp(max=E2M1).copysign(x)


def to_integers(x: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Rounded to integers of `bits` bits without the lowest one, symmetrically, with a scale for
    each `group` entries; None: for the whole last dimension."""
    most = 2 ** (bits - 1) - 1
    grouped = x.unflatten(-1, (-1, group or x.shape[-1]))
    scale = (grouped.abs().amax(-1, keepdim=True) / most).clamp(min=1e-12)
    rounded: Tensor = (grouped / scale).round().clamp(-most, most) * scale
    return rounded.flatten(-2)


def to_nvfp4(x: Tensor, outer: Tensor) -> Tensor:
    """Rounded to E2M1 with a scale in E4M3 for each 16 entries; `outer`, which is in float32 and
    broadcasts against x, is the largest magnitude those scales have to reach."""
    unit = (outer.float() / (E2M1 * E4M3)).clamp(min=1e-30)
    grouped = x.float().unflatten(-1, (-1, 16))
    unit = unit.unsqueeze(-1)
    scale = to_e4m3(grouped.abs().amax(-1, keepdim=True) / E2M1 / unit) * unit
    rounded = to_e2m1((grouped / scale.clamp(min=1e-30)).clamp(-E2M1, E2M1)) * scale
    return rounded.flatten(-2).to(x.dtype)


def four_bits(x: Tensor, form: str, group: int, *, weight: bool) -> Tensor:
    """Weights [O,I] or activations [...,I] in four bits: `int4`, with a scale in the model's format
    for each `group` inputs, or `nvfp4`, whose outer scale is one for a weight and one for each
    token."""
    if form == "int4":
        return to_integers(x, 4, group)
    return to_nvfp4(x, x.abs().amax() if weight else x.abs().amax(-1, keepdim=True))


def low_rank(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Up [O,r] and down [r,I] whose product is the nearest matrix of rank r to a weight [O,I], by
    its singular value decomposition."""
    u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
    root = s[:rank].sqrt()
    up, down = u[:, :rank] * root, root[:, None] * v[:rank]
    return up.to(weight.dtype), down.to(weight.dtype)


def smoothing_factors(reach: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """What the inputs of a linear layer are divided by and its weight [O,I] multiplied with, [I]:
    reach^alpha / max|W|^(1 - alpha), `reach` [I] the largest input of each channel."""
    reach = reach.to(weight.device, torch.float32).clamp(min=1e-5)
    most = weight.detach().float().abs().amax(0).clamp(min=1e-5)
    return (reach**alpha / most ** (1 - alpha)).to(weight.dtype)


def w4a4(
    linear: nn.Linear, at: Any, *, rank: int, form: str, group: int, factors: Tensor | None = None
) -> None:
    """Have a layer compute L (x / f) + Q(R) Q(x / f): f `factors` [I] (None: 1), L of rank r and R
    the rest of the weight times f, Q four bits."""
    weight = linear.weight.detach()
    weight = weight if factors is None else weight * factors
    branch = low_rank(weight, rank) if rank else None
    rest = weight if branch is None else weight - branch[0] @ branch[1]
    linear.weight = nn.Parameter(four_bits(rest, form, group, weight=True), requires_grad=False)

    def forward(x: Tensor) -> Tensor:
        x = x if factors is None else x / factors
        rounded = four_bits(x, form, group, weight=False)
        out = nn.functional.linear(rounded, linear.weight, linear.bias)
        if branch is None:
            return out
        up, down = branch
        return out + nn.functional.linear(nn.functional.linear(x, down), up)

    at.patch(linear, "forward", forward)


def w6a8(linear: nn.Linear, at: Any, *, group: int) -> None:
    """Have a layer multiply weights of six bits, a scale for each `group` inputs, with inputs of
    eight, a scale for each token."""
    weight = to_integers(linear.weight.detach(), 6, group)
    linear.weight = nn.Parameter(weight, requires_grad=False)

    def forward(x: Tensor) -> Tensor:
        return nn.functional.linear(to_integers(x, 8), linear.weight, linear.bias)

    at.patch(linear, "forward", forward)


def _scaled(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Rounded to E4M3 with one scale for what lies along `dim`."""
    scale = (x.abs().amax(dim, keepdim=True) / E4M3).clamp(min=1e-12)
    return to_e4m3(x / scale) * scale


def _blocks(x: Tensor, block: int) -> Tensor:
    """[B,H,N,d] rounded to E4M3 with a scale for each `block` tokens; the last may have fewer."""
    if block == 1:
        return _scaled(x, -1)
    return torch.cat([_scaled(part, (-2, -1)) for part in x.split(block, -2)], -2)


def attention_in_e4m3(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block: int = 1,
    smooth: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Attention [B,H,N,d] of q [B,H,N,d], k and v [B,H,M,d] whose products are of values in E4M3.

    q and k have a scale for each `block` tokens, k less its mean over tokens where `smooth` (which
    the softmax does not see); v one for each channel. The weights are exp(score - largest of the
    row), 0 to 1, times 448; the sum they are divided by is of them before they are rounded.
    """
    dtype, width = q.dtype, q.shape[-1]
    q, k, v = q.float(), k.float(), v.float()
    k = k - k.mean(-2, keepdim=True) if smooth else k
    q, k, v = _blocks(q, block), _blocks(k, block), _scaled(v, -2)
    factor = width**-0.5 if scale is None else scale
    rows = max(1, PIECE // max(1, q.shape[0] * q.shape[1] * k.shape[-2]))
    out = []
    for some in q.split(rows, -2):
        scores = some @ k.transpose(-1, -2) * factor
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        total = weights.sum(-1, keepdim=True)
        out.append((to_e4m3(weights * E4M3) / E4M3) @ v / total)
    return torch.cat(out, -2).to(dtype)


class AttentionInE4M3(TorchFunctionMode):
    """Inside it, attention without a mask is `attention_in_e4m3`."""

    def __init__(self, at: Any, **how: Any) -> None:
        super().__init__()
        self.at, self.how = at, how

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = (
            dict(
                zip(
                    ("query", "key", "value", "attn_mask", "dropout_p", "is_causal"),
                    args,
                    strict=False,
                )
            )
            | kwargs
        )
        plain = {"query", "key", "value", "scale"}
        if any(value for name, value in given.items() if name not in (*plain, "attn_mask")) or (
            given.get("attn_mask") is not None
        ):
            self.at.count("attentions_with_a_mask", idle=True)
            return func(*args, **kwargs)
        self.at.count("attentions")
        q, k, v = (given[name] for name in ("query", "key", "value"))
        return attention_in_e4m3(q, k, v, scale=given.get("scale"), **self.how)
