"""Blocks that run on pending tensors (`pending.Pending`), so that what comes before a sub-layer that is
not run is not worked out either."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ditbench.models.block_region import BlockRegion, may_stand
from ditbench.models.pending import Pending, real
from ditbench.models.recorded import Recordings, may_be_recorded
from ditbench.models.regions import computer_of, running, running_alone
from ditbench.models.standing import NOTHING, WHOLE, Dense, Standing

DEFERRED: WeakSet[Any] = WeakSet()
"""The forwards that hand what is pending to a block. `routes` of one: what its sub-layers say of the
call that begins; `standing`: their routes that can be asked before or after it, by module;
`regions`: these, and the block as a region of theirs, by which of its sub-layers are computed."""


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
    computed go by their outputs alone (`block_region.py`), and of the others nothing is computed.

    `standing`: the route of the sub-layer `part`, where it can say that it computes nothing, or goes by
    its output alone. Where those of all `parts` of the block's sub-layers can say the first, the block's own
    Python is run once, and what it does round those that are run is then repeated from a list
    (`recorded.py`); where a `Computer` has its regions, if none of them is run.

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
        routes = [(route, WHOLE) for route in forward.standing.values()]
        if len(routes) != len(forward.routes) or (region := region_for(computer, routes)) is None:
            return NOTHING
        return in_one_region(region, computer, args, kwargs, routes, {})

    def region_of(routes: Sequence[tuple[Standing, str]]) -> BlockRegion:
        """The block as a region that computes what these run of their sub-layers, wholly or nothing."""
        if forward.regions[0] is not forward.standing:
            forward.regions = forward.standing, {}
        computed = tuple([bool(runs) for _, runs in routes])
        if computed not in forward.regions[1]:
            routed = [module for route, _ in routes for module, _ in route.places]
            giving = [route.giving for route, _ in routes if route.giving is not None]
            forward.regions[1][computed] = BlockRegion(block, routed, giving, computed)
        made: BlockRegion = forward.regions[1][computed]
        return made

    def region_for(computer: Any, routes: Sequence[tuple[Standing, str]]) -> BlockRegion | None:
        """The block with what these run as a region; None where it can be none."""
        if own is not None or any(route.giving is None for route, _ in routes):
            return None
        computed = [(route, runs) for route, runs in routes if runs]
        if any(runs != WHOLE or not route.is_by_output() for route, runs in computed):
            return None
        region = region_of(routes)
        return region if region.fits(computer) else None

    def in_one_region(
        region: BlockRegion, computer: Any, args: Any, kwargs: Any,
        routes: Sequence[tuple[Standing, str]], outputs: Mapping[int, Any],
    ) -> Any:  # fmt: skip
        """What the block returns, and routes are handed what their sub-layers gave; `NOTHING` where it
        is no region after all. `outputs`: by place, those of sub-layers that are not run."""
        done = region.compute(computer, args, kwargs, outputs)
        if done is None:
            return NOTHING
        for (route, _), output in zip([r for r in routes if r[1]], done[1], strict=True):
            route.hand(output)
        return done[0]

    def known_ahead() -> list[tuple[Standing, str]]:
        """The routes, and what each runs of its sub-layer; none where one does not say."""
        routes = forward.standing.values()
        if len(routes) != parts or not may_be_recorded():
            return []
        found = []
        for route in routes:
            if (runs := route.runs()) is None:
                return []
            found.append((route, runs))
        return found

    def running_on(*args: Any, **kwargs: Any) -> Any:
        if is_dense() and (done := dense_block(args, kwargs)) is not NOTHING:
            return done
        found = known_ahead()
        if found and (computer := computer_of(block)) and any(runs for _, runs in found):
            if (region := region_for(computer, found)) is None:
                return on_pending(args, kwargs)
            outputs = {i: route.output() for i, (route, runs) in enumerate(found) if not runs}
            if all(map(may_stand, outputs.values())):
                done = in_one_region(region, computer, args, kwargs, found, outputs)
                if done is not NOTHING:
                    return done
            for i, output in outputs.items():
                found[i][0].give(output)
            try:
                return on_pending(args, kwargs)
            finally:
                for route, _ in found:
                    route.give(NOTHING)
        if not found or (call := recordings.given(args, kwargs, found)) is None:
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
    forward.regions = None, {}
    DEFERRED.add(forward)
    patch(block, place, forward)
    return True
