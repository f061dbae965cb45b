"""TeaCache: skip whole transformer runs while the modulated input barely changes (Liu et al. 2024,
arXiv:2411.19108)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ditbench.acceleration.caching.passes import modulated_input
from ditbench.acceleration.caching.targets import (
    Target,
    TargetOrAuto,
    choose,
    chosen,
    reuse,
    why_no_target,
)
from ditbench.method import Attachment, Stage, knob, method
from ditbench.method.prepare import unprepared

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom
    from ditbench.models.blocks import RunBlock, Streams

FOUND = "threshold.json"

PUBLISHED: dict[tuple[str, int], tuple[float, ...]] = {
    ("flux", 3072): (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861),
    ("wan", 1536): (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774),
    ("wan", 5120): (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
}
"""(family, width) -> the authors' polynomial, highest power first, for the signal they fitted it
to: on FLUX.1-dev the first block's modulated input, on Wan2.1 1.3B and 14B (text to video, without
their retention steps) the time embedding."""


@method(
    "teacache", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, decides_per_batch=True,
    paper="arXiv:2411.19108",
)  # fmt: skip
class TeaCache:
    """Add up how much a signal changes from step to step; below `threshold` reuse what the blocks
    added.

    The signal is the first block's modulated input, and on Wan the time embedding, as in the
    authors' code for it: there the decision is the same for every prompt. The change is mean|m -
    m_before| / mean|m_before| over the whole batch, put through a polynomial that predicts the
    change of the output. First and last steps are always computed; separate guidance passes keep
    separate states.
    """

    threshold: float = knob(0.2, low=0)
    """Accumulated change up to which runs are skipped; 0 skips none."""
    polynomial: tuple[float, ...] = ()
    """Coefficients, highest power first; empty: the authors' for the model they fitted, and the
    change itself elsewhere."""
    saved: float = knob(0.0, low=0, below=1)
    """Share of the transformer's runs to skip, by the threshold that `prepare` found for it; 0: by
    `threshold`."""
    tuned: Literal["stack", "alone"] = "stack"
    """With `saved`: whether the threshold was found on top of the methods below, or on the plain
    model."""
    training: int = knob(0, low=0, high=15)
    """Which calibration: every number has requests and noise of its own, so that several show how
    far calibrations differ."""
    target: TargetOrAuto = "residual"
    """What is kept of a computed run and reused: what the blocks added, or the prediction said as
    noise (`epsilon`), clean sample (`x0`), velocity (`v`), the sampler's clean sample (`denoised`) or
    that less the state (`denoised_residual`), from which the prediction at the state of the step is
    made again (AutoTarget, arXiv:2610.03577). `auto`: `prepare` measures them."""
    off: ClassVar[dict[str, object]] = {"threshold": 0.0}
    dial: ClassVar[tuple[str, float, float]] = ("threshold", 0, 4)

    def recipe(self) -> dict[str, Any] | None:
        """A threshold found for a share depends on the signal and on what its change is put
        through."""
        recipe = {"version": 2, "saved": self.saved, "polynomial": list(self.polynomial)}
        if self.target == "auto":
            return recipe | {"target": 1, "threshold": self.threshold}
        target = {} if self.target == "residual" else {"target": self.target}
        return recipe | target if self.saved else None

    def check(self, pipeline: Any) -> str | None:
        """Another target than the residual wants a model of noise or of a flow."""
        return why_no_target(pipeline, self.target)

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Look for the threshold that skips `saved` of the runs on a batch of training requests;
        returns it and the share it skips. And, with `target='auto'`, choose the target."""
        if not self.saved:
            return choose(folder, room, lambda target: replace(self, target=target))
        from ditbench.acceleration.caching.calibrate_magcache import BATCH
        from ditbench.method.dial import dialled

        num = room.at_once(BATCH)
        target: Target = "residual" if self.target == "auto" else self.target

        def skips(threshold: float) -> float:
            counters = room.generate(
                replace(self, threshold=threshold, saved=0.0, target=target), num
            ).counters()
            reused, computed = (
                counters.get(f"teacache.passes_{what}", 0) for what in ("reused", "computed")
            )
            return reused / (reused + computed)

        threshold, skipped = dialled(skips, self.saved, *self.dial[1:])
        room.tell({"done": 1, "of": 1})
        (folder / FOUND).write_text(json.dumps({"threshold": threshold}) + "\n", encoding="utf-8")
        notes = {"threshold": threshold, "skipped": round(skipped, 4), "samples": num}
        if self.target != "auto":
            return notes
        set_so = replace(self, threshold=threshold, saved=0.0)
        return notes | choose(folder, room, lambda target: replace(set_so, target=target))

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every block; the first one decides for all."""
        from ditbench.models.family import family_of

        threshold = self.threshold
        if self.recipe() is not None and at.artifact is None:
            raise unprepared(self)
        target: Target = chosen(at.artifact) if self.target == "auto" else self.target
        at.notes |= {"target": target} if self.target == "auto" else {}
        if self.saved:
            assert at.artifact is not None
            threshold = json.loads((at.artifact / FOUND).read_text(encoding="utf-8"))["threshold"]
        family, width = family_of(pipeline.transformer).name, at.sublayers[0].linears[0].in_features
        terms = self.polynomial or PUBLISHED.get((family, width), (1.0, 0.0))
        before: dict[int, Any] = {}
        total: dict[int, float] = {}
        at.keeps(before)
        at.on_start(total.clear)
        signal = (
            _time_embedding(pipeline.transformer, at) if family == "wan" else modulated_input(at)
        )

        def decide(run: RunBlock, streams: Streams) -> bool:
            branch, seen = at.now.branch, signal(run, streams)
            first = branch not in total
            change = (
                float(((seen - before[branch]).abs().mean() / before[branch].abs().mean()).item()) if branch in before else 0.0
            )  # fmt: skip
            before[branch] = seen
            total[branch] = total.get(branch, 0.0) + sum(
                c * change**p for p, c in enumerate(reversed(terms))
            )
            last = at.now.step == at.now.num_steps - 1
            if not first and not last and total[branch] < threshold:
                return True
            total[branch] = 0.0
            return False

        reuse(pipeline, at, decide, target)


def _time_embedding(transformer: Any, at: Attachment) -> Callable[[RunBlock, Streams], Any]:
    """The signal of a pass on Wan: the time embedding before it is projected to modulations,
    [B,D]."""
    newest: list[Any] = []

    def keep(_module: Any, _inputs: Any, embedding: Any) -> None:
        newest[:] = [embedding]

    at.undo(transformer.condition_embedder.time_embedder.register_forward_hook(keep).remove)
    return lambda run, streams: newest.pop()
