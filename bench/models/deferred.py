"""Blocks that run on pending tensors (`pending.Pending`), so that what comes before a sub-layer that is
not run is not worked out either."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn

from ditbench.models.block_region import BlockRegion
from ditbench.models.pending import Pending, real
from ditbench.models.recorded import NOTHING, Recordings, may_be_recorded
from ditbench.models.regions import computer_of, running, running_alone

Dense = Callable[[], bool]
"""f() -> whether a sub-layer computes everything in the call of its block that begins: its route then
returns what one `run()` gave."""
Idle = Callable[[], bool]
"""f() -> whether a sub-layer computes nothing in the call of its block that begins: its route then
looks neither at its input nor at `run`."""
OutputsOnly = Callable[[], bool]
"""f() -> whether a sub-layer that computes everything goes by its output alone: its route then looks at
neither its input nor what goes on inside `run()`."""

DEFERRED: WeakSet[Any] = WeakSet()
"""The forwards that hand what is pending to a block. `routes` of one: what its sub-layers say of the
call that begins; `standing`: their routes that can be asked before or after it, by module; `region`:
these, and the block as a region of theirs."""


HOOK, INSIDE = "_hf_hook", "_old_forward"
"""Attributes of a module that accelerate has put a hook round: the hook, and the forward it calls."""
TRANSPARENT: WeakSet[Any] = WeakSet()
"""Forwards put in place of a block's own that hand on what they are given, pending or not: those of
`simulation.replay`."""


class Standing:
    """The route of a sub-layer in a block that runs on pending tensors, which may be asked before the
    block runs for what stands for the sub-layer's output, or after it has run."""

    __slots__ = ("_idle", "_output", "_outputs_only", "_route", "alone", "giving", "places")

    def __init__(
        self,
        route: Callable[[Any, Any], Any],
        idle: Idle | None,
        outputs_only: OutputsOnly | None = None,
        giving: nn.Module | None = None,
    ) -> None:
        """`giving`: the module whose output is the sub-layer's; None where there is none such."""
        self._route, self._idle, self._outputs_only = route, idle, outputs_only
        self.giving = giving
        self.places: list[tuple[nn.Module, ref[Any]]] = []
        """Modules whose `forward` was replaced to put the route in, and by what: what stands there leads
        back here, and where somebody keeps it by a weak key it must be let go."""
        self.alone = True
        """Whether these had the forwards of their classes before."""
        self._output: Any = NOTHING

    def patching(self, patch: Callable[[Any, str, Any], Any]) -> Callable[[Any, str, Any], Any]:
        """`patch`, which puts the route in."""

        def noting(owner: Any, name: str, value: Any) -> Any:
            self.alone &= "forward" not in vars(owner)
            self.places.append((owner, ref(value)))
            return patch(owner, name, value)

        return noting

    def _is_outermost(self) -> bool:
        """Whether nobody stands round it."""
        return all(vars(owner).get("forward", NOTHING) is own() for owner, own in self.places)

    def is_idle(self) -> bool:
        """Whether nothing of the sub-layer is run in the call of the block that begins."""
        return self._idle is not None and self._is_outermost() and self._idle()

    def is_by_output(self) -> bool:
        """Whether the route can be asked after the block has run, where it computes everything: nobody
        else has replaced the sub-layer, and it goes by its output alone."""
        if self._outputs_only is None or self.giving is None or not self.alone:
            return False
        return self._is_outermost() and self._outputs_only()

    def output(self) -> Any:
        """What the route returns where it is idle."""
        return self._route(_runs_nothing, _UNSEEN)

    def give(self, output: Any) -> None:
        """The route is not asked in the call of the block that begins: this is its output."""
        self._output = output

    def asked(self, run: Any, hidden: Any) -> Any:
        """The route as the block asks it."""
        output, self._output = self._output, NOTHING
        return self._route(run, hidden) if output is NOTHING else output

    def hand(self, output: Any) -> None:
        """Ask the route, where the block has run and this is what the sub-layer gave. RuntimeError where
        it returns something else, asks for less or looks at its input."""

        def run(*chosen: Any, **more: Any) -> Any:
            if any(one is not None for one in (*chosen, *more.values())):
                raise RuntimeError(
                    "a route that said it computes all of its sub-layer asks for a part of it"
                )
            return output

        if self._route(run, _UNLOOKED) is not output:
            raise RuntimeError(
                "a route that said it computes all of its sub-layer returns something else than that"
            )


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


def defer(
    block: nn.Module,
    names: tuple[str, ...],
    patch: Callable[[Any, str, Any], Any],
    dense: Dense | None = None,
    *,
    casts: bool = False,
    standing: Standing | None = None,
    part: nn.Module | None = None,
    parts: int = 0,
) -> bool:
    """Have a block run on pending tensors: its arguments of these names. It returns tensors.

    Called once for each route of a sub-layer. Where all of them say by `dense` that everything is
    computed, the block runs as it is: nothing would stay pending, and noting it takes the host time.
    Not where the block `casts` another type to float32 and back (`Family.casts`), which is less work on
    pending tensors. Where a `Computer` has its regions, it runs as one of them, if all that are
    rerouted go by their outputs alone (`block_region.py`).

    `standing`: the route of the sub-layer `part`, where it can say that it computes nothing, or goes by
    its output alone. Where those of all `parts` of the block's sub-layers are idle, the block's own Python
    is run once, and what it does is then repeated from a list (`recorded.py`).

    Returns whether it does: not where somebody else has replaced its forward, who would get them.
    Where accelerate has (sequential offloading, of blocks with parameters of their own), what its
    hook calls is replaced instead: it hands on tensors.
    """
    place = INSIDE if {HOOK, INSIDE} <= {*vars(block)} else "forward"
    own: Any = vars(block).get(place)
    if own in DEFERRED:
        patch(own, "routes", (*own.routes, dense))  # a route taken back is asked no more
        if standing is not None:
            patch(own, "standing", {**own.standing, part: standing})
        return True
    if place == INSIDE and getattr(own, "__func__", None) is type(block).forward:
        own = None
    if own is not None and own not in TRANSPARENT:
        return False
    original = getattr(block, place)
    places = [
        i
        for i, name in enumerate(list(inspect.signature(type(block).forward).parameters)[1:])
        if name in names
    ]

    def is_dense() -> bool:
        return all(known is not None and known() for known in forward.routes)

    def dense_block(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the block returns, run without pending tensors; `NOTHING` where it is not."""
        if (computer := computer_of(block)) is None:
            given = (*args, *kwargs.values()) if casts else ()
            if any(x.dtype != torch.float32 for x in given if isinstance(x, Tensor)):
                return NOTHING
            return original(*args, **kwargs)
        routes = forward.standing.values()
        if len(routes) != len(forward.routes) or own is not None:
            return NOTHING
        for route in routes:
            if not route.is_by_output():
                return NOTHING
        if forward.region is None or forward.region[0] is not forward.standing:
            routed = [module for route in routes for module, _ in route.places]
            made = BlockRegion(block, routed, [route.giving for route in routes])
            forward.region = forward.standing, made
        if (done := forward.region[1].compute(computer, args, kwargs)) is None:
            return NOTHING
        for route, output in zip(routes, done[1], strict=True):
            route.hand(output)
        return done[0]

    def idle_routes() -> tuple[Standing, ...]:
        """The routes, where none of the block's sub-layers is run; else none."""
        routes = forward.standing.values()
        if len(routes) != parts or not may_be_recorded():
            return ()
        for route in routes:
            if not route.is_idle():
                return ()
        return tuple(routes)

    def running_on(*args: Any, **kwargs: Any) -> Any:
        if is_dense() and (done := dense_block(args, kwargs)) is not NOTHING:
            return done
        if not (routes := idle_routes()) or (call := recordings.given(args, kwargs)) is None:
            return on_pending(args, kwargs)
        outputs = [route.output() for route in routes]
        if (done := call.repeated(outputs)) is not NOTHING:
            return done
        for route, output in zip(routes, outputs, strict=True):
            route.give(output)
        try:
            routed = {module for route in routes for module, _ in route.places}
            # also where a `Computer` has the regions of the block: a list takes less than its calls
            return call.noted(lambda: on_pending(args, dict(kwargs), running_alone()), routed)
        finally:
            for route in routes:
                route.give(NOTHING)

    def on_pending(args: Any, kwargs: Any, by: AbstractContextManager[None] | None = None) -> Any:
        waiting = list(args)
        for i in places:
            if i < len(waiting) and isinstance(waiting[i], Tensor):
                waiting[i] = Pending(waiting[i])
        for name in names:
            if isinstance(kwargs.get(name), Tensor):
                kwargs[name] = Pending(kwargs[name])
        with by or running(block):
            return real(original(*waiting, **kwargs))

    forward: Any = running_on
    recordings = Recordings(block)
    forward.routes = (dense,)
    forward.standing = {} if standing is None else {part: standing}
    forward.region = None
    DEFERRED.add(forward)
    patch(block, place, forward)
    return True
