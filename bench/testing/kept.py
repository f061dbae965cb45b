"""What a method keeps beyond a generation: tensors that live on although the generation is over,
which no store that was declared with `at.keeps` or `at.holds` does."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEPTH = 6
"""Containers and objects inside each other that a sampler's own state is looked for in."""


def left_alive(pipeline: Any, generate: Callable[[], object]) -> list[Tensor]:
    """Tensors of more than one number that a generation made and left alive: what is kept anew in
    every generation. The sampler's own state is not among them, nor are constants, where this is
    not the first generation."""
    with _Made() as made:
        generate()
    if any(made_one() is not None for made_one in made.tensors):
        gc.collect()  # it takes longer than a small model's generation
    own = _storages(_within(pipeline.scheduler, DEPTH))
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            own |= _storages((*part.parameters(), *part.buffers()))
    alive = [tensor for tensor in (made_one() for made_one in made.tensors) if tensor is not None]
    return [t for t in alive if t.numel() > 1 and not _storages([t]) & own]


class _Made(TorchDispatchMode):
    """Remembers every tensor that an operation gives, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.tensors += [weakref.ref(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        return out


def _storages(tensors: Iterable[Tensor]) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors if type(tensor) in PLAIN}


PLAIN = (Tensor, nn.Parameter)
"""Tensors with a storage of their own; those of torchao have none."""


def _within(thing: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif depth and isinstance(thing, dict | list | tuple):
        for part in thing.values() if isinstance(thing, dict) else thing:
            yield from _within(part, depth - 1)
    elif depth and hasattr(thing, "__dict__") and not isinstance(thing, type | nn.Module):
        yield from _within(vars(thing), depth - 1)
