"""Forecasts of a tensor at a step that is not computed, from its values at computed ones: pure
functions of tensors of one shape, for outputs, residuals of all blocks or features alike.

`values` and `times` are of one length, oldest first, the newest last; times are step numbers or any
other clock that does not stand still. `wanted` is the time of the forecast.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

CONTRACTION = 0.5
"""HiCache's scale of the time and of the polynomials, as its code has it."""
MOST = 1.5
"""Largest coefficient of DiCache's two anchors, of its code for FLUX; it has 2 for Wan."""


def differences(values: Sequence[Tensor], times: Sequence[float], order: int) -> list[Tensor]:
    """D0, D1, ... up to `order`, or to what so many values allow: D0 is the newest value, D(i+1) the
    change of D(i) by unit of time since the computed step before (TaylorSeer, arXiv:2503.06923, as
    its code has it).

    Raises ValueError for no values, and where two times are the same.
    """
    _check(values, times)
    levels = list(values[-1 - order :])
    gaps = [b - a for a, b in itertools.pairwise(times)][-order:] if order else []
    newest = [levels[-1]]
    for _ in range(len(levels) - 1):
        # of level i the gap is the one that ends at the value, whatever i is
        after = gaps[-(len(levels) - 1) :]
        levels = [(b - a) / gap for a, b, gap in zip(levels, levels[1:], after, strict=False)]
        newest.append(levels[-1])
    return newest


def extended(newest: Tensor, before: Sequence[Tensor], gap: float, order: int) -> list[Tensor]:
    """`differences` of one value more, from those at the computed step before, `gap` ago: D0, D1, ...
    up to `order`, one more than there were."""
    parts = [newest]
    for previous in before[:order]:
        change = parts[-1] - previous
        parts.append(change if gap == 1 else change.div_(gap))
    return parts


def taylor_terms(x: float, count: int) -> list[float]:
    """What D0, D1, ... (`count` of them) are multiplied by in TaylorSeer's forecast
    (arXiv:2503.06923), x the time since the newest value: x^i / i!."""
    terms = [1.0]
    for i in range(1, count):
        terms.append(terms[-1] * (x / i))
    return terms


def hermite_terms(x: float, count: int, contraction: float = CONTRACTION) -> list[float]:
    """What D0, D1, ... (`count` of them) are multiplied by in HiCache's forecast (arXiv:2508.16984),
    x the time since the newest value: s^i H_i(s x) / i!, s the contraction, H the physicists' Hermite
    polynomials (H_0 = 1, H_1(u) = 2 u, H_(n+1)(u) = 2 u H_n(u) - 2 n H_(n-1)(u)). At s = 1/2 the term
    of D1 is half of Taylor's."""
    u, factor, before, polynomial = contraction * x, 1.0, 0.0, 1.0
    terms = [1.0]
    for i in range(1, count):
        before, polynomial = polynomial, 2 * u * polynomial - 2 * (i - 1) * before
        factor *= contraction / i
        terms.append(factor * polynomial)
    return terms


def combined(parts: Sequence[Tensor], terms: Sequence[float]) -> Tensor:
    """The sum of tensors times numbers, of which the first is 1: an operation each."""
    out = parts[0]
    for part, term in zip(parts[1:], terms[1:], strict=True):
        out = torch.add(out, part, alpha=term)
    return out


def taylor(
    values: Sequence[Tensor], times: Sequence[float], wanted: float, order: int = 1
) -> Tensor:
    """TaylorSeer's forecast: the `differences` up to `order` times `taylor_terms`; order 0 is the
    newest value. `differences` says what is raised."""
    parts = differences(values, times, order)
    return combined(parts, taylor_terms(wanted - times[-1], len(parts)))


def hermite(
    values: Sequence[Tensor],
    times: Sequence[float],
    wanted: float,
    order: int = 2,
    contraction: float = CONTRACTION,
) -> Tensor:
    """HiCache's forecast: the `differences` up to `order` times `hermite_terms`. `differences` says
    what is raised."""
    parts = differences(values, times, order)
    return combined(parts, hermite_terms(wanted - times[-1], len(parts), contraction))


def two_anchors(older: Tensor, newer: Tensor, coefficient: float | Tensor) -> Tensor:
    """DiCache's combination of the last two computed values (arXiv:2508.17356): older + coefficient
    (newer - older); `coefficient` is a number, or a tensor that broadcasts."""
    return older + coefficient * (newer - older)


def probed_coefficient(now: Tensor, older: Tensor, newer: Tensor, most: float = MOST) -> Tensor:
    """DiCache's coefficient (arXiv:2508.17356): clip(mean|now - older| / mean|newer - older|, 1,
    `most`), of a probe at this step and at the two anchors' [B,...].

    Taken for every row, so that a sample does not depend on its companions: the result is
    [B,1,...], of as many dimensions. It is 1 where the probe did not move between the anchors.
    """
    reach = (now - older).flatten(1).abs().mean(1)
    apart = (newer - older).flatten(1).abs().mean(1)
    ratio = torch.where(apart > 0, reach / apart, torch.ones_like(reach)).clamp(1, most)
    return ratio.reshape(-1, *[1] * (now.dim() - 1))


def timed_coefficient(times: Sequence[float], wanted: float, most: float = MOST) -> float:
    """The coefficient of two anchors where nothing is probed: the probe's movement is taken to be as
    large as the time that passed, clip((wanted - t1) / (t2 - t1), 1, `most`) of the last two `times`.

    Raises ValueError where they are the same.
    """
    apart = times[-1] - times[-2]
    if not apart:
        raise ValueError(f"two anchors of the same time {times[-1]:g}")
    return min(max((wanted - times[-2]) / apart, 1.0), most)


def mean_velocity(
    latents: Sequence[Tensor],
    velocities: Sequence[Tensor],
    sigmas: Sequence[float | Tensor],
    latent: Tensor,
    sigma: float | Tensor,
    following: float | Tensor,
    span: int = 4,
) -> Tensor:
    """MeanCache's forecast of a flow model's velocity (arXiv:2601.19961), as the port of
    arXiv:2609.39343 has it.

    `latents`, `velocities` and `sigmas` are those of the steps so far, replaced ones too, oldest
    first; `latent` and `sigma` this step's, `following` the sigma it leads to. Sigmas may be tensors of
    one number, whose values the host does not read. With r the `span`-th last of those steps, or the
    first where there are fewer: u = (latent - latent_r) / (sigma - sigma_r), J = (u - v_r) / (sigma -
    sigma_r), and the forecast is v + (following - sigma) J, v the newest velocity. It is v itself for a
    span of one step, and where sigma has not changed. Computed in float32, returned in the velocities'
    dtype.

    Raises ValueError for no velocities.
    """
    if not velocities or not len(latents) == len(velocities) == len(sigmas):
        raise ValueError(
            f"{len(latents)} latents, {len(velocities)} velocities and {len(sigmas)} sigmas: as many "
            "of each are needed, and one at least"
        )
    reach, newest = min(span, len(velocities)), velocities[-1]
    if reach <= 1:
        return newest
    passed = torch.as_tensor(sigma - sigmas[-reach])
    passed = torch.where(passed.abs() < 1e-12, torch.inf, passed)  # which leaves no correction
    average = (latent.float() - latents[-reach].float()) / passed
    slope = (average - velocities[-reach].float()) / passed
    return (newest.float() + (following - sigma) * slope).to(newest.dtype)


def _check(values: Sequence[Tensor], times: Sequence[float]) -> None:
    if not values or len(values) != len(times):
        raise ValueError(f"{len(values)} values at {len(times)} times: one of each at least")
    for a, b in itertools.pairwise(times):
        if a == b:
            raise ValueError(f"two values of the same time {a:g}")
