"""A pipeline whose sub-layers blend new and kept outputs, differentiable through the whole
sampling: what schedules are learned on.

T steps, L sub-layers, S levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from ditbench.acceleration.caching.schedule import LEVELS
from ditbench.acceleration.caching.token_cache import TokenCache
from ditbench.acceleration.caching.token_settings import DIFFSPARSE
from ditbench.method.probe import Trainee
from ditbench.method.stack import Stack
from ditbench.models.differentiable import paint
from ditbench.models.family import family_of


class Student(Trainee):
    """A pipeline whose sub-layers blend new and kept outputs by levels that can be set, and
    differentiated."""

    def __init__(self, selector: str, checkpointed: bool) -> None:
        self.selector, self.checkpointed = selector, checkpointed
        self.levels: Any = None
        """[T,L,S]: one-hot, or None for the un-accelerated model."""
        self._outputs: dict[tuple[int, int], Any] = {}
        self._records, self._replayed = False, 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep what the transformer gives, by step and guidance pass."""
        self._records = True
        try:
            yield
        finally:
            self._records = False

    @contextmanager
    def replaying(self, steps: int) -> Iterator[None]:
        """Give what was kept in the first `steps` steps, without running the transformer."""
        self._replayed = steps
        try:
            yield
        finally:
            self._replayed = 0

    def attach(self, pipeline: Any, at: Any) -> None:
        """Reroute every sub-layer; checkpoint the transformer's runs."""
        self.at = at
        cache = self.cache_for(pipeline)

        def at_sublayer(sublayer: Any) -> Any:
            def route(run: Any, hidden: Tensor) -> Any:
                return run() if self.levels is None else self.output(cache, sublayer, run, hidden)

            return route

        for sublayer in at.sublayers:
            at.reroute(sublayer, at_sublayer(sublayer))
        recomputed = _Recomputed(at, cache)

        def at_block(run: Any, streams: Any) -> Any:
            """Its activations are computed again while its step is."""
            return recomputed(run, streams) if self._checkpoints() else run(streams)

        for block in at.blocks if self.checkpointed else ():
            at.reroute(block, at_block)
        transformer = pipeline.transformer
        forward = transformer.forward

        def forwarded(*args: Any, **kwargs: Any) -> Any:
            now = at.now.step, at.now.branch
            if now[0] < self._replayed:
                return self._outputs[now]
            out = checkpointed(*args, **kwargs)
            if self._records:
                self._outputs[now] = out
            return out

        def checkpointed(*args: Any, **kwargs: Any) -> Any:
            if not self._checkpoints():
                return forward(*args, **kwargs)
            with _on_the_host(transformer.device):
                return recomputed(lambda _: forward(*args, **kwargs), ())

        at.patch(transformer, "forward", forwarded)

    def cache_for(self, pipeline: Any) -> Any:
        """What is kept from step to step; its `state` and `restore` are all the checkpoints ask
        for."""
        return TokenCache(self.at, self.selector, DIFFSPARSE[family_of(pipeline.transformer).name])

    def output(self, cache: Any, sublayer: Any, run: Any, hidden: Tensor) -> Any:
        """A sub-layer's output at the step under way, by the levels."""
        if sublayer not in cache:
            return cache.compute(sublayer, run, hidden)
        share = self.levels[self.at.now.step, sublayer.index]
        return cache.blend(sublayer, run, hidden, share, LEVELS)

    def _checkpoints(self) -> bool:
        return self.levels is not None and self.checkpointed and torch.is_grad_enabled()


class _Recomputed:
    """Runs a part of the transformer that reads and changes the cache, and forgets its activations:
    the backward pass runs it again, from the cache as it was."""

    def __init__(self, at: Any, cache: Any) -> None:
        self.at, self.cache = at, cache

    def __call__(self, run: Any, streams: Any) -> Any:
        """What `run(streams)` gives; the cache is left as that leaves it."""
        now = self.at.now.step, self.at.now.branch
        tensors, tree = tree_flatten(self.cache.state())

        def again(streams: Any, *tensors: Any) -> Any:
            self.at.now.step, self.at.now.branch = now
            self.cache.restore(tree_unflatten(tensors, tree))
            return run(streams), self.cache.state()

        # tensors one by one: those in a tuple are not among what is saved for the backward pass
        out, after = checkpoint(again, streams, *tensors, use_reentrant=False)
        self.cache.restore(after)
        return out


def _on_the_host(device: torch.device) -> Any:
    """What is kept from step to step waits for the backward pass in the host's memory: fifty steps
    of FLUX at 1024x1024 keep 107 GB a picture."""
    return save_on_cpu() if device.type != "cpu" else nullcontext()


@contextmanager
def studio(
    pipe: Any,
    below: Stack,
    selector: str,
    checkpointed: bool,
    prepared: Mapping[str, Path] | None = None,
    decoded: bool = True,
    grid: tuple[int, int, int] | None = None,
) -> Iterator[tuple[Student, Any]]:
    """`studio_of` a student of DiffSparse."""
    student = Student(selector, checkpointed)
    with studio_of(student, pipe, below, prepared, decoded, grid) as painted:
        yield student, painted


@contextmanager
def studio_of(
    student: Student,
    pipe: Any,
    below: Stack,
    prepared: Mapping[str, Path] | None = None,
    decoded: bool = True,
    grid: tuple[int, int, int] | None = None,
) -> Iterator[Any]:
    """The student attached on top of the stack `below` with what that was `prepared` with:
    `paint(levels, arguments, steps)` -> pixels 0..1 with gradients, or, with `decoded` False, the
    latents that would be decoded. `grid` is that of the image tokens, where it is not to be read
    from a GPU. Noise generators are spent by a call: draw the arguments anew for the next."""

    def painted(levels: Any, arguments: dict[str, Any], steps: int) -> Tensor:
        student.levels = levels
        attached.start(steps, len(arguments["generator"]))
        return paint(pipe, arguments, decoded=decoded)

    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    with Stack((*below.methods, student)).attached(pipe, prepared) as attached:
        attached.grid = grid
        yield painted
