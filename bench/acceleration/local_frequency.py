"""Tokens by how much they differ from their neighbours, a lattice of anchors among them, and
outputs of the anchors put where nothing was computed.

B batch, N image tokens in a grid of frames, rows and columns, A anchors, K computed tokens, D
width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ditbench.models.token_rows import take

Grid = tuple[int, int, int]


def high_pass(tokens: Tensor, grid: Grid) -> Tensor:
    """Energy [B,N] of what the mean of the 3 x 3 neighbours in its frame does not explain of a
    token [B,N,D]; at the border of those that are there."""
    x = tokens.float().unflatten(1, grid).flatten(0, 1).permute(0, 3, 1, 2)  # [B F,D,h,w]
    mean = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    energy: Tensor = (x - mean).square().mean(1)
    return energy.reshape(len(tokens), -1)


def _lattice(length: int, stride: int, device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Of places 0..length - 1: those that are a multiple of `stride` and the last, [A]; and for
    each place the nearest of them below and above, [length] each."""
    places, last = torch.arange(length, device=device), length - 1
    below = places // stride * stride
    above = torch.where(places == below, places, (below + stride).clamp(max=last))
    below = torch.where(places == last, places, below)
    chosen = torch.arange(0, length, stride, device=device)
    if last % stride:
        chosen = torch.cat([chosen, places[last:]])
    return chosen, below, above


def anchors(grid: Grid, stride: int, device: Any) -> tuple[Tensor, Tensor]:
    """The anchors [A] int64, every `stride` rows and columns of each frame and the last of both,
    and for each token the four round it [N,4]; on a line of the lattice some of the four are the
    same."""
    frames, high, wide = grid
    rows, *row_beside = _lattice(high, stride, device)
    columns, *column_beside = _lattice(wide, stride, device)
    first = torch.arange(frames, device=device)[:, None, None] * high * wide

    def numbers(y: Tensor, x: Tensor) -> Tensor:
        return (first + y[:, None] * wide + x).flatten()

    around = [numbers(y, x) for y in row_beside for x in column_beside]
    return numbers(rows, columns), torch.stack(around, 1)


def choose(
    tokens: Tensor, grid: Grid, keep: float, chosen: Tensor, around: Tensor
) -> tuple[Tensor, Tensor]:
    """The tokens [B,K] int64 to compute, anchors [A] and those of highest local frequency, `keep`
    of all where the anchors are no more; and for each token [B,N] which of the K stands for it:
    itself, or the one of the anchors round it [N,4] that it is most like by cosine similarity."""
    batch, n = tokens.shape[:2]
    score = high_pass(tokens, grid)
    score = score.index_fill(1, chosen, torch.inf)
    rows = score.topk(max(len(chosen), round(keep * n)), dim=1).indices
    places = torch.zeros(batch, n, dtype=torch.int64, device=tokens.device)
    numbers = torch.arange(rows.shape[1], device=tokens.device).expand_as(rows)
    places = places.scatter(1, rows, numbers)
    unit = torch.nn.functional.normalize(tokens.float(), dim=-1)
    alike = torch.stack([(unit * unit[:, around[:, i]]).sum(-1) for i in range(4)], -1)
    nearest = around.expand(batch, -1, -1).gather(2, alike.argmax(-1, keepdim=True))[..., 0]
    own = torch.zeros(batch, n, dtype=torch.bool, device=tokens.device)
    own = own.scatter(1, rows, torch.ones_like(rows, dtype=torch.bool))
    return rows, torch.where(own, places, places.gather(1, nearest))


def filled(out: Tensor, stands: Tensor) -> Tensor:
    """Outputs [B,N,D] of all tokens from those of the computed ones [B,K,D]."""
    return take(out, stands)
