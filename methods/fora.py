"""FORA: reuse every sub-layer's output for a fixed number of steps (Selvaraju et al. 2024, arXiv:2407.01425)."""

from __future__ import annotations

from typing import Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method
from ditbench.reuse import reuse_outputs


@method("fora", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="arXiv:2407.01425")
class Fora:
    """Recompute attention and MLP outputs every `interval` steps and reuse them in between.

    The rule is the authors': recompute at steps 0, interval, 2 interval..., rounded up where the interval is no whole number. What is
    kept is each sub-layer's output before its gate and residual, for each guidance pass; norms, modulation, gates and residuals are
    computed at every step. They cache attention and MLP; here cross-attention and FLUX's joint and single blocks are sub-layers like
    any other.
    """

    interval: int | float = knob(3, low=1)
    """Steps from one computation to the next, on average: 2.5 computes steps 0, 3, 5, 8...; 1 changes nothing."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("interval", 1, 10)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through the cache."""
        if self.interval > 1:
            reuse_outputs(at, lambda step, _: step // self.interval == (step - 1) // self.interval)
