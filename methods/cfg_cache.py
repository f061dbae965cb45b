"""What guidance adds, kept for some steps: FasterCache's cache of the unconditional pass (Lv et al.
2024, arXiv:2410.19355) without its weights of frequencies."""

from __future__ import annotations

from typing import Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method


@method(
    "cfg_cache",
    family="guidance",
    stage=Stage.SCHEDULE,
    claims={"guidance"},
    needs={"guidance-pass"},
    conflicts={"magcache"},  # its ratios are by step, and it would begin again in the middle
    paper="arXiv:2410.19355",
)
class CfgCache:
    """Late in sampling compute the unconditional pass at every few steps only; in between it is the
    conditional prediction less the difference that the passes had when both were computed.

    FasterCache divides that difference into low and high frequencies and weighs them by the time;
    here both weights are 1, which is its rule at a weight of 1. Caches that are attached besides
    compute everything anew at the steps that compute both passes.
    """

    interval: int = knob(5, low=1)
    """Steps from one unconditional pass to the next (diffusers' default of FasterCache); 1 changes
    nothing."""
    first: int = knob(641, low=0, high=1000)
    """Timestep, 1000 noise to 0 picture, below which passes are left out (diffusers' default)."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("interval", 1, 10)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Keep the difference, and say at which steps it is used."""
        from ditbench.acceleration.guidance import KeptDifference, timesteps_of

        if self.interval == 1:
            return
        difference = KeptDifference(at)
        sampled: dict[str, list[float]] = {}
        at.on_start(sampled.clear)

        def reuses() -> bool:
            if not sampled:
                sampled["timesteps"] = timesteps_of(pipeline.scheduler, at.now.num_steps).tolist()
            timesteps, step = sampled["timesteps"], at.now.step
            late = next((i for i, t in enumerate(timesteps) if t < self.first), len(timesteps))
            return bool(difference) and step > late and (step - late) % self.interval != 0

        at.compare_passes(difference.keep)
        at.leave_out_guidance(reuses, difference.stand_in)
