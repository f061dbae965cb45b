"""Passes of a schedule: computed at some steps, and at the others made from what was computed.

What is kept of a pass is the residual of all blocks (what they add to each stream), but for mean
velocities, which are of the transformer's output. B rows of the batch, N samples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

from ditbench.acceleration.caching.passes import added, plus, reroute_passes
from ditbench.acceleration.caching.targets import Target, reuse

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.method.attachment import Attachment
    from ditbench.models.blocks import RunBlock, Streams

Between = Literal["reuse", "taylor", "hermite", "twoanchor", "meanvelocity"]
"""How a step that is not computed is made: by the last residual as it is (`reuse`), or by a forecast
of `forecasts.py`."""
RULES: tuple[Between, ...] = get_args(Between)
ORDERS = {"taylor": 1, "hermite": 2}
"""Highest difference where none is asked for; HiCache's default for its own."""
SPAN = 4
"""Steps that a mean velocity goes back, MeanCache's default."""
PROBE = {"wan": 2.0}
"""Largest coefficient of two anchors by family; 1.5 elsewhere, as in DiCache's code for FLUX."""
Computes = Callable[[int, int], bool]
"""f(step, guidance pass) -> whether that pass is computed."""


def order_of(between: Between, order: int | None) -> int:
    """Highest difference of a forecast; 0 for those without. ValueError for an order that the rule
    does not have."""
    if between not in ORDERS:
        if order is not None:
            raise ValueError(f"between={between!r} has no order; {' and '.join(ORDERS)} have")
        return 0
    return ORDERS[between] if order is None else order


def why_no_rule(pipeline: Any, between: Between) -> str | None:
    """Why a pipeline cannot have its passes made by that rule, in one sentence; None where it
    can."""
    if between != "meanvelocity" or is_flow(pipeline.scheduler):
        return None
    return (
        "between='meanvelocity' is for models that predict the velocity of a flow, and the sampler "
        f"here, {type(pipeline.scheduler).__name__}, takes no velocity"
    )


def why_uncapturable(between: Between) -> str | None:
    """Why no graph can replay what the rule does (`Method.uncapturable`); None where one can."""
    if between != "meanvelocity":
        return None
    return "uses what the sampler makes between the transformer's calls, which no graph reads anew"


def compute_at(
    pipeline: Any, at: Attachment, computes: Computes, between: Between, order: int | None = None,
    span: int = SPAN, target: Target = "residual",
) -> None:  # fmt: skip
    """Compute the passes for which `computes(step, branch)`, and make the others by the rule
    `between`; a pass without anything computed before it in a generation is computed. `span`: steps
    that a mean velocity goes back; `target`: what `reuse` keeps and reuses.

    Counts `passes_computed` and `passes_reused`, and notes what is computed for the schedule in the
    record. ValueError as `order_of`.
    """
    highest = order_of(between, order)

    def wants(step: int, branch: int) -> bool:
        wanted = computes(step, branch)
        if wanted:
            for sublayer in at.sublayers:
                at.computes(sublayer, 1.0)
        return wanted

    if target != "residual":
        if between != "reuse":
            raise ValueError(f"between={between!r} has no target; 'reuse' has")
        reuse(pipeline, at, lambda _run, _in: not wants(at.now.step, at.now.branch), target)
    elif between == "meanvelocity":
        _by_velocity(pipeline, at, wants, span)
    else:
        _by_residual(pipeline, at, wants, between, highest)


def _by_residual(
    pipeline: Any, at: Attachment, computes: Computes, between: Between, order: int
) -> None:
    from ditbench.acceleration.caching.forecasts import (
        MOST,
        hermite,
        taylor,
        timed_coefficient,
        two_anchors,
    )
    from ditbench.models.family import family_of

    most = PROBE.get(family_of(pipeline.transformer).name, MOST)
    residuals: dict[int, tuple[Streams, ...]] = {}
    times: dict[int, tuple[int, ...]] = {}
    at.keeps(residuals)
    at.on_start(times.clear)
    length = {"reuse": 1, "twoanchor": 2}.get(between, order + 1)

    def forecast(values: tuple[Tensor, ...], when: tuple[int, ...], step: int) -> Tensor:
        if len(values) == 1:
            return values[0]
        if between == "twoanchor":
            return two_anchors(values[0], values[1], timed_coefficient(when, step, most))
        return (taylor if between == "taylor" else hermite)(values, when, step, order)

    def replace(_run: RunBlock, streams: Streams) -> Streams | None:
        branch, step = at.now.branch, at.now.step
        if computes(step, branch) or branch not in residuals:
            return None
        of_stream = zip(*residuals[branch], strict=True)
        return plus(streams, tuple(forecast(kept, times[branch], step) for kept in of_stream))

    def observe(streams: Streams, output: Streams) -> None:
        branch = at.now.branch
        residuals[branch] = (*residuals.get(branch, ()), added(streams, output))[-length:]
        times[branch] = (*times.get(branch, ()), at.now.step)[-length:]

    reroute_passes(at, replace, observe)


def is_flow(scheduler: Any) -> bool:
    """Whether what a sampler is given is the velocity dz/dsigma."""
    config = getattr(scheduler, "config", {})
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or config.get("prediction_type") == "flow_prediction"
    )


def _by_velocity(pipeline: Any, at: Attachment, computes: Computes, span: int) -> None:
    """Replace transformer calls by their last output and the change of the mean velocity.

    The velocities and latents are those the sampler is given and returns, of the guided prediction:
    each guidance pass has the same change added to its own last output, so that whatever guidance
    makes of the passes changes by as much. In a pipeline with one pass this is the rule of
    `forecasts.mean_velocity` itself.
    """
    import torch

    from ditbench.acceleration.caching.forecasts import mean_velocity

    outputs: dict[int, Any] = {}  # by guidance pass
    latents: dict[int, Tensor] = {}  # by step: what the sampler is given there
    velocities: dict[int, Tensor] = {}
    at.keeps(outputs)
    at.keeps(latents, rows=False)
    at.keeps(velocities, rows=False)

    def change(step: int) -> Tensor:
        """[N,...]: forecast velocity at this step less that of the step before."""
        sigmas, before = pipeline.scheduler.sigmas, sorted(velocities)
        forecast = mean_velocity(
            [latents[t] for t in before], [velocities[t] for t in before],
            [sigmas[t] for t in before], latents[step], sigmas[step], sigmas[step + 1], span,
        )  # fmt: skip
        return forecast.float() - velocities[before[-1]].float()

    def forward(*args: Any, **kwargs: Any) -> Any:
        branch, step = at.now.branch, at.now.step
        if computes(step, branch) or branch not in outputs or step not in latents:
            at.count("passes_computed", idle=True)
            outputs[branch] = run(*args, **kwargs)
            return outputs[branch]
        at.count("passes_reused")
        out = outputs[branch]
        last = out[0] if isinstance(out, tuple) else out.sample
        shift = change(step)
        shift = torch.cat([shift] * (len(last) // len(shift)))
        new = (last.float() + shift.to(last.device)).to(last.dtype)
        outputs[branch] = (new, *out[1:]) if isinstance(out, tuple) else type(out)(sample=new)
        return outputs[branch]

    # its signature: pipelines look at it
    @functools.wraps(pipeline.scheduler.step)
    def stepped(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kw: Any) -> Any:
        step = at.now.step
        latents[step], velocities[step] = sample, model_output
        out = advance(model_output, timestep, sample, *args, **kw)
        latents[step + 1] = out[0] if isinstance(out, tuple) else out.prev_sample
        for old in [t for t in latents if t <= step - span]:
            latents.pop(old), velocities.pop(old)
        return out

    run = at.patch(pipeline.transformer, "forward", forward)
    advance = at.patch(pipeline.scheduler, "step", stepped)
