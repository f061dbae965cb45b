"""A pipeline whose sub-layers blend new and kept outputs, differentiable through the whole
sampling: what schedules are learned on.

T steps, L sub-layers, S levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
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
        self.levels: Tensor | None = None
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
        cache = TokenCache(at, self.selector, DIFFSPARSE[family_of(pipeline.transformer).name])

        def at_sublayer(sublayer: Any) -> Any:
            def route(run: Any, hidden: Tensor) -> Any:
                if self.levels is None:
                    return run()
                if sublayer not in cache:
                    return cache.compute(sublayer, run, hidden)
                return cache.blend(
                    sublayer, run, hidden, self.levels[at.now.step, sublayer.index], LEVELS
                )

            return route

        for sublayer in at.sublayers:
            at.reroute(sublayer, at_sublayer(sublayer))
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
            if self.levels is None or not (self.checkpointed and torch.is_grad_enabled()):
                return forward(*args, **kwargs)
            before, now = cache.state(), (at.now.step, at.now.branch)

            def again(state: Any) -> Any:
                at.now.step, at.now.branch = now
                cache.restore(state)
                return forward(*args, **kwargs), cache.state()

            out, after = checkpoint(again, before, use_reentrant=False)
            cache.restore(after)
            return out

        at.patch(transformer, "forward", forwarded)


@contextmanager
def studio(
    pipe: Any,
    below: Stack,
    selector: str,
    checkpointed: bool,
    prepared: Mapping[str, Path] | None = None,
) -> Iterator[tuple[Student, Any]]:
    """The student attached on top of the stack `below` with what that was `prepared` with, and
    `paint(levels, arguments, steps)` -> pixels 0..1 with gradients. Noise generators are spent by a
    call: draw the arguments anew for the next."""
    student = Student(selector, checkpointed)

    def painted(levels: Tensor | None, arguments: dict[str, Any], steps: int) -> Tensor:
        student.levels = levels
        attached.start(steps, len(arguments["generator"]))
        return paint(pipe, arguments)

    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    with Stack((*below.methods, student)).attached(pipe, prepared) as attached:
        yield student, painted
