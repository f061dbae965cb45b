"""Calls of a transformer for some rows of their batch: arguments and outputs, taken apart and put
together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ditbench.models.family import family_of


def batch_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Rows of the batch of a transformer call with these arguments."""
    return len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])


def change_rows(
    transformer: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    change: Callable[[Tensor], Tensor],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a transformer call with `change` made to every tensor that has the batch as
    its first dimension.

    Others stay as they are: numbers, tensors of another length, and what the family names
    (`Family.shared_arguments`).
    """
    batch, shared = batch_of(args, kwargs), family_of(transformer).shared_arguments
    names = list(inspect.signature(type(transformer).forward).parameters)[1:] if args else []

    def changed(tensor: Tensor) -> Tensor:
        return change(tensor) if tensor.dim() and len(tensor) == batch else tensor

    positional = tuple(
        value if name in shared else each_tensor(changed, value)
        for name, value in zip(names, args, strict=False)
    )
    named = {k: v if k in shared else each_tensor(changed, v) for k, v in kwargs.items()}
    return positional, named


def take_rows(
    transformer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a transformer call for some rows of its batch (`change_rows`); `rows` is a
    slice, or int64 [K]."""
    return change_rows(transformer, args, kwargs, lambda tensor: tensor[rows])


def put_rows(whole: Any, rows: list[int], part: Any) -> Any:
    """An output for the whole batch with some of its rows replaced by the output for those rows."""

    def put(into: Tensor, new: Tensor) -> Tensor:
        return into.index_copy(0, torch.tensor(rows, device=into.device), new)

    return each_tensor(put, whole, part)


def each_tensor(change: Callable[..., Any], value: Any, *others: Any) -> Any:
    """`value` with each tensor in it, in tuples (named ones too), lists, mappings and outputs of
    diffusers, replaced by `change(tensor, *those at the same place of others)`."""
    if isinstance(value, Tensor):
        return change(value, *others)
    if isinstance(value, Mapping):
        changed = {k: each_tensor(change, v, *(o[k] for o in others)) for k, v in value.items()}
        return changed if type(value) is dict else type(value)(**changed)
    if isinstance(value, (tuple, list)):
        parts = [each_tensor(change, *parts) for parts in zip(value, *others, strict=True)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
