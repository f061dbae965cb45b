"""DiCache: run the first block, decide by it whether the others are skipped, and combine the last two
results as it moved (2025, arXiv:2508.17356)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.caching.passes import reroute_probed_passes
from ditbench.acceleration.caching.token_settings import without_settings
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.models.blocks import Streams

AUTHORS: dict[str, tuple[float, float]] = {
    "flux": (0.4, 1.5),
    "sd3": (0.4, 1.5),
    "dit": (0.4, 1.5),
    "pixart": (0.4, 1.5),
    "wan": (0.08, 2.0),
}
"""By family the threshold and the greatest coefficient, of the authors' code for FLUX and Wan2.1. The
others are ours: FLUX's."""


@method(
    "dicache", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, decides_per_batch=True,
    paper="arXiv:2508.17356",
)  # fmt: skip
class DiCache:
    """Run the first `depth` blocks at every step; while what they give changes little, the others add a
    combination of what they added at the last two computed steps.

    The change of the image tokens p after these blocks, mean|p - p_before| / mean|p_before| over the
    whole batch, is added up; below `threshold` the rest is skipped. With r1, r2 what all blocks added
    at the last two computed steps, q1, q2 what the first ones added there and q what they add now, the
    output is the input plus r1 + g (r2 - r1), g = mean|q - q1| / mean|q2 - q1| between 1 and 1.5 (2 on
    Wan), a number for each row of the batch, of which the authors have one. A computed step goes on
    from these blocks, which are not run twice. On pictures steps up to `retain` of all and the last
    are always computed, on videos steps below `retain`, as in the code for FLUX and for Wan; separate
    guidance passes keep separate states.
    """

    threshold: float | None = knob(None, low=0)
    """Accumulated change up to which blocks are skipped; 0 skips none, None is the authors' for the
    family."""
    retain: float = knob(0.2, low=0, high=1)
    """Share of the steps at the beginning that are never skipped."""
    depth: int = knob(1, low=1)
    """Blocks that are always run, fewer than there are (the authors' 1; they recommend 1 to 5)."""
    off: ClassVar[dict[str, object]] = {"threshold": 0.0}
    dial: ClassVar[tuple[str, float, float]] = ("threshold", 0, 4)

    def check(self, pipeline: Any) -> str | None:
        """A family without settings needs a threshold, and there must be blocks to skip."""
        from ditbench.models.blocks import blocks

        if (number := len(blocks(pipeline.transformer))) <= self.depth:
            return f"depth={self.depth} of {number} blocks leaves none to skip"
        if self.threshold is None:
            return without_settings("dicache", AUTHORS, pipeline)
        return None

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every block."""
        from ditbench.acceleration.caching.forecasts import probed_coefficient, two_anchors
        from ditbench.models.family import family_of

        family = family_of(pipeline.transformer)
        theirs, most = AUTHORS.get(family.name, (0.0, 1.5))
        threshold = theirs if self.threshold is None else self.threshold
        before: dict[int, Tensor] = {}
        added: dict[int, list[Tensor]] = {}  # r1, r2
        probes: dict[int, list[Tensor]] = {}  # q1, q2
        total: dict[int, float] = {}
        for store in (before, added, probes):
            at.keeps(store)
        at.on_start(total.clear)

        def always_computed() -> bool:
            step, early = at.now.step, int(self.retain * at.now.num_steps)
            if family.video:
                return step < early
            return step <= early or step == at.now.num_steps - 1

        def replace(streams: Streams, probed: Streams) -> Streams | None:
            branch = at.now.branch
            previous, before[branch] = before.get(branch), probed[0]
            if previous is None or always_computed():
                total[branch] = 0.0
                return None
            change = (probed[0] - previous).abs().mean() / previous.abs().mean()
            total[branch] += float(change.item())
            if total[branch] >= threshold:
                total[branch] = 0.0
                return None
            older, newer = added[branch][0], added[branch][-1]
            if older is newer:  # one computed step so far
                return streams[0] + newer, *streams[1:]
            q1, q2 = probes[branch]
            g = probed_coefficient(probed[0] - streams[0], q1, q2, most)
            return streams[0] + two_anchors(older, newer, g), *streams[1:]

        def observe(streams: Streams, probed: Streams, output: Streams) -> None:
            for store, after in ((added, output), (probes, probed)):
                newest = after[0] - streams[0]
                store[at.now.branch] = [*store.get(at.now.branch, []), newest][-2:]

        reroute_probed_passes(at, self.depth, replace, observe)
