"""What a block does round its sub-layers, as a flat list of operations and of calls of those sub-layers
that are run: its own forward is run once on pending tensors, what that does to real tensors is noted,
and later calls do the same without it.

The gates made of the time embedding and the sums with the stream are a few operations; running the
block's Python on pending tensors to find them again takes the host ten times as long as launching
them. The list holds the operations of torch themselves, in their order, with what the outcome does
not need left out: the values are the same bits. Whatever is not known to be as it was (`Recordings`)
runs as if there were no list.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from types import BuiltinFunctionType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from ditbench.models.fused_rows import kernel_of
from ditbench.models.gated import Gated
from ditbench.models.operation_list import Operations, Unknown, function_of, needed
from ditbench.models.regions import running_computer
from ditbench.models.standing import NOTHING, Enter, Standing
from ditbench.models.watched import Watch, form_of, same

MOST_LISTS = 64
"""Of a block; of more, the oldest goes."""
SETTINGS = (int, float, str, type(None), torch.dtype, FunctionType, BuiltinFunctionType)
"""Types of attributes of modules that may decide what they do (bool is an int), and tuples of them."""
ROUTED = frozenset({"forward", "_old_forward"})
"""Attributes that are a function while a method is attached."""
CONSTANTS = frozenset({int, bool, str, float, torch.dtype})
"""Types of arguments that are compared by their values."""
LIBRARIES = ("torch.", "diffusers.", "ditbench.models.")
"""Packages whose modules do the same to the same tensors, but for hooks, settings and forwards."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_LISTS: WeakKeyDictionary[nn.Module, dict[Any, _List]] = WeakKeyDictionary()
"""The lists of every block, which outlive a method: they hold nothing of it."""
_CONSTANTS: WeakValueDictionary[Any, Tensor] = WeakValueDictionary()
"""What is made of no input, such as the frequencies of a time embedding."""


def lists_of(block: nn.Module) -> list[object]:
    """The lists of a block there are now: whoever keeps them keeps the constants that they use."""
    return [*_LISTS.get(block, {}).values()]


class Recordings:
    """The lists of one block, by all that decides what it does: what is run of its sub-layers, types, shapes,
    strides and devices of what it is given and of what stands for the others, its other arguments, the
    modes of torch, its default type (of constants), and who computes sums (`fused_rows.kernel_of`). The
    modules that it calls must be as they were: of torch or diffusers, in their places, without hooks and
    forwards of their own, with the same settings, the same forwards of their classes, and parameters of
    the same types, shapes and strides. What a sub-layer that is run calls may be anything: it is run."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.lists = _LISTS.setdefault(block, {})
        self.refused: set[Any] = set()
        """Keys of what cannot be noted, under the methods that are attached."""
        self._hopeless: dict[tuple[str, ...], bool] = {}
        """Of calls that run this of the sub-layers, whether nothing could be noted so far."""

    def given(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        routes: Sequence[tuple[Standing, str]],
    ) -> Call | None:
        """A call with these arguments and routes, each with what it runs of its sub-layer; None where
        something in the arguments is not known well enough, and where nothing that this block does
        can be noted."""
        if self._hopeless and self._hopeless.get(tuple([runs for _, runs in routes])):
            return None
        try:
            return Call(self, args, kwargs, routes)
        except (Unknown, RuntimeError):  # a tensor without strides
            return None

    def refuse(self, key: Any, runs: tuple[str, ...]) -> None:
        """What has this key cannot be noted."""
        self.refused.add(key)
        self._hopeless.setdefault(runs, True)

    def keep(self, key: Any, runs: tuple[str, ...], made: _List) -> None:
        """This is the list of that key."""
        if key not in self.lists and len(self.lists) >= MOST_LISTS:
            self.lists.pop(next(iter(self.lists)))
        self.lists[key], self._hopeless[runs] = made, False


class Call:
    """A call of a block whose routes have said what they run of its sub-layers."""

    __slots__ = ("_given", "_inputs", "_key", "_recordings", "_routes", "_runs")

    def __init__(
        self,
        recordings: Recordings,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        routes: Sequence[tuple[Standing, str]],
    ) -> None:
        self._recordings, self._routes = recordings, routes
        self._runs = tuple([runs for _, runs in routes])
        self._inputs: list[Tensor] = []
        self._given = tuple(kwargs), tuple(_alike([*args, *kwargs.values()], self._inputs))
        self._key: Any = None

    def repeated(self) -> Any:
        """What the block returns, by a list. `NOTHING` where none is known to give it: the block is to
        be run, and its routes have been given what was asked of them."""
        outputs = [route.output() for route, runs in self._routes if not runs]
        if (known := self._known(outputs)) is not None:
            try:
                return known.run(self._inputs, self._sublayers(known.forms) if known.forms else ())
            except _OtherForm as other:
                if other.call is not self:
                    raise
                self._recordings.lists.pop(self._key, None)
                self._recordings.refuse(self._key, self._runs)
                for place, output in other.done:
                    self._routes[place][0].give_computed(output)
        left = iter(outputs)
        for route, runs in self._routes:
            if not runs:
                route.give(next(left))
        return NOTHING

    def _known(self, outputs: Sequence[Any]) -> _List | None:
        try:
            alike = tuple(_alike(outputs, self._inputs))
        except (Unknown, RuntimeError):
            return None
        by = kernel_of(self._inputs[-1].device)
        modes = torch.is_inference_mode_enabled(), torch.get_default_dtype()
        self._key = self._runs, self._given, alike, by, modes
        known = self._recordings.lists.get(self._key)
        return known if known is not None and known.holds(self._recordings.block) else None

    def _sublayers(self, forms: Mapping[int, Any]) -> Mapping[int, Enter]:
        """Those that are run, whose outputs are to have these forms."""
        done: list[tuple[int, Any]] = []

        def of(place: int, enter: Enter, form: Any) -> Enter:
            def run(hidden: Any, rest: Any, kwargs: Any) -> Any:
                output = enter(hidden, rest, kwargs)
                done.append((place, output))
                if form_of(output) != form:
                    raise _OtherForm(self, done)
                return output

            return run

        return {place: of(place, self._routes[place][0].enter, forms[place]) for place in forms}

    def noted(self, run: Callable[[], Any]) -> Any:
        """What `run()` returns, which is the block's forward, and a list of what it does."""
        recordings, key = self._recordings, self._key
        if key is None or key in recordings.refused or _captured(self._inputs[-1].device):
            return run()
        block = recordings.block
        watch = Watch(Operations(block, self._inputs))
        with watch, watch.between(self._routes):
            result = run()
        routed = {module for route, _ in self._routes for module, _ in route.places}
        try:
            made = _List(watch, result, _Parts(block, watch.parts, routed))
            if {*made.forms} != {i for i, runs in enumerate(self._runs) if runs}:
                raise Unknown("a sub-layer is not called")
            if not same(made.run(self._inputs, watch.again()), result):
                raise Unknown("the list gives something else")
        except Exception:  # no memory for it, say: the block itself has run
            recordings.refuse(key, self._runs)
            return result
        recordings.keep(key, self._runs, made)
        return result


class _OtherForm(Exception):
    """A sub-layer gave something of another form than when the list was made."""

    def __init__(self, call: Call, done: list[tuple[int, Any]]) -> None:
        super().__init__("the output of a sub-layer is of another form")
        self.call, self.done = call, done


def _captured(device: torch.device) -> bool:
    """Whether operations go into a CUDA graph: a list cannot be tried, which waits for numbers."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


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


class _List:
    """The operations as one function, and what must be as it was for it to do what the block does."""

    def __init__(self, watch: Watch, result: Any, parts: _Parts) -> None:
        """Raises `Unknown`."""
        operations, self.forms = watch.operations, watch.forms
        if operations.why:
            raise Unknown(operations.why)
        returned = operations.named(result)
        lines, used = needed(operations, returned)
        own = {name: of for name, of in operations.parameters.items() if name in used}
        self._parameters = [*own.values()]
        self._known = [_alike_parameter(store[name]) for store, name in self._parameters]
        constants = {n: _shared(value) for n, value in operations.constants.items() if n in used}
        self._function = function_of(lines, returned, [*own], constants)
        self._parts = parts

    def holds(self, block: nn.Module) -> bool:
        """Whether the modules of the block are as they were."""
        if not self._parts.as_they_were(block):
            return False
        found = [_alike_parameter(store.get(name)) for store, name in self._parameters]
        return found == self._known

    def run(self, inputs: list[Tensor], sublayers: Any) -> Any:
        """What the block returns for these; `sublayers[i]` is called where its `i`-th is run."""
        return self._function(inputs, [store[name] for store, name in self._parameters], sublayers)


def _shared(constant: Tensor) -> Tensor:
    """The same tensor for the same numbers, of all lists."""
    numbers = constant.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    key = constant.shape, constant.stride(), constant.dtype, constant.device, numbers
    return _CONSTANTS.setdefault(key, constant)


def _alike_parameter(tensor: Any) -> Any:
    if type(tensor) not in (Tensor, nn.Parameter):
        return None
    return type(tensor), tensor.shape, tensor.dtype, tensor.stride(), tensor.device


class _Parts:
    """The modules that a block called, and what decides what they do.

    It holds neither the block nor its attributes, among which accelerate puts the block's own forward:
    the lists are kept as long as the block, which would then be for ever."""

    def __init__(
        self, block: nn.Module, parts: Sequence[nn.Module], routed: Container[nn.Module]
    ) -> None:
        """`routed`: those in place of whose forwards the routes of sub-layers are. Raises
        `Unknown`."""
        paths = {part: path for path, part in block.named_modules()}
        self._stores: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._children: list[nn.Module] = []
        self._settings: list[tuple[dict[str, Any], Any, Any, int]] = []
        self._called = [*dict.fromkeys(parts)]
        self._hooks: list[dict[Any, Any]] = []
        self._own: list[dict[str, Any]] = []
        self._every: list[dict[str, Any]] = []
        self._of_block = _settings_of(block)
        for part in self._called:
            if part not in paths:
                raise Unknown(f"{type(part).__name__} is no part of the block")
            parent = block
            for name in paths[part].split("."):
                self._stores.append(parent._modules)  # type: ignore[arg-type]
                self._names.append(name)
                parent = parent.get_submodule(name)
                self._children.append(parent)
            self._hooks += [vars(part)[name] for name in HOOKS]
            self._settings.append((vars(part), *_settings_of(part)))
            self._every.append(vars(part))
            if part not in routed:
                self._own.append(vars(part))
        self._forwards = self._forwards_of_classes(block)
        if not self.as_they_were(block):
            raise Unknown("a part has a hook or another forward")

    def _forwards_of_classes(self, block: nn.Module) -> list[Any]:
        return [type(block).forward, *[type(part).forward for part in self._called]]

    def as_they_were(self, block: nn.Module) -> bool:
        """Whether they are where they were, and hooks, forwards and settings what they were."""
        if any(self._hooks) or any(map(dict.__contains__, self._own, repeat("forward"))):
            return False
        if any(map(dict.__contains__, self._every, repeat("_compiled_call_impl"))):
            return False
        if list(map(dict.get, self._stores, self._names)) != self._children:
            return False
        if self._forwards_of_classes(block) != self._forwards:
            return False
        try:
            for own, of, before, many in (*self._settings, (vars(block), *self._of_block)):
                if len(own) != many or of(own) != before:
                    return False
        except (KeyError, RuntimeError):  # it is gone, or a tensor of several numbers now
            return False
        return True


def _settings_of(part: nn.Module) -> tuple[Any, Any, int]:
    """(get, values, many): get(attributes) == values while the attributes of a module that may decide
    what it does are what they are now, and there are as many. Raises `Unknown`."""
    if not type(part).__module__.startswith(LIBRARIES):
        raise Unknown(f"{type(part).__name__} is of no library")
    own = vars(part)
    get = itemgetter(*[n for n, v in own.items() if n not in ROUTED and _is_setting(v)])
    return get, get(own), len(own)


def _is_setting(value: Any) -> bool:
    return isinstance(value, SETTINGS) or (type(value) is tuple and all(map(_is_setting, value)))
