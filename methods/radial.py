"""Radial Attention: frames attend to less of each other the further they are apart (Li et al. 2025,
arXiv:2506.19852), without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.attention import KERNELS, ON_ATTENTION
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.acceleration.attention.sparse_attention import Call


@method(
    "radial",
    family="sparsity",
    stage=Stage.OPERATOR,
    claims={"attention-operator"},
    paper="arXiv:2506.19852",
)
class Radial:
    """Let a token of a video attend to a band of places in other frames that narrows with their
    distance, and to all of near frames and the first.

    Rule and settings are those of the authors' code for Wan. Pictures have one frame, in which the
    rule leaves out nothing: models of images are refused.
    """

    decay: float = knob(0.2, above=0)
    """Factor of the band's width."""
    near: int | None = knob(None, low=0)
    """Frames apart up to which attention is whole; None: 1, the authors', and 0 for videos of fewer
    than four latent frames, of which nothing would be left out."""
    block: int | None = knob(None, low=1)
    """Consecutive tokens that are kept or left out together; None: 128, the authors', and a sixteenth
    of a frame where a frame has fewer than 1024 tokens."""
    first: float = knob(0.24, low=0, high=1)
    """Share of the steps, at the beginning, that attend to everything: the authors' 12 of 50."""
    layers: int = knob(1, low=0)
    """Blocks of the model, at its beginning, that attend to everything."""
    kernel: str = knob("auto", choices=lambda: KERNELS)
    """`flex`: torch's flex_attention, compiled; `dense`: attention under a mask; `auto`: flex on a
    GPU, else dense."""
    off: ClassVar[dict[str, object]] = {"first": 1.0}

    def relies_on(self, family: str) -> dict[str, str]:
        """That keys are a sub-layer's own tokens."""
        return ON_ATTENTION

    def check(self, pipeline: Any) -> str | None:
        """Models of images have no frames."""
        from ditbench.models.family import family_of

        if (family := family_of(pipeline.transformer)).video:
            return None
        return f"its mask goes by the distance of frames, and {family.title} makes pictures"

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Put the mask under every self-attention."""
        import numpy as np

        from ditbench.acceleration.attention.sparse_attention import SparseAttention
        from ditbench.acceleration.attention.tiles import radial

        def attend(call: Call) -> Tensor | None:
            early = at.now.step < int(self.first * at.now.num_steps)
            if early or call.sublayer.block < self.layers:
                return None
            frames, rows, columns = grid = at.now.grid
            size = rows * columns
            block = self.block or (128 if size >= 1024 else max(1, size // 16))
            near = (1 if frames > 3 else 0) if self.near is None else self.near
            layout = call.layout(block, lambda: np.arange(frames * size) // block)
            mask = call.fixed("radial", layout, lambda: radial(grid, block, self.decay, near))
            return None if mask is None else call.attend(layout, mask)

        SparseAttention(at, self.kernel, attend).install()
