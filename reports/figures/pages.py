"""Figures that grow with the number of stacks, split over numbered files: NAME, NAME-2, NAME-3."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def pages(things: Sequence[T], most: int) -> Iterator[tuple[str, Sequence[T], str]]:
    """What goes onto each page of at most so many: the ending of its file's name, the things, and
    which they are in words (empty on a single page)."""
    for first in range(0, len(things), most):
        page = things[first : first + most]
        words = f"{first + 1} to {first + len(page)} of {len(things)}"
        yield (
            f"-{first // most + 1}" if first else "",
            page,
            words if len(things) > most else "",
        )


def numbered(stem: str) -> tuple[str, int]:
    """The name of a file without the number of its page, and that number."""
    name, number = re.fullmatch(r"(.*?)(?:-([2-9]|[1-9]\d+))?", stem).groups()  # type: ignore[union-attr]
    return name, int(number or 1)
