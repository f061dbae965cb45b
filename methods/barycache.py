"""BaryCache: extrapolate what the last block gives by barycentric weights (2026,
arXiv:2608.28670)."""

from __future__ import annotations

from collections.abc import Sequence
from math import copysign
from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.caching.passes import follows_interval, reroute_passes
from ditbench.acceleration.caching.token_settings import without_settings
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.models.blocks import RunBlock, Streams

AUTHORS = {"dit": 5, "pixart": 4, "wan": 6, "flux": 6, "sd3": 6}
"""Interval by family: of the paper's tables for DiT and of the code for PixArt and HunyuanVideo, which
Wan has here. FLUX's and SD3's are ours."""
CLIP, FLOOR = 10.0, 1e-6
DECAY = {2: 1.0, 3: 0.95, 4: 0.75}
"""By number of anchors, the exponent that evens the weights out."""


@method(
    "barycache",
    family="cache",
    stage=Stage.SCHEDULE,
    claims={"block-schedule"},
    paper="arXiv:2608.28670",
)
class BaryCache:
    """Compute every `interval` steps; in between the output of the last block is a weighted sum of its
    last `history` computed ones.

    With the anchors at steps s_0 < s_1 < ... and c_j = 1, but 1/2 at both ends, u_j = (-1)^j c_j / (t
    - s_j) at step t, clipped to 10; the weights are sgn(u_j) |u_j|^decay, divided by their sum, with a
    decay of 1, 0.95 or 0.75 for 2, 3 or 4 anchors. Two anchors are linear extrapolation. Kept are
    `history` image streams [B,N,D] for each guidance pass, whatever the depth.
    """

    interval: int | float | None = knob(None, low=1)
    """Steps from one computation to the next, on average; 1 changes nothing, None is the authors'
    for the family."""
    history: int = knob(2, low=2, high=4)
    """Computed steps that are kept (the authors' 2)."""
    first: int = knob(3, low=1)
    """Steps computed at the beginning (the authors' 3)."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("interval", 1, 10)

    def check(self, pipeline: Any) -> str | None:
        """A family without an interval needs the knob."""
        if self.interval is None:
            return without_settings("barycache", AUTHORS, pipeline)
        return None

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every block."""
        from ditbench.models.family import family_of

        interval = self.interval or AUTHORS[family_of(pipeline.transformer).name]
        if interval == 1:
            return
        anchors: dict[int, list[Tensor]] = {}
        steps: dict[int, list[int]] = {}
        at.keeps(anchors)
        at.on_start(steps.clear)

        def replace(_run: RunBlock, streams: Streams) -> Streams | None:
            branch, step = at.now.branch, at.now.step
            if branch not in anchors or follows_interval(step, interval, self.first):
                return None
            by = weights(steps[branch], step, DECAY[self.history])
            parts = [w * x for w, x in zip(by, anchors[branch], strict=True)]
            return sum(parts[1:], parts[0]), *streams[1:]

        def observe(_streams: Streams, output: Streams) -> None:
            branch = at.now.branch
            anchors[branch] = [*anchors.get(branch, []), output[0]][-self.history :]
            steps[branch] = [*steps.get(branch, []), at.now.step][-self.history :]

        reroute_passes(at, replace, observe)


def weights(steps: Sequence[int], wanted: int, decay: float) -> list[float]:
    """Of anchors at `steps`, oldest first, for a later step `wanted`; their sum is 1."""
    if len(steps) == 1:
        return [1.0]
    evened = []
    for j, step in enumerate(steps):
        end = 0.5 if j in (0, len(steps) - 1) else 1.0
        u = (-1) ** j * end / (wanted - step)
        u = min(max(u, -CLIP), CLIP)
        evened.append(copysign((abs(u) + 1e-12) ** decay, u))
    total = sum(evened)
    if abs(total) < FLOOR:
        total = copysign(FLOOR, total)
    return [u / total for u in evened]
