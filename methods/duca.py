"""DuCa: between full steps alternate ToCa's partial steps with skipping the transformer (Zou et al. 2024, arXiv:2412.18911)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method
from ditbench.rules import DUCA, SelectorName, places

if TYPE_CHECKING:
    from ditbench.anatomy import Route, Run, Sublayer
    from ditbench.blocks import BlockRoute, RunBlock, Streams


@method("duca", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="arXiv:2412.18911")
class Duca:
    """Compute every few steps wholly; of the steps in between, odd ones recompute some tokens and even ones run no block at all.

    A skipped step hands on the last block's last output. The rules are ToCa's with DuCa's own settings (`ditbench.rules`), Wan by
    PixArt's. The authors found random tokens as good as chosen ones (`shuffle`), and those need no attention map.
    """

    interval: int | None = knob(None, low=1)
    """About so many steps from one full computation to the next; 1 changes nothing, None is the authors' for the family."""
    ratio: float | None = knob(None, low=0, high=1)
    """Share of tokens recomputed in a partial step, before the rules' factors; None is the authors' for the family."""
    selector: SelectorName = "attention"
    """What tokens are ranked by: `attention`, `change`, `similarity`, `norm` or `shuffle`."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("ratio", 0, 1)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through the token cache, and every block round it."""
        from ditbench.anatomy import family_of
        from ditbench.tokens import TokenCache

        if self.interval == 1:
            return
        rules = DUCA[family_of(pipeline.transformer)]
        interval = self.interval or rules.interval
        ratio = rules.ratio if self.ratio is None else self.ratio
        kept = TokenCache(at, self.selector, rules, interval)
        last: dict[int, Streams] = {}
        at.on_start(last.clear)
        at.holds(last.values)

        @cache
        def since_full(step: int, steps: int) -> int:
            full = rules.full_steps(interval, steps)
            return next(k for k in range(step + 1) if full[step - k][0])

        def at_sublayer(sublayer: Sublayer, place: float) -> Route:
            def route(run: Run, hidden: Any) -> Any:
                now = at.now
                if since_full(now.step, now.num_steps) == 0 or sublayer not in kept:
                    return kept.compute(sublayer, run, hidden)
                keep = rules.keep(ratio, now.step, now.num_steps, place, sublayer.kind)
                return kept.refresh(sublayer, run, hidden, int(keep * hidden.shape[1]))

            return route

        def at_block(index: int) -> BlockRoute:
            def route(run: RunBlock, streams: Streams) -> Streams:
                branch = at.now.branch
                since = since_full(at.now.step, at.now.num_steps)
                if since and since % 2 == 0 and branch in last:
                    at.count("blocks_skipped")
                    return last[branch] if index == len(at.blocks) - 1 else streams
                out = run(streams)
                if index == len(at.blocks) - 1:
                    last[branch] = out
                return out

            return route

        for sublayer, place in zip(at.sublayers, places(at.sublayers), strict=True):
            at.reroute(sublayer, at_sublayer(sublayer, place))
        for block in at.blocks:
            at.reroute(block, at_block(block.index))
