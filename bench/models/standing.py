"""The routes of a block's sub-layers, asked for what they will do when a call of the block begins: which
sub-layers are run, and what stands for the output of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ditbench.models.pending import Pending

Dense = Callable[[], bool]
"""f() -> whether a sub-layer computes everything in the call of its block that begins: its route then
returns what one `run()` gave."""
Idle = Callable[[], bool]
"""f() -> whether a sub-layer computes nothing in the call of its block that begins: its route then
looks neither at its input nor at `run`, and is asked before the others of the block are run."""
OutputsOnly = Callable[[], bool]
"""f() -> whether a sub-layer that computes everything goes by its output alone: its route then looks at
neither its input nor what goes on inside `run()`."""
Enter = Callable[[Any, Any, Any], Any]
"""f(hidden, further arguments, keyword arguments) -> the sub-layer's output, by its route."""
NOTHING = object()
LOOKED_AT = 4
"""Calls of `Standing.hand` in which it is looked at what a route writes into: the first of a
generation's passes and some when something is kept. Every call would take the host time."""
IDLE, WHOLE, PART = "", "whole", "part"
"""What a route says of its sub-layer in the call of the block that begins: nothing of it is run; all of
it; or something in between, such as some rows, by what its input is made of."""


class Standing:
    """The outermost route of a sub-layer in a block that runs on pending tensors, which may be asked
    before the block runs what it will do, and for what stands for an output that is not computed; or
    after it has run."""

    __slots__ = (
        "_dense", "_handed", "_idle", "_output", "_outputs_only", "_route", "alone", "enter", "giving",
        "places", "unreplaced", "watcher",
    )  # fmt: skip

    def __init__(
        self,
        route: Callable[[Any, Any], Any],
        idle: Idle | None,
        dense: Dense | None,
        outputs_only: OutputsOnly | None = None,
        giving: nn.Module | None = None,
    ) -> None:
        """`giving`: the module whose output is the sub-layer's; None where there is none such."""
        self._route, self._idle, self._dense = route, idle, dense
        self._outputs_only, self.giving = outputs_only, giving
        self.unreplaced = True
        """Whether the modules in `places` had the forwards of their classes before."""
        self.places: list[tuple[nn.Module, ref[Any]]] = []
        """Modules whose `forward` was replaced to put the route in, and by what: what stands there leads
        back here, and where somebody keeps it by a weak key it must be let go."""
        self.alone = False
        """Whether `run` of the route is the sub-layer's own computation, and not another route's."""
        self._handed = 0
        self._output: Any = NOTHING
        self.enter: Enter = _nowhere
        """Has the route asked for the output, given what the sub-layer is called with."""
        self.watcher: Enter | None = None
        """Who is called in place of `enter`, with the same."""

    def patching(self, patch: Callable[[Any, str, Any], Any]) -> Callable[[Any, str, Any], Any]:
        """`patch`, which puts the route in."""

        def noting(owner: Any, name: str, value: Any) -> Any:
            self.unreplaced &= "forward" not in vars(owner)
            self.places.append((owner, ref(value)))
            return patch(owner, name, value)

        return noting

    def runs(self) -> str | None:
        """What is run of the sub-layer in the call of the block that begins: `IDLE`, `WHOLE` or `PART`;
        None where nobody knows."""
        if self._idle is None or not self._is_outermost():
            return None
        if self._idle():
            return IDLE
        if self._dense is None:
            return None
        return WHOLE if self.alone and self._dense() else PART

    def _is_outermost(self) -> bool:
        """Whether nobody stands round it."""
        return all(vars(owner).get("forward", NOTHING) is own() for owner, own in self.places)

    def is_by_output(self) -> bool:
        """Whether the route can be asked after the block has run, where it computes everything: nobody
        else has replaced the sub-layer, and it goes by its output alone."""
        if self._outputs_only is None or self.giving is None or not self.unreplaced:
            return False
        return self._is_outermost() and self._outputs_only()

    def hand(self, output: Any) -> None:
        """Ask the route, where the block has run and this is what the sub-layer gave. RuntimeError where
        it returns something else, asks for less, looks at its input, or writes into the output: the
        block has used that."""

        def run(*chosen: Any, **more: Any) -> Any:
            if any(one is not None for one in (*chosen, *more.values())):
                raise RuntimeError(
                    "a route that said it computes all of its sub-layer asks for a part of it"
                )
            return output

        self._handed += 1
        if self._handed > LOOKED_AT:
            returned = self._route(run, _UNLOOKED)
        else:
            with _Unwritten(output):
                returned = self._route(run, _UNLOOKED)
        if not _is_same(returned, output):
            raise RuntimeError(
                "a route that said it computes all of its sub-layer returns something else than that"
            )

    def output(self) -> Any:
        """What the route returns where nothing is run."""
        return self._route(_runs_nothing, _UNSEEN)

    def give(self, output: Any) -> None:
        """The route is not asked in the call of the block that begins: this is its output."""
        self._output = output

    def give_computed(self, output: Any) -> None:
        """The same for an output that was computed, which a kernel of outputs that are not has no part
        in."""
        several = isinstance(output, tuple)
        self._output = tuple(map(_settled, output)) if several else _settled(output)

    def asked(self, run: Any, hidden: Any) -> Any:
        """The route as the block asks it."""
        output, self._output = self._output, NOTHING
        return self._route(run, hidden) if output is NOTHING else output


def entered_by(enter: Enter, route: Any, *, alone: bool) -> Enter:
    """`enter`, as whoever calls the sub-layer calls it; `route`: what it asks, which is
    `Standing.asked` where the route says what it will do."""
    standing = getattr(route, "__self__", None)
    if not isinstance(standing, Standing):
        return enter
    standing.enter, standing.alone = enter, alone

    def entered(hidden: Any, rest: Any, kwargs: Any) -> Any:
        watcher = standing.watcher
        return (enter if watcher is None else watcher)(hidden, rest, kwargs)

    return entered


class _Unwritten(TorchDispatchMode):
    """Inside, nothing is written into a sub-layer's output. RuntimeError for who does."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._memory = {part.untyped_storage()._cdata for part in _tensors(output)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable and self._memory:
            for i, argument in enumerate(func._schema.arguments):
                given = args[i] if i < len(args) else kwargs.get(argument.name)
                if argument.is_write and self._has(given):
                    raise RuntimeError(
                        "a route that said it goes by the output of its sub-layer alone writes into it"
                    )
        return func(*args, **kwargs)

    def _has(self, given: Any) -> bool:
        return any(part.untyped_storage()._cdata in self._memory for part in _tensors(given))


def _tensors(given: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


def _is_same(returned: Any, output: Any) -> bool:
    """Whether it is the output, or a tuple of the same tensors."""
    if isinstance(output, tuple) and isinstance(returned, tuple) and len(returned) == len(output):
        return all(one is other for one, other in zip(returned, output, strict=True))
    return returned is output


def _settled(part: Any) -> Any:
    return Pending(part) if isinstance(part, Tensor) else part


def _nowhere(*_: Any) -> Any:
    raise RuntimeError("a route that stands nowhere is entered")


def _runs_nothing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a route that said it computes nothing of its sub-layer runs it")


class _Unseen:
    """Stands for the input of a sub-layer whose route said that it does not look at it."""

    said = "it computes nothing of its sub-layer"

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"a route that said {type(self).said} looks at its input")

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        return cls().values


class _Unlooked(_Unseen):
    """The same, of a sub-layer that is computed."""

    said = "it goes by the output of its sub-layer alone"


_UNSEEN, _UNLOOKED = _Unseen(), _Unlooked()
