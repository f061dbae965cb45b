"""Image tokens in three-dimensional tiles, and masks that are decided by where tiles lie.

A mask is a table [T,T] of booleans, rows for tiles of queries and columns for tiles of keys. Never
imports torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from typing import Any

import numpy as np

from ditbench.models.family import Grid

PUBLISHED: Grid = (6, 8, 8)
"""Frames, rows and columns of a tile: STA's (arXiv:2502.04507) and FPSAttention's (arXiv:2506.04648)
for videos."""


def tile_for(grid: Grid, at_least: int) -> Grid:
    """The published tile, axis by axis; where that leaves fewer than `at_least` tiles of an axis,
    the longest that divides the axis and leaves as many: of 8 tokens 2, of 6 tokens 1 for four tiles
    and 2 for three."""

    def length(count: int, published: int) -> int:
        if -(-count // published) >= at_least:
            return published
        dividing = [n for n in range(1, published) if count % n == 0 and count // n >= at_least]
        return max(dividing, default=1)

    frames, rows, columns = (length(*pair) for pair in zip(grid, PUBLISHED, strict=True))
    return frames, rows, columns


@dataclass(frozen=True)
class Tiles:
    """A token grid cut into tiles, frames first; the last tile of an axis is shorter where the
    tile's length does not divide it. Tokens are numbered as the model has them: frames, rows,
    columns."""

    grid: Grid
    tile: Grid

    @property
    def counts(self) -> Grid:
        """Tiles of each axis."""
        frames, rows, columns = (-(-n // t) for n, t in zip(self.grid, self.tile, strict=True))
        return frames, rows, columns

    @property
    def count(self) -> int:
        """T, all tiles."""
        return math.prod(self.counts)

    @cached_property
    def of_tokens(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """[N] the tile each token is in."""
        places = np.indices(self.grid).reshape(3, -1) // np.array(self.tile)[:, None]
        return np.asarray(np.ravel_multi_index(tuple(places), self.counts), np.int64)

    @cached_property
    def places(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """[T,3] where each tile lies, in tiles."""
        return np.indices(self.counts).reshape(3, -1).T.astype(np.int64)


def window(tiles: Tiles, lengths: Grid) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[T,T] the tiles in a window of `lengths` tiles round the query's own; at the borders the
    window is shifted inwards and keeps its size, as sliding-tile attention has it."""
    result = np.ones((tiles.count, tiles.count), bool)
    for axis, (count, length) in enumerate(zip(tiles.counts, lengths, strict=True)):
        place = tiles.places[:, axis]
        first = np.clip(place - length // 2, 0, max(0, count - length))
        away = place[None, :] - first[:, None]
        result &= (away >= 0) & (away < length)
    return result


def near(tiles: Tiles, tokens: tuple[float, float, float]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[T,T] the tiles that are no more than half a window of `tokens` tokens away on every axis, cut
    off at the borders: |c_u - c_v| <= W / 2 T, FPSAttention's rule."""
    apart = np.abs(tiles.places[:, None] - tiles.places[None])
    reach = np.array(tokens) / (2 * np.array(tiles.tile))
    return np.asarray((apart <= reach + 1e-9).all(-1))


@cache
def radial(
    grid: Grid, block: int, decay: float, near_frames: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[T,T] Radial Attention's mask over blocks of `block` consecutive tokens (arXiv:2506.19852, its
    code at 72788d4): attention narrows with the distance of frames.

    Frames up to `near_frames` apart, and all to the first, are whole. Of frames d apart a token at a
    place attends to places no further than 2^(bits of tokens per frame) / 2^(bits of d) * `decay`, at
    least a block; where that width without `decay` is less than a block, only every so-many-th d is
    kept at all. A block is kept where more than 0.6 of its columns that have any pair have more than a
    third of them. Every block attends to itself. Where a frame begins inside a block, that code leaves
    out the last block it reaches into; here it is there.
    """
    frames, rows, columns = grid
    size = rows * columns
    place = np.arange(size)
    apart = np.abs(place[None] - place[:, None])
    count = -(-frames * size // block)
    kept = np.zeros((count, count), bool)
    for i, j in product(range(frames), repeat=2):
        distance = abs(i - j)
        width = 2 ** size.bit_length() / 2 ** distance.bit_length()
        if j and distance > near_frames:
            if width < block and distance % int(block / width):
                continue
            pairs = apart <= max(width * decay, block)
        else:
            pairs = np.ones_like(apart, bool)
        above, before = (i * size) % block, (j * size) % block
        below, after = (-(start + size) % block for start in (above, before))
        padded = np.pad(pairs, ((above, below), (before, after)))
        parts = padded.reshape(padded.shape[0] // block, block, padded.shape[1] // block, block)
        density = parts.sum(1) / block
        dense = (density > 1 / 3).sum(-1) / ((density > 0).sum(-1) + 1e-9) > 0.6
        first, second = i * size // block, j * size // block
        kept[first : first + dense.shape[0], second : second + dense.shape[1]] |= dense
    return kept | np.eye(count, dtype=bool)
