"""Maximum mean discrepancy (Gretton et al. 2012) between a set of samples and a reference, with
intervals. numpy only.

n samples, m reference samples, d features. Everything is computed in float64, tile by tile, so that
no n x n table is ever held.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from ditbench.statistics.estimates import Array
from ditbench.statistics.frechet import Reference
from ditbench.statistics.influence import Reading, linear
from ditbench.statistics.moments import chunks, squares, table

Kernel = Callable[[Array, Array], Array]
"""Rows [n, d] and [m, d] -> [n, m]."""

SIGMA = 10.0
"""Width of `gaussian`, of Jayasumana et al. 2024 (CMMD)."""


def cubic(x: Array, y: Array) -> Array:
    """(x.y / d + 1)^3: the polynomial kernel of Bińkowski et al. 2018."""
    similarity: Array = (x @ y.T / x.shape[1] + 1) ** 3
    return similarity


def gaussian(x: Array, y: Array) -> Array:
    """1000 exp(-|x - y|^2 / (2 sigma^2)) of rows scaled to length one, sigma = 10: the kernel and
    the scale of CMMD."""
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    similarity: Array = 1000 * np.exp((x @ y.T - 1) / SIGMA**2)
    return similarity


@lru_cache(maxsize=8)
def spread(reference: Reference) -> Kernel:
    """1000 exp(-|x - y|^2 / (2 s^2)), s^2 the whole variance of the reference: a width that suits
    any features, whatever their scale."""
    width = 2 * float(np.sum(reference.root**2))

    def kernel(x: Array, y: Array) -> Array:
        similarity: Array = 1000 * np.exp(-squares(x, y) / width)
        return similarity

    return kernel


def read_mmd_spread(
    features: ArrayLike, reference: Reference, groups: ArrayLike | None = None
) -> Reading:
    """`read_mmd` by the kernel `spread` of the reference."""
    return read_mmd(features, reference, groups, kernel=spread(reference))


def read_mmd(
    features: ArrayLike, reference: Reference, groups: ArrayLike | None = None, *,
    kernel: Kernel = cubic,
    biased: bool = False,
) -> Reading:  # fmt: skip
    """MMD^2 of `features` [n, d] to the reference's features, groups as units.

    mean_{i != j} k(x_i, x_j) + mean_{i != j} k(r_i, r_j) - 2 mean k(x_i, r_j): the full
    U-statistic, unbiased in n, so that below zero is possible. `biased` takes the pairs of a sample
    with itself in (the V-statistic, never below zero): what the reference code of CMMD computes.
    Influence, the reference given: 2 [mean_j k(x_i, x_j) - mean_j k(x_i, r_j)], the linear term
    that the relative test of Bounliphone et al. 2016 (arXiv:1511.04581) rests on; the difference of
    two readings is that test's statistic.

    Raises ValueError with fewer than two samples, or where only the reference's moments are
    kept.
    """
    x = table(features)
    if reference.features is None:
        raise ValueError(
            "only the moments of this reference were kept, and a kernel distance needs its features"
        )
    if len(x) < 2:
        raise ValueError(f"a kernel distance needs at least two samples, got {len(x)}")
    if x.shape[1] != reference.features.shape[1]:
        raise ValueError(
            f"{x.shape[1]} features cannot be held against a reference of "
            f"{reference.features.shape[1]}"
        )
    own, diagonal = _within(x, kernel)
    others = len(x) - 1
    if biased:
        own, others = own + diagonal, len(x)
    across = _across(x, reference.features, kernel) / len(reference.features)
    value = own.mean() / others + _scatter(reference, kernel, biased) - 2 * across.mean()
    return linear(float(value), 2 * (own / others - across), groups)


def _within(x: np.ndarray, kernel: Kernel) -> tuple[Array, Array]:
    """[n] sums of k(x_i, x_j) over the other j, and [n] k(x_i, x_i); each tile of pairs is looked
    at once."""
    sums, diagonal, start = np.zeros(len(x)), np.zeros(len(x)), 0
    for a in chunks(x):
        rows = slice(start, start + len(a))
        tile = kernel(a, a)
        diagonal[rows] = np.diagonal(tile)
        sums[rows] += tile.sum(1) - diagonal[rows]
        at = start = start + len(a)
        for b in chunks(x[start:]):
            tile = kernel(a, b)
            sums[rows] += tile.sum(1)
            sums[at : at + len(b)] += tile.sum(0)
            at += len(b)
    return sums, diagonal


def _across(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> Array:
    """[n] sums of k(x_i, y_j) over j."""
    return np.concatenate(
        [sum((kernel(a, b).sum(1) for b in chunks(y)), np.zeros(len(a))) for a in chunks(x)]
    )


@lru_cache(maxsize=8)
def _scatter(reference: Reference, kernel: Kernel, biased: bool) -> float:
    """Mean of k over pairs of the reference: the same for all cells."""
    assert reference.features is not None
    sums, diagonal = _within(reference.features, kernel)
    m = len(sums)
    return float((sums + diagonal).mean() / m if biased else sums.mean() / (m - 1))
