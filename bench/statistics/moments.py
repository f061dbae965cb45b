"""Tables of features: read by the chunk, and their moments, mergeable in any order. numpy only.

n samples, d features. Everything is computed in float64: features may be float32, or a memory map,
and are never copied whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ditbench.statistics.estimates import Array

ROWS = 2048
"""Rows looked at together."""


def table(features: ArrayLike) -> np.ndarray:
    """`features` as an array [n, d] of its own type; ValueError when it is no table."""
    x: np.ndarray = np.asarray(features)
    if x.ndim != 2:
        raise ValueError(f"features are a table [n, d] of finite numbers, got shape {x.shape}")
    return x


def chunks(x: np.ndarray) -> Iterator[Array]:
    """Consecutive rows as float64 [at most ROWS, d]; ValueError when one is not finite."""
    for start in range(0, len(x), ROWS):
        part = np.asarray(x[start : start + ROWS], np.float64)
        if not np.isfinite(part).all():
            raise ValueError("features are a table [n, d] of finite numbers, got NaN or infinity")
        yield part


def squares(x: Array, y: Array) -> Array:
    """[n, m] squared distances between rows."""
    distances: Array = (-2 * x) @ y.T
    distances += np.sum(x**2, 1)[:, None] + np.sum(y**2, 1)
    return np.maximum(distances, 0, out=distances)


@dataclass(frozen=True, eq=False)
class Moments:
    """Sufficient statistics of features, mergeable in any order: `a + b` is the moments of both.

    Kept centred and merged pairwise (Chan, Golub & LeVeque 1979), so that a large common mean costs
    no digits.
    """

    n: int
    mean: Array
    """[d]."""
    scatter: Array
    """[d, d] sum of outer products of rows minus the mean."""
    ids: frozenset[str] | None = None
    """Names of the samples, where they were told: merging refuses one that is there already."""

    @classmethod
    def of(cls, features: ArrayLike, ids: Iterable[str] | None = None) -> Moments:
        """Moments of `features` [n, d] of samples named `ids` [n]; ValueError when they are no
        finite table, or a name comes twice."""
        x = table(features)
        named = None if ids is None else list(ids)
        if named is not None and len(named) != len(x):
            raise ValueError(f"{len(x)} samples and {len(named)} names")
        moments = cls(
            0,
            np.zeros(x.shape[1]),
            np.zeros((x.shape[1], x.shape[1])),
            None if named is None else frozenset(),
        )
        for i, part in enumerate(chunks(x)):
            mean = part.mean(0)
            centred = part - mean
            names = None if named is None else named[i * ROWS : i * ROWS + len(part)]
            if names is not None and len(set(names)) < len(names):
                raise ValueError(
                    f"sample {next(t for t in names if names.count(t) > 1)!r} is there twice"
                )
            moments += cls(
                len(part), mean, centred.T @ centred, None if names is None else frozenset(names)
            )
        return moments

    def __add__(self, other: Moments) -> Moments:
        ids = None if self.ids is None or other.ids is None else self.ids | other.ids
        if ids is not None and self.ids is not None and len(ids) < self.n + other.n:
            raise ValueError(f"sample {min(self.ids & (other.ids or set()))!r} is there twice")
        n = self.n + other.n
        apart = other.mean - self.mean
        between = np.outer(apart, apart) * (self.n * other.n / max(n, 1))
        return Moments(
            n,
            self.mean + apart * (other.n / max(n, 1)),
            self.scatter + other.scatter + between,
            ids,
        )

    def without(self, part: Moments) -> Moments:
        """What is left when `part`, which is in these moments, is taken out."""
        n = self.n - part.n
        mean = (self.n * self.mean - part.n * part.mean) / n
        apart = part.mean - mean
        return Moments(
            n, mean, self.scatter - part.scatter - np.outer(apart, apart) * (n * part.n / self.n)
        )

    @property
    def covariance(self) -> Array:
        """[d, d], divisor n - 1, symmetric; ValueError with fewer than two rows."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least two samples, got {self.n}")
        # X^T X is symmetric to the last bit, and so are sums of such
        matrix: Array = self.scatter / (self.n - 1)
        return matrix
