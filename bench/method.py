"""What a method is, and the Attachment it installs itself through.

A method is a class of knobs with `attach(pipeline, at)`, declared with `@method(...)`. Everything it changes it changes through `at`,
which takes it back, last in first out, also after a failure half way: there is no detach to write. Never imports torch.
"""

from __future__ import annotations

import importlib
import keyword
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, dataclass_transform

from ditbench.knobs import build, check, knob, knobs, suggest, values
from ditbench.now import Now
from ditbench.traits import CLAIMS, Stage, Traits, declared

if TYPE_CHECKING:
    from ditbench.anatomy import Route, Sublayer
    from ditbench.blocks import Block, BlockRoute
    from ditbench.workload import Sampling

__all__ = [
    "CLAIMS",
    "METHODS",
    "Attachment",
    "Method",
    "Now",
    "Stage",
    "Traits",
    "build",
    "find",
    "knob",
    "knobs",
    "method",
    "names",
    "values",
]


_MISSING = object()


class Attachment:
    """One method's hold on one pipeline: what it changed, and how to take it back."""

    def __init__(self, pipeline: Any, now: Now, stack: ExitStack) -> None:
        self.now = now
        self.counters: dict[str, int] = {}
        """Events since the stack was attached, by name."""
        self.notes: dict[str, float] = {}
        """Facts found while running, by name, for the record: finite numbers, of Python, numpy or torch, and texts."""
        self.engaged = False
        """Whether any counted event was the method at work (`count(..., idle=True)` is not)."""
        self.starts: list[Callable[[], object]] = []
        self.inspections: list[Callable[[ExitStack], object]] = []
        self.held: list[Callable[[], Iterable[Any]]] = []
        self.shares: dict[tuple[int, int], float] = {}
        """Share of its tokens a sub-layer computed, by (step, sub-layer), in the generation under way or the last one."""
        self.artifact: Path | None = None
        """Folder of what was prepared for this method (see `artifact`)."""
        self._pipeline = pipeline
        self._stack = stack

    @cached_property
    def sublayers(self) -> list[Sublayer]:
        """The transformer's sub-layers, in the order they run."""
        from ditbench.anatomy import sublayers

        found: list[Sublayer] = sublayers(self._pipeline.transformer)
        return found

    @cached_property
    def blocks(self) -> list[Block]:
        """The transformer's blocks, in the order they run."""
        from ditbench.blocks import blocks

        found: list[Block] = blocks(self._pipeline.transformer)
        return found

    def patch(self, owner: Any, name: str, value: Any) -> Any:
        """Set `owner.name` until detached, and return what it was (None when there was nothing)."""
        if name.startswith("__"):
            raise ValueError(f"{name} on an instance is never called: Python looks dunder methods up on the class")
        inside = [vars(owner), *(vars(owner).get(store, {}) for store in ("_parameters", "_buffers", "_modules"))]
        before = next((store[name] for store in inside if name in store), _MISSING)
        previous = getattr(owner, name, None)
        if before is _MISSING:
            self.undo(lambda: vars(owner).pop(name, None))
        else:
            self.undo(setattr, owner, name, before)
        setattr(owner, name, value)
        return previous

    def reroute(self, part: Sublayer | Block, route: Route | BlockRoute) -> None:
        """Send the calls of a sub-layer (see `anatomy`) or of a whole block (see `blocks`) through `route` until detached."""
        part.reroute(route, self.patch)  # type: ignore[arg-type]

    def replace(self, tensor: Any, value: Any) -> None:
        """Give a parameter or buffer other data until detached. What it held waits in host memory, so that the device's memory is what it
        would be without."""
        device = tensor.device
        before = tensor.data if device.type == "cpu" else tensor.data.cpu()

        def back() -> None:
            tensor.data = before.to(device)

        self.undo(back)
        tensor.data = value.to(device, tensor.dtype)

    def undo(self, callback: Callable[..., object], *args: Any) -> None:
        """Call `callback(*args)` when detached; the last registered is called first."""
        self._stack.callback(callback, *args)

    def on_start(self, reset: Callable[[], object]) -> None:
        """Call `reset` before every generation, so that nothing leaks from one to the next."""
        self.starts.append(reset)

    def on_inspection(self, watch: Callable[[ExitStack], object]) -> None:
        """Call `watch(undo)` before the one generation that is counted and neither timed nor weighed: what costs time or memory to find
        out for the record belongs there. What it hooks in, `undo` takes away."""
        self.inspections.append(watch)

    def count(self, event: str, by: int = 1, *, idle: bool = False) -> None:
        """Count an event. `idle` events are bookkeeping: they do not show that the method did anything."""
        self.counters[event] = self.counters.get(event, 0) + by
        self.engaged |= bool(by > 0) and not idle

    def computes(self, sublayer: Sublayer, share: float) -> None:
        """Note that the sub-layer computes `share` of its tokens, 0..1, at this step: for the schedule in the record."""
        self.shares[self.now.step, sublayer.index] = share

    def holds(self, tensors: Callable[[], Iterable[Any]]) -> None:
        """Name the tensors the method keeps from step to step (tuples of tensors will do): they enter the memory ledger."""
        self.held.append(tensors)


class Method(Protocol):
    """A method with its knobs set. Only one of `attach` and `adapt` has to be written; `@method` adds what is missing."""

    name: str
    traits: Traits
    dial: ClassVar[tuple[str, float, float] | None]
    """A knob and the range over which turning it one way saves ever more compute: what `match` turns."""
    label: str
    """What its rows in reports are for where they are not to be judged as a method's: "noise floor", "ceiling"; else ""."""

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Install the method on a pipeline, through `at` alone."""

    def adapt(self, sampling: Sampling) -> Sampling:
        """The sampling the method wants, such as fewer steps."""

    def check(self, pipeline: Any) -> str | None:
        """Why this pipeline cannot take the method, in one sentence; None when it can."""

    def recipe(self) -> dict[str, Any] | None:
        """All that what `prepare(folder, room)` makes depends on, with a version; None when nothing has to be prepared."""

    def unpreparable(self, sampling: Sampling) -> str | None:
        """Why `prepare` could make nothing under this sampling, in one sentence; None when it can, as far as that tells."""

    def inputs(self) -> list[Path]:
        """Files the knobs name: a missing one refuses the cell, and what they hold is part of its key, and of the key of what is prepared
        on top of the method. What `prepare` itself reads belongs into `recipe`, by its sha256."""


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
    paper: str = "",
) -> Callable[[Cls], Cls]:
    """Declare a class of knobs as a method, under a lower-case name without hyphens.

    The class becomes a frozen, keyword-only dataclass whose knobs are checked when it is made.
    """
    if not name.isidentifier() or name != name.lower() or keyword.iskeyword(name) or name == "none":
        raise ValueError(
            f"{name!r} is no name for a method: lower-case letters, digits and underscores, and not 'none'"
        )
    traits = declared(
        name, family=family, stage=stage, claims=claims, needs=needs, conflicts=conflicts,
        reversible=reversible, decides_per_batch=decides_per_batch, paper=paper,
    )  # fmt: skip

    def register(cls: Cls) -> Cls:
        if not {"attach", "adapt"} & vars(cls).keys():
            raise ValueError(f"method {name} does nothing: write attach(pipeline, at), adapt(sampling), or both")
        if (owner := _owner(name)) not in (None, cls.__module__):
            raise ValueError(f"method {name!r} is already there, from {owner}; choose another name")
        missing: dict[str, Any] = {
            "attach": lambda self, pipeline, at: None,
            "adapt": lambda self, sampling: sampling,
            "check": lambda self, pipeline: None,
            "recipe": lambda self: None,
            "unpreparable": lambda self, sampling: None,
            "inputs": lambda self: [],
            "dial": None,
            "label": "",
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
            raise ValueError(f"{table[name]} is listed as method {name!r}, but declares no method of that name")
    return METHODS[name]


def _table() -> dict[str, str]:
    """Name -> "module:Class" of the methods that can be imported."""
    from ditbench.methods import BUILT_IN

    return _installed() | BUILT_IN


@cache
def _installed() -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group="ditbench.methods")}


def _owner(name: str) -> str | None:
    """The module a method name belongs to, if any."""
    if name in METHODS:
        return str(METHODS[name].__module__)
    return _table()[name].partition(":")[0] if name in _table() else None
