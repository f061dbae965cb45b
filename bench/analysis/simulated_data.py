"""Random scores, times and features whose true values are known, for `simulations`. numpy only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ditbench.analysis.primary import primary_metrics
from ditbench.statistics.estimates import Array
from ditbench.statistics.frechet import Reference

Generator = np.random.Generator
FEATURES = 64
MARGIN = primary_metrics().score.least
"""Of alignment."""
DISCRETE, SKEWED = "discrete", "skewed, few prompts"
Draw = Callable[[Generator, int], Array]
SCORES: dict[str, tuple[Draw, float, str]] = {
    "normal": (lambda r, n: r.standard_normal(n), 0.0, ""),
    "Student's t, 3 degrees": (lambda r, n: r.standard_t(3, n), 0.0, ""),
    "exponential": (lambda r, n: r.exponential(size=n), 1.0, ""),
    "lognormal": (lambda r, n: r.lognormal(size=n), float(np.exp(0.5)), ""),
    "20 % lost, 20 % gained": (lambda r, n: _signs(r, n, 0.2, 0.2), 0.0, ""),
    "5 % lost, 5 % gained": (lambda r, n: _signs(r, n, 0.05, 0.05), 0.0, DISCRETE),
    "5 % lost": (lambda r, n: _signs(r, n, 0.05, 0.0), -0.05, DISCRETE),
    "2 % lost": (lambda r, n: _signs(r, n, 0.02, 0.0), -0.02, DISCRETE),
    "1/2 % lost, 1/2 % gained": (lambda r, n: _signs(r, n, 0.005, 0.005), 0.0, DISCRETE),
}
"""Distribution of paired differences: draws, their mean, note."""


def _signs(r: Generator, n: int, lost: float, gained: float) -> Array:
    u = r.random(n)
    return np.where(u < lost, -1.0, np.where(u < lost + gained, 1.0, 0.0))


MACHINES = {
    "quiet": (0.02, 0.01),
    "each process 25 % apart": (0.25, 0.02),
    "each process 42 % apart": (0.42, 0.05),
}
"""Standard deviation of a process's and of a batch's log time."""


def timing(
    r: Generator, seconds: float, rounds: int, process: float, batch: float, batches: int = 15
) -> list[dict[str, Any]]:
    """Timing entries as a cell leaves them: all batches in the first round, one in the others."""
    entries = []
    for i in range(rounds):
        slower = np.exp(process * r.standard_normal())
        for b in range(batches if i == 0 else 1):
            entries.append(
                {
                    "round": i,
                    "batch": b,
                    "size": 16,
                    "call_s": 16 * seconds * slower * np.exp(batch * r.standard_normal()),
                }
            )
    return entries


LOSSES: dict[str, Draw] = {
    "one sample in 50 lost": lambda r, n: _signs(r, n, MARGIN, 0.0),
    "5 % lose 0.4, 20 % move by 0.1": lambda r, n: np.where(
        r.random(n) < MARGIN / 0.4, -0.4, np.where(r.random(n) < 0.2, r.choice([-0.1, 0.1], n), 0.0)
    ),
    "normal, standard deviation 0.1": lambda r, n: np.clip(
        -MARGIN + 0.1 * r.standard_normal(n), -1, 1
    ),
}
"""Paired differences with a mean of minus the margin: not equivalent, only just."""


class World:
    """Features of samples that share their prompts' noise: a baseline and variants that are worse
    but vary less."""

    def __init__(self) -> None:
        r = np.random.default_rng(0)
        factor = (
            r.standard_normal((FEATURES, FEATURES)) / 8 * np.exp(-np.arange(FEATURES) / 10) * 20
        )
        self.root = np.linalg.cholesky(factor @ factor.T + 0.05 * np.eye(FEATURES))
        self.shift = self.root @ r.standard_normal(FEATURES)
        self.reference = Reference.through(r.standard_normal((2048, FEATURES)) @ self.root.T)

    def pair(self, r: Generator, n: int, weaker: float) -> tuple[Array, Array]:
        """Baseline and variant [n, d] each; `weaker` from 0 on."""
        shared, other = r.standard_normal((2, n, FEATURES))
        mixed = np.sqrt(1 - weaker**2) * shared + weaker * other
        return shared @ self.root.T, (
            1 - 0.1 * weaker
        ) * mixed @ self.root.T + 0.3 * weaker * self.shift
