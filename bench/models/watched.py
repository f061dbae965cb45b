"""Notes what a block does when it runs on pending tensors, but for what its sub-layers do that are run:
what they are given, and what they give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from ditbench.models.operation_list import HostReads, Operations, Unknown
from ditbench.models.pending import real
from ditbench.models.standing import Enter, Standing


class Watch:
    """Notes what a block does, but for what its sub-layers do."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self.parts: list[nn.Module] = []
        """The modules it calls."""
        self.forms: dict[int, Any] = {}
        """Of the output of each sub-layer that was run."""
        self._called: dict[int, tuple[Any, Any]] = {}

    def __enter__(self) -> None:
        self._open = ExitStack()
        noting = every_module.register_module_forward_pre_hook
        self._open.callback(noting(lambda part, _: self.parts.append(part)).remove)
        self._open.enter_context(self.operations)
        self._open.enter_context(HostReads(self.operations))

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @contextmanager
    def between(self, routes: Sequence[tuple[Standing, bool]]) -> Iterator[None]:
        """Inside, these are called unnoted, where they run."""
        running = [(i, route) for i, (route, runs) in enumerate(routes) if runs]
        try:
            for place, route in running:
                route.watcher = partial(self._run, place, route)
            yield
        finally:
            for _, route in running:
                route.watcher = None

    def _run(self, place: int, route: Standing, hidden: Any, rest: Any, kwargs: Any) -> Any:
        given = real((hidden, tuple(rest), kwargs))
        if torch._C._len_torch_dispatch_stack() + torch._C._len_torch_function_stack() != 2:
            self.operations.why = "the block has a mode of its own"
            return route.enter(*given)
        self._open.close()
        try:
            output = route.enter(*given)
        finally:
            self.__enter__()
        if place in self._called:
            self.operations.why = "a sub-layer is called twice"
        self._called[place], self.forms[place] = (given, output), form_of(output)
        self.operations.note_called(place, given, output)
        return output

    def again(self) -> Mapping[int, Enter]:
        """Sub-layers that give what they gave, for the same."""

        def of(given: Any, output: Any) -> Enter:
            def run(*now: Any) -> Any:
                if not same(now, given):
                    raise Unknown("a sub-layer is given something else")
                return output

            return run

        return {place: of(*called) for place, called in self._called.items()}


def form_of(output: Any) -> Any:
    """What the operations that follow on a sub-layer depend on, but for the numbers; None where it is
    not known."""
    if type(output) is Tensor:
        return output.shape, output.dtype, output.stride(), output.device
    if type(output) is tuple and Tensor in (kinds := [*map(type, output)]):
        known = all(kind is Tensor or kind is type(None) for kind in kinds)
        return tuple(map(form_of, output)) if known else None
    return None


def same(one: Any, other: Any) -> bool:
    """Whether two outcomes are alike, and of the same numbers."""
    if isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(other, dict):
        return [*one] == [*other] and all(map(same, one.values(), other.values()))
    if not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype or one.stride() != other.stride():
        return False
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
