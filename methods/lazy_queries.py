"""Lazy queries: tiles whose queries hardly change keep their last output (after OmniSparse,
arXiv:2511.12201, of which no code and no threshold is published)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.attention import DENSE_FIRST_STEPS, ON_ATTENTION
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.acceleration.attention.sparse_attention import Call, Layout


@method(
    "lazy_queries",
    family="sparsity",
    stage=Stage.OPERATOR,
    claims={"attention-operator"},
    cost_by_sample=True,
    paper="after arXiv:2511.12201",
)
class LazyQueries:
    """Compute attention for the tiles whose queries changed most since they were computed, and reuse
    the others' last output; those that are computed attend to tiles of keys under a budget.

    OmniSparse drops lazy queries of a language model and sets one budget of keys for all heads, by
    the flattest. Here a query is lazy where the mean of its tile is most like what it was (cosine
    over all heads), and a layer's budget is what the head needs that needs most tiles, on average
    over tiles of queries, for the share `mass`. It needs as much memory as an attention's output for
    each layer and guidance pass.
    """

    lazy: float = knob(0.5, low=0, below=1)
    """Share of the image tokens that reuse their last output."""
    mass: float = knob(0.9, above=0, high=1)
    """Share of a tile's attention, by tile means, that the budget holds in every head."""
    tile: tuple[int, int, int] | None = None
    """Frames, rows and columns of a tile in tokens; None: 6, 8 and 8, and where that leaves fewer than
    three tiles of an axis the longest that divides it and leaves three."""
    first: float = knob(DENSE_FIRST_STEPS, low=0, high=1)
    """Share of the steps, at the beginning, that compute everything; the first one does so always."""
    off: ClassVar[dict[str, object]] = {"first": 1.0}
    dial: ClassVar[tuple[str, float, float]] = ("lazy", 0.0, 0.9)

    def __post_init__(self) -> None:
        if self.tile is not None and min(self.tile) < 1:
            raise ValueError(f"lazy_queries: a tile of {self.tile} tokens has none in it")

    def relies_on(self, family: str) -> dict[str, str]:
        """That keys are a sub-layer's own tokens, and that all outputs are wanted."""
        return ON_ATTENTION | {"token-rows": "keeps what attention gives for all tokens"}

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Replace every attention of image tokens."""
        from ditbench.acceleration.attention.choosing import means
        from ditbench.acceleration.attention.sparse_attention import SparseAttention
        from ditbench.acceleration.attention.tiles import Tiles, tile_for

        last: dict[Any, tuple[Tensor, Tensor]] = {}
        """Output [B,H,M,d] and tile means of the queries it was computed for [B,H,T,d]."""
        at.keeps(last)

        def attend(call: Call) -> Tensor | None:
            if self.first == 1:
                return None
            if call.rows is not None:
                raise ValueError("lazy_queries keeps outputs of all tokens, and was asked for some")
            tiles = Tiles(at.now.grid, self.tile or tile_for(at.now.grid, 3))
            layout = call.layout(tiles.tile, lambda: tiles.of_tokens)
            now = means(call.q, layout.of_tokens[None], layout.tiles)
            key = call.sublayer.index, at.now.branch
            early = at.now.step < max(1, int(self.first * at.now.num_steps))
            if early or key not in last:
                last[key] = call.dense(), now
            else:
                last[key] = self._renewed(at, call, layout, now, *last[key])
            return last[key][0]

        SparseAttention(at, "dense", attend).install()

    def _renewed(
        self, at: Attachment, call: Call, layout: Layout, now: Tensor, out: Tensor, before: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The output with its active rows computed anew, and the means they were computed for."""
        import torch

        from ditbench.acceleration.attention.choosing import largest, mass, needed, with_text
        from ditbench.acceleration.attention.sparse_attention import Mask

        heads, width = call.q.shape[1], call.q.shape[3]
        alike = torch.cosine_similarity(
            now.transpose(1, 2).flatten(2), before.transpose(1, 2).flatten(2), dim=-1
        )  # [B,T]
        text = layout.tiles - 1 if layout.text else layout.tiles
        alike[:, text:] = -2.0  # the text is always active
        image = len(layout.image)
        count = layout.text + max(1, image - int(self.lazy * image))
        rows = alike[:, layout.of_tokens].argsort(dim=1, stable=True)[:, :count]  # [B,n]
        at.count("queries_reused", len(rows) * (image + layout.text - count))
        shares = mass(call, layout)
        need = needed(shares, self.mass).float().mean(-1).ceil().long()  # [B,H]
        budget = need.amax(1)[:, None, None]
        kept = with_text(largest(shares, budget), layout)
        at_rows = rows[:, None, :, None].expand(-1, heads, -1, width)
        active = layout.of_tokens[rows]
        computed = call.attend(layout, Mask(kept), q=call.q.gather(2, at_rows), queries=active)
        renewed = out.scatter(2, at_rows, computed.to(out.dtype))
        fresh = torch.zeros_like(alike, dtype=torch.bool).scatter(1, active, True)
        return renewed, torch.where(fresh[:, None, :, None], now, before)
