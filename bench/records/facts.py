"""Facts that methods leave, as a record can hold them. No torch."""

from __future__ import annotations

import sys
from typing import Any


def plain(what: str, value: Any) -> Any:
    """A fact as a record holds it: texts, truth values, finite numbers, and lists and mappings of
    them; scalars of numpy and torch become Python's.

    ValueError in a sentence that begins with `what` for NaN, infinity, a number beyond a double's
    range, and anything else.
    """
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(f"{what}, entry {i}", entry) for i, entry in enumerate(value)]
    if isinstance(value, dict):
        return {str(name): plain(f"{what}, entry {name}", entry) for name, entry in value.items()}
    if not isinstance(value, (int, float)):
        raise ValueError(
            f"{what} is a {type(value).__name__}, and a record holds numbers and texts"
        )
    if not -sys.float_info.max <= value <= sys.float_info.max:
        shown = value if isinstance(value, float) else f"an integer of {value.bit_length()} bits"
        raise ValueError(f"{what} is {shown}, and a record holds finite numbers")
    return value
