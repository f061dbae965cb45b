"""L2P: predict the transformer's output from those at computed steps, by weights that are fitted once
(Shen et al. 2026, arXiv:2604.26365)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.caching.calls import reroute_calls
from ditbench.acceleration.caching.passes import follows_interval
from ditbench.acceleration.caching.schedule import refuse_other_length
from ditbench.method import Attachment, Stage, knob, method
from ditbench.method.prepare import unprepared

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.method.prepare import Workroom

STEPS: dict[int, tuple[int, ...]] = {
    5: (0, 1, 2, 4, 6, 9, 14, 23, 30, 37, 44),
    6: (0, 1, 2, 4, 7, 14, 23, 31, 38, 45),
    7: (0, 1, 2, 4, 9, 17, 26, 35, 43),
    8: (0, 1, 2, 4, 10, 20, 31, 41),
    10: (0, 1, 2, 4, 12, 24, 38),
    16: (0, 1, 2, 4, 16, 32),
}
"""By interval the steps that the authors compute of 50 on FLUX."""


@method(
    "l2p",
    family="cache",
    stage=Stage.SCHEDULE,
    claims={"block-schedule"},
    paper="arXiv:2604.26365",
)
class L2P:
    """Compute some steps; at the others the transformer's output is a weighted sum of its outputs at
    all computed ones before.

    `prepare` samples 50 training requests and keeps the Gram matrix G [T,T] of the outputs, summed
    over samples, guidance passes and their numbers; the weights of step t are those of least squares,
    (G_SS + r I) w = G_St with S the computed steps before t and r 1e-5 of the mean of G_SS's diagonal.
    So they are the best for the steps that are computed, and one matrix serves every interval. The
    authors fit the weights of all earlier steps, by gradient descent, and apply them to the earlier
    predictions too. Of 50 steps on FLUX those are computed that the authors chose for the interval,
    elsewhere, which is ours, the `first` steps and every `interval`-th after.
    """

    interval: int | float = knob(7, low=1)
    """Steps from one computation to the next, on average; 1 changes nothing. The authors have 5, 6, 7,
    8, 10 and 16."""
    first: int = knob(3, low=1)
    """Steps computed at the beginning, where the authors chose none."""
    training: int = knob(0, low=0, high=15)
    """Which calibration: every number has requests and noise of its own, so that several show how
    far calibrations differ."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("interval", 1, 10)

    def recipe(self) -> dict[str, Any] | None:
        """The matrix depends on the model alone; at interval 1 none is needed."""
        return None if self.interval == 1 else {"version": 1}

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Measure the matrix on training requests."""
        from ditbench.acceleration.caching.linear_predictor import write_gram

        return write_gram(folder, room)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute the transformer."""
        from ditbench.models.family import family_of

        if self.interval == 1:
            return
        if at.artifact is None:
            raise unprepared(self)
        from ditbench.acceleration.caching.linear_predictor import GRAM, predictor, read_gram

        gram, flux = read_gram(at.artifact / GRAM), family_of(pipeline.transformer).name == "flux"
        outputs: dict[int, dict[int, Tensor]] = {}  # by guidance pass, by step
        at.keeps(outputs)

        def computes(step: int) -> bool:
            steps = at.now.num_steps
            refuse_other_length(
                "the Gram matrix", len(gram), steps, "python run_bench.py prepare l2p"
            )
            if flux and steps == 50 and self.interval in STEPS:
                return step in STEPS[int(self.interval)]
            return follows_interval(step, self.interval, self.first)

        def replace(_hidden: Tensor) -> Tensor | None:
            step, before = at.now.step, outputs.get(at.now.branch)
            if computes(step) or not before:
                return None
            weights = predictor(gram, list(before), step)
            parts = [float(w) * x for w, x in zip(weights, before.values(), strict=True)]
            return sum(parts[1:], parts[0])

        def observe(_hidden: Tensor, output: Tensor) -> None:
            outputs.setdefault(at.now.branch, {})[at.now.step] = output

        reroute_calls(at, pipeline.transformer, replace, observe)
