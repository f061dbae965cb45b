"""Blocks that run on pending tensors (`pending.Pending`), so that what comes before a sub-layer that is
not run is not worked out either."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ditbench.models.pending import Pending, real
from ditbench.models.regions import computer_of, running

Dense = Callable[[], bool]
"""f() -> whether a sub-layer computes everything in the call of its block that begins."""

DEFERRED: WeakSet[Any] = WeakSet()
"""The forwards that hand what is pending to a block; `routes` of one: what its sub-layers say of the
call that begins."""


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
) -> bool:
    """Have a block run on pending tensors: its arguments of these names. It returns tensors.

    Called once for each route of a sub-layer. Where all of them say by `dense` that everything is
    computed, the block runs as it is: nothing would stay pending, and noting it takes the host time.
    Not where a `Computer` has its regions, nor where the block `casts` another type to float32 and
    back (`Family.casts`), which is less work on pending tensors.

    Returns whether it does: not where somebody else has replaced its forward, who would get them.
    Where accelerate has (sequential offloading, of blocks with parameters of their own), what its
    hook calls is replaced instead: it hands on tensors.
    """
    place = INSIDE if {HOOK, INSIDE} <= {*vars(block)} else "forward"
    own: Any = vars(block).get(place)
    if own in DEFERRED:
        patch(own, "routes", (*own.routes, dense))  # a route taken back is asked no more
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

    def as_it_is(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        if computer_of(block) is not None or not all(known and known() for known in forward.routes):
            return False
        given = (*args, *kwargs.values()) if casts else ()
        return all(x.dtype == torch.float32 for x in given if isinstance(x, Tensor))

    def running_on(*args: Any, **kwargs: Any) -> Any:
        if as_it_is(args, kwargs):
            return original(*args, **kwargs)
        waiting = list(args)
        for i in places:
            if i < len(waiting) and isinstance(waiting[i], Tensor):
                waiting[i] = Pending(waiting[i])
        for name in names:
            if isinstance(kwargs.get(name), Tensor):
                kwargs[name] = Pending(kwargs[name])
        with running(block):
            return real(original(*waiting, **kwargs))

    forward: Any = running_on
    forward.routes = (dense,)
    DEFERRED.add(forward)
    patch(block, place, forward)
    return True
