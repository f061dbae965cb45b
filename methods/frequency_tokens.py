"""Tokens of low local frequency left out late in sampling (after SparseVAR, arXiv:2507.20454)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.models.sublayers import Route, Run, Sublayer


@method(
    "frequency_tokens",
    family="sparsity",
    stage=Stage.SCHEDULE,
    claims={"block-schedule", "token-rows"},
    paper="arXiv:2507.20454",
)
class FrequencyTokens:
    """In the late steps compute, in some blocks, the image tokens that differ most from their
    neighbours and a lattice of anchors; every other token gets the sub-layer's output of an anchor.

    SparseVAR leaves out tokens of an autoregressive model's last scales, where the picture is
    smooth already. Its code is not published: what we know of it is from a third party's port. From
    there are the lattice, every four tokens and the last row and column, and the choice of the
    anchor, that of the four round a token which is most like it by cosine similarity. Ours, for
    diffusion: late steps in place of late scales; local frequency is the energy that the mean of
    the 3 x 3 neighbours does not explain, in place of the change that a chunk of blocks makes; it
    and the similarity are of what the first of the sub-layers is given; there is no threshold of
    similarity; and what is copied is each sub-layer's output before its gate and residual, so that
    every token keeps its own residual stream. Keys and values are of all tokens. Each sample, and
    each guidance pass of it, has its own choice, and nothing is kept from step to step.
    """

    keep: float = knob(0.5, above=0, high=1)
    """Share of the image tokens that is computed, anchors included; no fewer than these. 1 changes
    nothing."""
    after: float = knob(0.5, low=0, high=1)
    """Share of the steps at the beginning that compute all tokens."""
    begin: float = knob(0.25, low=0, high=1)
    """Share of the blocks at the front that compute all tokens."""
    stride: int = knob(4, low=1)
    """Rows and columns from one anchor to the next; 1 changes nothing."""
    off: ClassVar[dict[str, object]] = {"keep": 1.0}
    dial: ClassVar[tuple[str, float, float]] = ("keep", 0.1, 1)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute the sub-layers of the chosen blocks."""
        import torch

        from ditbench.acceleration.local_frequency import anchors, choose, filled

        if self.keep == 1 or self.stride == 1:
            return
        front = self.begin * len(at.blocks)
        parts = [s for s in at.sublayers if s.block >= front and s.stream != "text"]
        reduced = {s.index for s in parts}
        choices: dict[int, tuple[Tensor, Tensor]] = {}
        at.keeps(choices)
        tables: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        at.keeps(tables, rows=False)

        def chosen(sublayer: Sublayer, image: Tensor) -> tuple[Tensor, Tensor]:
            """Rows [B,K] and stand-ins [B,N] of this call, made at its first sub-layer."""
            if sublayer is parts[0]:
                grid = at.now.grid
                if grid not in tables:
                    tables[grid] = anchors(grid, self.stride, image.device)
                choices[at.now.branch] = choose(image, grid, self.keep, *tables[grid])
            return choices[at.now.branch]

        def at_sublayer(sublayer: Sublayer) -> Route:
            def route(run: Run, hidden: Tensor) -> Any:
                late = at.now.step >= self.after * at.now.num_steps
                if not late or sublayer.index not in reduced:
                    at.computes(sublayer, 1.0)
                    return run()
                # both streams in one, but where a pair is returned
                text = at.now.text_tokens if sublayer.spec.stream == "both" else 0
                n = hidden.shape[1] - text
                first = text if sublayer.text_first else 0
                rows, stands = chosen(sublayer, hidden[:, first : first + n])
                at.computes(sublayer, (rows.shape[1] + text) / (n + text))
                at.count("tokens_computed", rows.numel(), idle=True)
                at.count("tokens_filled", len(hidden) * n - rows.numel())
                if text:
                    return mixed(run, rows, stands, text, n, sublayer.text_first)
                out = run(rows)
                if isinstance(out, tuple):
                    return filled(out[0], stands), *out[1:]
                return filled(out, stands)

            return route

        def mixed(
            run: Run, rows: Tensor, stands: Tensor, text: int, n: int, text_first: bool
        ) -> Tensor:
            """A sub-layer of both streams, whose text is computed whole."""
            offset = 0 if text_first else n
            words = torch.arange(offset, offset + text, device=rows.device).expand(len(rows), -1)
            image = rows + (text if text_first else 0)
            k = rows.shape[1]
            if text_first:
                out = run(torch.cat([words, image], 1))
                return torch.cat([out[:, :text], filled(out[:, text:], stands)], 1)
            out = run(torch.cat([image, words], 1))
            return torch.cat([filled(out[:, :k], stands), out[:, k:]], 1)

        for sublayer in at.sublayers:
            at.reroute_deferred(sublayer, at_sublayer(sublayer))
