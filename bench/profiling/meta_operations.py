"""Operations on the meta device that need not be run again: what they return is known by their
arguments' shapes. torch works it out in Python, which takes a multiple of the time.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

_META = torch.device("meta")
_SETTINGS = (
    bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip


class _Unknown(Exception):
    """An argument or a result whose description does not say all of it."""


@cache
def decomposes(operation: Any) -> bool:
    """Whether `operation.decompose` may give its parts: it is defined by other operations."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return key in operation.py_kernels or torch._C._dispatch_has_kernel_for_dispatch_key(
        operation.name(), key
    )


@cache
def _pure(operation: Any) -> bool:
    """Whether an operation changes none of its arguments and says of none that its result is a view
    of it."""
    schema = operation._schema
    return not (schema.is_mutable or any(r.alias_info for r in schema.returns))


def signature(call: tuple[Any, ...]) -> Any:
    """What decides the result of `(operation, args, kwargs, *more)`, hashable; None where something
    else may: a tensor that is elsewhere, say, or an operation that writes."""
    operation, args, kwargs, *more = call
    if not isinstance(operation, torch._ops.OpOverload) or not _pure(operation):
        return None
    try:
        tensors: list[Any] = []
        key = operation, _described(args, tensors), _described(kwargs, tensors), *more
    except _Unknown:
        return None
    return key if tensors else None


def description(out: Any, given: Any) -> Any:
    """What `empty_of` needs to return the like of `out`; None where it is no new tensor or tuple of
    new ones, but shares memory with a tensor in `given`."""
    made: list[Any] = []
    sources: list[Any] = []
    try:
        described = _described(out, made)
        _described(given, sources)
    except _Unknown:
        return None
    memory = {tensor.untyped_storage()._cdata for tensor in sources}
    fresh = {tensor.untyped_storage()._cdata for tensor in made}
    return described if made and len(fresh) == len(made) and not fresh & memory else None


def empty_of(described: Any) -> Any:
    """New tensors of the shapes, strides and types that `description` noted."""
    kind, *of_kind = described
    if kind is torch.Tensor:
        shape, stride, dtype = of_kind
        return torch.empty_strided(shape, stride, dtype=dtype, device=_META)
    if kind in (tuple, list):
        return kind(map(empty_of, of_kind))
    return of_kind[0]


def _described(value: Any, tensors: list[Any]) -> Any:
    """`value` by kinds and settings, its tensors by shape, stride and type; they are added to
    `tensors`."""
    kind = type(value)
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        if value.device != _META or value.layout != torch.strided or value.is_conj():
            raise _Unknown
        tensors.append(value)
        return torch.Tensor, value.shape, value.stride(), value.dtype
    if kind in _SETTINGS:
        return kind, value  # as 1, 1.0 and True are equal
    if kind in (tuple, list):
        return (kind, *(_described(item, tensors) for item in value))
    if kind is dict:
        return (kind, *((name, _described(item, tensors)) for name, item in value.items()))
    raise _Unknown
