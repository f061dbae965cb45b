"""FORA: reuse every sub-layer's output for a fixed number of steps (Selvaraju et al. 2024,
arXiv:2407.01425)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ditbench.acceleration.caching.output_cache import reuse_outputs
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from ditbench.models.sublayers import Sublayer


@method(
    "fora",
    family="cache",
    stage=Stage.SCHEDULE,
    claims={"block-schedule"},
    paper="arXiv:2407.01425",
)
class Fora:
    """Recompute attention and MLP outputs every `interval` steps and reuse them in between.

    The rule is the authors'. On DiT their code counts steps down from T - 1 to 0 and recomputes at
    the first step and where the count is a multiple of the interval: of 50 steps at interval 3
    these are 0, 1, 4, 7..., 49. On the other models it is ToCa's FORA mode, which counts up: 0, 3,
    6.... Multiples are rounded up where the interval is no whole number. What is kept is each
    sub-layer's output before its gate and residual, for each guidance pass; gates and residuals are
    computed at every step. They cache attention and MLP; here cross-attention and FLUX's joint and
    single blocks are sub-layers like any other.
    """

    interval: int | float = knob(3, low=1)
    """Steps from one computation to the next, on average: 2.5 computes steps 0, 3, 5, 8...; 1
    changes nothing."""
    gates: Literal["fresh", "kept"] = "fresh"
    """`fresh`: a reused output gets the gate of the step under way, as in the authors' code. `kept`:
    the gate of the step that computed it, so that reusing it is one addition, and a block that is
    reused whole computes no modulation. Ours."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("interval", 1, 10)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through the cache."""
        from ditbench.models.family import family_of

        if self.interval == 1:
            return
        downward = family_of(pipeline.transformer).name == "dit"

        def reuses(step: int, _: Sublayer) -> bool:
            count = at.now.num_steps - 1 - step if downward else step
            return count // self.interval == (count - 1) // self.interval

        # the first step has nothing to reuse
        reuse_outputs(at, reuses, with_gates=self.gates == "kept")
