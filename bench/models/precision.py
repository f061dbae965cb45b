"""What is computed in float32 whatever the model's dtype: sampler steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ditbench.models.calls import each_tensor


def in_float32(step: Callable[..., Any]) -> Callable[..., Any]:
    """A scheduler's `step(self, model_output, timestep, sample, ...)`, computed in float32 (float64
    where it is given that); what it returns has the sample's dtype.

    Between two steps the state has the pipeline's own dtype, as with diffusers' schedulers that
    compute in float32 by themselves.
    """

    @functools.wraps(step)  # pipelines look at the signature
    def wide(
        self: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any
    ) -> Any:
        dtype = torch.promote_types(sample.dtype, torch.float32)
        out = step(self, model_output.to(dtype), timestep, sample.to(dtype), *args, **kwargs)
        return each_tensor(lambda t: t.to(sample.dtype), out)

    wide.in_float32 = True  # type: ignore[attr-defined]
    return wide


def step_in_float32(scheduler: Any) -> None:
    """Let a scheduler of diffusers step in float32: those of DiT, PixArt and Wan compute in the
    model's dtype. Its class becomes a subclass of the same name; done twice it is done once."""
    kind: Any = type(scheduler)
    scheduler.__class__ = _wide(kind)


@functools.cache
def _wide(scheduler: Any) -> Any:
    if getattr(scheduler.step, "in_float32", False):
        return scheduler
    facts = {"__module__": scheduler.__module__, "__doc__": scheduler.__doc__}
    return type(scheduler.__name__, (scheduler,), facts | {"step": in_float32(scheduler.step)})
