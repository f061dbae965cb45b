"""Inception score."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ditbench.statistics.estimates import Array
from ditbench.statistics.frechet import Reference
from ditbench.statistics.influence import Reading, blocks, jackknife
from ditbench.statistics.moments import chunks, table


def read_inception_score(
    probabilities: ArrayLike,
    reference: Reference | None = None,
    groups: ArrayLike | None = None,
    *,
    splits: int = 10,
) -> Reading:
    """exp mean_i KL(p_i | mean p) of class probabilities [n, C] (Salimans et al. 2016), the mean
    over `splits` parts in file order.

    One split: of all samples at once. Units are blocks. ValueError with fewer samples than splits,
    or rows that are no probabilities. `reference` is not looked at.
    """
    p = table(probabilities)
    if len(p) < splits:
        raise ValueError(
            f"an inception score of {splits} splits needs at least as many samples, got {len(p)}"
        )
    block, own = blocks(len(p), groups), []
    num = int(block.max()) + 1
    split = np.arange(len(p)) * splits // len(p)
    total, start = np.zeros((splits, num, p.shape[1])), 0
    for part in chunks(p):
        if part.min() < 0 or np.abs(part.sum(1) - 1).max() > 1e-3:
            raise ValueError(
                "an inception score needs class probabilities: rows of numbers from 0 on that add "
                "up to 1"
            )
        rows = slice(start, start := start + len(part))
        np.add.at(total, (split[rows], block[rows]), part)
        own.append(np.sum(_plogp(part), axis=1))
    flat = split * num + block
    entropy, count = (
        np.bincount(flat, weights=w, minlength=splits * num).reshape(splits, num)
        for w in (np.concatenate(own), None)
    )

    def score(without: int | None) -> float:
        included = np.arange(num) != (-1 if without is None else without)
        there = count[:, included].sum(1)
        mean = total[:, included].sum(1)[there > 0] / there[there > 0, None]
        return float(
            np.exp(
                entropy[:, included].sum(1)[there > 0] / there[there > 0] - _plogp(mean).sum(1)
            ).mean()
        )

    return jackknife(score(None), [score(b) for b in range(num)] if num > 1 else [score(None)])


def _plogp(p: Array) -> Array:
    terms: Array = p * np.log(np.where(p > 0, p, 1.0))
    return terms
