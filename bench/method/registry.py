"""What a method is, and the table of those that are known. Never imports torch."""

from __future__ import annotations

import importlib
import keyword
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, dataclass_transform

from ditbench.method.attachment import Attachment
from ditbench.method.knobs import check, knob
from ditbench.method.traits import Stage, Traits, declared
from ditbench.suggest import suggest

if TYPE_CHECKING:
    from ditbench.models.sampling import Sampling
    from ditbench.models.table import Model


class Method(Protocol):
    """A method with its knobs set. Only one of `attach` and `adapt` has to be written; `@method`
    adds what is missing."""

    name: str
    traits: Traits
    dial: ClassVar[tuple[str, float, float] | None]
    """A knob and the range over which turning it one way saves ever more compute: what `match`
    turns."""
    label: str
    """What its rows in reports are for where they are not to be judged as a method's: "noise
    floor", "ceiling"; else ""."""

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Install the method on a pipeline, through `at` alone."""

    def adapt(self, sampling: Sampling) -> Sampling:
        """The sampling the method wants, such as fewer steps."""

    def check(self, pipeline: Any) -> str | None:
        """Why this pipeline cannot take the method, in one sentence; None when it can."""

    def unfit(self, sampling: Sampling) -> str | None:
        """Why the method cannot work with that sampling, as the whole stack adapts it, in one
        sentence; None when it can. Not asked where another sampler than the model's own makes
        another number of steps."""

    def relies_on(self, family: str) -> Mapping[str, str]:
        """Claims that no other method may have beside this one on a model of that family, although
        it does not own them, with what this one does, for "b claims c, but a ...": what it looks at
        would be something else."""

    def lacks(self, beside: Sequence[Method]) -> str | None:
        """What the method cannot do without and none of the other methods of the stack has, in one
        sentence; None where there is all it needs."""

    def uncapturable(self) -> str | None:
        """Why the transformer's calls cannot be captured once and replayed with what the method does in
        them (`cudagraph`), in words that follow on its name; None where they can. What decides by
        computed values cannot (`decides_per_batch`, `cost_by_sample`), and need not say so."""

    def recipe(self) -> dict[str, Any] | None:
        """All that what `prepare(folder, room)` makes depends on, with a version; None when nothing
        has to be prepared."""

    def unpreparable(self, sampling: Sampling) -> str | None:
        """Why `prepare` could make nothing under this sampling, in one sentence; None when it can,
        as far as that tells."""

    def caution(self, model: Model) -> str | None:
        """What is known beforehand against preparing it for a model, in one sentence, said before
        it is prepared; None where nothing is."""

    def instead(self, model: Model) -> Method | None:
        """What runs where the method has not been prepared for a model, named as what it is; None
        where the cell is refused."""

    def other_models(self, model: Model) -> list[Model]:
        """Models of the table that the method runs beside that one, without weights of its own:
        theirs are part of its key."""

    def inputs(self) -> list[Path]:
        """Files the knobs name: a missing one refuses the cell, and what they hold is part of its
        key, and of the key of what is prepared on top of the method. What `prepare` itself reads
        belongs into `recipe`, by its sha256."""


METHODS: dict[str, Any] = {}
"""Method classes met so far, by name."""
Cls = TypeVar("Cls", bound=type)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(knob,))
def method(
    name: str,
    *,
    family: str,
    stage: Stage,
    claims: Iterable[str] = (),
    needs: Iterable[str] = (),
    conflicts: Iterable[str] = (),
    reversible: bool = True,
    decides_per_batch: bool = False,
    cost_by_sample: bool = False,
    paper: str = "",
    role: str = "",
) -> Callable[[Cls], Cls]:
    """Declare a class of knobs as a method, under a lower-case name without hyphens.

    The class becomes a frozen, keyword-only dataclass whose knobs are checked when it is made.
    """
    if not name.isidentifier() or name != name.lower() or keyword.iskeyword(name) or name == "none":
        raise ValueError(
            f"{name!r} is no name for a method: lower-case letters, digits and underscores, and "
            "not 'none'"
        )
    traits = declared(
        name, family=family, stage=stage, claims=claims, needs=needs, conflicts=conflicts,
        reversible=reversible, decides_per_batch=decides_per_batch,
        cost_by_sample=cost_by_sample, paper=paper, role=role,
    )  # fmt: skip

    def register(cls: Cls) -> Cls:
        if not {"attach", "adapt"} & vars(cls).keys():
            raise ValueError(
                f"method {name} does nothing: write attach(pipeline, at), adapt(sampling), or both"
            )
        if (owner := _owner(name)) not in (None, cls.__module__):
            raise ValueError(f"method {name!r} is already there, from {owner}; choose another name")
        missing: dict[str, Any] = {
            "attach": lambda self, pipeline, at: None,
            "adapt": lambda self, sampling: sampling,
            "check": lambda self, pipeline: None,
            "unfit": lambda self, sampling: None,
            "relies_on": lambda self, family: {},
            "lacks": lambda self, beside: None,
            "uncapturable": lambda self: None,
            "recipe": lambda self: None,
            "unpreparable": lambda self, sampling: None,
            "caution": lambda self, model: None,
            "instead": lambda self, model: None,
            "unpreparable_for": lambda self, model: None,
            "other_models": lambda self, model: [],
            "inputs": lambda self: [],
            "dial": None,
            "label": "",
            "autocasts": False,
            "first_calls": 1,
        }
        for part, nothing in missing.items():
            if not hasattr(cls, part):
                setattr(cls, part, nothing)
        settle = vars(cls).get("__post_init__", lambda self: None)

        def __post_init__(self: Any) -> None:
            check(self)
            settle(self)

        made: Any = cls
        made.name, made.traits, made.__post_init__ = name, traits, __post_init__
        METHODS[name] = dataclass(frozen=True, kw_only=True)(made)
        return cls  # dataclass changes the class in place

    return register


def names() -> list[str]:
    """Every method there is: ours, installed packages' and loaded plug-ins'."""
    return sorted(_table().keys() | METHODS.keys())


def find(name: str) -> Any:
    """The method class of that name; ValueError with the nearest names when there is none."""
    if name not in METHODS:
        table = _table()
        if name not in table:
            raise ValueError(f"no method {name!r}; {suggest(name, names())}")
        importlib.import_module(table[name].partition(":")[0])
        if name not in METHODS:
            raise ValueError(
                f"{table[name]} is listed as method {name!r}, but declares no method of that name"
            )
    return METHODS[name]


def _table() -> dict[str, str]:
    """Name -> "module" or "module:Class" of the methods that can be imported; ours win."""
    return _installed() | _built_in()


@cache
def _built_in() -> dict[str, str]:
    """A module of `ditbench.methods` holds the method of its name."""
    package = importlib.import_module("ditbench.methods")
    return {
        module.name: f"{package.__name__}.{module.name}"
        for module in pkgutil.iter_modules(package.__path__)
    }


@cache
def _installed() -> dict[str, str]:
    from importlib.metadata import entry_points

    return {entry.name: entry.value for entry in entry_points(group="ditbench.methods")}


def _owner(name: str) -> str | None:
    """The module a method name belongs to, if any."""
    if name in METHODS:
        return str(METHODS[name].__module__)
    return _table()[name].partition(":")[0] if name in _table() else None
