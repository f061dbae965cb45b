"""DuCa: between full steps alternate ToCa's partial steps with skipping the transformer (Zou et al. 2024, arXiv:2412.18911)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method
from ditbench.rules import RULES, Selector

if TYPE_CHECKING:
    from ditbench.anatomy import Route, Run, Sublayer
    from ditbench.blocks import BlockRoute, RunBlock, Streams


@method("duca", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="arXiv:2412.18911")
class Duca:
    """Compute every few steps wholly; of the steps in between, odd ones recompute some tokens and even ones run no block at all.

    A skipped step hands on the last block's last output. Rules and ratios are ToCa's for the family with DuCa's own shares; the
    authors found random tokens as good as chosen ones, and their ranking needs no attention map.
    """

    interval: int | None = knob(None, low=1)
    """About so many steps from one full computation to the next; 1 changes nothing, None is the authors' for the family."""
    ratio: float | None = knob(None, low=0, high=1)
    """Share of tokens recomputed in a partial step, before the rules' factors; None is the authors' for the family."""
    selector: Selector = "random"
    """What tokens are ranked by: `attention`, `change`, `similarity`, `norm` or `random`."""
    off: ClassVar[dict[str, object]] = {"interval": 1}

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through the token cache, and every block round it."""
        from ditbench.anatomy import family_of
        from ditbench.tokens import TokenCache

        if self.interval == 1:
            return
        family = family_of(pipeline.transformer)
        rules = RULES[family]
        interval = self.interval or rules.interval
        ratio = (SHARES.get(family, rules.ratio)) if self.ratio is None else self.ratio
        cache = TokenCache(at, self.selector, bonus=rules.bonus, window=rules.window)
        last: dict[int, Streams] = {}
        at.on_start(last.clear)
        at.holds(last.values)
        depth = max(1, len(at.blocks) - 1)

        def since_full() -> int:
            full = rules.full_steps(interval, at.now.num_steps)
            return next(k for k in range(at.now.step + 1) if full[at.now.step - k][0])

        def at_sublayer(sublayer: Sublayer) -> Route:
            def route(run: Run, hidden: Any) -> Any:
                if since_full() == 0 or sublayer not in cache:
                    return cache.compute(sublayer, run, hidden)
                keep = rules.keep(ratio, at.now.step, at.now.num_steps, sublayer.block / depth, sublayer.kind)
                return cache.refresh(sublayer, run, hidden, int(keep * hidden.shape[1]))

            return route

        def at_block(index: int) -> BlockRoute:
            def route(run: RunBlock, streams: Streams) -> Streams:
                branch = at.now.branch
                if (since := since_full()) and since % 2 == 0 and branch in last:
                    at.count("blocks_skipped")
                    return last[branch] if index == len(at.blocks) - 1 else streams
                out = run(streams)
                if index == len(at.blocks) - 1:
                    last[branch] = out
                return out

            return route

        for sublayer in at.sublayers:
            at.reroute(sublayer, at_sublayer(sublayer))
        for block in at.blocks:
            at.reroute(block, at_block(block.index))


SHARES = {"dit": 0.05, "pixart": 0.75}
"""Where DuCa's published share of tokens is not ToCa's."""
