"""A complete method that drops guidance half way: the conditional pass alone from there on."""

from typing import Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method


@method(
    "drop_guidance",
    family="guidance",
    stage=Stage.SCHEDULE,
    claims={"guidance"},
    needs={"guidance-pass"},
    paper="arXiv:2312.12487",
)
class DropGuidance:
    """Guide for the first `share` of the steps, as early ones decide what is in the picture."""

    share: float = knob(0.5, low=0, high=1)
    """Share of the steps with guidance; 1 changes nothing."""
    off: ClassVar[dict[str, object]] = {"share": 1.0}
    dial: ClassVar[tuple[str, float, float]] = ("share", 0, 1)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Say when; caches that are attached besides keep the conditional rows."""
        at.drop_guidance(lambda: at.now.step >= self.share * at.now.num_steps)
