"""Precision and recall of a set of samples, and the inception score, with what their intervals rest on. numpy only.

n samples, m reference samples, d features, B blocks of whole groups, k nearest neighbours. Distances are computed in float64, tile by
tile, so that no n x m table is ever held.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from ditbench.distances import Reference, chunks, squares, table
from ditbench.readings import Reading, blocks, jackknife, linear
from ditbench.statistics import Array

NEIGHBOURS = 3
"""Of Kynkäänniemi et al. 2019, and of ADM's evaluation."""


def read_precision(features: ArrayLike, reference: Reference, groups: ArrayLike | None = None) -> Reading:
    """Share of the samples [n, d] that lie no farther from some reference sample than its third neighbour (Kynkäänniemi et al. 2019).

    A plain mean once the reference is given, so its units are the groups. ValueError where the reference kept no features.
    """
    x, held = _both(features, reference)
    reach = _reach(reference)
    hits = []
    for a in chunks(x):
        inside, start = np.zeros(len(a), bool), 0
        for r in chunks(held):
            inside |= np.any(squares(a, r) <= reach[start : start + len(r)], axis=1)
            start += len(r)
        hits.append(inside.astype(np.float64))
    hit = np.concatenate(hits)
    return linear(float(hit.mean()), hit, groups)


def read_recall(features: ArrayLike, reference: Reference, groups: ArrayLike | None = None) -> Reading:
    """Share of the reference that lies no farther from some sample [n, d] than that sample's third neighbour among the samples.

    Units are blocks: all values with one block left out are found in one pass. Leaving a block out takes its samples' balls away, and
    widens those of the few whose third neighbour it held. ValueError where the reference kept no features.
    """
    x, held = _both(features, reference)
    block = blocks(len(x), groups)
    num = int(block.max()) + 1
    nearest = _nearest(x, block, num)  # [n, B, k]
    k = nearest.shape[2]
    reach = np.sort(nearest.reshape(len(x), -1), axis=1)[:, k - 1]  # [n], squared
    widened = [(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))]
    for b in range(num) if num > 1 else ():
        which = np.flatnonzero((nearest[:, b, 0] <= reach) & (block != b))
        rest = np.delete(nearest[which], b, axis=1).reshape(len(which), (num - 1) * k)
        widened.append((which, np.sort(rest, axis=1)[:, k - 1], np.full(len(which), b)))
    which, wider, left_out = (np.concatenate(part) for part in zip(*widened, strict=True))
    covered = np.zeros((len(held), num), bool)  # by a ball of a sample of that block
    gained = np.zeros((len(held), num), bool)  # by a ball that is wider without that block
    of, at = np.eye(num, dtype=np.float32), 0
    for a in chunks(x):
        mine, near, start = slice(at, at + len(a)), (which >= at) & (which < at + len(a)), 0
        for r in chunks(held):
            rows, apart = slice(start, start := start + len(r)), squares(r, a)
            covered[rows] |= _any(apart <= reach[mine], of[block[mine]])
            gained[rows] |= _any(np.take(apart, which[near] - at, axis=1) <= wider[near], of[left_out[near]])
        at += len(a)
    elsewhere = covered.sum(1, keepdims=True) - covered > 0
    return jackknife(float(covered.any(1).mean()), (elsewhere | gained).mean(0))


def read_inception_score(
    probabilities: ArrayLike, reference: Reference | None = None, groups: ArrayLike | None = None, *, splits: int = 10
) -> Reading:
    """exp mean_i KL(p_i | mean p) of class probabilities [n, C] (Salimans et al. 2016), the mean over `splits` parts in file order.

    One split: of all samples at once. Units are blocks. ValueError with fewer samples than splits, or rows that are no probabilities.
    `reference` is not looked at.
    """
    p = table(probabilities)
    if len(p) < splits:
        raise ValueError(f"an inception score of {splits} splits needs at least as many samples, got {len(p)}")
    block, own = blocks(len(p), groups), []
    num = int(block.max()) + 1
    split = np.arange(len(p)) * splits // len(p)
    total, start = np.zeros((splits, num, p.shape[1])), 0
    for part in chunks(p):
        if part.min() < 0 or np.abs(part.sum(1) - 1).max() > 1e-3:
            raise ValueError("an inception score needs class probabilities: rows of numbers from 0 on that add up to 1")
        rows = slice(start, start := start + len(part))
        np.add.at(total, (split[rows], block[rows]), part)
        own.append(np.sum(_plogp(part), axis=1))
    flat = split * num + block
    entropy, count = (
        np.bincount(flat, weights=w, minlength=splits * num).reshape(splits, num) for w in (np.concatenate(own), None)
    )

    def score(without: int | None) -> float:
        kept = np.arange(num) != (-1 if without is None else without)
        there = count[:, kept].sum(1)
        mean = total[:, kept].sum(1)[there > 0] / there[there > 0, None]
        return float(np.exp(entropy[:, kept].sum(1)[there > 0] / there[there > 0] - _plogp(mean).sum(1)).mean())

    return jackknife(score(None), [score(b) for b in range(num)] if num > 1 else [score(None)])


def _plogp(p: Array) -> Array:
    found: Array = p * np.log(np.where(p > 0, p, 1.0))
    return found


def _both(features: ArrayLike, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    x = table(features)
    if reference.features is None:
        raise ValueError("only the moments of this reference were kept, and precision and recall need its features")
    for what, found in (("samples", x), ("reference samples", reference.features)):
        if len(found) <= NEIGHBOURS:
            raise ValueError(f"precision and recall need more than {NEIGHBOURS} {what}, got {len(found)}")
    if x.shape[1] != reference.features.shape[1]:
        raise ValueError(f"{x.shape[1]} features cannot be held against a reference of {reference.features.shape[1]}")
    return x, reference.features


@lru_cache(maxsize=8)
def _reach(reference: Reference) -> Array:
    """[m] squared distance of each reference sample to its third neighbour."""
    assert reference.features is not None
    m = len(reference.features)
    near = _nearest(reference.features, np.arange(m) * min(m, 16) // m, min(m, 16))
    found: Array = np.sort(near.reshape(m, -1), axis=1)[:, NEIGHBOURS - 1]
    return found


def _nearest(x: np.ndarray, block: np.ndarray, num: int) -> Array:
    """[n, B, k] squared distances to the nearest others in each block, ascending, infinite where it has too few."""
    found, start = np.full((len(x), num, NEIGHBOURS), np.inf), 0
    for a in chunks(x):
        rows = np.arange(start, start := start + len(a))
        for b in range(num):
            mine = np.flatnonzero(block == b)
            apart = squares(a, _rows(x, mine))
            apart[rows[:, None] == mine] = np.inf
            near = np.sort(np.partition(apart, min(NEIGHBOURS, len(mine)) - 1, axis=1)[:, :NEIGHBOURS], axis=1)
            found[rows, b, : near.shape[1]] = near
    return found


def _any(hit: np.ndarray, of: np.ndarray) -> np.ndarray:
    """[m, B]: whether `hit` [m, n] is true anywhere among the columns of each block, `of` [n, B] being 1 where a column is the block's."""
    found: np.ndarray = hit.astype(np.float32) @ of > 0
    return found


def _rows(x: np.ndarray, which: np.ndarray) -> Array:
    return np.asarray(x[which], np.float64)
