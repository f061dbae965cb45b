"""What is computed below the routes: regions of a block, which somebody may compute in another way
than operation by operation (`methods/compile.py`).

A region is a function of tensors and of modules whose Python depends neither on the step nor on the
methods of the stack: a sub-layer's own computation, for all tokens or some rows, norm and modulation
with the sums before them (`pending.Pending`), and a whole block where nothing is rerouted inside, or
all of it computed (`block_region`). A route decides which regions are called, and is itself in none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn

Function = Callable[..., Any]


class Computer(Protocol):
    """Who computes the regions of a block."""

    def __call__(self, function: Function, *args: Any, **kwargs: Any) -> Any:
        """What `function(*args, **kwargs)` returns. The same region is the same object `function` in
        every call and in every block of a class."""

    def work_out(self, pending: Any) -> Tensor:
        """The value of a `pending.Pending` in the block, and of what it goes through on the way."""

    def takes_block(self, routed: frozenset[nn.Module]) -> bool:
        """Whether it computes the whole block as one region now (`block_region`), where nobody has
        replaced anything inside but the forwards of `routed`."""


_COMPUTERS: WeakKeyDictionary[nn.Module, Computer] = WeakKeyDictionary()
_RUNNING: list[Computer | None] = []


def compute_by(block: nn.Module, computer: Computer) -> Callable[[], object]:
    """Have the regions of a block computed by `computer`, until what is returned is called."""
    _COMPUTERS[block] = computer
    return lambda: _COMPUTERS.pop(block, None)


def computer_of(block: nn.Module) -> Computer | None:
    """Who computes a block's regions; None: they are run as they are."""
    return _COMPUTERS.get(block)


@contextmanager
def running(block: nn.Module) -> Iterator[None]:
    """Inside, that block runs: what is pending is worked out by its computer."""
    _RUNNING.append(computer_of(block))
    try:
        yield
    finally:
        _RUNNING.pop()


@contextmanager
def running_alone() -> Iterator[None]:
    """Inside, a block runs whose pending tensors are worked out operation by operation, whoever
    computes its regions otherwise."""
    _RUNNING.append(None)
    try:
        yield
    finally:
        _RUNNING.pop()


def running_computer() -> Computer | None:
    """The computer of the block that runs now."""
    return _RUNNING[-1] if _RUNNING else None


def compute(block: nn.Module, function: Function, *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, a region of the block."""
    computer = computer_of(block)
    return function(*args, **kwargs) if computer is None else computer(function, *args, **kwargs)


def run_forward(block: nn.Module, forward: Function, *args: Any, **kwargs: Any) -> Any:
    """`forward(*args, **kwargs)` of a module of the block, or of the block itself: a region where it
    is the one of its class; what somebody has put in its place runs as it is."""
    own = own_forward(forward)
    if own is None:
        return forward(*args, **kwargs)
    return compute(block, own, forward.__self__, *args, **kwargs)  # type: ignore[attr-defined]


def own_forward(forward: Function) -> Function | None:
    """The function of the class that a module's `forward` is; None for one that was replaced."""
    own: Function | None = getattr(forward, "__func__", None)
    return own


@cache
def rows_region(run_rows: Function, own: Function) -> Function:
    """Some rows of a sub-layer as a region: f(module, rows [B,K], hidden [B,N,D], *arguments of the
    call), `run_rows` being what a family declares (`Family.rows`) and `own` the forward of the
    module's class."""

    def region(module: nn.Module, rows: Tensor, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return run_rows(module, partial(own, module), rows, hidden, *args, **kwargs)

    return region
