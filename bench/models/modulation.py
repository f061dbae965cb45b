"""Scale, shift and gate of a generation's blocks, worked out for all its steps at once.

A block that makes them of an embedding of time and condition (adaLN-Zero) reads a matrix of 6 D x D
weights at every step for a few rows: on a step that reuses its outputs that is most of what is left to
do. The times of all steps are known before the first one, and the condition does not change.

T steps, K rows of the batch of the first call, B of the call under way, W all that norms make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditbench.models.blocks import blocks


def modulating_norms(transformer: nn.Module) -> list[Any]:
    """The norms of all blocks that make scale, shift and gate by `linear(silu(embedding))`, in the
    order of their blocks."""
    return [
        part
        for block in blocks(transformer)
        for part in block.module.modules()
        if {"silu", "linear"} <= {*dict(part.named_children())}
    ]


class Looked(nn.Module):
    """In place of the activation of such a norm: gives its scale, shift and gate [B,W_i] of the call
    under way, whatever it is given. Not `live`: the activation itself."""

    row: Tensor | None

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.live = inner, False
        self.register_buffer("row", None, persistent=False)

    def forward(self, embedding: Any) -> Any:
        """The row, or the activation of `embedding` [B,D]."""
        return self.row if self.live else self.inner(embedding)


class Passed(nn.Module):
    """In place of what comes before and after it: hands on what it is given. Not `live`: the module
    itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.live = inner, False

    def forward(self, given: Any, *more: Any, **named: Any) -> Any:
        """The first argument, or what the module makes of all."""
        return given if self.live else self.inner(given, *more, **named)


@dataclass(eq=False)
class Table:
    """What all norms make, at all steps of a generation."""

    times: Tensor
    """[T], as the transformer is given them."""
    conditions: list[Tensor]
    """Each [K,...]."""
    rows: Tensor
    """[T * K, W]."""
    unknown: Tensor
    """[1] bool: whether a call asked for a row that is not there."""

    @property
    def count(self) -> int:
        """K."""
        return len(self.rows) // len(self.times)

    def look_up(self, times: Tensor, conditions: list[Tensor], out: Tensor) -> None:
        """Put the rows of a call into `out` [B,W]; `times` [B], `conditions` each [B,...]. On the
        device alone: the host does not wait."""
        at_time = times[:, None] == self.times
        of_row = torch.ones(len(out), self.count, dtype=torch.bool, device=out.device)
        for given, before in zip(conditions, self.conditions, strict=True):
            given, before = (one.reshape(len(one), -1) for one in (given, before))
            of_row &= (given[:, None] == before).all(-1)
        place = at_time.int().argmax(1) * self.count + of_row.int().argmax(1)
        self.unknown |= ~(at_time.any(1) & of_row.any(1)).all()
        torch.index_select(self.rows, 0, place, out=out)
