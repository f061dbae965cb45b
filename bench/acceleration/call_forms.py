"""What a call of the transformer depends on but for the numbers in its tensors, and copies of these for
graphs to read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

PLAIN = (type(None), bool, int, float, str, torch.dtype)
"""Types of arguments that are compared by their values."""


def put(stays: Tensor, given: Tensor) -> None:
    """Copy a tensor into another of its strides: of numbers that are repeated (`expand`), each once."""
    once = tuple(slice(0, 1) if not stride else slice(None) for stride in stays.stride())
    stays[once].copy_(given[once])


def form_of(leaves: list[Any], tree: Any) -> Any:
    """What a call's operations depend on but for the numbers in its tensors: types, shapes, strides
    and devices of these, which are the same tensor, the other arguments, and modes of torch; None where
    that is not known."""
    forms: list[Any] = []
    first: dict[int, int] = {}
    for place, leaf in enumerate(leaves):
        if type(leaf) is Tensor:
            forms.append((first.setdefault(id(leaf), place), *_form(leaf)))
        elif isinstance(leaf, PLAIN):
            forms.append((type(leaf), leaf))
        else:
            return None
    types = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
    casts = [
        (t, torch.get_autocast_dtype(t))
        for t in types
        if torch.amp.is_autocast_available(t) and torch.is_autocast_enabled(t)
    ]
    modes = torch.is_inference_mode_enabled(), torch.get_default_dtype()
    return (*forms, tree, modes, frozenset(casts))


@contextmanager
def without_kept_casts() -> Iterator[None]:
    """Under autocast weights are cast in every call: those that it keeps it lets go of at its end. In
    the calls before too, or regions would be compiled again."""
    if not torch._C._is_any_autocast_enabled():
        yield
        return
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _form(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype, tensor.stride(), tensor.device
