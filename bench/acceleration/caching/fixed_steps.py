"""Which steps a fixed schedule computes: written out, published, or by a rule without parameters.
No torch.

T steps; a schedule is the ascending tuple of the steps at which the transformer is computed, the
first among them.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ditbench.suggest import suggest

Steps = tuple[int, ...]
TABLE = Path(__file__).parent / "published_steps.toml"
RULES = ("uniform", "geometric", "random")
"""Schedules that follow from the number of steps."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of the table."""

    name: str
    family: str
    """Of the models it was made for."""
    steps: int
    """T."""
    computed: Steps
    source: str


@cache
def published() -> tuple[Published, ...]:
    """All rows; a name may be there for several families."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return tuple(
        Published(
            name=name, family=family, steps=row["steps"],
            computed=tuple(row["computed"]), source=row["source"],
        )
        for family, rows in table.items()
        for name, row in rows.items()
    )  # fmt: skip


def published_for(name: str, family: str) -> Published:
    """The row of that name for a family; ValueError naming the families it is there for."""
    rows = {row.family: row for row in published() if row.name == name}
    if family not in rows:
        raise ValueError(f"the schedule {name} is published for {' and '.join(rows)} alone")
    return rows[family]


def is_published(text: str) -> bool:
    """Whether a text names a published schedule."""
    return any(row.name == text for row in published())


def written(text: str) -> Steps | None:
    """The schedule that a text writes out: a 1 or 0 for each step (1 is computed), or step numbers
    with hyphens, `0-2-4-7`; None for a text that does neither.

    Raises ValueError where the first step is not computed, and for numbers that do not ascend.
    """
    if re.fullmatch("[01]{2,}", text):
        chosen = tuple(step for step, bit in enumerate(text) if bit == "1")
    elif re.fullmatch(r"\d+(-\d+)*", text):
        chosen = tuple(map(int, text.split("-")))
    else:
        return None
    if not chosen or chosen[0]:
        meaning = "; of bits 1 is computed and 0 replaced" if "-" not in text else ""
        raise ValueError(f"the first step, 0, is always computed, but not in {text!r}{meaning}")
    if any(a >= b for a, b in itertools.pairwise(chosen)):
        raise ValueError(f"the step numbers in {text!r} do not ascend")
    return chosen


def text_of(chosen: Sequence[int]) -> str:
    """A schedule as `written` reads it: `0-2-4-7`."""
    return "-".join(map(str, chosen))


def refuse_unknown(text: str, others: Sequence[str]) -> None:
    """Raise ValueError, with the nearest names, for a text that is no schedule, no rule, no published
    name and none of `others`."""
    names = [*RULES, *others, *sorted({row.name for row in published()})]
    if text not in names and written(text) is None:
        raise ValueError(
            f"{text!r} is no schedule: step numbers such as 0-2-4-7, a 1 or 0 for each step, or a "
            f"name; {suggest(text, names)}"
        )


def misfit(text: str, steps: int) -> str | None:
    """Why a schedule that is written out, or published, cannot be one of T steps; None where it
    can."""
    chosen = written(text)
    if chosen is None:
        lengths = {row.steps for row in published() if row.name == text} - {steps}
        return (
            f"the schedule {text} is of {min(lengths)} sampler steps, and here are {steps}"
            if lengths
            else None
        )
    if "-" not in text and len(text) > 1 and len(text) != steps:
        return f"steps={text!r} has {len(text)} bits, and there are {steps} sampler steps"
    if chosen[-1] >= steps:
        return f"steps={text!r} computes step {chosen[-1]}, and the last of {steps} is {steps - 1}"
    return None


def count_of(computed: int | float, steps: int) -> int:
    """How many of T steps are computed: a whole number is that many, a fraction that share, rounded;
    one at least, and no more than there are."""
    count = computed if isinstance(computed, int) else round(computed * steps)
    return max(1, min(steps, count))


def by_rule(rule: str, count: int, steps: int, draw: int = 0) -> Steps:
    """`count` of T steps, the first among them.

    Step i of the count n is i T / n, rounded down, of `uniform`: the first of every stretch of n
    equal ones, as in FORA. Of `geometric` it is T^(i / (n-1)) - 1, rounded, so that gaps grow by one
    factor from the first to the last step; where two would fall together, the later one moves up.
    `random`: drawn without replacement, by the number `draw`.
    """
    if count == 1:
        return (0,)
    if rule == "uniform":
        return tuple(i * steps // count for i in range(count))
    if rule == "random":
        rest = np.random.default_rng(draw).choice(steps - 1, count - 1, replace=False) + 1
        return (0, *sorted(rest.tolist()))
    places = np.round(steps ** (np.arange(count) / (count - 1)) - 1).astype(int)
    chosen: list[int] = []
    for i, place in enumerate(places.tolist()):
        lowest = chosen[-1] + 1 if chosen else 0
        chosen.append(min(max(place, lowest), steps - count + i))
    return tuple(chosen)
