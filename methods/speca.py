"""SpeCa: draft steps by TaylorSeer, and compute again once the last block shows the draft to be off
(Liu et al. 2025, arXiv:2509.11628)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ditbench.acceleration.caching.token_settings import without_settings
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.models.blocks import RunBlock, Streams
    from ditbench.models.sublayers import Route, Run, Sublayer


class Settings(NamedTuple):
    """The authors' numbers for a family."""

    order: int
    first: int
    threshold: float
    decay: float
    floor: float
    """Below this the threshold does not fall."""
    least: int
    most: int
    ahead: int
    """Which step is counted from: on DiT their steps count down, so that the first is 1 of T."""
    whole_block: bool
    """Whether drafts are compared as what the last block returns, or as its output before gate and
    residual, on FLUX, whose last block is one sub-layer."""


DIT = Settings(4, 3, 0.1, 0.01, 0.01, 2, 5, 1, True)
FLUX = Settings(2, 3, 7.0, 0.3, 0.1, 2, 8, 0, False)
AUTHORS = {
    "dit": DIT,
    "flux": FLUX,
    "pixart": DIT._replace(order=1),
    "wan": DIT._replace(order=1),
    "sd3": DIT._replace(order=1),
}
"""By family; those of DiT and FLUX are the authors', of 50 steps. The others are ours: DiT's, at the
order that TaylorSeer has there."""


@dataclass
class Progress:
    """Where the steps of one guidance pass are."""

    step: int = -1
    drafts: bool = False
    """Whether the step is a draft."""
    checks: bool = False
    """Whether the draft is compared with the last block."""
    drafted: int = 0
    """Drafts in a row so far."""
    error: float | None = None
    """Of the last draft that was compared."""


@method(
    "speca", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, decides_per_batch=True,
    paper="arXiv:2509.11628",
)  # fmt: skip
class SpeCa:
    """After each computed step extrapolate every sub-layer, as TaylorSeer does, until the last block,
    which is computed besides, differs too much from its draft.

    The error of a draft d is mean(|d - y| / (|y| + 1e-10)) over the whole batch, y what the last block
    gives for the drafted input. The next step is computed once it is above max(`threshold` *
    `decay`^(t/T), floor) at step t of T, where drafts after the `least`-th in a row are compared, and
    after `most` drafts in any case; a draft that is found to be off is used nevertheless. As the
    authors' code has it the step after a computed one is always a draft, so that of the `first` three
    steps the second is one. A comparison costs a run of the last block, and is counted as
    `passes_verified`. Separate guidance passes keep separate states.
    """

    threshold: float | None = knob(None, low=0)
    """Error at the first step above which the next step is computed; None is the authors' for the
    family: 0.1 on DiT, 7 on FLUX, where other values are compared."""
    decay: float | None = knob(None, above=0, high=1)
    """What the threshold is multiplied by over the whole sampling; None is the authors'."""
    least: int | None = knob(None, low=1)
    """Drafts in a row that are not compared; None is the authors'."""
    most: int | None = knob(None, low=0)
    """Drafts in a row at most; 0 drafts none, None is the authors'."""
    order: int | None = knob(None, low=0, high=6)
    """Highest difference used; None is the authors'."""
    first: int | None = knob(None, low=1)
    """Steps at the beginning of which none is skipped for its error; None is the authors'."""
    off: ClassVar[dict[str, object]] = {"most": 0}
    dial: ClassVar[tuple[str, float, float]] = ("most", 0, 10)
    keeps_projected: ClassVar[bool] = True
    """As TaylorSeer, whose code theirs extends."""

    def check(self, pipeline: Any) -> str | None:
        """What is compared, and how low the threshold falls, is known for these families alone."""
        return without_settings("speca", AUTHORS, pipeline)

    def settings(self, family: str) -> Settings:
        """The authors' numbers with those of the knobs."""
        chosen = {name: getattr(self, name, None) for name in Settings._fields}
        return AUTHORS[family]._replace(**{k: v for k, v in chosen.items() if v is not None})

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer, and the last block where its output is compared."""
        from ditbench.acceleration.caching.forecasts import taylor_terms
        from ditbench.acceleration.caching.sublayer_differences import SublayerDifferences
        from ditbench.models.family import family_of

        rules = self.settings(family_of(pipeline.transformer).name)
        if rules.most == 0:
            return
        kept = SublayerDifferences(at, rules.order, rules.first)
        passes: dict[int, Progress] = {}
        verifying = {"now": False}
        at.on_start(passes.clear)

        def progress() -> Progress:
            """Of the pass under way; the first sub-layer of a pass decides."""
            now = passes.setdefault(at.now.branch, Progress())
            if now.step != at.now.step:
                advance(now, rules, at.now.step, at.now.num_steps)
                at.count("passes_reused" if now.drafts else "passes_computed", idle=not now.drafts)
            return now

        def compare(draft: Tensor, true: Tensor) -> None:
            difference = (draft - true).float().abs() / (true.float().abs() + 1e-10)
            passes[at.now.branch].error = float(difference.mean().item())
            at.count("passes_verified")

        def dense(sublayer: Sublayer) -> bool:
            return verifying["now"] or not progress().drafts or sublayer not in kept

        def idle(sublayer: Sublayer) -> bool:
            """Not where the last sub-layer is run beside its forecast."""
            compared = sublayer is at.sublayers[-1] and not rules.whole_block
            return not dense(sublayer) and not (compared and progress().checks)

        def route_of(sublayer: Sublayer) -> Route:
            def route(run: Run, _hidden: Any) -> Any:
                if verifying["now"]:
                    at.computes(sublayer, 1.0)
                    return run()
                now = progress()
                if not now.drafts or sublayer not in kept:
                    return kept.compute(sublayer, run)
                draft = kept.forecast(sublayer, taylor_terms)
                if now.checks and not rules.whole_block and sublayer is at.sublayers[-1]:
                    at.computes(sublayer, 1.0)
                    compare(draft, run())
                return draft

            return route

        def last_block(run: RunBlock, streams: Streams) -> Streams:
            draft, now = run(streams), passes[at.now.branch]
            if now.drafts and now.checks:
                verifying["now"] = True
                try:
                    compare(draft[0], run(streams)[0])
                finally:
                    verifying["now"] = False
            return draft

        for sublayer in at.sublayers:
            at.reroute_deferred(
                sublayer,
                route_of(sublayer),
                partial(dense, sublayer),
                partial(idle, sublayer),
                outputs_only=lambda: True,
            )
        if rules.whole_block:
            at.reroute(at.blocks[-1], last_block)


def advance(now: Progress, rules: Settings, step: int, steps: int) -> None:
    """Decide on the next step of a pass: `step` of `steps`, counted from 0."""
    before, now.step = now.step, step
    if before >= 0 and not now.drafts:
        now.drafts, now.checks, now.drafted, now.error = True, False, 1, None
        return
    limit = max(rules.threshold * rules.decay ** ((step + rules.ahead) / steps), rules.floor)
    now.checks = now.drafted >= rules.least
    off = now.checks and now.error is not None and now.error > limit
    now.drafts = not (step < rules.first or now.drafted >= rules.most or off)
    now.drafted = now.drafted + 1 if now.drafts else 0
