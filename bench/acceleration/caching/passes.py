"""Passes through all blocks, computed or replaced: what caches share that decide for a whole call of
the transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.method.attachment import Attachment
    from ditbench.models.blocks import Block, BlockRoute, RunBlock, Streams

Replace = Callable[["RunBlock", "Streams"], "Streams | None"]
"""f(the first block's run, what goes into the first block) -> what stands for the output of the last
block, or None where the blocks are to be computed. Asked once for each call of the transformer."""
Observe = Callable[["Streams", "Streams"], None]
"""f(what went into the first block, what came out of the last) after a computed pass."""
ReplaceProbed = Callable[["Streams", "Streams"], "Streams | None"]
"""f(what went into the first block, what the probing blocks made of it) -> what stands for the output
of the last block, or None where the other blocks are to be computed too."""
ObserveProbed = Callable[["Streams", "Streams", "Streams"], None]
"""f(what went into the first block, what the probing blocks made of it, what came out of the last)
after a computed pass."""


class _Input(Exception):
    """Carries the first sub-layer's input out of the first block."""


def follows_interval(step: int, interval: float, first: int) -> bool:
    """Whether a step is computed by the rule of TaylorSeer and its kin: the `first` steps are, and
    from the last of those on every `interval`-th; of a broken interval so many on average."""
    since = step - first + 1
    return since <= 0 or since // interval != (since - 1) // interval


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


def reroute_probed_passes(
    at: Attachment, depth: int, replace: ReplaceProbed, observe: ObserveProbed
) -> None:
    """As `reroute_passes`, where the first `depth` blocks, fewer than there are, run in every pass and
    are not run again in a computed one; `replace` is asked after them."""
    entered: dict[int, Streams] = {}
    probed: dict[int, Streams] = {}
    replaced: dict[int, bool] = {}
    for store in (entered, probed, replaced):
        at.on_start(store.clear)
    last = len(at.blocks) - 1

    def route_of(block: Block) -> BlockRoute:
        def route(run: RunBlock, streams: Streams) -> Streams:
            branch = at.now.branch
            if block.index == 0:
                entered[branch] = streams
            if block.index >= depth and replaced[branch]:
                return streams
            output = run(streams)
            if block.index == depth - 1:
                instead = replace(entered[branch], output)
                replaced[branch] = instead is not None
                at.count(
                    "passes_computed" if instead is None else "passes_reused", idle=instead is None
                )
                if instead is not None:
                    del entered[branch]
                    return instead
                probed[branch] = output
            if block.index == last:
                observe(entered.pop(branch), probed.pop(branch), output)
            return output

        return route

    for block in at.blocks:
        at.reroute(block, route_of(block))


def modulated_input(at: Attachment) -> Callable[[RunBlock, Streams], Tensor]:
    """f(the first block's run, what goes into it) -> what the first block hands to its first
    sub-layer, [B,N,D] of the image: normalised, and modulated by the time. Nothing else of the block
    is run for it."""
    probing = {"now": False}

    def look(run: Any, hidden: Any) -> Any:
        if probing["now"]:
            raise _Input(hidden)
        return run()

    at.reroute(at.sublayers[0], look)

    def signal(run: RunBlock, streams: Streams) -> Tensor:
        probing["now"] = True
        try:
            run(streams)
        except _Input as stopped:
            hidden: Tensor = stopped.args[0]
            return hidden
        finally:
            probing["now"] = False
        raise AssertionError("the first block ran without its first sub-layer")

    return signal
