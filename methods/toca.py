"""ToCa: between full steps recompute only the tokens that matter most (Zou et al. 2024,
arXiv:2410.05317)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ditbench.acceleration.caching.token_settings import (
    SELECTORS,
    TOCA,
    TOCA_DDPM250,
    Rules,
    places,
    refuse_stride,
    relied_on,
    selector_files,
    without_settings,
)
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from ditbench.models.sublayers import Route, Run, Sublayer


@method(
    "toca",
    family="cache",
    stage=Stage.SCHEDULE,
    claims={"block-schedule", "token-rows"},
    paper="arXiv:2410.05317",
)
class Toca:
    """Compute every few steps wholly; in between recompute the highest ranking tokens of MLPs and
    cross-attention, and reuse the rest.

    How often, how many and where are the authors' rules for each family
    (`ditbench.acceleration.caching.token_settings`), Wan by PixArt's. A token's score is the
    attention it gets (on PixArt and Wan how widely it attends to the text) and how long it has
    waited; the best of each window of the picture gets more.
    """

    interval: int | None = knob(None, low=1)
    """About so many steps from one full computation to the next; 1 changes nothing, None is the
    authors' for the family."""
    ratio: float | None = knob(None, low=0, high=1)
    """Share of tokens recomputed in between, before the rules' factors; None is the authors' for
    the family."""
    selector: str = knob("attention", choices=lambda: SELECTORS)
    """What tokens are ranked by: `attention`, `change`, `similarity`, `norm` or `shuffle`."""
    query_stride: int = knob(1, low=1, high=64)
    """Rank by the attention of one query in so many (`selector='attention'`), another one at every step
    and block; 1: of all, as the authors. The scores of all queries are made once more for the ranking
    alone. An odd number goes through all columns of the image."""
    quirk: bool | None = None
    """Test for a full step block by block, so that two of DiT's 50 steps and one of PixArt's 20 are
    full in the first block only; off: they are full. The authors' code does so for both; None: on
    DiT alone, for their numbers for PixArt are without."""
    attend: bool = False
    """On FLUX's single blocks, attend anew for the recomputed tokens; off: as the authors, use
    their attention of the last full step."""
    sampler: Literal["ddim50", "ddpm250"] | None = None
    """Which of the authors' rules for DiT; None: `ddpm250` where the pipeline samples by DDPM.
    Other families have one."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("ratio", 0, 1)

    def __post_init__(self) -> None:
        refuse_stride("toca", self.selector, self.query_stride)

    def check(self, pipeline: Any) -> str | None:
        """There must be settings for the family, and only DiT has a choice of them."""
        if reason := without_settings("toca", TOCA, pipeline, self.query_stride):
            return reason
        from ditbench.models.family import family_of

        if self.sampler is None or (family := family_of(pipeline.transformer).name) == "dit":
            return None
        return f"sampler chooses between the rules for DiT, and this is {family}"

    def rules(self, pipeline: Any) -> Rules:
        """The authors' for the pipeline's family and sampler."""
        from ditbench.models.family import family_of

        family = family_of(pipeline.transformer).name
        by_ddpm = type(pipeline.scheduler).__name__.startswith("DDPM")
        sampler = self.sampler or ("ddpm250" if by_ddpm else "ddim50")
        return TOCA_DDPM250 if family == "dit" and sampler == "ddpm250" else TOCA[family]

    def inputs(self) -> list[Path]:
        """The file of a selector from outside."""
        return selector_files(self.selector)

    def relies_on(self, family: str) -> dict[str, str]:
        """Nothing at an interval of 1."""
        return {} if self.interval == 1 else relied_on(self.selector, TOCA.get(family))

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through the token cache."""
        from ditbench.acceleration.caching.token_cache import TokenCache

        if self.interval == 1:
            return
        rules = self.rules(pipeline)
        interval = self.interval or rules.interval
        ratio = rules.ratio if self.ratio is None else self.ratio
        rules = replace(rules, query_stride=self.query_stride)
        token_cache = TokenCache(at, self.selector, rules, interval, attend=self.attend)
        phases = cache(lambda steps: rules.phases(interval, steps))
        by_block = rules.by_block if self.quirk is None else self.quirk

        def dense(sublayer: Sublayer) -> bool:
            phase = phases(at.now.num_steps)[at.now.step][by_block and sublayer.block > 0]
            return phase == 0 or sublayer not in token_cache

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

        for sublayer, place in zip(at.sublayers, places(at.sublayers), strict=True):
            at.reroute_deferred(
                sublayer,
                at_sublayer(sublayer, place),
                partial(dense, sublayer),
                outputs_only=partial(token_cache.goes_by_output, sublayer),
            )
