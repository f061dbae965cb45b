"""HiCache: TaylorSeer with Hermite polynomials (Feng et al. 2025, arXiv:2508.16984)."""

from __future__ import annotations

from typing import Any, ClassVar

from ditbench.acceleration.caching.passes import follows_interval
from ditbench.acceleration.caching.token_settings import interval_settings, without_settings
from ditbench.method import Attachment, Stage, knob, method

AUTHORS: dict[str, tuple[int, int, int]] = {
    "flux": (7, 2, 3),
    "sd3": (7, 2, 3),
    "dit": (4, 2, 2),
    "pixart": (4, 2, 2),
    "wan": (5, 2, 2),
}
"""By family the interval, order and first steps: those their code for FLUX is run with. The others are
ours: SD3's as FLUX's, elsewhere TaylorSeer's interval, this order, and first steps enough for it."""


@method(
    "hicache",
    family="cache",
    stage=Stage.SCHEDULE,
    claims={"block-schedule"},
    paper="arXiv:2508.16984",
)
class HiCache:
    """Compute every `interval` steps, and in between extend each sub-layer's output by finite
    differences of up to `order`, times contracted Hermite polynomials.

    D0, D1, ... are TaylorSeer's differences. k steps after the last computed step the output is sum
    of D(i) s^i H_i(s k) / i!, with s the `contraction` and H_i the physicists' Hermite polynomials:
    H_0 = 1, H_1(u) = 2 u, H_2(u) = 4 u^2 - 2. It costs what TaylorSeer costs at the same interval and
    order.
    """

    interval: int | float | None = knob(None, low=1)
    """Steps from one computation to the next, on average; 1 changes nothing, None is the authors'
    for the family."""
    order: int | None = knob(None, low=0, high=6)
    """Highest difference used; 0 reuses the last output as it is, None is the authors' for the
    family."""
    first: int | None = knob(None, low=1)
    """Steps computed at the beginning; None is the authors' for the family."""
    contraction: float = knob(0.5, above=0, high=1)
    """Scale of the steps and of the polynomials; at 0.5 the term of D1 is half of TaylorSeer's."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("interval", 1, 10)
    keeps_projected: ClassVar[bool] = True
    """As TaylorSeer, whose code theirs extends."""

    def check(self, pipeline: Any) -> str | None:
        """A family without settings needs all three knobs."""
        if None in (self.interval, self.order, self.first):
            return without_settings("hicache", AUTHORS, pipeline)
        return None

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through its differences."""
        from ditbench.acceleration.caching.forecasts import hermite_terms
        from ditbench.acceleration.caching.sublayer_differences import extrapolate_outputs
        from ditbench.models.family import family_of

        family = family_of(pipeline.transformer).name
        interval, order, first = interval_settings(self, AUTHORS, family)
        if interval == 1:
            return

        def computes(step: int) -> bool:
            return follows_interval(step, interval, first)

        def terms(steps: float, count: int) -> list[float]:
            return hermite_terms(steps, count, self.contraction)

        extrapolate_outputs(at, computes, order, first, terms)
