"""Sparse attention by values: each tile attends to the tiles that hold most of its attention, judged
by means (after SVG2, arXiv:2505.18875, and the first stage of SpargeAttn, arXiv:2502.18137)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.attention import DENSE_FIRST_STEPS, KERNELS, ON_ATTENTION
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.acceleration.attention.sparse_attention import Call


@method(
    "top_tiles",
    family="sparsity",
    stage=Stage.OPERATOR,
    claims={"attention-operator"},
    cost_by_sample=True,
    paper="after arXiv:2505.18875 and arXiv:2502.18137",
)
class TopTiles:
    """Let every tile attend to as few tiles as hold the share `mass` of its attention, and to the
    text; anew at every step, for each sample and head.

    The shares are those of tile means, weighted by the tiles' sizes, as SVG2 has them of clusters.
    Tiles of the grid stand in place of its clusters by k-means, and of SpargeAttn there is no test of
    how alike a tile's tokens are.
    """

    mass: float = knob(0.9, above=0, high=1)
    """Share of a tile's attention that the tiles it attends to hold, by means."""
    least: float = knob(0.1, low=0, high=1)
    """Share of the tiles that each attends to at least."""
    tile: tuple[int, int, int] | None = None
    """Frames, rows and columns of a tile in tokens; None: 6, 8 and 8, and where that leaves fewer than
    three tiles of an axis the longest that divides it and leaves three."""
    first: float = knob(DENSE_FIRST_STEPS, low=0, high=1)
    """Share of the steps, at the beginning, that attend to everything."""
    layers: float = knob(0.03, low=0, high=1)
    """Share of the blocks, at the model's beginning, that attend to everything."""
    kernel: str = knob("auto", choices=lambda: KERNELS)
    """`flex`: torch's flex_attention, compiled; `dense`: attention under a mask; `auto`: flex on a
    GPU, else dense."""
    off: ClassVar[dict[str, object]] = {"first": 1.0}
    dial: ClassVar[tuple[str, float, float]] = ("mass", 0.99, 0.05)

    def __post_init__(self) -> None:
        if self.tile is not None and min(self.tile) < 1:
            raise ValueError(f"top_tiles: a tile of {self.tile} tokens has none in it")

    def relies_on(self, family: str) -> dict[str, str]:
        """That keys are a sub-layer's own tokens."""
        return ON_ATTENTION

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Choose tiles before every attention of image tokens."""
        from ditbench.acceleration.attention.choosing import largest, mass, needed, with_text
        from ditbench.acceleration.attention.sparse_attention import Mask, SparseAttention
        from ditbench.acceleration.attention.tiles import Tiles, tile_for

        dense_blocks = int(self.layers * (at.sublayers[-1].block + 1))

        def attend(call: Call) -> Tensor | None:
            early = at.now.step < int(self.first * at.now.num_steps)
            if early or call.sublayer.block < dense_blocks:
                return None
            tiles = Tiles(at.now.grid, self.tile or tile_for(at.now.grid, 3))
            layout = call.layout(tiles.tile, lambda: tiles.of_tokens)
            shares = mass(call, layout)
            counts = needed(shares, self.mass).clamp(min=int(self.least * tiles.count))
            return call.attend(layout, Mask(with_text(largest(shares, counts), layout)))

        SparseAttention(at, self.kernel, attend).install()
