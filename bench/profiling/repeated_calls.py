"""Transformer calls that need not be run to be counted: those of which it can be seen that they do
what an earlier one did.

How much a call computes follows from the shapes of its inputs only where nothing but library code
runs inside the transformer, and where nothing but the pipeline decides which calls are made.
Whether that is so is looked at before every call, because a method may change anything at any step;
where it is not so, the call is run.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ditbench.profiling.flop_counter import Counter

LIBRARIES = frozenset(
    {"builtins", "functools", "torch", "diffusers", "transformers", "torchao", "accelerate"}
)
"""Packages whose code does the same at every step."""
METHODS = "ditbench.methods"
"""The part of ditbench whose code may do something else at every step; the rest watches, and leaves
what is computed as it is."""
PLAIN = (bool, int, float, str, type(None))


class Calls:
    """The calls of one generation, by what each was seen to do."""

    def __init__(self) -> None:
        self.kinds: Tally[Any] = Tally()
        """How often each kind was called; the kind None is of calls that cannot be told from their
        inputs, and were run."""

    @property
    def same(self) -> bool:
        """Whether all calls were seen to be of one kind."""
        return len(self.kinds) == 1 and None not in self.kinds


@contextmanager
def run_once(pipe: Any, counter: Counter) -> Iterator[Calls]:
    """Run one transformer call of each kind, and count it for all of its kind; calls of which
    nothing can be seen are all run."""
    transformer, calls = pipe.transformer, Calls()
    if "forward" in vars(transformer):  # a method's own, which may run anything: all calls are run
        yield calls
        return
    # kind -> what it returned, its FLOPs, and how often it ran what has no formula
    forward, seen = (
        transformer.forward,
        {},
    )

    def counted(*args: Any, **kwargs: Any) -> Any:
        kind = kind_of_call(pipe, args, kwargs)
        calls.kinds[kind] += 1
        if kind is None:
            return forward(*args, **kwargs)
        if kind not in seen:
            flops, uncounted = counter.flops.copy(), counter.uncounted.copy()
            out = forward(*args, **kwargs)
            seen[kind] = out, counter.flops - flops, counter.uncounted - uncounted
            return out
        out, flops, uncounted = seen[kind]
        counter.flops += flops
        counter.uncounted += uncounted
        return out

    transformer.forward = counted
    try:
        yield calls
    finally:
        vars(transformer).pop("forward", None)


def kind_of_call(pipe: Any, args: Any, kwargs: Any) -> Any:
    """What decides how much a call of the transformer computes: the shapes of its inputs, and the
    modules as they are now.

    None where something else may: code that is not a library's, in the transformer, the scheduler
    or the pipeline itself.
    """
    if not (_by_libraries(pipe) and _by_libraries(pipe.scheduler)):
        return None
    modules = []
    for module in pipe.transformer.modules():
        own = vars(module)
        if module is not pipe.transformer and "forward" in own:
            return None
        hooks = (*own["_forward_hooks"].values(), *own["_forward_pre_hooks"].values())
        tensors = [
            t for t in (*own["_parameters"].values(), *own["_buffers"].values()) if t is not None
        ]
        code = (type(module).forward, *hooks, *map(type, tensors))
        if not (_by_libraries(module, but="forward") and all(map(from_library, code))):
            return None
        settings = tuple((key, value) for key, value in own.items() if isinstance(value, PLAIN))
        modules.append((id(module), settings, tuple(tuple(t.shape) for t in tensors)))
    return shapes_of((args, kwargs)), tuple(modules)


def _by_libraries(owner: Any, but: str = "") -> bool:
    """Whether an object's class and all that can be called of its own attributes is library
    code."""
    called = (value for name, value in vars(owner).items() if name != but and callable(value))
    return from_library(type(owner)) and all(map(from_library, called))


def from_library(code: Callable[..., Any]) -> bool:
    """Whether something that can be called, and what it wraps, was written in a library."""
    if isinstance(code, partial):
        return from_library(code.func)
    if isinstance(code, MethodType):
        return from_library(code.__func__)
    # its globals, for `functools.wraps` has it bear the name of another module
    if isinstance(code, FunctionType):
        written_in = code.__globals__["__name__"]
    else:
        written_in = (code if isinstance(code, type) else type(code)).__module__
    if written_in.partition(".")[0] not in LIBRARIES and not _of_the_harness(written_in):
        return False
    wrapped = getattr(code, "__wrapped__", None)
    return wrapped is None or from_library(wrapped)


def _of_the_harness(module: str) -> bool:
    return module.startswith("ditbench.") and not f"{module}.".startswith(f"{METHODS}.")


def shapes_of(value: Any) -> Any:
    """Shapes and types of all tensors in an argument, and what else it holds."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, value.device.type
    if isinstance(value, Mapping):
        return tuple((key, shapes_of(item)) for key, item in value.items())
    if isinstance(value, tuple | list):
        return tuple(map(shapes_of, value))
    return value if isinstance(value, PLAIN) else id(value)
