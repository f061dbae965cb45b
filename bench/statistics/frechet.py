"""Fréchet distance between a set of samples and a reference, on features, with intervals for paired
differences. No torch.

n samples, d features. Everything is computed in float64, on chunks of rows: features may be
float32, or a memory map, and are never copied whole. Kernel distances are in `mmd.py`,
precision and recall in `precision_recall.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import blas

from ditbench.statistics.estimates import Array, Estimate
from ditbench.statistics.influence import BLOCKS, Reading, blocks, contrast, jackknife, linear
from ditbench.statistics.moments import Moments, chunks, table

CUT = 1e-7
"""Singular values below this fraction of the largest are rounding, not data."""
LARGE = 512
"""Features from which on a second's difference can be felt."""
UNEQUAL = 3
"""Times the mean size of a block that the largest may have."""
FEW_BLOCKS = 8
"""Of a jackknife that only corrects bias."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What samples are measured against: the Gaussian through reference features and, where they
    are kept, the features."""

    n: int
    mean: Array
    """[d]."""
    root: Array
    """[d, d] lower triangular factor of the covariance, root @ root.T: worked out once for all
    cells."""
    features: np.ndarray | None = field(default=None, repr=False)
    """[n, d]; None where only moments were kept: then there is a Fréchet distance, and no other."""

    @classmethod
    def of(cls, moments: Moments, features: ArrayLike | None = None) -> Reference:
        """From the reference's moments."""
        return cls(
            moments.n,
            moments.mean,
            factor(moments.covariance),
            None if features is None else table(features),
        )

    @classmethod
    def through(cls, features: ArrayLike) -> Reference:
        """From the reference's features [n, d], which are kept."""
        return cls.of(Moments.of(features), features)


def factor(covariance: Array) -> Array:
    """[d, d] lower triangular R with R R^T the covariance: Cholesky's, or, where that is singular,
    one from its eigenvectors."""
    try:
        root: Array = np.asarray(np.linalg.cholesky(covariance), np.float64)
        return root
    except np.linalg.LinAlgError:
        eigenvalues, basis = np.linalg.eigh(covariance)
        return np.ascontiguousarray(np.linalg.qr((basis * np.sqrt(eigenvalues.clip(min=0))).T).R.T)


def frechet(features: ArrayLike | Moments, reference: Reference) -> float:
    """Squared Fréchet (2-Wasserstein) distance of the Gaussian through `features` [n, d] to the
    reference's.

    |m - m_r|^2 + tr S + tr S_r - 2 tr (R^T S R)^1/2 with S_r = R R^T (Dowson & Landau 1982). The
    last trace comes from the symmetric eigenproblem, or, with no more samples than features, from
    the nuclear norm of (X - m) R / sqrt(n - 1), which never forms the singular S. Biased upwards by
    about c / n with a c of the model's own: compare only at equal n.
    """
    if not isinstance(features, Moments):
        x = table(features)
        if 2 <= len(x) <= x.shape[1]:
            mean, centred = _centre(x)
            roots = np.linalg.svd(centred @ reference.root / np.sqrt(len(x) - 1), compute_uv=False)
            return _distance(
                mean, float(np.sum(centred**2)) / (len(x) - 1), float(roots.sum()), reference
            )
        features = Moments.of(x)
    covariance = features.covariance
    roots = np.sqrt(_eigenvalues(_seen(covariance, reference)).clip(min=0))
    return _distance(features.mean, float(np.trace(covariance)), float(roots.sum()), reference)


@lru_cache(maxsize=32)
def floor(n: int, reference: Reference, *, seed: int = 0) -> float:
    """What `frechet` gives on average for n samples drawn from the reference's own Gaussian:
    perfection, at this n.

    The mean of 2048 / d draws, at least four: the more features, the less one draw differs from the
    next.
    """
    rng = np.random.default_rng(seed)
    shape = (n, len(reference.mean))
    drawn = (rng.standard_normal(shape) @ reference.root.T for _ in range(max(4, 2048 // shape[1])))
    return float(np.mean([frechet(reference.mean + x, reference) for x in drawn]))


def _centre(x: np.ndarray) -> tuple[Array, Array]:
    """Mean [d] and the rows minus it [n, d], float64; for tables of few rows."""
    whole = np.concatenate(list(chunks(x)))
    return whole.mean(0), whole - whole.mean(0)


def _seen(covariance: Array, reference: Reference) -> Array:
    """R^T S R, [d, d]: the covariance in the reference's own coordinates, by triangular products,
    which take half the arithmetic."""
    upper = reference.root.T  # as Fortran has it, without a copy
    half = blas.dtrmm(1.0, upper, covariance.T)
    product: Array = blas.dtrmm(
        1.0, upper, half, side=1, trans_a=1
    ).T  # symmetric, so that its transpose is no other
    return product


def _eigenvalues(symmetric: Array) -> Array:
    """Ascending. Of a large matrix by torch, where that is imported anyway: its LAPACK took half
    the time of numpy's."""
    torch = sys.modules.get("torch")
    if torch is None or len(symmetric) < LARGE:
        ascending: Array = np.asarray(np.linalg.eigvalsh(symmetric), np.float64)
        return ascending
    of_torch: Array = torch.linalg.eigvalsh(torch.from_numpy(symmetric)).numpy()
    return of_torch


def _distance(centre: Array, variance: float, shared: float, reference: Reference) -> float:
    return float(
        np.sum((centre - reference.mean) ** 2) + variance + np.sum(reference.root**2) - 2 * shared
    )


def influence(features: ArrayLike, reference: Reference) -> Array:
    """[n]: what each sample does to `frechet`, the distance's derivative along its weight, summing
    to zero.

    2 (m - m_r).(x - m) + (x - m)^T (I - T) (x - m) - mean, T = R (R^T S R)^-1/2 R^T with S_r = R
    R^T. With n <= d the inverse is taken on the samples' own span, where reweighting them stays:
    the infinitesimal jackknife.
    """
    return _linearise(table(features), reference)[1]


def read_frechet(
    features: ArrayLike, reference: Reference, groups: ArrayLike | None = None
) -> Reading:
    """`frechet` with its influence, groups as units; ValueError with fewer than two samples."""
    value, each = _linearise(table(features), reference)
    return linear(value, each, groups)


def _linearise(x: np.ndarray, reference: Reference) -> tuple[float, Array]:
    """Distance and influence [n] from one decomposition."""
    n = len(x)
    if n < 2:
        raise ValueError(f"a Fréchet distance needs at least two samples, got {n}")
    if n <= x.shape[1]:
        mean, centred = _centre(x)
        _, roots, basis = np.linalg.svd(
            centred @ reference.root / np.sqrt(n - 1), full_matrices=False
        )
        basis, variance = basis.T, float(np.sum(centred**2)) / (n - 1)
    else:
        moments = Moments.of(x)
        mean, covariance = moments.mean, moments.covariance
        eigenvalues, basis = np.linalg.eigh(_seen(covariance, reference))
        roots, variance = np.sqrt(eigenvalues.clip(min=0)), float(np.trace(covariance))
    large = roots > CUT * roots.max(initial=0.0)
    carry = reference.root @ (
        basis[:, large] / np.sqrt(roots[large])
    )  # [d, k], T = carry @ carry.T
    raw = []
    for part in chunks(x):
        off = part - mean
        bent = np.sum(off**2, 1) - np.sum((off @ carry) ** 2, 1)
        # the covariance's divisor is n - 1
        raw.append(2 * off @ (mean - reference.mean) + bent * (n / (n - 1)))
    each = np.concatenate(raw)
    return _distance(mean, variance, float(roots.sum()), reference), each - each.mean()


def frechet_delta(
    features: ArrayLike, against: ArrayLike, reference: Reference, groups: ArrayLike | None = None
) -> Estimate:
    """`frechet(features) - frechet(against)` for paired samples [n, d] as `frechet_contrast` has
    it."""
    return frechet_contrast([features, against], [1, -1], reference, groups)


def frechet_contrast(
    tables: Sequence[ArrayLike],
    signs: Sequence[int],
    reference: Reference,
    groups: ArrayLike | None = None,
) -> Estimate:
    """The sum of `signs` times the distances of paired `tables` [n, d] each, without their bias in
    n, and with an interval.

    ValueError when the tables cannot be paired, or for n <= d; fewer than two groups: no
    interval.
    """
    paired = _paired(tables)
    n, d = paired[0].shape
    whole = [read_frechet(x, reference, groups) for x in paired]
    return settle(whole, [read_jackknifed(x, reference, groups) for x in paired], signs, n, d)


def too_few(n: int, d: int) -> str:
    """Why n samples of d features have no difference of Fréchet distances, or "": what is left
    without a block must have full rank too."""
    return (
        ""
        if 4 * n >= 5 * d
        else f"a difference of Fréchet distances needs 1.25 times as many samples as their {d} features, got {n}"
    )


def settle(
    influences: Sequence[Reading],
    jackknifed: Sequence[Reading],
    signs: Sequence[int],
    n: int,
    d: int,
) -> Estimate:
    """A contrast of distances from both readings of each set: the value without bias from the
    jackknife, the interval from influences.

    Sets of less variance look better at small n, for part of what perfection costs there is
    variance: paired distances share most of their bias, not all. Up to n = 2 d the influence is too
    small, and the larger of both standard errors is taken. ValueError for fewer than 1.25 d
    samples, where the correction leaves bias that can turn the sign, and where prompts differ too
    much in size for it.
    """
    if reason := too_few(n, d):
        raise ValueError(reason)
    if any(reading.unbiased is None for reading in jackknifed):
        raise ValueError(
            "a difference of Fréchet distances needs prompts of more equal numbers of samples"
        )
    by_influence, by_jackknife = (
        contrast(readings, signs) for readings in (influences, jackknifed)
    )
    use = by_influence
    if n <= 2 * d and (by_jackknife.se or 0) > (by_influence.se or 0):
        use = by_jackknife
    shift = by_jackknife.value - use.value
    low, high = (None if x is None else x + shift for x in (use.low, use.high))
    bounds = None if use.bounds is None else (use.bounds[0] + shift, use.bounds[1] + shift)
    return replace(use, value=by_jackknife.value, low=low, high=high, bounds=bounds)


def read_jackknifed(
    features: ArrayLike, reference: Reference, groups: ArrayLike | None = None
) -> Reading:
    """`frechet` and what it is without each block of whole groups: 50, or `FEW_BLOCKS` of over
    `LARGE` features, for each costs time."""
    x = table(features)
    block = blocks(len(x), groups, BLOCKS if x.shape[1] <= LARGE else FEW_BLOCKS)
    parts = [Moments.of(x[block == b]) for b in range(int(block.max()) + 1)]
    whole = sum(parts[1:], parts[0])
    if len(parts) < 2:
        return Reading(value=frechet(x, reference), parts=np.zeros(1))
    estimate = jackknife(
        frechet(x, reference), [frechet(whole.without(part), reference) for part in parts]
    )
    # Quenouille's formula is about blocks of one size.
    return (
        estimate
        if max(part.n for part in parts) * len(parts) <= UNEQUAL * len(x)
        else replace(estimate, unbiased=None)
    )


def _paired(tables: Sequence[ArrayLike]) -> list[np.ndarray]:
    arrays = [table(x) for x in tables]
    for x in arrays[1:]:
        if x.shape != arrays[0].shape:
            raise ValueError(f"features of shape {arrays[0].shape} cannot be paired with {x.shape}")
    return arrays
