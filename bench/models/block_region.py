"""A block that computes all of its sub-layers, as one region which gives what they gave too.

Routes keep the outputs of sub-layers, so that a sub-layer, and what comes between two of them, would each
be a region of its own. Where nothing is decided inside, the block's own forward is the region, with the
sub-layers' outputs handed out beside its own; the routes are asked afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

from ditbench.models.regions import Computer, Function

NOTHING = object()


class BlockRegion:
    """One block as a region."""

    def __init__(
        self, block: nn.Module, routed: Sequence[nn.Module], giving: Sequence[nn.Module]
    ) -> None:
        """`routed`: modules in place of whose forwards routes are; `giving`: those of them whose outputs
        are the sub-layers', in the order in which the sub-layers run."""
        self.block, self.routed = block, frozenset(routed)
        self._outputs: list[tuple[int, Any]] = []
        self._places = range(len(giving))
        noting = {module: _noting(module, i, self._outputs) for i, module in enumerate(giving)}
        self._inside = [(vars(module), noting.get(module)) for module in self.routed]
        self._region = region_of(type(block).forward)
        self._fits = True

    def compute(
        self, computer: Computer, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, list[Any]] | None:
        """(what the block returns, the outputs of the sub-layers in their order), by `computer`; None
        where that cannot be had, as of a block that calls a sub-layer several times, a chunk each."""
        if not self._fits or not computer.takes_block(self.routed):
            return None
        routes = [attributes.pop("forward") for attributes, _ in self._inside]
        try:
            for attributes, noting in self._inside:
                if noting is not None:
                    attributes["forward"] = noting
            result, given = computer(self._region, self.block, self._outputs, *args, **kwargs)
        finally:
            self._outputs.clear()
            for (attributes, _), route in zip(self._inside, routes, strict=True):
                attributes["forward"] = route
        if [place for place, _ in given] != [*self._places]:
            self._fits = False
            return None
        return result, [output for _, output in given]


@cache
def region_of(own: Function) -> Function:
    """f(block, outputs, *arguments of the block) -> (what `own`, the forward of its class, returns, what
    was appended to the list `outputs` meanwhile, as a tuple)."""

    def region(block: nn.Module, outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        outputs.clear()
        result = own(block, *args, **kwargs)
        given = tuple(outputs)
        outputs.clear()
        return result, given

    region.__qualname__ = f"{own.__qualname__} with outputs"  # as the note names it
    return region


def _noting(module: nn.Module, place: int, outputs: list[tuple[int, Any]]) -> Function:
    """The forward of the module's class, which appends (place, what it returns) to `outputs`."""
    own = type(module).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = own(module, *args, **kwargs)
        outputs.append((place, out))
        return out

    return forward
