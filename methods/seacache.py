"""SeaCache: skip whole transformer runs while the filtered input barely changes (CVPR 2026,
arXiv:2602.18993)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.caching.passes import modulated_input
from ditbench.acceleration.caching.targets import Target, reuse
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.models.blocks import RunBlock, Streams


@method(
    "seacache", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, decides_per_batch=True,
    paper="arXiv:2602.18993",
)  # fmt: skip
class SeaCache:
    """TeaCache's rule on another signal: the first block's modulated input, filtered so that what the
    noise hides at this step does not count.

    The filter is the response of the best linear denoiser at the step's noise level
    (`spectral.wiener_gain`), over rows and columns of tokens and, of a video, frames. The change is
    mean|m - m_before| / mean|m_before| over the whole batch; while its sum stays below `threshold`,
    what the blocks added is reused. First and last step are computed; separate guidance passes keep
    separate states. As in the authors' code what a step that is always computed leaves behind is not
    filtered, so that the second step compares with the plain input of the first. They have numbers
    for FLUX and for Wan; those of the other families are ours: FLUX's for pictures, Wan's for
    videos. Their level is the flow's sigma; for models of noise it is b / (a + b) of a state a x + b
    e, at which the normalised response is the same.
    """

    threshold: float | None = knob(None, low=0)
    """Accumulated change up to which runs are skipped; 0 skips none, None is the authors': 0.3 for
    pictures, 0.2 for videos."""
    power: float | None = knob(None, above=0)
    """Exponent by which the spectrum of clean samples is taken to fall; None is the authors': 2 for
    pictures, 3 for videos."""
    target: Target = "residual"
    """What is kept of a computed run and reused, as in `teacache`."""
    off: ClassVar[dict[str, object]] = {"threshold": 0.0}
    dial: ClassVar[tuple[str, float, float]] = ("threshold", 0, 4)

    def check(self, pipeline: Any) -> str | None:
        """The noise level must be known: of flows, and of models that predict noise."""
        kind = pipeline.scheduler.config.get("prediction_type", "flow_prediction")
        if kind in ("flow_prediction", "epsilon"):
            return None
        return f"the noise level is known of flows and of models of noise, not of {kind}"

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every block; the first one decides for all."""
        from ditbench.acceleration.caching.spectral import filtered, wiener_gain
        from ditbench.acceleration.distillation.noise_process import level_of_step
        from ditbench.models.family import family_of

        video = family_of(pipeline.transformer).video
        threshold = (0.2 if video else 0.3) if self.threshold is None else self.threshold
        power = self.power or (3.0 if video else 2.0)
        signal = modulated_input(at)
        before: dict[int, Tensor] = {}
        total: dict[int, float] = {}
        at.keeps(before)
        at.on_start(total.clear)

        def skips(run: RunBlock, streams: Streams) -> bool:
            now, branch, seen = at.now, at.now.branch, signal(run, streams)
            previous, before[branch] = before.get(branch), seen
            if now.step in (0, now.num_steps - 1) or previous is None:
                total[branch] = 0.0
                return False
            level = level_of_step(pipeline.scheduler, now.step)
            gain = wiener_gain(now.grid, level, power, seen.device)
            before[branch] = seen = filtered(seen, now.grid, gain)
            change = (seen - previous).abs().mean() / previous.abs().mean()
            total[branch] += float(change.item())
            if total[branch] < threshold:
                return True
            total[branch] = 0.0
            return False

        reuse(pipeline, at, skips, self.target)
