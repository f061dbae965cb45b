"""Distances between a set of samples and a reference, on features, with intervals for paired differences. numpy only.

n samples, d features, G groups (samples of one prompt, which are not independent). Everything is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from ditbench.statistics import Array, Estimate, student

CUT = 1e-7
"""Singular values below this fraction of the largest are rounding, not data."""


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of features, mergeable in any order: `a + b` is the moments of both."""

    n: int
    total: Array
    """[d] sum of rows."""
    outer: Array
    """[d, d] sum of outer products of rows."""

    @classmethod
    def of(cls, features: ArrayLike) -> Moments:
        """Moments of `features` [n, d]; ValueError when they are no finite table."""
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or not np.isfinite(x).all():
            raise ValueError(f"features are a table [n, d] of finite numbers, got shape {x.shape}")
        return cls(len(x), x.sum(0), x.T @ x)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Array:
        """[d]."""
        return self.total / self.n

    @property
    def covariance(self) -> Array:
        """[d, d], divisor n - 1, symmetric; ValueError with fewer than two rows."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least two samples, got {self.n}")
        centred = self.outer - np.outer(self.total, self.total) / self.n
        found: Array = (centred + centred.T) / (2 * (self.n - 1))
        return found


@dataclass(frozen=True)
class Reference:
    """The Gaussian that distances are measured to, with the square root of its covariance: one eigendecomposition for
    all cells.
    """

    n: int
    mean: Array
    """[d]."""
    root: Array
    """[d, d] symmetric square root of the covariance."""
    features: np.ndarray | None = field(default=None, repr=False)
    """[n, d]; None where only moments were kept: then there is a Fréchet distance, and no other."""

    @classmethod
    def of(cls, moments: Moments) -> Reference:
        """From the reference's moments; eigenvalues a rounding below zero count as zero."""
        eigenvalues, basis = np.linalg.eigh(moments.covariance)
        return cls(moments.n, moments.mean, (basis * np.sqrt(eigenvalues.clip(min=0))) @ basis.T)


def frechet(features: ArrayLike | Moments, reference: Reference) -> float:
    """Squared Fréchet (2-Wasserstein) distance of the Gaussian through `features` [n, d] to the reference's.

    |m - m_r|^2 + tr S + tr S_r - 2 tr (S_r^1/2 S S_r^1/2)^1/2 (Dowson & Landau 1982). The last trace comes from the
    symmetric eigenproblem, or, with no more samples than features, from the nuclear norm of (X - m) S_r^1/2 / sqrt(n
    - 1), which never forms the singular S. Biased upwards by about c / n with a c of the model's own: compare only at
    equal n.
    """
    if not isinstance(features, Moments):
        x = np.asarray(features, np.float64)
        if 2 <= len(x) <= x.shape[1]:
            centred = (x - x.mean(0)) / np.sqrt(len(x) - 1)
            roots = np.linalg.svd(centred @ reference.root, compute_uv=False)
            return _distance(x.mean(0), float(np.sum(centred**2)), float(roots.sum()), reference)
        features = Moments.of(x)
    covariance = features.covariance
    middle = reference.root @ covariance @ reference.root
    roots = np.sqrt(np.linalg.eigvalsh((middle + middle.T) / 2).clip(min=0))
    return _distance(features.mean, float(np.trace(covariance)), float(roots.sum()), reference)


def floor(n: int, reference: Reference, *, draws: int = 8, seed: int = 0) -> float:
    """What `frechet` gives on average for n samples drawn from the reference's own Gaussian: perfection, at this n."""
    rng = np.random.default_rng(seed)
    shape = (n, len(reference.mean))
    found = [frechet(reference.mean + rng.standard_normal(shape) @ reference.root, reference) for _ in range(draws)]
    return float(np.mean(found))


def _distance(centre: Array, variance: float, shared: float, reference: Reference) -> float:
    return float(np.sum((centre - reference.mean) ** 2) + variance + np.sum(reference.root**2) - 2 * shared)


def influence(features: ArrayLike, reference: Reference) -> Array:
    """[n]: what each sample does to `frechet`, the distance's derivative along its weight, summing to zero.

    2 (m - m_r).(x - m) + (x - m)^T (I - T) (x - m) - mean, T = S_r^1/2 (S_r^1/2 S S_r^1/2)^-1/2 S_r^1/2. With n <= d
    the inverse is taken on the samples' own span, where reweighting them stays: the infinitesimal jackknife.
    """
    x = np.asarray(features, np.float64)
    centred = x - x.mean(0)
    seen = centred @ reference.root  # [n, d]
    if len(x) <= x.shape[1]:
        _, roots, basis = np.linalg.svd(seen / np.sqrt(len(x) - 1), full_matrices=False)
        basis = basis.T
    else:
        eigenvalues, basis = np.linalg.eigh(seen.T @ seen / (len(x) - 1))
        roots = np.sqrt(eigenvalues.clip(min=0))
    kept = roots > CUT * roots.max(initial=0.0)
    transported = np.sum((seen @ basis[:, kept]) ** 2 / roots[kept], axis=1)
    bent = (np.sum(centred**2, axis=1) - transported) * len(x) / (len(x) - 1)  # the covariance's divisor is n - 1
    raw = 2 * centred @ (x.mean(0) - reference.mean) + bent
    found: Array = raw - raw.mean()
    return found


def frechet_delta(
    features: ArrayLike, against: ArrayLike, reference: Reference, groups: ArrayLike | None = None
) -> Estimate:
    """`frechet(features) - frechet(against)` for paired samples [n, d], the standard error by influence functions
    over whole groups.

    The interval (Student's t, G - 1) is about the difference that runs of this n have on average; the pairing cancels
    most, not all, of the two distances' bias in n. Raises ValueError when the tables cannot be paired; fewer than two
    groups: no interval.
    """
    return frechet_contrast([features, against], [1, -1], reference, groups)


def frechet_contrast(
    tables: Sequence[ArrayLike], signs: Sequence[int], reference: Reference, groups: ArrayLike | None = None
) -> Estimate:
    """The sum of `signs` times the distances of paired `tables` [n, d] each, with an interval as `frechet_delta` has it."""
    found = [np.asarray(table, np.float64) for table in tables]
    for table in found[1:]:
        if table.shape != found[0].shape:
            raise ValueError(f"features of shape {found[0].shape} cannot be paired with {table.shape}")
    value = sum(sign * frechet(x, reference) for sign, x in zip(signs, found, strict=True))
    n = len(found[0])
    _, member = np.unique(np.arange(n) if groups is None else np.asarray(groups), return_inverse=True)
    num = int(member.max()) + 1
    if num < 2:
        return Estimate(value=value, low=None, high=None, n=num, se=None)
    each = sum(sign * influence(x, reference) for sign, x in zip(signs, found, strict=True))
    total = np.bincount(member, weights=each)
    se = float(np.sqrt(num / (num - 1) * np.sum(total**2)) / n)
    low, high = student(value, se, num - 1)
    return Estimate(value=value, low=low, high=high, n=num, se=se)
