"""Adaptive Guidance: no guidance any more once both passes predict the same (Castillo et al. 2023,
arXiv:2312.12487)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from torch import Tensor


@method(
    "adaptive_guidance",
    family="guidance",
    stage=Stage.SCHEDULE,
    claims={"guidance"},
    needs={"guidance-pass"},
    decides_per_batch=True,
    paper="arXiv:2312.12487",
)
class AdaptiveGuidance:
    """Leave out the unconditional pass, to the end, once its prediction and the conditional one are
    alike: their cosine similarity, over all entries of a sample, exceeds a threshold.

    The step at which that is seen is guided still. Each sample loses guidance by its own
    similarity, whatever its companions do; the pass is computed until the last sample of the batch
    has lost it, so that the cost is decided for the batch. The variance that DiT and PixArt predict
    besides is not compared. The paper's other variant, LinearAG, replaces unconditional predictions
    by a regression on earlier ones, whose coefficients have to be fitted for each model and
    sampler; it is not built here.
    """

    threshold: float = knob(0.991, low=-1)
    """Cosine similarity above which guidance ends; 1 and more change nothing. The least value that
    pays depends on the model: ours is not tuned for any."""
    start: float = knob(0.0, low=0, high=1)
    """Share of the steps before which the similarity is not looked at. 0: the paper's rule; but
    where noise is predicted both predictions begin alike, nearly all of the input being noise, and
    guidance may end at once (on our tiny DiT and PixArt it does)."""
    off: ClassVar[dict[str, object]] = {"threshold": 1.0}
    dial: ClassVar[tuple[str, float, float]] = ("threshold", -1, 1)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Compare the passes, and leave one out."""
        from ditbench.acceleration.guidance import predicted, similarity

        if self.threshold >= 1:
            return
        channels = pipeline.transformer.config.in_channels
        alike: dict[str, Tensor] = {}  # whether a sample has lost guidance, bool [B]
        at.keeps(alike, rows=False)

        def compare(conditional: Tensor, unconditional: Tensor) -> Tensor | None:
            if at.now.step < self.start * at.now.num_steps:
                return None
            now = similarity(predicted(conditional, channels), predicted(unconditional, channels))
            before = alike.get("samples")
            alike["samples"] = now > self.threshold if before is None else before | (
                now > self.threshold
            )  # fmt: skip
            if before is None:
                return None
            return conditional.where(before.view(-1, *[1] * (conditional.dim() - 1)), unconditional)

        at.compare_passes(compare)
        at.drop_guidance(lambda: "samples" in alike and bool(alike["samples"].all().item()))
