"""Turn a knob until a method saves a given share: bisection over its range, or over the integers in
it. Never imports torch."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Union, get_args, get_origin, get_type_hints

CLOSE = 0.005
"""Near enough to stop turning a dial."""
NEAR = 0.03
"""How far what a stack saves may be from a budget that it is compared at."""
TURNS = 10


def is_whole(cls: Any, knob: str) -> bool:
    """Whether a knob of a method takes integers and no fractions."""
    hint = get_type_hints(cls)[knob]
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return int in kinds and float not in kinds


def turned(method: Any, value: float) -> Any:
    """The method with its dial at a value: rounded to three decimals, or to an integer where the
    knob is one. ValueError for a value that the knob does not take."""
    name = method.dial[0]
    settled = round(value) if is_whole(type(method), name) else round(value, 3)
    return replace(method, **{name: settled})


def as_learned(method: Any) -> Any | None:
    """The method with its knob `learned_at` at the value that its dial has now, so that the dial can
    be turned over what was prepared there; None where turning it asks for no other preparation."""
    name, low, high = method.dial
    if getattr(method, "learned_at", 0) is not None:  # given, or no such knob
        return None
    recipes = [turned(method, value).recipe() for value in (low, (low + high) / 2)]
    if recipes[0] == recipes[1]:
        return None
    return replace(method, learned_at=getattr(method, name))


def dialled(
    saves: Callable[[float], float], saved: float, low: float, high: float, whole: bool = False,
    close: float = CLOSE,
) -> tuple[float, float]:  # fmt: skip
    """By halving, the value of a dial between `low` and `high` whose share `saves(value)` is
    nearest to `saved`, or within `close` of it, and its share; of integers alone where `whole`."""
    tried: dict[float, float] = {}

    def look(value: float) -> float:
        if value not in tried:
            tried[value] = saves(value)
        return tried[value]

    def off(value: float) -> float:
        return abs(tried[value] - saved)

    rising = look(high) > look(low)
    for _ in range(TURNS):
        if off(min(tried, key=off)) <= close:
            break
        middle = (low + high) // 2 if whole else (low + high) / 2
        if middle in tried:  # two integers beside each other
            break
        low, high = (middle, high) if (look(middle) < saved) == rising else (low, middle)
    best = min(tried, key=off)
    return best, tried[best]


def ends_taken(
    saves: Callable[[float], float], low: float, high: float, whole: bool = False
) -> tuple[float, float]:
    """The ends of a dial that `saves` takes: one that it refuses with ValueError, as a single step
    is refused by some samplers, is moved towards the other. Its ValueError where it takes no more
    than an end, which is off."""

    def moved(end: float, other: float) -> float:
        """`end`, or the value nearest to it that is taken, by halving."""
        try:
            saves(end)
        except ValueError as error:
            refusal = error
        else:
            return end
        refused, taken = end, other
        for _ in range(TURNS):
            middle = (refused + taken) // 2 if whole else (refused + taken) / 2
            if middle in (refused, taken):
                break
            try:
                saves(middle)
            except ValueError:
                refused = middle
            else:
                taken = middle
        if taken == other:
            raise refusal
        return taken

    low = moved(low, high)
    return low, moved(high, low)


def out_of_reach(
    saves: Callable[[float], float], saved: float, low: float, high: float, close: float = CLOSE
) -> tuple[float, str] | None:
    """The end of a dial that comes nearest to a share that lies beyond it, and "most" or "least";
    None where the share lies between what its ends save."""
    by_share = sorted((low, high), key=saves)
    if saved > saves(by_share[1]) + close:
        return by_share[1], "most"
    if saved < saves(by_share[0]) - close:
        return by_share[0], "least"
    return None
