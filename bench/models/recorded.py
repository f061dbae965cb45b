"""What a block does when none of its sub-layers is run, as a flat list of operations: its own forward
is run once on pending tensors, what that does to real tensors is noted, and later calls do the same
without it.

The gates made of the time embedding and the sums with the stream are a few operations; running the
block's Python on pending tensors to find them again takes the host ten times as long as launching
them. The list holds the operations of torch themselves, in their order, with what the outcome does
not need left out: the values are the same bits. Whatever is not known to be as it was (`Recordings`)
runs as if there were no list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from ditbench.models.fused_rows import kernel_of
from ditbench.models.gated import Gated
from ditbench.models.operation_list import Operations, Unknown, function_of, needed
from ditbench.models.regions import running_computer

MOST_LISTS = 16
"""Of a block; of more, the oldest goes."""
SETTINGS = (int, float, str, type(None))
"""Types of attributes of modules that may decide what they do (bool is an int)."""
CONSTANTS = frozenset({int, bool, str, float, torch.dtype})
"""Types of arguments that are compared by their values."""
LIBRARIES = ("torch", "diffusers")
"""Packages whose modules do the same to the same tensors, their hooks, settings and forwards being
what they were."""
NOTHING = object()
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Recordings:
    """The lists of one block, by all that decides what it does: types, shapes, strides and devices of
    what it is given and of what stands for its sub-layers, its other arguments, the modes of torch
    and who computes sums (`fused_rows.kernel_of`). The modules that it calls must be as they were:
    of torch or diffusers, without hooks, with the same settings, forwards and parameters' types."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.lists: dict[Any, _List | None] = {}
        """None: what cannot be noted."""

    def given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
        """A call with these arguments; None where something in them is not known well enough, and
        where nothing that this block does can be noted."""
        if self.lists and not any(self.lists.values()):
            return None
        try:
            return Call(self, args, kwargs)
        except Unknown:
            return None


class Call:
    """A call of a block none of whose sub-layers is run."""

    __slots__ = ("_given", "_inputs", "_key", "_recordings")

    def __init__(
        self, recordings: Recordings, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        self._recordings = recordings
        self._inputs: list[Tensor] = []
        self._given = tuple(kwargs), tuple(_alike([*args, *kwargs.values()], self._inputs))
        self._key: Any = None

    def repeated(self, outputs: Sequence[Any]) -> Any:
        """What the block returns, by a list, where these stand for the outputs of its sub-layers;
        `NOTHING` where none is known to give it."""
        try:
            alike = tuple(_alike(outputs, self._inputs))
        except Unknown:
            return NOTHING
        by = kernel_of(self._inputs[-1].device)
        self._key = self._given, alike, by, torch.is_inference_mode_enabled()
        known = self._recordings.lists.get(self._key)
        return NOTHING if known is None or not known.holds() else known.run(self._inputs)

    def noted(self, run: Callable[[], Any], standing: Sequence[Any]) -> Any:
        """What `run()` returns, which is the block's forward, and a list of what it does; `standing`:
        the forwards that stand in for those of its sub-layers."""
        lists, key, block = self._recordings.lists, self._key, self._recordings.block
        if key is None or lists.get(key, NOTHING) is None:
            return run()
        parts: list[nn.Module] = [block]
        operations = Operations(block, self._inputs)
        with _calls_seen(parts), operations:
            result = run()
        if len(lists) >= MOST_LISTS:
            lists.pop(next(iter(lists)))
        try:
            lists[key] = _List(operations, result, parts, standing)
        except Unknown:
            lists[key] = None
        return result


def may_be_recorded() -> bool:
    """Whether nothing watches or changes what torch does now."""
    return not (
        torch.is_grad_enabled()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._is_any_autocast_enabled()
        or running_computer() is not None
        or torch.compiler.is_compiling()
        or every_module._global_forward_hooks
        or every_module._global_forward_pre_hooks
    )


def _alike(given: Iterable[Any], inputs: list[Tensor]) -> list[Any]:
    """Of each what is the same for values that the block cannot tell apart but by the numbers in a
    tensor; the tensors in it are appended to `inputs`."""
    made: list[Any] = []
    for one in given:
        kind = type(one)
        if kind is Tensor:
            inputs.append(one)
            made += (one.shape, one.dtype, one.stride(), one.device)
        elif one is None or kind in CONSTANTS:
            made += (kind, one)
        elif kind is tuple or kind is list:
            made += (kind, len(one), *_alike(one, inputs))
        elif kind is dict:
            made += (kind, len(one), *one, *_alike(one.values(), inputs))
        elif kind is Gated and one.is_product:
            made += (kind, *_alike((one.value,), inputs))
        else:
            raise Unknown(f"{kind.__name__} in the arguments")
    return made


@contextmanager
def _calls_seen(parts: list[nn.Module]) -> Iterator[None]:
    handle = every_module.register_module_forward_pre_hook(lambda part, _: parts.append(part))
    try:
        yield
    finally:
        handle.remove()


class _List:
    """The operations as one function, and what must be as it was for it to do what the block does."""

    def __init__(
        self, operations: Operations, result: Any, parts: Sequence[nn.Module], standing: Any
    ) -> None:
        """`standing`: forwards that stand in for those of sub-layers. Raises `Unknown`."""
        if operations.why:
            raise Unknown(operations.why)
        returned = operations.named(result)
        lines, used = needed(operations, returned)
        self._parameters = []
        for name, (store, key) in operations.parameters.items():
            if name in used:
                self._parameters.append((store, key, name, _alike_parameter(store[key])))
        constants = {name: value for name, value in operations.constants.items() if name in used}
        self._function = function_of(lines, returned, [p[2] for p in self._parameters], constants)
        self._parts = _Parts(parts, standing)

    def holds(self) -> bool:
        """Whether the modules are as they were."""
        return self._parts.as_they_were() and all(
            _alike_parameter(store.get(key)) == alike for store, key, _, alike in self._parameters
        )

    def run(self, inputs: list[Tensor]) -> Any:
        """What the block returns for these."""
        return self._function(inputs, [store[key] for store, key, _, _ in self._parameters])


def _alike_parameter(tensor: Any) -> Any:
    if type(tensor) not in (Tensor, nn.Parameter):
        return None
    return type(tensor), tensor.shape, tensor.dtype, tensor.device


class _Parts:
    """The modules that a block called, itself first, and what decides what they do."""

    def __init__(self, parts: Sequence[nn.Module], standing: Any) -> None:
        unique = list({id(part): part for part in parts}.values())
        for part in unique:
            forward = vars(part).get("forward")
            if type(part).__module__.partition(".")[0] not in LIBRARIES:
                raise Unknown(f"{type(part).__name__} is of no library")
            if part is not unique[0] and forward is not None and forward not in standing:
                raise Unknown(f"{type(part).__name__} has another forward")
            if vars(part).get("_compiled_call_impl") is not None:
                raise Unknown(f"{type(part).__name__} is compiled")
        inside = unique[1:]
        self._own = [vars(part) for part in inside]
        self._forwards = [own.get("forward") for own in self._own]
        self._settings = []
        for part in unique:
            names = [name for name, value in vars(part).items() if isinstance(value, SETTINGS)]
            self._settings.append((vars(part), itemgetter(*names, "training"), None))
        self._settings = [(own, of, of(own)) for own, of, _ in self._settings]
        self._hooks = [own[name] for own in self._own for name in HOOKS]
        if any(self._hooks):
            raise Unknown("a hook on a part")

    def as_they_were(self) -> bool:
        """Whether hooks, forwards and settings are what they were."""
        if any(self._hooks):
            return False
        if list(map(dict.get, self._own, repeat("forward"))) != self._forwards:
            return False
        try:
            return all(of(own) == before for own, of, before in self._settings)
        except KeyError:
            return False
