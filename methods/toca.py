"""ToCa: between full steps recompute only the tokens that matter most (Zou et al. 2024, arXiv:2410.05317)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method
from ditbench.rules import RULES, Selector

if TYPE_CHECKING:
    from ditbench.anatomy import Route, Run, Sublayer


@method("toca", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="arXiv:2410.05317")
class Toca:
    """Compute every few steps wholly; in between recompute the highest ranking tokens of MLPs and cross-attention, and reuse the rest.

    How often, how many and where are the authors' rules for each family (`ditbench.rules`), Wan by PixArt's. A token's score is the
    attention it gets, how widely it attends to the text, and how long it has waited; the best of each window of the picture gets more.
    """

    interval: int | None = knob(None, low=1)
    """About so many steps from one full computation to the next; 1 changes nothing, None is the authors' for the family."""
    ratio: float | None = knob(None, low=0, high=1)
    """Share of tokens recomputed in between, before the rules' factors; None is the authors' for the family."""
    selector: Selector = "attention"
    """What tokens are ranked by: `attention`, `change`, `similarity`, `norm` or `random`."""
    quirk: bool = False
    """On DiT, test for a full step block by block as the authors' code does, so that two steps of 50 are full in the first block only."""
    off: ClassVar[dict[str, object]] = {"interval": 1}

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through the token cache."""
        from ditbench.anatomy import family_of
        from ditbench.tokens import TokenCache

        if self.interval == 1:
            return
        rules = RULES[family_of(pipeline.transformer)]
        interval = self.interval or rules.interval
        ratio = rules.ratio if self.ratio is None else self.ratio
        cache = TokenCache(at, self.selector, reuse_weight=0.25 / interval, bonus=rules.bonus, window=rules.window)
        depth = {s.kind: max(o.block for o in at.sublayers if o.kind == s.kind) for s in at.sublayers}
        first = {s.kind: min(o.block for o in at.sublayers if o.kind == s.kind) for s in at.sublayers}

        def at_sublayer(sublayer: Sublayer) -> Route:
            kind = sublayer.kind
            place = (sublayer.block - first[kind]) / max(1, depth[kind] - first[kind])

            def route(run: Run, hidden: Any) -> Any:
                now = at.now
                full = rules.full_steps(interval, now.num_steps)[now.step][self.quirk and sublayer.block > 0]
                if full or sublayer not in cache:
                    return cache.compute(sublayer, run, hidden)
                keep = rules.keep(ratio, now.step, now.num_steps, place, kind)
                return cache.refresh(sublayer, run, hidden, int(keep * hidden.shape[1]))

            return route

        for sublayer in at.sublayers:
            at.reroute(sublayer, at_sublayer(sublayer))
