"""Sub-layer outputs at computed steps, kept as finite differences, and forecasts between them: what
TaylorSeer, HiCache, SpeCa and ClusCa share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ditbench.acceleration.caching.forecasts import combined, extended

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.method.attachment import Attachment
    from ditbench.models.sublayers import Route, Run, Sublayer

Key = tuple[int, int]
"""Sub-layer and guidance pass."""
Terms = Callable[[float, int], list[float]]
"""f(steps since the newest computed one, number of differences) -> what they are multiplied by."""


class SublayerDifferences:
    """By sub-layer and guidance pass D0, D1, ...: at a computed step D0 is the output, and D(i+1) the
    change of D(i) per step since the last computed step (TaylorSeer, arXiv:2503.06923)."""

    def __init__(self, at: Attachment, order: int, first: int) -> None:
        """Differences are taken up to `order`, and as in TaylorSeer's code none before the last of
        the `first` steps."""
        self.at, self.order, self.first = at, order, first
        self.factors: dict[Key, tuple[list[Tensor], ...]] = {}
        """The differences of the output; of a pair those of both."""
        self.when: dict[Key, int] = {}
        """Step of the newest D0."""
        at.keeps(self.factors)
        at.on_start(self.when.clear)

    def key(self, sublayer: Sublayer) -> Key:
        """Of the transformer call under way."""
        return sublayer.index, self.at.now.branch

    def __contains__(self, sublayer: Sublayer) -> bool:
        return self.key(sublayer) in self.factors

    def compute(self, sublayer: Sublayer, run: Run) -> Any:
        """The output, of which the differences are kept."""
        key, step = self.key(sublayer), self.at.now.step
        self.at.computes(sublayer, 1.0)
        self.at.count("computed", idle=True)
        out = run()
        parts = out if isinstance(out, tuple) else (out,)
        before = self.factors.get(key) if step >= self.first - 1 else None
        gap = step - self.when.get(key, step)
        self.factors[key] = tuple(
            extended(new, old, gap, self.order)
            for new, old in zip(parts, before or [[]] * len(parts), strict=True)
        )
        self.when[key] = step
        return out

    def forecast(self, sublayer: Sublayer, terms: Terms) -> Any:
        """The differences of a sub-layer that is `in` this, times `terms`."""
        key = self.key(sublayer)
        self.at.computes(sublayer, 0.0)
        self.at.count("extrapolated")
        steps = self.at.now.step - self.when[key]
        parts = tuple(combined(part, terms(steps, len(part))) for part in self.factors[key])
        return parts if len(parts) > 1 else parts[0]


def extrapolate_outputs(
    at: Attachment, computes: Callable[[int], bool], order: int, first: int, terms: Terms
) -> None:
    """Reroute every sub-layer: it runs where `computes(step)`, and is forecast by `terms` elsewhere.
    What has not run yet in a generation runs, whatever `computes` says."""
    kept = SublayerDifferences(at, order, first)

    def idle(sublayer: Sublayer) -> bool:
        return sublayer in kept and not computes(at.now.step)

    def dense(sublayer: Sublayer) -> bool:
        return not idle(sublayer)

    def route_of(sublayer: Sublayer) -> Route:
        def route(run: Run, _hidden: Any) -> Any:
            if idle(sublayer):
                return kept.forecast(sublayer, terms)
            return kept.compute(sublayer, run)

        return route

    for sublayer in at.sublayers:
        at.reroute_deferred(
            sublayer,
            route_of(sublayer),
            partial(dense, sublayer),
            partial(idle, sublayer),
            outputs_only=lambda: True,
        )
