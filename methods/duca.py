"""DuCa: between full steps alternate ToCa's partial steps with skipping the transformer (Zou et al.
2024, arXiv:2412.18911)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.caching.token_settings import (
    DUCA,
    SELECTORS,
    places,
    refuse_stride,
    relied_on,
    selector_files,
    without_settings,
)
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from ditbench.models.blocks import BlockRoute, RunBlock, Streams
    from ditbench.models.sublayers import Route, Run, Sublayer


@method(
    "duca",
    family="cache",
    stage=Stage.SCHEDULE,
    claims={"block-schedule", "token-rows"},
    paper="arXiv:2412.18911",
)
class Duca:
    """Compute every few steps wholly; of the steps in between, odd ones recompute some tokens and
    even ones run no block at all.

    A skipped step hands on the last block's last output. The rules are ToCa's with DuCa's own
    settings (`ditbench.acceleration.caching.token_settings`), Wan by PixArt's. A step is odd or
    even by its place in the period as the family's code counts steps: downwards on DiT, so that
    there the skipped one comes first where the period is odd. The authors found random tokens as
    good as chosen ones (`shuffle`), and those need no attention map.
    """

    interval: int | None = knob(None, low=1)
    """About so many steps from one full computation to the next; 1 changes nothing, None is the
    authors' for the family."""
    ratio: float | None = knob(None, low=0, high=1)
    """Share of tokens recomputed in a partial step, before the rules' factors; None is the authors'
    for the family."""
    selector: str = knob("attention", choices=lambda: SELECTORS)
    """What tokens are ranked by: `attention`, `change`, `similarity`, `norm` or `shuffle`."""
    query_stride: int = knob(1, low=1, high=64)
    """Rank by the attention of one query in so many (`selector='attention'`), another one at every step
    and block; 1: of all, as the authors. The scores of all queries are made once more for the ranking
    alone. An odd number goes through all columns of the image."""
    quirk: bool | None = None
    """Place steps in their period block by block, so that some are full in the first block only;
    off: they are full. None: on DiT, as the authors' code and numbers have it; PixArt's period
    never changes, so that there it is all the same."""
    attend: bool = False
    """On FLUX's single blocks, attend anew for the recomputed tokens; off: use their attention of
    the last full step."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("ratio", 0, 1)

    def __post_init__(self) -> None:
        refuse_stride("duca", self.selector, self.query_stride)

    def inputs(self) -> list[Path]:
        """The file of a selector from outside."""
        return selector_files(self.selector)

    def check(self, pipeline: Any) -> str | None:
        """There must be settings for the family."""
        return without_settings("duca", DUCA, pipeline, self.query_stride)

    def relies_on(self, family: str) -> dict[str, str]:
        """Nothing at an interval of 1."""
        return {} if self.interval == 1 else relied_on(self.selector, DUCA.get(family))

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through the token cache, and every block round it."""
        from ditbench.acceleration.caching.token_cache import TokenCache
        from ditbench.models.family import family_of

        if self.interval == 1:
            return
        rules = replace(DUCA[family_of(pipeline.transformer).name], query_stride=self.query_stride)
        interval = self.interval or rules.interval
        ratio = rules.ratio if self.ratio is None else self.ratio
        token_cache = TokenCache(at, self.selector, rules, interval, attend=self.attend)
        last: dict[int, Streams] = {}
        at.keeps(last)
        phases = cache(lambda steps: rules.phases(interval, steps))
        by_block = rules.by_block if self.quirk is None else self.quirk

        def phase(block: int) -> int:
            return phases(at.now.num_steps)[at.now.step][by_block and block > 0]

        def dense(sublayer: Sublayer) -> bool:
            return phase(sublayer.block) == 0 or sublayer not in token_cache

        def at_sublayer(sublayer: Sublayer, place: float) -> Route:
            def route(run: Run, hidden: Any) -> Any:
                now = at.now
                if dense(sublayer):
                    return token_cache.compute(sublayer, run, hidden)
                num = rules.rows(
                    ratio, now.step, now.num_steps, place, sublayer.kind, hidden.shape[1]
                )
                return token_cache.refresh(sublayer, run, hidden, num)

            return route

        def at_block(index: int) -> BlockRoute:
            def route(run: RunBlock, streams: Streams) -> Streams:
                branch, place = at.now.branch, phase(index)
                if place and place % 2 == 0 and branch in last:
                    at.count("blocks_skipped")
                    return last[branch] if index == len(at.blocks) - 1 else streams
                out = run(streams)
                if index == len(at.blocks) - 1:
                    last[branch] = out
                return out

            return route

        for sublayer, place in zip(at.sublayers, places(at.sublayers), strict=True):
            at.reroute_deferred(
                sublayer,
                at_sublayer(sublayer, place),
                partial(dense, sublayer),
                outputs_only=partial(token_cache.goes_by_output, sublayer),
            )
        for block in at.blocks:
            at.reroute(block, at_block(block.index))
