"""A block that computes all of its sub-layers, or some and the others not at all, as one region which
gives what they gave too.

Routes keep the outputs of sub-layers, so that a sub-layer, and what comes between two of them, would each
be a region of its own. Where nothing is decided inside, the block's own forward is the region, with the
sub-layers' outputs handed out beside its own; the routes are asked afterwards. What stands for the
output of a sub-layer that is not computed is asked for before, and put in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn

from ditbench.models.regions import Computer, Function

NOTHING = object()


class BlockRegion:
    """One block as a region, of whose sub-layers the same are computed in every call."""

    def __init__(
        self,
        block: nn.Module,
        routed: Sequence[nn.Module],
        giving: Sequence[nn.Module],
        computed: Sequence[bool],
    ) -> None:
        """`routed`: modules in place of whose forwards routes are; `giving`: those of them whose outputs
        are the sub-layers', in the order in which the sub-layers run; `computed`: of each of these,
        whether it is."""
        self.block, self.routed = block, frozenset(routed)
        self._outputs: list[tuple[int, Any]] = []
        self._standing: list[Any] = [None] * len(giving)
        self._places = [place for place, runs in enumerate(computed) if runs]
        replaced = {
            module: _noting(module, i, self._outputs) if computed[i] else _giving(i, self._standing)
            for i, module in enumerate(giving)
        }
        self._inside = [(vars(module), replaced.get(module)) for module in self.routed]
        self._region = region_of(type(block).forward, tuple(computed))
        self._fits = True

    def compute(
        self,
        computer: Computer,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        standing: Mapping[int, Any],
    ) -> tuple[Any, list[Any]] | None:
        """(what the block returns, the outputs of the sub-layers that are computed, in their order), by
        `computer`, for whom it `fits`; `standing`: by place, what the others' outputs are. None where
        that cannot be had, as of a block that calls a sub-layer several times, a chunk each."""
        for place, output in standing.items():
            self._standing[place] = output
        routes = [attributes.pop("forward") for attributes, _ in self._inside]
        try:
            for attributes, forward in self._inside:
                if forward is not None:
                    attributes["forward"] = forward
            result, given = computer(self._region, self.block, self._outputs, *args, **kwargs)
        finally:
            self._outputs.clear()
            self._standing[:] = [None] * len(self._standing)
            for (attributes, _), route in zip(self._inside, routes, strict=True):
                attributes["forward"] = route
        if [place for place, _ in given] != self._places:
            self._fits = False
            return None
        return result, [output for _, output in given]

    def fits(self, computer: Computer) -> bool:
        """Whether it can be computed now, as far as that is known beforehand. What stands for an output
        stands for all of it, and not for a chunk (diffusers' `set_chunk_feed_forward`)."""
        stands = len(self._places) < len(self._standing)
        if not self._fits or (stands and getattr(self.block, "_chunk_size", None)):
            return False
        return computer.takes_block(self.routed)


def may_stand(output: Any) -> bool:
    """Whether that can be put in the place of a sub-layer's output: tensors, and nothing that is to be
    worked out, or that has a gate already."""
    parts = output if type(output) is tuple else (output,)
    return all(type(part) is Tensor for part in parts)


@cache
def region_of(own: Function, computed: tuple[bool, ...]) -> Function:
    """f(block, outputs, *arguments of the block) -> (what `own`, the forward of its class, returns, what
    was appended to the list `outputs` meanwhile, as a tuple); one for each choice of the sub-layers that
    are `computed`."""

    def region(block: nn.Module, outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        outputs.clear()
        result = own(block, *args, **kwargs)
        given = tuple(outputs)
        outputs.clear()
        return result, given

    region.__code__ = region.__code__.replace()  # by which torch counts the graphs of a function
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


def _giving(place: int, standing: list[Any]) -> Function:
    """A forward that gives what stands there."""

    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return standing[place]

    return forward
