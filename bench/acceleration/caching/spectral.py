"""Tokens of a picture or video by spatial frequency: the filter of SeaCache and the bands of FreqCa.

B batch, N image tokens, F frames, H rows and W columns of them (N = F H W), D width.
"""

from __future__ import annotations

from math import pi, prod, sqrt

import torch
from torch import Tensor

Grid = tuple[int, int, int]
"""F, H, W."""
FLOOR = 1e-16
ROUNDING = 1e-6
LEAST = 1e-6
"""Least share of signal, and of noise, that the filter is made for."""


def wiener_gain(grid: Grid, level: float, power: float, device: torch.device | str) -> Tensor:
    """The response of the best linear denoiser at a noise level, [F,H,W,1] float32 (SeaCache,
    arXiv:2602.18993).

    By axis a S / (a^2 S + b^2), S = |f|^-power, f in cycles per token, a = 1 - level of signal and b =
    level of noise; the product over the axes, divided by its mean (Eq. 7). An axis of one token has no part.
    """
    noise = min(max(level, LEAST), 1 - LEAST)
    signal = 1 - noise
    gain = torch.ones(*grid, 1, device=device)
    for axis, length in enumerate(grid):
        if length == 1:
            continue
        spectrum = 1 / (torch.fft.fftfreq(length, device=device).abs() ** power + FLOOR)
        along = signal * spectrum / (signal**2 * spectrum + noise**2 + FLOOR)
        gain = gain * along.reshape([-1 if i == axis else 1 for i in range(4)])
    return gain / gain.mean()


def filtered(tokens: Tensor, grid: Grid, gain: Tensor) -> Tensor:
    """Tokens [B,N,D] after a filter with the response `gain` [F,H,W,1], in their dtype."""
    spectrum = torch.fft.fftn(tokens.float().unflatten(1, grid), dim=(1, 2, 3))
    out: Tensor = torch.fft.ifftn(spectrum * gain, dim=(1, 2, 3)).real
    return out.flatten(1, 3).to(tokens.dtype)


def low_band(tokens: Tensor, grid: Grid, cutoff: float) -> Tensor:
    """The part of tokens [B,N,D] whose cosine frequencies lie within `cutoff` of the greatest, in
    their dtype (FreqCa, arXiv:2510.08669).

    Frequencies are the indices (f, h, w) of the orthonormal DCT-II of the grid, their size sqrt(f^2 +
    h^2 + w^2). Only the low ones are worked out.
    """
    greatest = sqrt(sum((length - 1) ** 2 for length in grid))
    reach = cutoff * greatest
    bases = [
        _cosines(length, min(length, int(reach + ROUNDING) + 1), tokens.device) for length in grid
    ]  # [K,length] each
    sizes = torch.cartesian_prod(
        *(torch.arange(len(basis), device=tokens.device) for basis in bases)
    )
    # compared as squares, which are whole numbers, a little above what rounding takes away
    keep = sizes.double().square().sum(-1) <= (reach + ROUNDING) ** 2
    keep = keep.reshape([len(basis) for basis in bases])
    low: Tensor = tokens.float().unflatten(1, grid)
    for axis, basis in enumerate(bases, 1):
        low = torch.tensordot(low, basis, dims=([axis], [1])).movedim(-1, axis)
    low = low * keep[..., None]
    for axis, basis in enumerate(bases, 1):
        low = torch.tensordot(low, basis, dims=([axis], [0])).movedim(-1, axis)
    return low.reshape(len(tokens), prod(grid), -1).to(tokens.dtype)


def _cosines(length: int, count: int, device: torch.device) -> Tensor:
    """The first `count` rows of the orthonormal DCT-II of `length` points, [count,length]."""
    k = torch.arange(count, device=device, dtype=torch.float32)[:, None]
    n = torch.arange(length, device=device, dtype=torch.float32)[None]
    rows = torch.cos(pi * (n + 0.5) * k / length) * sqrt(2 / length)
    rows[0] = sqrt(1 / length)
    return rows
