"""Passes through all blocks, computed or replaced: what caches share that decide for a whole call of
the transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment
    from ditbench.models.blocks import Block, BlockRoute, RunBlock, Streams

Replace = Callable[["RunBlock", "Streams"], "Streams | None"]
"""f(the first block's run, what goes into the first block) -> what stands for the output of the last
block, or None where the blocks are to be computed. Asked once for each call of the transformer."""
Observe = Callable[["Streams", "Streams"], None]
"""f(what went into the first block, what came out of the last) after a computed pass."""


def reroute_passes(at: Attachment, replace: Replace, observe: Observe) -> None:
    """Reroute every block, so that the first one decides for all of them.

    Streams are `(image [B,N,D],)` or `(image, text [B,T,D])`, of all guidance passes in the batch;
    `at.now.branch` tells separate ones apart. Counts `passes_reused` and `passes_computed`.
    """
    entered: dict[int, Streams] = {}
    replaced: dict[int, bool] = {}
    for store in (entered, replaced):
        at.on_start(store.clear)
    last = len(at.blocks) - 1

    def route_of(block: Block) -> BlockRoute:
        def route(run: RunBlock, streams: Streams) -> Streams:
            branch = at.now.branch
            if block.index == 0:
                output = replace(run, streams)
                replaced[branch] = output is not None
                at.count(
                    "passes_computed" if output is None else "passes_reused", idle=output is None
                )
                if output is not None:
                    return output
                entered[branch] = streams
            if replaced[branch]:
                return streams
            output = run(streams)
            if block.index == last:
                observe(entered.pop(branch), output)
            return output

        return route

    for block in at.blocks:
        at.reroute(block, route_of(block))


def added(before: Streams, after: Streams) -> Streams:
    """What the blocks added to each stream."""
    return tuple(b - a for a, b in zip(before, after, strict=True))


def plus(streams: Streams, residual: Streams) -> Streams:
    """Streams with a residual added to each."""
    return tuple(x + r for x, r in zip(streams, residual, strict=True))


def reuse_residual(at: Attachment, skips: Callable[[RunBlock, Streams], bool]) -> None:
    """Where `skips(run, streams)`, the blocks add what they added at the last computed step; a pass
    that has not been computed yet in a generation is computed, and asked about all the same."""
    residual: dict[int, Streams] = {}
    at.keeps(residual)

    def replace(run: RunBlock, streams: Streams) -> Streams | None:
        wanted = skips(run, streams)
        previous = residual.get(at.now.branch)
        return plus(streams, previous) if wanted and previous is not None else None

    def observe(streams: Streams, output: Streams) -> None:
        residual[at.now.branch] = added(streams, output)

    reroute_passes(at, replace, observe)
