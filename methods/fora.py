"""FORA: reuse every sub-layer's output for a fixed number of steps (Selvaraju et al. 2024, arXiv:2407.01425)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from ditbench.anatomy import Route, Run, Sublayer


@method("fora", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="arXiv:2407.01425")
class Fora:
    """Recompute attention and MLP outputs every `interval` steps and reuse them in between.

    The rule is the authors': recompute at steps 0, interval, 2 interval... What is kept is each sub-layer's output before its gate and
    residual, for each guidance pass; norms, modulation, gates and residuals are computed at every step. They cache attention and
    MLP; here cross-attention and FLUX's joint and single blocks are sub-layers like any other.
    """

    interval: int = knob(3, low=1)
    """Steps from one computation to the next; 1 changes nothing."""
    off: ClassVar[dict[str, object]] = {"interval": 1}

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through the cache."""
        kept: dict[tuple[int, int], Any] = {}
        at.on_start(kept.clear)
        at.holds(kept.values)
        for sublayer in at.sublayers:
            at.reroute(sublayer, self._route(sublayer, kept, at))

    def _route(self, sublayer: Sublayer, kept: dict[tuple[int, int], Any], at: Attachment) -> Route:
        def route(run: Run, _hidden: Any) -> Any:
            key = sublayer.index, at.now.branch
            if at.now.step % self.interval and key in kept:
                at.computes(sublayer, 0.0)
                at.count("reused")
                return kept[key]
            at.computes(sublayer, 1.0)
            at.count("computed", idle=True)
            out = run()
            if self.interval > 1:
                kept[key] = out
            return out

        return route
