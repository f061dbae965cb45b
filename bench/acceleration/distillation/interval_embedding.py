"""A second time for a transformer: the length of the interval a mean velocity is asked for
(MeanFlow, arXiv:2505.13447).

Every time embedding of the transformer gets a branch for the interval, whose output is added to its
own; it starts at nothing, so that a student starts as its teacher. The interval is set from
outside, for transformers have no argument for it.

B rows of a batch, D width, T steps of a sampler.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

BANDS = 64
"""Sinusoids an interval is told by."""
STRETCH = 100.0
"""What an interval 0..1 is multiplied by before its sinusoids."""
NAME = "intervals"
"""The transformer's attribute they live under, and so the beginning of their parameters' names."""


class Intervals(nn.Module):
    """The branches of one transformer, made part of it."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        times = [
            module
            for name, module in transformer.named_modules()
            if isinstance(module, TimestepEmbedding) and "guidance" not in name
        ]
        self.told = Timesteps(BANDS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.branches = nn.ModuleList(
            TimestepEmbedding(BANDS, m.linear_2.out_features) for m in times
        )
        self.length = torch.zeros(1)
        """[B] or [1]: what is asked for, in levels."""
        self.of_steps: Tensor | None = None
        """[T]: those of all steps, where a sampler is followed; None: they are set from outside."""
        for branch in self.branches:
            for end in branch.linear_2.parameters():  # type: ignore[union-attr]
                nn.init.zeros_(end)
        self._hooks = [
            module.register_forward_hook(self._adding(branch))
            for module, branch in zip(times, self.branches, strict=True)
        ]
        setattr(transformer, NAME, self)

    def _adding(self, branch: nn.Module) -> Any:
        def add(_module: Any, _inputs: Any, out: Tensor) -> Tensor:
            length = self.length.to(out.device, non_blocking=True)
            embedding = self.told(STRETCH * length).to(out.dtype)
            return out + branch(embedding)  # type: ignore[no-any-return]

        return add

    @contextmanager
    def at_all_steps(self, rows: int) -> Iterator[None]:
        """Inside, what is asked for is all steps after each other, each for so many rows, as
        `modulation_ahead` makes their embeddings."""
        before = self.length
        if self.of_steps is not None:
            self.length = self.of_steps.repeat_interleave(rows)
        try:
            yield
        finally:
            self.length = before

    def remove(self, transformer: nn.Module) -> None:
        """Take the branches out again."""
        for hook in self._hooks:
            hook.remove()
        delattr(transformer, NAME)
