"""Notes what a block does when it runs on pending tensors, but for what its sub-layers do that are run:
what they are given, and what they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from ditbench.models.fused_rows import PutRows, normalised
from ditbench.models.operation_list import HostReads, Operations, Unknown
from ditbench.models.pending import ADD, CAST, Pending, real
from ditbench.models.standing import PART, Enter, Standing

_Made = Callable[[Sequence[Tensor]], Any]
"""f(tensors) -> something made of them."""


class Watch:
    """Notes what a block does, but for what its sub-layers do."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self.parts: list[nn.Module] = []
        """The modules it calls."""
        self.forms: dict[int, Any] = {}
        """Of the output of each sub-layer that was run."""
        self._called: dict[int, tuple[Any, Any]] = {}
        self._settled: list[Pending] = []

    def __enter__(self) -> None:
        self._open = ExitStack()
        noting = every_module.register_module_forward_pre_hook
        self._open.callback(noting(lambda part, _: self.parts.append(part)).remove)
        self._open.enter_context(self.operations)
        self._open.enter_context(HostReads(self.operations))

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @contextmanager
    def between(self, routes: Sequence[tuple[Standing, str]]) -> Iterator[None]:
        """Inside, these are called unnoted, where they run."""
        running = [(i, route, runs) for i, (route, runs) in enumerate(routes) if runs]
        try:
            for place, route, runs in running:
                route.watcher = partial(self._run, place, route, runs)
            yield
        finally:
            for _, route, _ in running:
                route.watcher = None

    def _run(
        self, place: int, route: Standing, runs: str, hidden: Any, rest: Any, kwargs: Any
    ) -> Any:
        asked, operations = hidden, self.operations
        if runs == PART and isinstance(hidden, Pending):
            template, leaves = template_of(hidden)
            hidden = template(*leaves)
            operations.note_made(hidden, template, leaves)
        else:
            hidden = real(hidden)
        given = (hidden, *real((tuple(rest), kwargs)))
        if torch._C._len_torch_dispatch_stack() + torch._C._len_torch_function_stack() != 2:
            operations.why = "the block has a mode of its own"
            return route.enter(*given)
        noted = tuple(leaves_of(hidden)), *given[1:]
        waited = isinstance(hidden, Pending) and hidden.waits
        self._open.close()
        try:
            output = route.enter(*given)
        finally:
            self.__enter__()
        if place in self._called:
            operations.why = "a sub-layer is called twice"
        self._called[place], self.forms[place] = (noted, output), form_of(output)
        operations.note_called(place, given, output)
        if waited and hidden is not asked and not hidden.waits:
            self._settled.append(asked)
        return output

    def again(self) -> Mapping[int, Enter]:
        """Sub-layers that give what they gave, for the same. Raises `Unknown` where the block has used
        an input that was worked out by its sub-layer, who may do that in another way."""
        if any(not asked.waits for asked in self._settled):
            raise Unknown("the input of a sub-layer is used by the block too")

        def of(given: Any, output: Any) -> Enter:
            def run(hidden: Any, rest: Any, kwargs: Any) -> Any:
                if not same((tuple(leaves_of(hidden)), rest, kwargs), given):
                    raise Unknown("a sub-layer is given something else")
                return _to_be_written(output)

            return run

        return {place: of(*called) for place, called in self._called.items()}


def template_of(pending: Pending) -> tuple[Callable[..., Pending], list[Tensor]]:
    """What is pending as a function of tensors, and these: norm, modulation and casts wait, for some
    rows of them may be worked out alone (`token_rows.take`, `fused_rows.taken`), and what they are made
    of does not."""
    leaves: list[Tensor] = []

    def of(node: Any) -> _Made:
        if isinstance(node, Pending) and node.waits and _stays(node):
            kind, operation = node.kind, _operation_of(node.operation, of)
            parts = [of(arg) for arg in node.args]
            return lambda given: Pending(
                None, kind, operation(given), tuple([part(given) for part in parts])
            )
        if isinstance(node, (Pending, Tensor)):
            place = len(leaves)
            leaves.append(real(node))
            return lambda given: given[place]
        return lambda _: node

    make, shape, dtype = of(pending), tuple(pending.shape), pending.dtype

    def template(*given: Tensor) -> Pending:
        made = make(given)
        if isinstance(made, Tensor):
            return Pending(made)
        made.know(shape, dtype)
        whole: Pending = made
        return whole

    return template, leaves


def _stays(node: Pending) -> bool:
    plus_one = node.kind == ADD and any(arg == 1 for arg in node.args if isinstance(arg, int))
    return node.kind == CAST or plus_one or normalised(node)


def _operation_of(operation: Any, of: Callable[[Any], _Made]) -> _Made:
    """An operation, with what it is given by keyword made anew."""
    if not isinstance(operation, partial):
        return lambda _: operation
    function, named = operation.func, {key: of(arg) for key, arg in operation.keywords.items()}
    return lambda given: partial(function, **{key: make(given) for key, make in named.items()})


def leaves_of(given: Any) -> Iterator[Any]:
    """Of what is pending all that it is made of, in order; of something else itself."""
    if not isinstance(given, Pending) or not given.waits:
        yield real(given)
        return
    yield given.kind
    named = given.operation.keywords.values() if isinstance(given.operation, partial) else ()
    for arg in (*given.args, *named):
        yield from leaves_of(arg)


def _to_be_written(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(map(_to_be_written, output))
    return PutRows(*output.args) if isinstance(output, PutRows) else output


def form_of(output: Any) -> Any:
    """What the operations that follow on a sub-layer depend on, but for the numbers; None where it is
    not known."""
    kind = type(output)
    if kind is Tensor:
        return output.shape, output.dtype, output.stride(), output.device
    if kind is tuple:
        forms = tuple(map(form_of, output))
        known = all(
            form is not None or part is None for form, part in zip(forms, output, strict=True)
        )
        return forms if known else None
    if kind is PutRows and output.is_unwritten:
        kept, _, _, new, *_ = output.args
        return "rows", form_of(kept), new.dtype, new.stride(-1)
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
