"""The nearest known names to one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FEW = 8
"""As many names are listed in full when none is near."""
NEAREST = 3
"""Names of a longer list that are named when none is near."""


def suggest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """The end of a sentence about an unknown name: the nearest names (at most three), or all of
    them where they are few and none is near.

    `cutoff`: similarity from which a name is near, 0 to 1 (`difflib.get_close_matches`).
    """
    names = sorted(known)
    if near := difflib.get_close_matches(word, names, NEAREST, cutoff):
        return f"did you mean {' or '.join(near)}?"
    if len(names) <= FEW:
        return f"there are {', '.join(names) or 'none'}"
    nearest = difflib.get_close_matches(word, names, NEAREST, 0.0)
    return f"the nearest of {len(names)} names are {', '.join(nearest)}"
