"""What the arrays of a scores file look like, and what is wrong with those that do not; whether they
are those that were written. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.records.reading import parse_json

GROUP = "group"
"""Array that numbers the prompts."""
FEATURES = "feature."
"""How arrays begin that are features: checked when they are read, for they may be large."""


BLOCKS = "@blocks"
"""After the name of an array: its means by block (`ditbench.records.sample_blocks`)."""


IN_BLOCKS = f"samples{BLOCKS}"
"""Samples in each block."""


def wrong_array(arrays: Mapping[str, NDArray[Any]]) -> str:
    """The first array that is not as scores are, in words; "" where there is none.

    `group` [n] are integers, a metric's values [n] finite numbers; NAME@rows [k] are the samples
    that the k values of NAME are of; other arrays with @ have one dimension. Features are not looked
    at here, nor are values that have means by block (NAME@blocks), for there may be very many: those
    means are.
    """
    if all(_is_feature(name) for name in arrays):  # or there are none
        return ""
    if (counts := arrays.get(IN_BLOCKS)) is not None:
        if counts.ndim != 1 or counts.dtype.kind not in "iuf" or not np.isfinite(counts).all():
            return f"{IN_BLOCKS} is no list of numbers"
        n = int(counts.sum())
    else:
        group = arrays.get(GROUP)
        if group is None or group.dtype.kind not in "iu" or group.ndim != 1:
            return "group is missing or is no list of integers"
        n = len(group)
    if n <= 0:
        return "group is empty"
    for name in arrays:
        if _is_feature(name) or f"{name}{BLOCKS}" in arrays:
            continue
        array = arrays[name]
        if array.ndim != 1 or array.dtype.kind not in "fiub":
            return f"{name} is no list of numbers"
        if name.endswith("@rows") and not _are_rows(array, n):
            return f"{name} are no samples of {n}"
        if name.endswith(BLOCKS) and not np.isfinite(array).all():
            return f"{name} holds what is no finite number"
        if "@" in name or name == GROUP:
            continue
        rows = arrays.get(f"{name}@rows")
        if len(array) != (n if rows is None else len(rows)):
            return f"{name} has {len(array)} values of {n} samples"
        if not np.isfinite(array).all():
            return f"{name} holds what is no finite number"
    return ""


def checksums(document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """A checksum of each array by its name, and under "" of the metadata."""
    text = json.dumps(document, sort_keys=True)
    return {"": _checksum(text.encode())} | {name: checksum(arrays[name]) for name in arrays}


def checksum(array: NDArray[Any]) -> str:
    """Of an array's type, shape and values; against accidents, not against intent."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return _checksum(f"{array.dtype.str} {array.shape}".encode(), content)


def _checksum(*parts: Any) -> str:
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        total.update(part)
    return total.hexdigest()


def not_as_written(
    text: str, arrays: Mapping[str, NDArray[Any]], place: str, *, whole: bool
) -> str:
    """What of a file is not as its checksums stated it when it was written, in words; "" where all
    is, and where there are none, as in older files. `text`: its metadata. `whole`: of features and
    of values that have means by block too, which are not read otherwise. ValueError, which begins
    with `place`, where the metadata are no JSON."""
    document = parse_json(text, place)
    stated = document.pop("checksums", None) if isinstance(document, dict) else None
    if stated is None:
        return ""
    if not isinstance(stated, dict) or stated.get("") != checksums(document, {})[""]:
        return "its metadata are not what was written"
    if {*stated} - {""} != {*arrays}:
        return "its arrays are not those that were written"
    for name in arrays:
        large = _is_feature(name) or f"{name}{BLOCKS}" in arrays
        if (whole or not large) and stated[name] != checksum(arrays[name]):
            return f"{name} is not what was written"
    return ""


def _is_feature(name: str) -> bool:
    return name.startswith(FEATURES) and "@" not in name


def _are_rows(array: NDArray[Any], n: int) -> bool:
    return array.dtype.kind in "iu" and bool(((array >= 0) & (array < n)).all())
