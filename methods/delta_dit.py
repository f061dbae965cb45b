"""Delta-DiT: keep what a range of blocks adds, rear blocks early in sampling and front blocks late
(Chen et al. 2024, arXiv:2406.01125)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from ditbench.models.blocks import BlockRoute, RunBlock, Streams


@method(
    "delta_dit",
    family="cache",
    stage=Stage.SCHEDULE,
    claims={"block-schedule"},
    paper="arXiv:2406.01125",
)
class DeltaDit:
    """Every `interval` steps compute all blocks and keep the difference a range of them makes; in
    between add it instead.

    Outlines are made early and by front blocks, details late and by rear blocks: so the rear is
    reused early, the front late.
    """

    interval: int = knob(3, low=1)
    """Steps from one full computation to the next; 1 changes nothing."""
    share: float = knob(0.75, above=0, high=1)
    """Share of the blocks whose difference is reused. Ours, as is `switch`."""
    switch: float = knob(0.5, low=0, high=1)
    """Share of the steps after which front blocks are reused instead of rear ones."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("share", 0.05, 1)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every block."""
        num = len(at.blocks)
        size = max(1, round(self.share * num))
        ranges = (num - size, num), (0, size)
        cached: dict[tuple[int, int], Streams] = {}
        entered: dict[tuple[int, int], Streams] = {}
        for store in (cached, entered):
            at.keeps(store)

        def at_block(index: int) -> BlockRoute:
            def route(run: RunBlock, streams: Streams) -> Streams:
                late = at.now.step >= self.switch * at.now.num_steps
                key = int(late), at.now.branch
                first, end = ranges[late]
                if index == 0:
                    entered.clear()
                if (
                    self.interval > 1
                    and at.now.step % self.interval
                    and key in cached
                    and first <= index < end
                ):
                    at.count("reused")
                    return (
                        tuple(x + d for x, d in zip(streams, cached[key], strict=True))
                        if index == first
                        else streams
                    )
                at.count("computed", idle=True)
                for side, (start, _) in enumerate(ranges):
                    if index == start:
                        entered[side, at.now.branch] = streams
                out = run(streams)
                if self.interval > 1:
                    for side, (_, stop) in enumerate(ranges):
                        if index == stop - 1 and (side, at.now.branch) in entered:
                            begun = entered.pop((side, at.now.branch))
                            cached[side, at.now.branch] = tuple(
                                a - b for a, b in zip(out, begun, strict=True)
                            )
                return out

            return route

        for block in at.blocks:
            at.reroute(block, at_block(block.index))
