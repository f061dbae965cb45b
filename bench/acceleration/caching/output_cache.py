"""Sub-layers run at some steps and reused whole at the others: what FORA and Learning-to-Cache
share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment
    from ditbench.models.sublayers import Route, Run, Sublayer


def is_cache_step(step: int, steps: int) -> bool:
    """Whether Learning-to-Cache may reuse at a step: at every second one, counted down from T - 1
    to 0 as its code does, so that the last step is one, and never at the first, which has nothing
    to reuse."""
    return step > 0 and (steps - 1 - step) % 2 == 0


def reuse_outputs(at: Attachment, reuses: Callable[[int, Sublayer], bool]) -> None:
    """Reroute every sub-layer: where `reuses(step, sublayer)` its last output stands in, elsewhere
    it runs and its output is kept.

    Kept are outputs before gate and residual, one per guidance pass. What has not run yet in a
    generation runs, whatever `reuses` says.
    """
    cached: dict[tuple[int, int], Any] = {}
    at.keeps(cached)

    def route_of(sublayer: Sublayer) -> Route:
        def route(run: Run, _hidden: Any) -> Any:
            key = sublayer.index, at.now.branch
            if key in cached and reuses(at.now.step, sublayer):
                at.computes(sublayer, 0.0)
                at.count("reused")
                return cached[key]
            at.computes(sublayer, 1.0)
            at.count("computed", idle=True)
            cached[key] = run()
            return cached[key]

        return route

    for sublayer in at.sublayers:
        at.reroute_deferred(sublayer, route_of(sublayer))
