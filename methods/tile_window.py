"""Sliding-tile attention: each tile of tokens attends to a window of tiles round it (Zhang et al.
2025, arXiv:2502.04507), without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.attention import DENSE_FIRST_STEPS, KERNELS, ON_ATTENTION
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.acceleration.attention.sparse_attention import Call


@method(
    "tile_window",
    family="sparsity",
    stage=Stage.OPERATOR,
    claims={"attention-operator"},
    paper="arXiv:2502.04507",
)
class TileWindow:
    """Let every tile of image tokens attend to the `window` x `window` x `window` tiles round it, and
    to the text.

    The window is the same at every step, layer and head; at the borders it is shifted inwards, so
    that all tiles attend to as many. The authors search windows by head and keep early steps dense
    (`first`); an even window has a tile more before than behind.
    """

    window: int = knob(3, low=0)
    """Tiles of each axis that a tile attends to, its own in the middle; 0: all, which changes
    nothing."""
    tile: tuple[int, int, int] | None = None
    """Frames, rows and columns of a tile in tokens; None: 6, 8 and 8, the authors', and where that
    leaves fewer than four tiles of an axis the longest that divides it and leaves four."""
    first: float = knob(DENSE_FIRST_STEPS, low=0, high=1)
    """Share of the steps, at the beginning, that attend to everything."""
    kernel: str = knob("auto", choices=lambda: KERNELS)
    """`flex`: torch's flex_attention, compiled; `dense`: attention under a mask; `auto`: flex on a
    GPU, else dense."""
    off: ClassVar[dict[str, object]] = {"window": 0}

    def __post_init__(self) -> None:
        if self.tile is not None and min(self.tile) < 1:
            raise ValueError(f"tile_window: a tile of {self.tile} tokens has none in it")

    def relies_on(self, family: str) -> dict[str, str]:
        """That keys are a sub-layer's own tokens."""
        return ON_ATTENTION if self.window else {}

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Put the mask under every attention of image tokens."""
        from ditbench.acceleration.attention.sparse_attention import SparseAttention
        from ditbench.acceleration.attention.tiles import Tiles, tile_for, window

        if not self.window:
            return

        def attend(call: Call) -> Tensor | None:
            if at.now.step < int(self.first * at.now.num_steps):
                return None
            tiles = Tiles(at.now.grid, self.tile or tile_for(at.now.grid, 4))
            layout = call.layout(tiles.tile, lambda: tiles.of_tokens)
            mask = call.fixed(self.window, layout, lambda: window(tiles, (self.window,) * 3))
            return None if mask is None else call.attend(layout, mask)

        SparseAttention(at, self.kernel, attend).install()
