"""MeanCache: in place of a flow model's velocity take the mean velocity that its last steps lead to (Gao
et al. 2026, arXiv:2601.19961)."""

from __future__ import annotations

from typing import Any, ClassVar

from ditbench.acceleration.caching.between_steps import compute_at, is_flow, why_uncapturable
from ditbench.acceleration.caching.passes import follows_interval
from ditbench.method import Attachment, Stage, knob, method


@method(
    "meancache",
    family="cache",
    stage=Stage.SCHEDULE,
    claims={"block-schedule"},
    paper="arXiv:2601.19961",
)
class MeanCache:
    """Compute every `interval` steps; in between the transformer's velocity is its last one, corrected
    by how the mean velocity of the last `span` steps differs from the velocity at their beginning.

    With z, s and v latents, sigma and guided velocity of a step, and r the step `span` steps ago,
    replaced ones counted: u = (z_t - z_r) / (s_t - s_r), J = (u - v_r) / (s_t - s_r), and the velocity
    is v_(t-1) + (s_(t+1) - s_t) J. As in the authors' code u and v_r are guided; the correction is
    added to every guidance pass, which by the linearity of guidance makes it that of the guided
    velocity. Their steps are searched for each model and number of steps, with a span for each, 1 to
    6; a fixed interval, the first steps and one span are ours. The transformer's output has to be the
    velocity along which the sampler moves: models of noise (DiT, PixArt) are refused.
    """

    interval: int | float = knob(4, low=1)
    """Steps from one computation to the next, on average; 1 changes nothing."""
    first: int = knob(4, low=1)
    """Steps computed at the beginning."""
    span: int = knob(4, low=1)
    """Steps back to r; 1 reuses the last velocity as it is."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("interval", 1, 10)

    def uncapturable(self) -> str | None:
        """It watches the sampler."""
        return why_uncapturable("meanvelocity")

    def check(self, pipeline: Any) -> str | None:
        """What the sampler is given has to be the velocity of a flow."""
        if is_flow(pipeline.scheduler):
            return None
        name = type(pipeline.scheduler).__name__
        return f"it extrapolates the velocity of a flow, and {name} does not move along one"

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute the transformer, and watch the sampler for guided velocities."""
        if self.interval == 1:
            return
        if reason := self.check(pipeline):  # the sampler of a student below
            raise ValueError(f"meancache: {reason}")

        def computes(step: int, _branch: int) -> bool:
            return follows_interval(step, self.interval, self.first)

        compute_at(pipeline, at, computes, "meanvelocity", span=self.span)
