"""Precision and recall of a set of samples, and the inception score, with what their intervals rest
on. numpy only.

n samples, m reference samples, d features, B blocks of whole groups, k nearest neighbours.
Distances are computed in float64, tile by tile, so that no n x m table is ever held.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from ditbench.statistics.estimates import Array
from ditbench.statistics.frechet import Reference
from ditbench.statistics.influence import Reading, linear, members, replicates
from ditbench.statistics.moments import chunks, squares, table

NEIGHBOURS = 3
"""Of Kynkäänniemi et al. 2019, and of ADM's evaluation."""
DRAWS = 64
"""Halves of the prompts that recall is read of."""
NEAREST = 128
"""Neighbours of a sample that are looked at."""


def hits(features: ArrayLike, reference: Reference) -> Array:
    """[n] 1 where a sample [n, d] lies no farther from some reference sample than its third
    neighbour (Kynkäänniemi et al. 2019), else 0.

    Their mean is precision. ValueError where the reference kept no features.
    """
    x, references = _both(features, reference)
    reach = _reach(reference)
    each = []
    for a in chunks(x):
        inside, start = np.zeros(len(a), bool), 0
        for r in chunks(references):
            inside |= np.any(squares(a, r) <= reach[start : start + len(r)], axis=1)
            start += len(r)
        each.append(inside.astype(np.float64))
    return np.concatenate(each)


def read_precision(
    features: ArrayLike, reference: Reference, groups: ArrayLike | None = None
) -> Reading:
    """Share of the samples that are `hits`, groups as units."""
    hit = hits(features, reference)
    return linear(float(hit.mean()), hit, groups)


def read_recall(
    features: ArrayLike, reference: Reference, groups: ArrayLike | None = None
) -> Reading:
    """Share of the reference that lies no farther from some sample [n, d] than that sample's third
    neighbour among the samples.

    Units are `DRAWS` random halves of the groups, the same for two sets of equal n and groups. (The
    delete-block jackknife's standard error is 1.9 to 2.4 times too large here, for recall is not
    smooth; the bootstrap's is too small.) ValueError where the reference kept no features.
    """
    x, references = _both(features, reference)
    member = members(len(x), groups)
    num = int(member.max()) + 1
    rng = np.random.default_rng(0)
    halves = np.stack([rng.permutation(num) < num // 2 for _ in range(DRAWS)])
    # [1 + DRAWS, n]; the first is the whole set
    inside = np.concatenate([np.ones((1, len(x)), bool), halves[:, member]])
    reach = _reach_within(x, inside)
    share = np.zeros(len(inside))
    for r in chunks(references):
        covered = np.zeros((len(inside), len(r)), bool)
        start = 0
        for a in chunks(x):
            apart = squares(r, a)
            for draw, limit in zip(covered, reach[:, start : start + len(a)], strict=True):
                draw |= np.any(apart <= limit, axis=1)
            start += len(a)
        share += covered.sum(1)
    share /= len(references)
    return replicates(float(share[0]), share[1:], num, num // 2)


def _both(features: ArrayLike, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    x = table(features)
    if reference.features is None:
        raise ValueError(
            "only the moments of this reference were kept, and precision and recall need its "
            "features"
        )
    for what, rows in (("samples", x), ("reference samples", reference.features)):
        if len(rows) <= NEIGHBOURS:
            raise ValueError(
                f"precision and recall need more than {NEIGHBOURS} {what}, got {len(rows)}"
            )
    if x.shape[1] != reference.features.shape[1]:
        raise ValueError(
            f"{x.shape[1]} features cannot be held against a reference of "
            f"{reference.features.shape[1]}"
        )
    return x, reference.features


@lru_cache(maxsize=8)
def _reach(reference: Reference) -> Array:
    """[m] squared distance of each reference sample to its third neighbour."""
    assert reference.features is not None
    m = len(reference.features)
    near = _nearest(reference.features, np.arange(m) * min(m, 16) // m, min(m, 16))
    radii: Array = np.sort(near.reshape(m, -1), axis=1)[:, NEIGHBOURS - 1]
    return radii


def _nearest(x: np.ndarray, block: np.ndarray, num: int) -> Array:
    """[n, B, k] squared distances to the nearest others in each block, ascending, infinite where it
    has too few."""
    nearest, start = np.full((len(x), num, NEIGHBOURS), np.inf), 0
    for a in chunks(x):
        rows = np.arange(start, start := start + len(a))
        for b in range(num):
            mine = np.flatnonzero(block == b)
            apart = squares(a, _rows(x, mine))
            apart[rows[:, None] == mine] = np.inf
            near = np.sort(
                np.partition(apart, min(NEIGHBOURS, len(mine)) - 1, axis=1)[:, :NEIGHBOURS], axis=1
            )
            nearest[rows, b, : near.shape[1]] = near
    return nearest


def _reach_within(x: np.ndarray, inside: np.ndarray) -> Array:
    """[D, n] squared distance of each sample to its third neighbour among those of a draw, `inside`
    [D, n]; -1 for samples not in it.

    The third neighbour is looked for among the `NEAREST` nearest of all, where all but one half in
    1e20 have it.
    """
    most = min(NEAREST, len(x) - 1)
    reach, start = np.empty((len(inside), len(x))), 0
    for a in chunks(x):
        rows = np.arange(start, start := start + len(a))
        near, which = np.full((len(a), 0), np.inf), np.zeros((len(a), 0), np.int64)
        at = 0
        for b in chunks(x):
            apart = squares(a, b)
            columns = np.broadcast_to(np.arange(at, at := at + len(b)), apart.shape)
            apart[rows[:, None] == columns] = np.inf
            near, which = (
                np.concatenate([near, apart], axis=1),
                np.concatenate([which, columns], axis=1),
            )
            first = np.argpartition(near, min(most, near.shape[1]) - 1, axis=1)[:, :most]
            near, which = np.take_along_axis(near, first, 1), np.take_along_axis(which, first, 1)
        order = np.argsort(near, axis=1)
        near, which = np.take_along_axis(near, order, 1), np.take_along_axis(which, order, 1)
        for draw, there in zip(reach, inside, strict=True):
            count = np.cumsum(there[which], axis=1)
            third = np.where(
                count[:, -1] >= NEIGHBOURS, np.argmax(count >= NEIGHBOURS, axis=1), most - 1
            )
            draw[rows] = np.where(there[rows], near[np.arange(len(a)), third], -1.0)
    return reach


def _rows(x: np.ndarray, which: np.ndarray) -> Array:
    return np.asarray(x[which], np.float64)
