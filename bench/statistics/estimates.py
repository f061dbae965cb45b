"""Means and paired deltas, each with its interval. numpy and scipy only.

n samples, G groups (samples of one prompt, which are not independent). Everything is float64 and
nothing is random; every interval is two-sided 95 %. Distances between sets of samples are in
`frechet.py`, times in `times.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]

LEVEL = 0.95
DECIMALS = 6
"""Of values with bounds: what differs by less is rounding, of float32 too."""


class Interval(TypedDict):
    """An estimate as plain JSON; fields as in `Estimate`."""

    value: float
    low: float | None
    high: float | None
    n: int
    se: float | None


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
    effective: float | None = None
    """Units of equal weight that weigh as those behind it, where theirs differ (Kish 1965): fewer
    than `n`."""

    def divided(self, by: float) -> Estimate:
        """This estimate over a positive constant."""
        low, high, se = (None if x is None else x / by for x in (self.low, self.high, self.se))
        return Estimate(value=self.value / by, low=low, high=high, n=self.n, se=se, skew=self.skew)

    def as_dict(self) -> Interval:
        """Plain JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "se": self.se}


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of whole prompts whose means stand in place of single samples."""

    samples: Array
    """[B] samples in each block."""
    prompts: int
    """In all blocks."""


def detectable(se: float, level: float = 0.025) -> float:
    """Smallest true difference that is found in 80 % of runs with this standard error, by one-sided
    tests at `level`: 2.80 se at that of a two-sided 5 %."""
    return float(special.ndtri(1 - level) + special.ndtri(0.80)) * se


def mean(
    values: ArrayLike, groups: ArrayLike | None = None, *,
    bounds: tuple[float, float] | None = None,
    blocks: Blocks | None = None,
) -> Estimate:  # fmt: skip
    """Mean of `values` [n] with whole groups as the independent units; `groups` [n] labels them
    (default: a group each). With `blocks` the values are means of those, and the mean is of all
    their samples.

    The interval is `reach`'s on the linearised mean. `bounds` is the range a value can have, and
    not used where one lies outside. When all values are equal there is no spread to go by: with
    `bounds` the interval then goes as far as a value unseen in G groups can be hidden, 1 -
    0.05**(1/G) of the range; without them, as with fewer than two groups, there is no interval.
    Raises ValueError when `values` is empty, not finite, or of another length than `groups`.
    """
    x = _finite(values)
    if bounds is not None:
        x = np.round(x, DECIMALS)
        bounds = bounds if bounds[0] <= x.min() and x.max() <= bounds[1] else None
    label = np.arange(len(x)) if groups is None else np.asarray(groups)
    if len(label) != len(x):
        raise ValueError(f"{len(x)} values and {len(label)} group labels")
    names, member = np.unique(label, return_inverse=True)
    weights = np.ones(len(x)) if blocks is None else blocks.samples
    num, value = len(names), float(x.mean() if blocks is None else np.average(x, weights=weights))
    if num < 2:
        return Estimate(value=value, low=None, high=None, n=num, se=None, bounds=bounds)
    count = np.bincount(member, weights=weights).astype(np.float64)
    total = np.bincount(member, weights=x * weights).astype(np.float64)
    units = (total - value * count) / count.mean()
    prompts = num if blocks is None else blocks.prompts
    estimate = (
        constant(value, prompts, bounds)
        if np.ptp(x) == 0
        else of_units(value, units, bounds, prompts)
    )
    return replace(
        estimate, effective=float(count.sum() ** 2 / np.sum(count**2)) if np.ptp(count) else None
    )


def of_units(
    value: float,
    units: Array,
    bounds: tuple[float, float] | None = None,
    prompts: int | None = None,
) -> Estimate:
    """An estimate from what each of G >= 2 units adds to it, `units` [G] being G times that;
    clipped to `bounds`. `prompts`: how many are behind the units, where these are blocks."""
    num = prompts or len(units)
    spread = float(np.std(units, ddof=1))
    if spread == 0:
        return constant(value, num, bounds)
    se = spread / float(np.sqrt(len(units)))
    centred = units - units.mean()
    if num == len(units):
        skew = float(np.mean(centred**3)) / spread**3
    else:  # a mean of m prompts is skewed by 1 / sqrt(m) of what one prompt is
        third = float(np.mean(centred * centred * centred))  # a power takes ten times as long
        skew = third / spread**3 * float(np.sqrt(num / len(units)))
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
    blocks: Blocks | None = None,
) -> Estimate:  # fmt: skip
    """Mean of `values - against`, paired sample by sample; `bounds` is the range of one value, the
    rest as in `mean`."""
    a, b = _finite(values), _finite(against)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    width = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    return mean(a - b, groups, bounds=width, blocks=blocks)


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
    """Low and high: at each end the farther of Student's t and of Hall's t, which is corrected for
    skewness (Hall 1992, JRSS B 54, 221).

    In simulation (`python -m ditbench.analysis.simulations`) either alone falls below 93 %:
    Student's where the units are skewed, Hall's where few units differ. BCa's bootstrap, for
    comparison, covers 85 to 92 % below 50 groups.
    """
    low, high = student(value, se, freedom)
    quantile = float(special.stdtrit(freedom, (1 + LEVEL) / 2))
    hall = [value - se * _bent_back(q, skew, freedom + 1) for q in (quantile, -quantile)]
    return min(low, hall[0]), max(high, hall[1])


def two_sided_p(estimate: Estimate, at: float = 0.0) -> float | None:
    """p-value of "the true value is `at`", two-sided; at most 0.05 where, and only where, the
    interval does not hold `at`.

    The larger of the p-values of the two intervals that `reach` takes the farther ends of; of units
    without spread, the chance that all G of them hide what would move the mean to `at`. None
    without an interval.
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
    """Hall's monotone transformation of a t value of `num` units: t + a t^2 + a^2 t^3 / 3 + a / 2,
    a = skew / (3 sqrt(num))."""
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
