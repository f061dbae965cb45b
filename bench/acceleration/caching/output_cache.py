"""Sub-layers run at some steps and reused whole at the others: what FORA and Learning-to-Cache
share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment
    from ditbench.models.sublayers import Route, Run, Sublayer


def is_cache_step(step: int, steps: int) -> bool:
    """Whether Learning-to-Cache may reuse at a step: at every second one, counted down from T - 1
    to 0 as its code does, so that the last step is one, and never at the first, which has nothing
    to reuse."""
    return step > 0 and (steps - 1 - step) % 2 == 0


def reuse_outputs(
    at: Attachment, reuses: Callable[[int, Sublayer], bool], *, with_gates: bool = False
) -> None:
    """Reroute every sub-layer: where `reuses(step, sublayer)` its last output stands in, elsewhere
    it runs and its output is kept.

    Kept are outputs before gate and residual, one per guidance pass; `with_gates`: after the gate of
    the step that computed them, so that reusing one is an addition (`models.gated`). What has not run
    yet in a generation runs, whatever `reuses` says.
    """
    from ditbench.models.gated import keeping, reused

    cached: dict[tuple[int, int], Any] = {}
    at.keeps(cached)
    gated: dict[int, bool] = {}

    def dense(sublayer: Sublayer) -> bool:
        kept = (sublayer.index, at.now.branch) in cached
        return not kept or not reuses(at.now.step, sublayer)

    def idle(sublayer: Sublayer) -> bool:
        return not dense(sublayer)

    def route_of(sublayer: Sublayer) -> Route:
        def route(run: Run, _hidden: Any) -> Any:
            key, own_gate = (sublayer.index, at.now.branch), gated[sublayer.index]
            if not dense(sublayer):
                at.computes(sublayer, 0.0)
                at.count("reused")
                return reused(cached[key]) if own_gate else cached[key]
            at.computes(sublayer, 1.0)
            at.count("computed", idle=True)
            if own_gate:
                return keeping(cached, key, run())
            cached[key] = run()
            return cached[key]

        return route

    for sublayer in at.sublayers:
        # what is kept with its gate is worked out by the block itself
        known = None if with_gates else partial(dense, sublayer)
        deferred = at.reroute_deferred(
            sublayer,
            route_of(sublayer),
            known,
            partial(idle, sublayer),
            outputs_only=None if with_gates else lambda: True,
        )
        gated[sublayer.index] = with_gates and deferred
