"""Means, paired deltas, times and their ratios, each with its interval. numpy and scipy only.

n samples, G groups (samples of one prompt, which are not independent), R rounds. Everything is float64 and nothing is random; every
interval is two-sided 95 %. Distances between sets of samples are in `distances.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]

LEVEL = 0.95
DRIFT_BOUND = 0.10
"""A baseline whose slowest round took over 10 % longer than its fastest makes the times of its model suspect."""
ROUNDING = 1e-9
"""By which a difference of values may leave its range."""


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
    skew: float = 0.0
    """Skewness of the units, where the interval is corrected for it (see `reach`)."""
    bounds: tuple[float, float] | None = None
    """Lowest and highest value that one unit can have, where that is known."""

    def divided(self, by: float) -> Estimate:
        """This estimate over a positive constant."""
        low, high, se = (None if x is None else x / by for x in (self.low, self.high, self.se))
        return Estimate(value=self.value / by, low=low, high=high, n=self.n, se=se, skew=self.skew)

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain JSON: value, low, high, n, se."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "se": self.se}


def detectable(se: float) -> float:
    """Smallest true difference that is found (two-sided, 5 %) in 80 % of runs with this standard error: 2.80 se."""
    return float(special.ndtri(0.975) + special.ndtri(0.80)) * se


def mean(values: ArrayLike, groups: ArrayLike | None = None, *, bounds: tuple[float, float] | None = None) -> Estimate:
    """Mean of `values` [n] with whole groups as the independent units; `groups` [n] labels them (default: a group each).

    The interval is `reach`'s on the linearised mean. `bounds` is the range a value can have. When all values are equal there is no
    spread to go by: with `bounds` the interval then goes as far as a value unseen in G groups can be hidden, 1 - 0.05**(1/G) of the range;
    without them, as with fewer than two groups, there is no interval. Raises ValueError when `values` is empty, not finite, outside
    `bounds`, or of another length than `groups`.
    """
    x = _finite(values)
    label = np.arange(len(x)) if groups is None else np.asarray(groups)
    if len(label) != len(x):
        raise ValueError(f"{len(x)} values and {len(label)} group labels")
    if bounds is not None and (x.min() < bounds[0] - ROUNDING or x.max() > bounds[1] + ROUNDING):
        raise ValueError(f"values from {x.min():g} to {x.max():g} do not lie within {bounds[0]:g} to {bounds[1]:g}")
    names, member = np.unique(label, return_inverse=True)
    num, value = len(names), float(x.mean())
    if num < 2:
        return Estimate(value=value, low=None, high=None, n=num, se=None, bounds=bounds)
    if np.ptp(x) == 0:
        return constant(value, num, bounds)
    count = np.bincount(member, weights=np.ones(len(x))).astype(np.float64)
    total = np.bincount(member, weights=x).astype(np.float64)
    units = (total - value * count) / count.mean()
    return of_units(value, units, bounds)


def of_units(value: float, units: Array, bounds: tuple[float, float] | None = None) -> Estimate:
    """An estimate from what each of G >= 2 units adds to it, `units` [G] being G times that; clipped to `bounds`."""
    num = len(units)
    spread = float(np.std(units, ddof=1))
    if spread == 0:
        return constant(value, num, bounds)
    se = spread / float(np.sqrt(num))
    skew = float(np.mean((units - units.mean()) ** 3)) / spread**3
    low, high = reach(value, se, num - 1, skew)
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(value=value, low=low, high=high, n=num, se=se, skew=skew, bounds=bounds)


def constant(value: float, num: int, bounds: tuple[float, float] | None) -> Estimate:
    """The estimate from `num` units that all have the same value: see `mean`."""
    low = high = None
    if bounds is not None:
        hidden = 1 - (1 - LEVEL) ** (1 / num)
        low, high = value - hidden * (value - bounds[0]), value + hidden * (bounds[1] - value)
    return Estimate(value=value, low=low, high=high, n=num, se=0.0, bounds=bounds)


def delta(
    values: ArrayLike, against: ArrayLike, groups: ArrayLike | None = None, *,
    bounds: tuple[float, float] | None = None,
) -> Estimate:  # fmt: skip
    """Mean of `values - against`, paired sample by sample; `bounds` is the range of one value, the rest as in `mean`."""
    a, b = _finite(values), _finite(against)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    width = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    return mean(a - b, groups, bounds=width)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Low and high of a share of n independent trials (Wilson 1927)."""
    z = float(special.ndtri((1 + LEVEL) / 2))
    share, shrink = successes / n, 1 + z**2 / n
    reach = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / shrink
    centre = (share + z**2 / (2 * n)) / shrink
    return max(0.0, float(centre - reach)), min(1.0, float(centre + reach))


def student(value: float, se: float, freedom: int) -> tuple[float, float]:
    """Low and high of Student's t interval."""
    far = float(special.stdtrit(freedom, (1 + LEVEL) / 2)) * se
    return value - far, value + far


def reach(value: float, se: float, freedom: int, skew: float) -> tuple[float, float]:
    """Low and high: at each end the farther of Student's t and of Hall's t, which is corrected for skewness (Hall 1992, JRSS B 54, 221).

    In simulation (`python -m ditbench.simulations`) either alone falls below 93 %: Student's where the units are skewed, Hall's where few
    units differ. BCa's bootstrap, for comparison, covers 85 to 92 % below 50 groups.
    """
    low, high = student(value, se, freedom)
    quantile = float(special.stdtrit(freedom, (1 + LEVEL) / 2))
    hall = [value - se * _bent_back(q, skew, freedom + 1) for q in (quantile, -quantile)]
    return min(low, hall[0]), max(high, hall[1])


def two_sided_p(estimate: Estimate, at: float = 0.0) -> float | None:
    """p-value of "the true value is `at`", two-sided; at most 0.05 where, and only where, the interval does not hold `at`.

    The larger of the p-values of the two intervals that `reach` takes the farther ends of; of units without spread, the chance that
    all G of them hide what would move the mean to `at`. None without an interval.
    """
    if estimate.se is None:
        return None
    apart = estimate.value - at
    if estimate.se == 0:
        if apart == 0:
            return 1.0
        if estimate.bounds is None:
            return None
        end = estimate.bounds[0] if apart > 0 else estimate.bounds[1]
        share = apart / (estimate.value - end) if estimate.value != end else 1.0
        return float((1 - min(share, 1.0)) ** estimate.n)
    t = apart / estimate.se
    either = (t, _bent(t, estimate.skew, estimate.n))
    return float(max(2 * special.stdtr(estimate.n - 1, -abs(x)) for x in either))


def _bent(t: float, skew: float, num: int) -> float:
    """Hall's monotone transformation of a t value of `num` units: t + a t^2 + a^2 t^3 / 3 + a / 2, a = skew / (3 sqrt(num))."""
    a = skew / (3 * np.sqrt(num))
    return float(t + a * t**2 + a**2 * t**3 / 3 + a / 2)


def _bent_back(y: float, skew: float, num: int) -> float:
    """The t value that `_bent` takes to y."""
    a = skew / (3 * np.sqrt(num))
    return y - a / 2 if abs(a) < 1e-9 else float((np.cbrt(1 + 3 * a * (y - a / 2)) - 1) / a)


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
    """What the interval counts as independent: "rounds", or "" where there is no interval."""


def speedup(
    baseline: Sequence[Mapping[str, Any]], cell: Sequence[Mapping[str, Any]], stage: str = "call_s"
) -> Speedup | None:
    """Ratio of the seconds spent on the same requests, paired inside rounds; None when the two share no timed batch.

    `baseline` and `cell` are raw timing entries (round, batch, size, and seconds of `stage`). In each round both times are summed over
    the batches both have, so that a batch counts by the seconds it took; the value is the geometric mean of the rounds' ratios and the
    interval Student's t on their logarithms (R - 1). One round carries no interval: batches of one process share its conditions.
    """
    return time_contrast([baseline, cell], [1, -1], stage)


def time_contrast(
    timings: Sequence[Sequence[Mapping[str, Any]]], signs: Sequence[int], stage: str = "call_s"
) -> Speedup | None:
    """The product of the seconds of several cells, each to the power of its sign: paired and with an interval as `speedup`."""
    times = [_batches(timing, stage) for timing in timings]
    shared = sorted(at for at in set.intersection(*map(set, times)) if all(t[at] > 0 for t in times))
    if not shared:
        return None
    rounds = sorted({at[0] for at in shared})
    logs = np.array(
        [
            sum(sign * np.log(sum(t[at] for at in shared if at[0] == r)) for sign, t in zip(signs, times, strict=True))
            for r in rounds
        ]
    )
    centre = float(logs.mean())
    value = float(np.exp(centre))
    if len(rounds) < 2:
        return Speedup(estimate=Estimate(value=value, low=None, high=None, n=1, se=None), unit="")
    se = float(logs.std(ddof=1) / np.sqrt(len(logs)))
    low, high = student(centre, se, len(logs) - 1)
    estimate = Estimate(value=value, low=float(np.exp(low)), high=float(np.exp(high)), n=len(logs), se=value * se)
    return Speedup(estimate=estimate, unit="rounds")


def seconds(timing: Sequence[Mapping[str, Any]], stage: str = "call_s") -> Estimate | None:
    """Seconds per sample: in each round all seconds over all samples, then the geometric mean of the rounds, with Student's t interval on
    their logarithms (R - 1); with one round no interval. None without a timed batch.
    """
    rounds = sorted({t["round"] for t in timing})
    each = [[t for t in timing if t["round"] == r] for r in rounds]
    values = np.array([sum(t[stage] for t in part) / sum(t["size"] for t in part) for part in each])
    if not len(values):
        return None
    if len(values) < 2 or values.min() <= 0:
        return Estimate(value=float(values.mean()), low=None, high=None, n=len(values), se=None)
    centre, error = float(np.log(values).mean()), float(np.log(values).std(ddof=1) / np.sqrt(len(values)))
    value = float(np.exp(centre))
    low, high = (float(np.exp(x)) for x in student(centre, error, len(values) - 1))
    return Estimate(value=value, low=low, high=high, n=len(values), se=value * error)


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
    factor = float(np.exp(special.stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(variance)))
    error = value * float(np.sqrt(variance))
    return Estimate(value=value, low=value / factor, high=value * factor, n=min(over["n"], under["n"]), se=error)


def drift(timing: Sequence[Mapping[str, Any]], stage: str = "call_s") -> float | None:
    """Slowest round over fastest, minus one, on the batches every round timed; None with fewer than two rounds."""
    times = _batches(timing, stage)
    rounds = {at[0] for at in times}
    everywhere = [batch for batch in {at[1:] for at in times} if all((r, *batch) in times for r in rounds)]
    if len(rounds) < 2 or not everywhere:
        return None
    seconds = [sum(times[r, *batch] for batch in everywhere) for r in rounds]
    return max(seconds) / min(seconds) - 1 if min(seconds) > 0 else None


def _batches(timing: Sequence[Mapping[str, Any]], stage: str) -> dict[tuple[int, int, int], float]:
    """(round, batch, size) -> seconds."""
    return {(t["round"], t["batch"], t["size"]): t[stage] for t in timing}
