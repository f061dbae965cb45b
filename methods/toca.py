"""ToCa: between full steps recompute only the tokens that matter most (Zou et al. 2024, arXiv:2410.05317)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method
from ditbench.rules import TOCA, SelectorName, places

if TYPE_CHECKING:
    from ditbench.anatomy import Route, Run, Sublayer


@method("toca", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="arXiv:2410.05317")
class Toca:
    """Compute every few steps wholly; in between recompute the highest ranking tokens of MLPs and cross-attention, and reuse the rest.

    How often, how many and where are the authors' rules for each family (`ditbench.rules`), Wan by PixArt's. A token's score is the
    attention it gets (on PixArt and Wan how widely it attends to the text) and how long it has waited; the best of each window of the
    picture gets more.
    """

    interval: int | None = knob(None, low=1)
    """About so many steps from one full computation to the next; 1 changes nothing, None is the authors' for the family."""
    ratio: float | None = knob(None, low=0, high=1)
    """Share of tokens recomputed in between, before the rules' factors; None is the authors' for the family."""
    selector: SelectorName = "attention"
    """What tokens are ranked by: `attention`, `change`, `similarity`, `norm` or `shuffle`."""
    quirk: bool = False
    """Test for a full step block by block as the authors' code for DiT and PixArt does, so that two of DiT's 50 steps and one of
    PixArt's 20 are full in the first block only."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("ratio", 0, 1)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through the token cache."""
        from ditbench.anatomy import family_of
        from ditbench.tokens import TokenCache

        if self.interval == 1:
            return
        rules = TOCA[family_of(pipeline.transformer)]
        interval = self.interval or rules.interval
        ratio = rules.ratio if self.ratio is None else self.ratio
        kept = TokenCache(at, self.selector, rules, interval)
        full = cache(lambda steps: rules.full_steps(interval, steps))

        def at_sublayer(sublayer: Sublayer, place: float) -> Route:
            def route(run: Run, hidden: Any) -> Any:
                now = at.now
                if full(now.num_steps)[now.step][self.quirk and sublayer.block > 0] or sublayer not in kept:
                    return kept.compute(sublayer, run, hidden)
                keep = rules.keep(ratio, now.step, now.num_steps, place, sublayer.kind)
                return kept.refresh(sublayer, run, hidden, int(keep * hidden.shape[1]))

            return route

        for sublayer, place in zip(at.sublayers, places(at.sublayers), strict=True):
            at.reroute(sublayer, at_sublayer(sublayer, place))
