"""Fewer sampler steps, and nothing else: the control that every accelerator has to beat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method
from ditbench.models.family import no_single_step
from ditbench.models.sampling import Sampling


@method(
    "fewer_steps",
    family="control",
    role="control",
    stage=Stage.SCHEDULE,
    claims={"num-steps"},
)
class FewerSteps:
    """Take fewer sampler steps with the un-accelerated model: any accelerator must be better at the
    same time."""

    steps: int | None = knob(None, low=1)
    """Sampler steps to take; None: `share` of the model's own. Never more than the model's own."""
    share: float = knob(0.5, above=0, high=1)
    """Share of the model's own steps, rounded, at least one; 1 changes nothing. Not together with
    `steps`."""
    off: ClassVar[dict[str, object]] = {"share": 1.0}
    dial: ClassVar[tuple[str, float, float]] = ("share", 0.1, 1)

    def __post_init__(self) -> None:
        if self.steps is not None and self.share != 0.5:
            raise ValueError(
                f"fewer_steps takes steps or share, not both, but was given steps={self.steps} and "
                f"share={self.share}"
            )

    def adapt(self, sampling: Sampling) -> Sampling:
        """The sampling with fewer steps."""
        wanted = max(1, round(self.share * sampling.steps)) if self.steps is None else self.steps
        return replace(sampling, steps=min(wanted, sampling.steps))

    def check(self, pipeline: Any) -> str | None:
        """One step is refused where diffusers' PixArt pipelines would take their special one-step
        path, which only LCM's sampler serves."""
        return no_single_step(pipeline) if self.steps == 1 else None

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Nothing is changed; a share that comes to a single step is refused when a generation
        starts, as in `check`."""

        def start() -> None:
            if at.now.num_steps == 1 and (reason := no_single_step(pipeline)):
                raise ValueError(f"fewer_steps: {reason}")

        at.on_start(start)
