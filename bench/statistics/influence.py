"""A statistic of a set of samples as its value and what each independent unit adds to it: paired
differences and their intervals follow.

n samples, G groups (samples of one prompt, which are not independent), U units: the groups, or
blocks of whole groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from ditbench.statistics.estimates import Array, Estimate, constant, student

BLOCKS = 50
"""Units of a block jackknife, where there are as many groups."""
MOST = 4096
"""Units that are kept of one statistic: more groups are summed over blocks (`summed`)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """One statistic of one set of samples."""

    value: float
    parts: Array
    """[U]: to first order, what each unit adds to the value; they sum to zero."""
    unbiased: float | None = None
    """The value without its bias in n to first order, where that is known (Quenouille 1956)."""
    groups: int | None = None
    """G, where the parts are those of replicates and not of the groups themselves."""


def contrast(readings: Sequence[Reading], signs: Sequence[int]) -> Estimate:
    """The sum of `signs` times the values of readings on the same units (unbiased ones where all
    have them), with Student's t interval.

    What the sets have in common cancels unit by unit, which is all that pairing is. Where no unit
    differs, the interval goes as far as units unseen can hide (`estimates.constant`), taking the
    range that the units of these readings span for the range of any unit. ValueError when the units
    are not the same number; fewer than two: no interval.
    """
    num = len(readings[0].parts)
    if wrong := next((len(r.parts) for r in readings if len(r.parts) != num), None):
        raise ValueError(f"readings of {num} and of {wrong} units cannot be paired")
    values = [r.unbiased for r in readings]
    if any(value is None for value in values):
        values = [r.value for r in readings]
    value = float(sum(sign * v for sign, v in zip(signs, values, strict=True) if v is not None))
    groups = min(num, readings[0].groups or num)
    if groups < 2:
        return Estimate(value=value, low=None, high=None, n=groups, se=None)
    each = sum(sign * r.parts for sign, r in zip(signs, readings, strict=True))
    se = float(np.sqrt(num / (num - 1) * np.sum(np.square(each))))
    if se == 0:
        span = float(groups * max(np.ptp(r.parts) for r in readings))
        return constant(value, groups, (value - span, value + span))
    low, high = student(value, se, groups - 1)
    return Estimate(value=value, low=low, high=high, n=groups, se=se)


def members(n: int, groups: ArrayLike | None) -> np.ndarray:
    """[n]: the number of each sample's group, from 0 in order of appearance; without `groups`, a
    group each.

    ValueError when there are not n labels.
    """
    if groups is None:
        return np.arange(n)
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ValueError(f"{n} samples and group labels of shape {labels.shape}")
    _, first, member = np.unique(labels, return_index=True, return_inverse=True)
    place = np.empty(len(first), np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    group: np.ndarray = place[member]
    return group


def blocks(n: int, groups: ArrayLike | None, num: int = BLOCKS) -> np.ndarray:
    """[n]: the number of each sample's block, of at most `num`: whole groups, dealt out in turn."""
    member = members(n, groups)
    block: np.ndarray = member % num
    return block


def num_blocks(groups: int) -> int:
    """How many blocks so many groups are summed over: as many as groups up to `MOST`, else the
    largest number up to it that divides them, or `MOST` where none above its half does."""
    if groups <= MOST:
        return groups
    return next((num for num in range(MOST, MOST // 2, -1) if groups % num == 0), MOST)


def summed(reading: Reading) -> Reading:
    """The reading with its parts summed over `num_blocks` fixed blocks, to which groups are dealt
    out in turn; as it is up to `MOST` groups, and where the parts are those of replicates.

    The delete-a-group jackknife (Kott 2001, Journal of Official Statistics 17, 521): the standard
    error has the same expectation, and of B blocks a relative error of 1 / sqrt(2 (B - 1)) of its
    own, 1.6 % at 2,048.
    """
    groups = len(reading.parts)
    if reading.groups is not None or groups <= MOST:
        return reading
    block = np.arange(groups) % num_blocks(groups)
    return replace(reading, parts=np.bincount(block, weights=reading.parts).astype(np.float64))


def linear(value: float, influence: Array, groups: ArrayLike | None) -> Reading:
    """A reading from the influence [n] of each sample on the value (its derivative along the
    sample's weight, Hampel 1974)."""
    centred = influence - influence.mean()
    return Reading(
        value=value,
        parts=np.bincount(members(len(centred), groups), weights=centred) / len(centred),
    )


def jackknife(value: float, without: ArrayLike) -> Reading:
    """A reading from the values [U] a statistic has when each block is left out (delete-block
    jackknife, Kunsch 1989).

    Of bias c / n the combination U value - (U - 1) mean(without) holds none (Quenouille 1956,
    Biometrika 43, 353).
    """
    left = np.asarray(without, np.float64)
    num = len(left)
    unbiased = float(num * value - (num - 1) * left.mean()) if num > 1 else None
    return Reading(value=value, parts=(num - 1) / num * (left.mean() - left), unbiased=unbiased)


def replicates(value: float, left: ArrayLike, groups: int, size: int) -> Reading:
    """A reading from the values [U] a statistic has of U random subsets of `size` of its G groups
    (delete-d jackknife, Shao & Wu 1989).

    Subsets of about half the groups serve statistics that are not smooth, for which leaving out
    single blocks gives too much.
    """
    again = np.asarray(left, np.float64)
    wider = np.sqrt(size / (groups - size) / len(again)) if groups > size else 0.0
    return Reading(value=value, parts=(again - again.mean()) * wider, groups=groups)
