"""What the arrays of a scores file look like, and what is wrong with those that do not. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUP = "group"
"""Array that numbers the prompts."""
FEATURES = "feature."
"""How arrays begin that are features: checked when they are read, for they may be large."""


def wrong_array(arrays: Mapping[str, NDArray[Any]]) -> str:
    """The first array that is not as scores are, in words; "" where there is none.

    `group` [n] are integers, a metric's values [n] finite numbers; NAME@rows [k] are the samples
    that the k values of NAME are of; other arrays with @ have one dimension. Features are not
    looked at here.
    """
    if not arrays:
        return ""
    if GROUP not in arrays or arrays[GROUP].dtype.kind not in "iu" or arrays[GROUP].ndim != 1:
        return "group is missing or is no list of integers"
    if not (n := len(arrays[GROUP])):
        return "group is empty"
    for name in arrays:
        if name.startswith(FEATURES) and "@" not in name:
            continue
        array = arrays[name]
        if array.ndim != 1 or array.dtype.kind not in "fiub":
            return f"{name} is no list of numbers"
        if name.endswith("@rows") and not _are_rows(array, n):
            return f"{name} are no samples of {n}"
        if "@" in name or name == GROUP:
            continue
        rows = arrays.get(f"{name}@rows")
        if len(array) != (n if rows is None else len(rows)):
            return f"{name} has {len(array)} values of {n} samples"
        if not np.isfinite(array).all():
            return f"{name} holds what is no finite number"
    return ""


def _are_rows(array: NDArray[Any], n: int) -> bool:
    return array.dtype.kind in "iu" and bool(((array >= 0) & (array < n)).all())
