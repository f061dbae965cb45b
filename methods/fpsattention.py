"""FPSAttention: eight-bit attention over windows of tiles, coarse and sparse at first, fine and dense
in the middle (Liu et al. 2025, arXiv:2506.04648), without its training and without its kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.attention import ON_ATTENTION
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.acceleration.attention.sparse_attention import Call

Phase = tuple[float, float]
"""Length of a tile, of the base tile's; window of each axis, as a share of it: 2 is all."""


@method(
    "fpsattention",
    family="sparsity",
    stage=Stage.OPERATOR,
    claims={"attention-operator"},
    paper="arXiv:2506.04648",
)
class FpsAttention:
    """Quality of attention in E4M3 over windows of tiles; its time says nothing, for numbers are
    rounded and computed as before.

    Queries and keys are rounded with a scale for each tile, values for each channel, weights by the
    fixed scale of 448 before they are divided by their sum; products and output keep the model's
    format. A tile attends to tiles no further than half a window away. Tiles are twice as long early,
    half as long in the middle, where attention is dense, and as given late. Which steps are early and
    late, and the windows, are our choice: the authors print neither (they search them once, and train
    with them). The text is a tile that always attends and is attended to.
    """

    quantised: bool = True
    """Round queries, keys, values and weights."""
    sparse: bool = True
    """Leave out tiles beyond the window."""
    tile: tuple[int, int, int] | None = None
    """Frames, rows and columns of the base tile in tokens; None: 6, 8 and 8, the authors', and where
    that leaves fewer than three tiles of an axis the longest that divides it and leaves three."""
    early: float = knob(0.25, low=0, high=1)
    """Share of the steps, at the beginning, that are coarse and sparse."""
    late: float = knob(0.25, low=0, high=1)
    """Share of the steps, at the end, that are in between."""
    early_window: float = knob(0.5, low=0)
    """Window of early steps, as a share of each axis; 2 and more is all."""
    late_window: float = knob(0.75, low=0)
    """Window of late steps, as a share of each axis; 2 and more is all."""
    off: ClassVar[dict[str, object]] = {"quantised": False, "sparse": False}

    def __post_init__(self) -> None:
        if self.tile is not None and min(self.tile) < 1:
            raise ValueError(f"fpsattention: a tile of {self.tile} tokens has none in it")

    def relies_on(self, family: str) -> dict[str, str]:
        """That keys are a sub-layer's own tokens."""
        return ON_ATTENTION

    def phase(self, step: int, num_steps: int) -> Phase:
        """Tile and window of a step."""
        if step < int(self.early * num_steps):
            return 2.0, self.early_window
        if step >= num_steps - int(self.late * num_steps):
            return 1.0, self.late_window
        return 0.5, 2.0

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Replace every attention of image tokens."""
        from ditbench.acceleration.attention.rounding import by_channel, by_tile
        from ditbench.acceleration.attention.sparse_attention import SparseAttention
        from ditbench.acceleration.attention.tiles import Tiles, near, tile_for

        if not (self.quantised or self.sparse):
            return

        def attend(call: Call) -> Tensor | None:
            length, share = self.phase(at.now.step, at.now.num_steps)
            base = self.tile or tile_for(at.now.grid, 3)
            frames, rows, columns = (max(1, int(n * length)) for n in base)
            tiles = Tiles(at.now.grid, (frames, rows, columns))
            layout = call.layout(tiles.tile, lambda: tiles.of_tokens)
            lengths = [n * (share if self.sparse else 2.0) for n in at.now.grid]
            key = tiles.tile, tuple(lengths)
            mask = call.fixed(
                key, layout, lambda: near(tiles, (lengths[0], lengths[1], lengths[2]))
            )
            if not self.quantised:
                return None if mask is None else call.attend(layout, mask)
            if mask is None:
                mask = layout.everything()
            at.count("attentions_rounded")
            return call.attend(
                layout,
                mask,
                rounded=True,
                q=by_tile(call.q, call.queries(layout), layout.tiles),
                k=by_tile(call.k, layout.of_tokens[None], layout.tiles),
                v=by_channel(call.v),
            )

        SparseAttention(at, "dense" if self.quantised else "auto", attend).install()
