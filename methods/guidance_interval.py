"""Guidance in a limited interval of noise levels (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""

from __future__ import annotations

from typing import Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method


@method(
    "guidance_interval",
    family="guidance",
    stage=Stage.SCHEDULE,
    claims={"guidance"},
    needs={"guidance-pass"},
    conflicts={"magcache"},  # its ratios are by step, and it would begin again in the middle
    paper="arXiv:2404.07724",
)
class GuidanceInterval:
    """Guide where low < sigma <= high only; at other steps the conditional pass alone runs.

    Guidance harms at high noise levels and is of little use at low ones. Sigma is the noise's
    standard deviation over the signal's factor: sqrt(1 - a) / sqrt(a) on a DDPM schedule, s / (1 -
    s) on a flow of level s, which begins at infinity. Where the pass comes back, caches compute
    everything anew.
    """

    low: float = knob(0.28, low=0)
    """Sigma above which there is guidance. Default: public code's, for Stable Diffusion XL."""
    high: float | None = knob(5.42, above=0)
    """Sigma up to which there is guidance; None: from the first step on. Default: likewise. Not
    above `low` nothing is guided."""
    off: ClassVar[dict[str, object]] = {"low": 0.0, "high": None}
    dial: ClassVar[tuple[str, float, float]] = ("low", 0, 20)

    def check(self, pipeline: Any) -> str | None:
        """The noise level of a step has to be known."""
        from ditbench.acceleration.distillation.noise_process import Process

        try:
            Process.of(pipeline.scheduler)
        except ValueError:
            return (
                f"the noise levels of {type(pipeline.scheduler).__name__}, which predicts neither "
                "noise nor flow velocity, are not known"
            )
        return None

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Say at which steps."""
        from ditbench.acceleration.guidance import noise_levels

        levels: dict[str, list[float]] = {}
        at.on_start(levels.clear)

        def outside() -> bool:
            if not levels:
                levels["all"] = noise_levels(pipeline.scheduler, at.now.num_steps).tolist()
            sigma = levels["all"][at.now.step]
            return not (self.low < sigma and (self.high is None or sigma <= self.high))

        at.leave_out_guidance(outside)
