"""FreqCa: reuse the low spatial frequencies of what the blocks give, and forecast the others (Liu et
al. 2025, arXiv:2510.08669)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.caching.passes import follows_interval, reroute_passes
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.models.blocks import RunBlock, Streams


@method(
    "freqca",
    family="cache",
    stage=Stage.SCHEDULE,
    claims={"block-schedule"},
    paper="arXiv:2510.08669",
)
class FreqCa:
    """Compute every `interval` steps; in between the output of the last block is its last low
    frequencies, and its high ones extended by finite differences of up to `order`, times contracted
    Hermite polynomials.

    The image tokens [B,N,D] after the last block are split by their orthonormal DCT over rows and
    columns (`spectral.low_band`): low is what lies within `cutoff` of the greatest frequency. k steps
    after the last computed one they are low + sum of D(i) s^i H_i(s k) / i!, D(i) the differences of
    the high part as in TaylorSeer and H_i as in HiCache. Nothing else is kept, whatever the depth. The
    numbers are the authors' for FLUX, whose last image tokens they take as they are; for the other
    families they are ours, as is the third dimension of the DCT, over frames, on videos.
    """

    interval: int | float = knob(6, low=1)
    """Steps from one computation to the next, on average; 1 changes nothing. The authors have 6 and
    9."""
    order: int = knob(2, low=0, high=6)
    """Highest difference of the high frequencies."""
    first: int = knob(3, low=1)
    """Steps computed at the beginning."""
    cutoff: float = knob(0.1, low=0, high=1)
    """Share of the greatest frequency up to which frequencies are low."""
    contraction: float = knob(0.71, above=0, high=1)
    """Scale of the steps and of the polynomials."""
    off: ClassVar[dict[str, object]] = {"interval": 1}
    dial: ClassVar[tuple[str, float, float]] = ("interval", 1, 10)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every block."""
        from ditbench.acceleration.caching.forecasts import combined, extended, hermite_terms
        from ditbench.acceleration.caching.spectral import low_band

        if self.interval == 1:
            return
        low: dict[int, Tensor] = {}
        high: dict[int, list[Tensor]] = {}
        when: dict[int, int] = {}
        for store in (low, high):
            at.keeps(store)
        at.on_start(when.clear)

        def replace(_run: RunBlock, streams: Streams) -> Streams | None:
            branch, step = at.now.branch, at.now.step
            if branch not in low or follows_interval(step, self.interval, self.first):
                return None
            parts = high[branch]
            terms = hermite_terms(step - when[branch], len(parts), self.contraction)
            return low[branch] + combined(parts, terms), *streams[1:]

        def observe(_streams: Streams, output: Streams) -> None:
            branch, step = at.now.branch, at.now.step
            before = high.get(branch, []) if step >= self.first - 1 else []
            low[branch] = low_band(output[0], at.now.grid, self.cutoff)
            gap = step - when.get(branch, step)
            high[branch] = extended(output[0] - low[branch], before, gap, self.order)
            when[branch] = step

        reroute_passes(at, replace, observe)
