"""The nearest known names to one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest names, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return (
        f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known) or 'none'}"
    )
