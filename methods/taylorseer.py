"""TaylorSeer: extrapolate every sub-layer's output from its last computed values (Liu et al. 2025,
arXiv:2503.06923)."""

from __future__ import annotations

from typing import Any, ClassVar

from ditbench.acceleration.caching.passes import follows_interval
from ditbench.acceleration.caching.token_settings import interval_settings, without_settings
from ditbench.method import Attachment, Stage, knob, method

AUTHORS: dict[str, tuple[int, int, int]] = {
    "dit": (4, 4, 2),
    "flux": (6, 1, 3),
    "wan": (5, 1, 1),
    "pixart": (4, 1, 1),
    "sd3": (6, 1, 3),
}
"""By family the authors' interval, order and first steps: those recommended for DiT, and those
their code for FLUX and Wan2.1 is released with. They published none for PixArt and SD3;
those are ours, SD3's as FLUX's."""


@method(
    "taylorseer",
    family="cache",
    stage=Stage.SCHEDULE,
    claims={"block-schedule"},
    paper="arXiv:2503.06923",
)
class TaylorSeer:
    """Compute every `interval` steps, and in between extend each sub-layer's output by finite
    differences of up to `order`.

    At a computed step D0 is the output and D(i+1) the change of D(i) per step since the last
    computed step; k steps later the output is sum of D(i) k^i / i!. As in the authors' code no
    difference is taken before the last of the `first` steps. Their settings are the defaults:
    interval 4, order 4, first 2 on DiT; 6, 1, 3 on FLUX; 5, 1, 1 on Wan. PixArt's (4, 1, 1) are
    ours.
    """

    interval: int | float | None = knob(None, low=1)
    """Steps from one computation to the next, on average; 1 changes nothing, None is the authors'
    for the family."""
    order: int | None = knob(None, low=0, high=6)
    """Highest difference used; 0 reuses the last output as it is, None is the authors' for the
    family. Each order costs as much memory as the cache itself."""
    first: int | None = knob(None, low=1)
    """Steps computed at the beginning; None is the authors' for the family."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("interval", 1, 10)
    keeps_projected: ClassVar[bool] = True
    """The authors extrapolate what attention gives after its output projection, where ToCa's code
    keeps what goes into it: what the convention `toca` of `count` wants to know."""

    def check(self, pipeline: Any) -> str | None:
        """A family without settings of the authors needs all three knobs."""
        if None in (self.interval, self.order, self.first):
            return without_settings("taylorseer", AUTHORS, pipeline)
        return None

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through its differences."""
        from ditbench.acceleration.caching.forecasts import taylor_terms
        from ditbench.acceleration.caching.sublayer_differences import extrapolate_outputs
        from ditbench.models.family import family_of

        family = family_of(pipeline.transformer).name
        interval, order, first = interval_settings(self, AUTHORS, family)
        if interval == 1:
            return
        extrapolate_outputs(
            at, lambda step: follows_interval(step, interval, first), order, first, taylor_terms
        )
