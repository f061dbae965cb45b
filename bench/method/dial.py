"""Turn a knob until a method saves a given share: bisection."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

CLOSE = 0.005
"""Near enough to stop turning a dial."""
TURNS = 10


def dialled(
    saves: Callable[[float], float], saved: float, low: float, high: float
) -> tuple[float, float]:
    """By halving, the value of a dial between `low` and `high` whose share `saves(value)` is
    nearest to `saved`, and its share."""
    tried: dict[float, float] = {}

    def look(value: float) -> float:
        if value not in tried:
            tried[value] = saves(value)
        return tried[value]

    def off(value: float) -> float:
        return abs(tried[value] - saved)

    rising = look(high) > look(low)
    for _ in range(TURNS):
        if off(min(tried, key=off)) <= CLOSE:
            break
        middle = (low + high) / 2
        low, high = (middle, high) if (look(middle) < saved) == rising else (low, middle)
    best = min(tried, key=off)
    return best, tried[best]
