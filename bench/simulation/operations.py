"""Operations on the simulated device that need not be worked out again: what they return, and the
kernel they are, is known by the operation and the shapes, strides and types it is given.

torch works shapes out in Python, which takes a multiple of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

_SETTINGS = frozenset(
    {
        bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout,
        torch.memory_format,
    }
)  # fmt: skip
NEW, VIEW, IN_PLACE = "new", "view", "in place"


class _Unknown(Exception):
    """An argument or a result whose description does not say all of it."""


@dataclass(frozen=True)
class Outcome:
    """What an operation did."""

    kind: str
    """`NEW`: tensors of their own; `VIEW`: the first argument's data, as it is or in part;
    `IN_PLACE`: the first argument itself."""
    outputs: tuple[tuple[Any, ...], ...] = ()
    """Shape, stride and type of each new tensor."""
    packed: type | None = None
    """`tuple` or `list` where several are returned."""
    kernel: Any = None
    """What was launched; None where nothing was."""


@cache
def kind_of(operation: Any) -> str:
    """Of the operations of which that is known: `NEW`, `VIEW` or `IN_PLACE`; else ""."""
    if not isinstance(operation, torch._ops.OpOverload):
        return ""
    schema = operation._schema
    name = schema.name.partition("::")[2]
    if not schema.is_mutable:
        if not any(r.alias_info for r in schema.returns):
            return NEW
        return VIEW if operation.is_view else ""
    first, *others = schema.arguments
    written = [a for a in others if a.alias_info is not None and a.alias_info.is_write]
    plain = name.endswith("_") and not name.startswith(("resize", "set_", "as_strided", "_resize"))
    own = first.alias_info is not None and first.alias_info.is_write
    return IN_PLACE if plain and own and not written and len(schema.returns) == 1 else ""


def signature(operation: Any, args: Any, kwargs: Any, device: str) -> Any:
    """What decides the outcome of an operation, hashable; None where something else may: tensors
    that are elsewhere, say."""
    if not kind_of(operation) or not args or operation.overloadpacket is torch.ops.aten.set_:
        return None
    tensors: list[Tensor] = []
    try:
        key = (
            operation,
            tuple([_described(value, tensors, device) for value in args]),
            tuple([(k, _described(v, tensors, device)) for k, v in kwargs.items()])
            if kwargs
            else (),
        )
    except _Unknown:
        return None
    return key if tensors else None


def _described(value: Any, tensors: list[Tensor], device: str) -> Any:
    kind = type(value)
    if kind in _SETTINGS:
        if kind is torch.device and value.type != device:
            raise _Unknown
        return kind, value  # as 1, 1.0 and True are equal
    if kind is FakeTensor:
        if value.fake_device.type != device or value.layout is not torch.strided:
            raise _Unknown
        tensors.append(value)
        return value.shape, value.stride(), value.dtype
    if kind is tuple or kind is list:
        return (kind, *[_described(item, tensors, device) for item in value])
    raise _Unknown


def outcome(operation: Any, out: Any, args: Any, kernel: Any, device: str) -> Outcome | None:
    """What an operation did, to be done again; None where that cannot be told from what it
    returned."""
    kind = kind_of(operation)
    if kind == IN_PLACE:
        return Outcome(kind, kernel=kernel) if out is args[0] else None
    if kind == VIEW:
        return Outcome(kind, kernel=kernel)
    packed = type(out) if type(out) in (tuple, list) else None
    made = list(out) if packed else [out]
    tensors: list[Tensor] = []
    try:
        described = tuple(_described(tensor, tensors, device) for tensor in made)
    except _Unknown:
        return None
    if len(tensors) != len(made) or any(t._is_view() for t in tensors):
        return None
    if len({t.untyped_storage()._cdata for t in tensors}) != len(made):
        return None
    return Outcome(kind, described, packed, kernel)


def again(
    what: Outcome, fakes: FakeTensorMode, device: torch.device, func: Any, args: Any, kwargs: Any
) -> Any:
    """What the operation returns this time."""
    if what.kind == IN_PLACE:
        return args[0]
    if what.kind == VIEW:
        with in_kernel_invocation_manager(fakes):
            out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            return FakeTensor(fakes, out, device)
        return type(out)([FakeTensor(fakes, one, device) for one in out])
    made = [
        FakeTensor(fakes, torch.empty_strided(shape, stride, dtype=dtype, device="meta"), device)
        for shape, stride, dtype in what.outputs
    ]
    return what.packed(made) if what.packed else made[0]
