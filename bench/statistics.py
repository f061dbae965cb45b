"""Means, paired deltas, medians and ratios of times, each with an interval that means something. numpy and scipy
only.

n samples, G groups (samples of one prompt, which are not independent), R rounds. Everything is float64; every
interval is two-sided 95 %; every random choice is seeded. Distances between sets of samples are in `distances.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000
FEWEST_GROUPS = 8
"""With fewer groups a bootstrap interval is too short, and `mean` gives a t interval."""
KEPT = 1000
"""Groups up to which the bootstrap's draws are kept: 16 MB."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float | None
    """None where the data carry no interval."""
    high: float | None
    n: int
    """Samples, rounds or batches behind it: the units that were counted as independent."""
    se: float | None
    """Standard error."""

    def divided(self, by: float) -> Estimate:
        """This estimate over a positive constant."""
        low, high, se = (None if x is None else x / by for x in (self.low, self.high, self.se))
        return Estimate(value=self.value / by, low=low, high=high, n=self.n, se=se)

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain JSON: value, low, high, n, se."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "se": self.se}


def detectable(se: float) -> float:
    """Smallest true difference that is found (two-sided, 5 %) in 80 % of runs with this standard error: 2.80 se."""
    return float(special.ndtri(0.975) + special.ndtri(0.80)) * se


def mean(
    values: ArrayLike, groups: ArrayLike | None = None, *, bounds: tuple[float, float] | None = None,
    how: str = "bootstrap", seed: int = 0,
) -> Estimate:  # fmt: skip
    """Mean of `values` [n] with whole groups as the independent units; `groups` [n] labels them (default: a group
    each).

    `how="bootstrap"`: BCa cluster bootstrap (Efron 1987), 2000 resamples, from `FEWEST_GROUPS` groups on. `how="t"`:
    Student's t on the linearised mean with G - 1 degrees of freedom. When all values are equal neither has anything
    to go by: with `bounds` (the range a value can have) the interval then reaches as far as a value unseen in G
    groups can be hidden, 1 - 0.05**(1/G) of the range. Fewer than two groups: no interval. Raises ValueError when
    `values` is empty, not finite, or of another length than `groups`.
    """
    x = _finite(values)
    label = np.arange(len(x)) if groups is None else np.asarray(groups)
    if len(label) != len(x):
        raise ValueError(f"{len(x)} values and {len(label)} group labels")
    if how not in ("bootstrap", "t"):
        raise ValueError(f"how is 'bootstrap' or 't', not {how!r}")
    names, member = np.unique(label, return_inverse=True)
    num, value = len(names), float(x.mean())
    if num < 2:
        return Estimate(value=value, low=None, high=None, n=num, se=None)
    count = np.bincount(member, weights=np.ones(len(x))).astype(np.float64)
    total = np.bincount(member, weights=x).astype(np.float64)
    if np.ptp(x) == 0:
        low, high = _unseen(value, num, bounds)
        return Estimate(value=value, low=low, high=high, n=num, se=0.0)
    se = float(np.std((total - value * count) / count.mean(), ddof=1) / np.sqrt(num))
    if how == "t" or num < FEWEST_GROUPS:
        low, high = student(value, se, num - 1)
    else:
        low, high = _bca(total, count, value, seed)
    return Estimate(value=value, low=low, high=high, n=num, se=se)


def delta(
    values: ArrayLike, against: ArrayLike, groups: ArrayLike | None = None, *,
    bounds: tuple[float, float] | None = None, how: str = "bootstrap", seed: int = 0,
) -> Estimate:  # fmt: skip
    """Mean of `values - against`, paired sample by sample; `bounds` is the range of one value, the rest as in
    `mean`.
    """
    a, b = _finite(values), _finite(against)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    width = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    return mean(a - b, groups, bounds=width, how=how, seed=seed)


def median(values: ArrayLike) -> Estimate:
    """Median with the distribution-free interval between order statistics; below six values no such interval reaches
    95 %: the range.
    """
    x = np.sort(_finite(values))
    n = len(x)
    tail = special.bdtr(np.arange(n + 1), n, 0.5)  # of the binomial: P(at most k of n below the median)
    k = max(int(np.searchsorted(tail, (1 - LEVEL) / 2)), 1)  # the k-th from either end covers with at least LEVEL
    if n < 2:
        return Estimate(value=float(x[0]), low=None, high=None, n=n, se=None)
    return Estimate(value=float(np.median(x)), low=float(x[k - 1]), high=float(x[n - k]), n=n, se=None)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Low and high of a share of n independent trials (Wilson 1927)."""
    z = float(special.ndtri((1 + LEVEL) / 2))
    share, shrink = successes / n, 1 + z**2 / n
    reach = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / shrink
    centre = (share + z**2 / (2 * n)) / shrink
    return max(0.0, float(centre - reach)), min(1.0, float(centre + reach))


def _unseen(value: float, num: int, bounds: tuple[float, float] | None) -> tuple[float, float]:
    if bounds is None:
        return value, value
    hidden = 1 - (1 - LEVEL) ** (1 / num)
    return value - hidden * (value - bounds[0]), value + hidden * (bounds[1] - value)


def student(value: float, se: float, freedom: int) -> tuple[float, float]:
    """Low and high of Student's t interval."""
    reach = float(special.stdtrit(freedom, (1 + LEVEL) / 2)) * se
    return value - reach, value + reach


def _bca(total: Array, count: Array, value: float, seed: int) -> tuple[float, float]:
    """BCa interval of sum(total) / sum(count), groups resampled whole. `total`, `count` [G]."""
    num = len(total)
    often = _often(num, seed) if num <= KEPT else _resampled(num, seed)
    drawn = np.concatenate([part @ total / (part @ count) for part in often])
    below = (np.sum(drawn < value) + np.sum(drawn == value) / 2) / RESAMPLES
    bias = special.ndtri(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    without = (total.sum() - total) / (count.sum() - count)
    bend = without.mean() - without
    spread = np.sum(bend**2) ** 1.5
    acceleration = np.sum(bend**3) / (6 * spread) if spread > 0 else 0.0
    z = bias + special.ndtri(np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    low, high = np.quantile(drawn, special.ndtr(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def _resampled(num: int, seed: int) -> Iterator[Array]:
    """How often each of `num` groups is drawn in each resample: [RESAMPLES, num], some rows at a time."""
    rng, at_once = np.random.default_rng(seed), max(1, 2_000_000 // num)
    for start in range(0, RESAMPLES, at_once):
        rows = rng.integers(0, num, (min(at_once, RESAMPLES - start), num))
        flat = (rows + num * np.arange(len(rows))[:, None]).ravel()
        yield np.bincount(flat, minlength=rows.size).reshape(rows.shape).astype(np.float64)


@lru_cache(maxsize=4)
def _often(num: int, seed: int) -> tuple[Array, ...]:
    """`_resampled`, drawn once for all the means of a report."""
    return tuple(_resampled(num, seed))


def _finite(values: ArrayLike) -> Array:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"expected a row of at least one value, got an array of shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{np.sum(~np.isfinite(x))} of {len(x)} values are not finite numbers")
    return x


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """Time of the baseline over time of a cell."""

    estimate: Estimate
    unit: str
    """What the interval counts as independent: "rounds", "batches within rounds", or "" where there is no interval."""


FEWEST_ROUNDS = 3


def speedup(
    baseline: Sequence[Mapping[str, Any]], cell: Sequence[Mapping[str, Any]], stage: str = "call_s"
) -> Speedup | None:
    """Ratio of seconds per sample, paired inside rounds; None when the two share no timed batch.

    `baseline` and `cell` are raw timing entries (round, batch, size, and seconds of `stage`). In each round both
    times are summed over the batches both have; the value is the geometric mean of the rounds' ratios. With at least
    three rounds the interval is Student's t on their logarithms. With fewer, ratios of single batches stand in, and
    `unit` says so: drift between rounds is then not in it.
    """
    return time_contrast([baseline, cell], [1, -1], stage)


def time_contrast(
    timings: Sequence[Sequence[Mapping[str, Any]]], signs: Sequence[int], stage: str = "call_s"
) -> Speedup | None:
    """The product of the seconds per sample of several cells, each to the power of its sign: paired and with an interval as `speedup`."""
    times = [_batches(timing, stage) for timing in timings]
    shared = sorted(at for at in set.intersection(*map(set, times)) if all(t[at] > 0 for t in times))
    if not shared:
        return None

    def log(part: Sequence[tuple[int, int]]) -> float:
        return float(sum(sign * np.log(sum(t[at] for at in part)) for sign, t in zip(signs, times, strict=True)))

    rounds = sorted({round_ for round_, _ in shared})
    logs = np.array([log([at for at in shared if at[0] == r]) for r in rounds])
    unit, units = "rounds", logs
    if len(rounds) < FEWEST_ROUNDS:
        unit, units = "batches within rounds", np.array([log([at]) for at in shared])
    centre = float(logs.mean())
    value = float(np.exp(centre))
    if len(units) < 2:
        return Speedup(estimate=Estimate(value=value, low=None, high=None, n=len(units), se=None), unit="")
    se = float(units.std(ddof=1) / np.sqrt(len(units)))
    low, high = student(centre, se, len(units) - 1)
    estimate = Estimate(value=value, low=float(np.exp(low)), high=float(np.exp(high)), n=len(units), se=value * se)
    return Speedup(estimate=estimate, unit=unit)


def quotient(over: Mapping[str, Any], under: Mapping[str, Any]) -> Estimate | None:
    """The ratio of two independent positive estimates (as dicts), with Welch's t interval on its logarithm; None where one has no error
    or too few units for one.

    For speed-ups of different runs, which share no rounds.
    """
    parts = [(told["se"] / told["value"], told["n"] - 1) for told in (over, under) if told["se"] is not None]
    if len(parts) < 2 or min(freedom for _, freedom in parts) < 1:
        return None
    value, variance = over["value"] / under["value"], sum(error**2 for error, _ in parts)
    if variance == 0:
        return Estimate(value=value, low=value, high=value, n=min(over["n"], under["n"]), se=0.0)
    freedom = variance**2 / sum(error**4 / f for error, f in parts)
    reach = float(np.exp(special.stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(variance)))
    error = value * float(np.sqrt(variance))
    return Estimate(value=value, low=value / reach, high=value * reach, n=min(over["n"], under["n"]), se=error)


def drift(timing: Sequence[Mapping[str, Any]], stage: str = "call_s") -> float | None:
    """Slowest round over fastest, minus one, on the batches every round timed; None with fewer than two rounds."""
    times = _batches(timing, stage)
    rounds = {round_ for round_, _ in times}
    everywhere = [b for b in {b for _, b in times} if all((r, b) in times for r in rounds)]
    if len(rounds) < 2 or not everywhere:
        return None
    seconds = [sum(times[r, b] for b in everywhere) for r in rounds]
    return max(seconds) / min(seconds) - 1 if min(seconds) > 0 else None


def _batches(timing: Sequence[Mapping[str, Any]], stage: str) -> dict[tuple[int, int], float]:
    """(round, batch) -> seconds per sample."""
    return {(t["round"], t["batch"]): t[stage] / t["size"] for t in timing}
