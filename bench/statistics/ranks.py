"""Whether two orders of the same items agree, of chosen pairs of items: Kendall's tau-b, an exact
permutation test and a bootstrap interval. numpy only.

N items, M measures of each, P pairs of items, B draws. An item, such as a method at one setting, may
stand in several pairs, and its values on several measures go with it. A unit is what is exchanged and
drawn: an item, or several that belong together, such as a method's settings.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ditbench.statistics.estimates import Array

Whole = NDArray[np.intp]
EXACT = 50_000
"""Permutations up to which all are gone through; beyond, `DRAWS` of them are drawn."""
DRAWS = 10_000
RESAMPLES = 2_000
"""Draws of a bootstrap."""
SLACK = 1e-12
"""By how much taus that are equal may differ by rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of items whose order is known by the reference."""

    first: Whole
    """[P]: an item of each pair."""
    second: Whole
    """[P]: the other."""
    measure: Whole
    """[P]: the measure that the pair is compared by."""
    order: Array
    """[P]: 1 where the reference has the first item ahead, -1 where it has the second, 0 for a
    tie."""

    def some(self, chosen: NDArray[np.bool_]) -> Pairs:
        """Those pairs that are chosen [P]."""
        return Pairs(
            first=self.first[chosen], second=self.second[chosen], measure=self.measure[chosen],
            order=self.order[chosen],
        )  # fmt: skip

    def order_by(self, values: Array) -> Array:
        """[..., P]: the order of each pair by values [..., N, M], of which the larger is ahead."""
        ahead = values[..., self.first, self.measure] - values[..., self.second, self.measure]
        signs: Array = np.sign(ahead)
        return signs


def pairs_of(rows: Sequence[tuple[int, int, int, float]]) -> Pairs:
    """Pairs from tuples (first, second, measure, order)."""
    table = np.array(rows, np.float64).reshape(-1, 4)
    first, second, measure = (table[:, k].astype(np.intp) for k in range(3))
    return Pairs(first=first, second=second, measure=measure, order=table[:, 3])


def tau_b(order: Array, other: Array, weight: Array | None = None) -> Array:
    """Kendall's tau-b of two orders [..., P] of the same pairs (Kendall 1945, Biometrika 33, 239):
    concordant less discordant pairs, over the geometric mean of the numbers of pairs that either
    order does not tie. Over all pairs of n items this is the usual tau-b. `weight` [..., P]: how
    often each pair counts. NaN where one order ties them all."""
    w = np.ones(order.shape[-1]) if weight is None else weight
    agree = np.sum(w * order * other, axis=-1)
    size = np.sum(w * (order != 0), axis=-1) * np.sum(w * (other != 0), axis=-1)
    tau: Array = np.divide(
        agree, np.sqrt(size), out=np.full(np.shape(agree), np.nan), where=size > 0
    )
    return tau


def permutation_p(pairs: Pairs, values: Array, unit: Sequence[int] | None = None) -> float | None:
    """Two-sided p-value of "the values [N, M] say nothing of the reference's order": the share of
    the ways to exchange them at which |tau-b| is at least as large.

    What is exchanged are the values of whole units, a label for each item [N] (None: every item is
    one): the items of a unit take those of another in turn, its last one where it has fewer. They are
    exchanged among units that pairs join, directly or over others; all ways where they are at most
    `EXACT`, else `DRAWS` random ones and the one observed (Phipson and Smyth 2010). None where there
    is no tau.
    """
    observed = tau_b(pairs.order, pairs.order_by(values))
    if not len(pairs.order) or np.isnan(observed):
        return None
    label = list(range(len(values))) if unit is None else list(unit)
    groups = joined(pairs, label)
    used = set(pairs.first.tolist()) | set(pairs.second.tolist())
    items = {u: [n for n in sorted(used) if label[n] == u] for group in groups for u in group}
    ways = math.prod(math.factorial(len(group)) for group in groups)
    at_least = total = 0
    for chunk in _all_ways(groups) if ways <= EXACT else _some_ways(groups):
        places = np.tile(np.arange(len(values)), (len(chunk), 1))
        for column, own in enumerate(u for group in groups for u in group):
            for k, n in enumerate(items[own]):
                taken = {u: items[u][min(k, len(items[u]) - 1)] for u in items}
                places[:, n] = [taken[u] for u in chunk[:, column].tolist()]
        taus = tau_b(pairs.order, pairs.order_by(values[places]))
        at_least += int(np.sum(np.abs(taus) >= abs(observed) - SLACK))
        total += len(chunk)
    return at_least / total if ways <= EXACT else (at_least + 1) / (total + 1)


def bootstrap(
    pairs: Pairs,
    drawn: Array,
    among: Sequence[int],
    unit: Sequence[int] | None = None,
    seed: int = 0,
) -> Array:
    """[B]: tau-b when samples and units are both drawn again. `drawn` [B, N, M]: the values of
    resampled samples. The units of every group, `among` [N], are drawn with replacement from their
    group (a unit lies in one), and a pair counts as often as the product of how often its two units
    were drawn. NaN where no pair is left."""
    rng = np.random.default_rng(seed)
    label = np.arange(len(among)) if unit is None else np.asarray(unit)
    group = np.asarray(among)
    used = np.unique(np.concatenate([pairs.first, pairs.second]))
    count = np.zeros((len(drawn), len(group)))
    for name in np.unique(group[used]):
        units = np.unique(label[used[group[used] == name]])
        times = rng.multinomial(len(units), np.full(len(units), 1 / len(units)), size=len(drawn))
        for column, u in enumerate(units):
            count[:, label == u] = times[:, column, None]
    weight = count[:, pairs.first] * count[:, pairs.second]
    return tau_b(np.broadcast_to(pairs.order, weight.shape), pairs.order_by(drawn), weight)


def joined(pairs: Pairs, label: Sequence[int]) -> list[list[int]]:
    """Groups of labels whose items pairs join, directly or over others; those of no pair are in
    none."""
    group: dict[int, set[int]] = {}
    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        a, b = label[first], label[second]
        merged = group.get(a, {a}) | group.get(b, {b})
        for u in merged:
            group[u] = merged
    return sorted(sorted(g) for g in {id(g): g for g in group.values()}.values())


def _all_ways(groups: Sequence[Sequence[int]]) -> Iterator[Whole]:
    """Every way to exchange labels within their groups, in chunks [ways, labels of all groups]."""
    ways = itertools.product(*(itertools.permutations(group) for group in groups))
    while chunk := list(itertools.islice(ways, 5_000)):
        yield np.array([[u for group in way for u in group] for way in chunk], np.intp)


def _some_ways(groups: Sequence[Sequence[int]]) -> Iterator[Whole]:
    """Random ones of them."""
    rng = np.random.default_rng(0)
    tiled = [rng.permuted(np.tile(np.array(g, np.intp), (DRAWS, 1)), axis=1) for g in groups]
    yield np.concatenate(tiled, axis=1)
