"""Several trainings of one recipe: how far they differ, and what may be said of the recipe and not
of one training alone. No torch.

A paired difference to `none` has an interval over requests; a schedule or student trained again
from other requests differs by more than that. K trainings, n requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from ditbench.analysis.rows import Row
from ditbench.statistics.estimates import Estimate, student


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What K trainings of one recipe give for one number."""

    recipe: Estimate
    """Mean over the trainings, `n` of them, with an interval that holds the errors over trainings
    and over requests."""
    sd: float
    """Standard deviation between the trainings, as observed."""


def over_trainings(each: Sequence[Estimate]) -> Spread:
    """The number of a recipe from those of its K >= 2 trainings, all asked the same requests;
    ValueError for fewer, or without errors.

    The interval reaches sqrt((t_{K-1} s / sqrt K)^2 + (t_{n-1} e)^2) either way: the reach of
    Student's interval over trainings, of standard deviation s, and that over requests, of root mean
    squared standard error e, which asking the same requests does not average out, in quadrature (as
    MOVER, Zou and Donner 2008, combines intervals of independent parts). Where trainings hardly
    differ it is wider than need be, for s then holds the requests' error too.
    """
    if len(each) < 2:
        raise ValueError("one training says nothing of how far trainings differ")
    errors = [e.se for e in each if e.se is not None]
    if len(errors) < len(each):
        raise ValueError("a training without a standard error cannot be combined with others")
    values = np.array([e.value for e in each])
    value, sd = float(values.mean()), float(values.std(ddof=1))
    between, within = sd / len(each) ** 0.5, float(np.sqrt(np.mean(np.square(errors))))
    units = min(e.n for e in each)
    reach = float(np.hypot(student(0, between, len(each) - 1)[1], student(0, within, units - 1)[1]))
    se = float(np.hypot(between, within))
    return Spread(
        recipe=Estimate(value=value, low=value - reach, high=value + reach, n=len(each), se=se),
        sd=sd,
    )


AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[AnyRow]):
    """A prepared stack of a model, whatever its trainings."""

    stack: str
    """Without the numbers of the trainings."""
    rows: dict[int, AnyRow]
    """Row by training; those whose methods are of different trainings are not among them."""


def recipes(rows: Iterable[AnyRow], prepared: Mapping[str, Sequence[str]]) -> list[Recipe[AnyRow]]:
    """The prepared stacks among the rows of one model; `prepared` gives the methods that were
    prepared, by a row's key."""
    by_stack: dict[str, Recipe[AnyRow]] = {}
    for row in rows:
        if methods := prepared.get(row["key"]):
            stack = without_training(row["stack"])
            numbers = {
                _training(part)
                for part in row["stack"].split("+")
                if part.partition("(")[0] in methods
            }
            recipe = by_stack.setdefault(stack, Recipe(stack=stack, rows={}))
            if len(numbers) == 1:
                recipe.rows[numbers.pop()] = row
    return list(by_stack.values())


def without_training(stack: str) -> str:
    """A stack's text without its knobs `training`."""
    return re.sub(r"\(\)", "", re.sub(r"(?<=\()training=\d+(, )?|, training=\d+", "", stack))


def _training(method: str) -> int:
    number = re.search(r"[(, ]training=(\d+)", method)
    return int(number[1]) if number else 0
