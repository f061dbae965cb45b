"""Learning-to-Cache: learn which sub-layers every second step may reuse (Ma et al. 2024, arXiv:2406.01733)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method
from ditbench.prepare import unprepared
from ditbench.reuse import reuse_outputs

if TYPE_CHECKING:
    from ditbench.prepare import Workroom


@method("l2c", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="arXiv:2406.01733")
class L2C:
    """Compute every second step wholly; in the others recompute only the sub-layers whose learned score is above `threshold`.

    The scores, one per (odd step, sub-layer) and the same for every prompt, are learned by `prepare`: the mixture score * new +
    (1 - score) * kept shall equal the dense output of that step, at a price per score.
    """

    threshold: float = knob(0.1, low=0, high=1)
    """Scores up to this are reused (the authors' 0.1); 1 reuses every sub-layer of every second step."""
    price: float = knob(1e-6, low=0)
    """What each score costs in training (the authors' 1e-6 for 50 DDIM steps, 5e-6 for 20): higher caches more."""
    training: int = knob(0, low=0, high=15)
    """Which training of this recipe: every number has requests and noise of its own, so that several show how far trainings differ."""
    off: ClassVar[dict[str, object]] = {"threshold": 0.0}
    dial: ClassVar[tuple[str, float, float]] = ("threshold", 0, 1)

    def recipe(self) -> dict[str, Any] | None:
        """What the scores depend on; at threshold 0 nothing is reused and nothing has to be prepared, nor at 1."""
        return None if self.threshold in (0, 1) else {"version": 1, "price": self.price}

    def prepare(self, folder: Any, room: Workroom) -> dict[str, Any]:
        """Learn the scores and write them as `scores.safetensors`; returns notes for the manifest."""
        from ditbench.mixing import prepare_scores

        return prepare_scores(folder, room, price=self.price)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through the cache."""
        if self.threshold == 0:
            return
        if self.threshold == 1:
            reuse_outputs(at, lambda step, _: step % 2 == 1)
            return
        if at.artifact is None:
            raise unprepared(self)
        from safetensors.numpy import load_file

        reused = load_file(at.artifact / "scores.safetensors")["scores"] <= self.threshold  # [T,L]
        reuse_outputs(at, lambda step, sublayer: step % 2 == 1 and bool(reused[step, sublayer.index]))
