"""TaylorSeer: extrapolate every sub-layer's output from its last computed values (Liu et al. 2025,
arXiv:2503.06923)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.caching.token_settings import without_settings
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from ditbench.models.sublayers import Route, Run, Sublayer


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
        from ditbench.models.family import family_of

        theirs = AUTHORS.get(family_of(pipeline.transformer).name, (1, 0, 1))
        interval = self.interval or theirs[0]
        order = theirs[1] if self.order is None else self.order
        first = self.first or theirs[2]
        if interval == 1:
            return
        factors: dict[tuple[int, int], list[tuple[Any, ...]]] = {}
        when: dict[tuple[int, int], int] = {}
        at.keeps(factors)
        at.on_start(when.clear)

        def computes(step: int) -> bool:
            since = step - first + 1
            return since <= 0 or since // interval != (since - 1) // interval

        def at_sublayer(sublayer: Sublayer) -> Route:
            def route(run: Run, _hidden: Any) -> Any:
                key, step = (sublayer.index, at.now.branch), at.now.step
                if key in factors and not computes(step):
                    at.computes(sublayer, 0.0)
                    at.count("extrapolated")
                    return _whole(_extended(factors[key], step - when[key]))
                at.computes(sublayer, 1.0)
                at.count("computed", idle=True)
                out = run()
                before = factors.get(key, []) if step >= first - 1 else []
                factors[key] = _differences(_parts(out), before, step - when.get(key, step), order)
                when[key] = step
                return out

            return route

        for sublayer in at.sublayers:
            at.reroute(sublayer, at_sublayer(sublayer))


def _parts(out: Any) -> tuple[Any, ...]:
    """A sub-layer's output as a tuple: FLUX's joint attention gives a pair."""
    return out if isinstance(out, tuple) else (out,)


def _whole(parts: tuple[Any, ...]) -> Any:
    return parts if len(parts) > 1 else parts[0]


def _differences(
    new: tuple[Any, ...], old: list[tuple[Any, ...]], gap: int, order: int
) -> list[tuple[Any, ...]]:
    """D0, D1, ... at the newest computed step, one order more than before, up to `order`."""
    differences = [new]
    for before in old[:order]:
        differences.append(
            tuple((a - b) / gap for a, b in zip(differences[-1], before, strict=True))
        )
    return differences


def _extended(differences: list[tuple[Any, ...]], steps: int) -> tuple[Any, ...]:
    """The Taylor polynomial, `steps` on."""
    out, factor = differences[0], 1.0
    for i, part in enumerate(differences[1:], 1):
        factor *= steps / i
        out = tuple(a + factor * b for a, b in zip(out, part, strict=True))
    return out
