"""Blocks that run on pending tensors (`pending.Pending`), so that what comes before a sub-layer that is
not run is not worked out either."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ditbench.models.block_region import BlockRegion
from ditbench.models.pending import Pending, real
from ditbench.models.recorded import Recordings, may_be_recorded
from ditbench.models.regions import computer_of, running, running_alone
from ditbench.models.standing import NOTHING, Dense, Standing

DEFERRED: WeakSet[Any] = WeakSet()
"""The forwards that hand what is pending to a block. `routes` of one: what its sub-layers say of the
call that begins; `standing`: their routes that can be asked before or after it, by module; `region`:
these, and the block as a region of theirs."""


HOOK, INSIDE = "_hf_hook", "_old_forward"
"""Attributes of a module that accelerate has put a hook round: the hook, and the forward it calls."""
TRANSPARENT: WeakSet[Any] = WeakSet()
"""Forwards put in place of a block's own that hand on what they are given, pending or not: those of
`simulation.replay`."""


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
    its output alone. Where those of all `parts` of the block's sub-layers can say the first, the block's own
    Python is run once, and what it does round those that are run is then repeated from a list
    (`recorded.py`); where a `Computer` has its regions, if none of them is.

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

    def known_ahead() -> list[tuple[Standing, str]]:
        """The routes, and what each runs of its sub-layer; none where one does not say."""
        routes = forward.standing.values()
        if len(routes) != parts or not may_be_recorded():
            return []
        found, alone = [], computer_of(block) is None
        for route in routes:
            if (runs := route.runs()) is None or (runs and not alone):
                return []
            found.append((route, runs))
        return found

    def running_on(*args: Any, **kwargs: Any) -> Any:
        if is_dense() and (done := dense_block(args, kwargs)) is not NOTHING:
            return done
        if not (found := known_ahead()) or (call := recordings.given(args, kwargs, found)) is None:
            return on_pending(args, kwargs)
        if (done := call.repeated()) is not NOTHING:
            return done
        try:
            # also where a `Computer` has the regions of the block: a list takes less than its calls
            return call.noted(lambda: on_pending(args, dict(kwargs), running_alone()))
        finally:
            for route, _ in found:
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
