"""Stacks at matched compute: one knob of a method, its dial, is turned until the share of FLOPs
saved is what was asked for.

Only so can methods be compared at equal cost: their own defaults save anything between a tenth and
three quarters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ditbench.method.stack import Stack
from ditbench.profiling.counting import first_line

if TYPE_CHECKING:
    from ditbench.models.table import Model

SAMPLES = 4
"""Training requests that are generated to count; methods that decide by values decide on them."""
BATCH = 16
"""The same where one decision is taken for the batch: a spec's batch size; a video counts as
four."""


def match(
    model: Model, stacks: list[Stack], saved: float, weights: str, plugins: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row for each stack: the stack with its dial set, the share of the model's FLOPs it saves,
    and in `note` why not, if not, or that the share is out of reach; a method that breaks down is
    such a row.

    The dial is that of the stack's last method that has one. Raises ValueError for a model without
    training requests.
    """
    from ditbench.models.loading import load

    pipe = load(model, weights=weights, device="cpu", dtype="float32")
    dense = _flops(model, pipe, Stack(), weights, plugins)

    def saves(stack: Stack) -> float:
        return 1 - _flops(model, pipe, stack, weights, plugins) / dense

    rows = []
    for stack in stacks:
        try:
            row = _matched(stack, saved, saves, pipe)
        except Exception as error:  # the method's: the other rows are still wanted
            row = {
                "stack": str(stack),
                "saved": None,
                "note": f"{type(error).__name__}: {first_line(error)}",
            }
        rows.append({"model": model.name, **row})
    return rows


def _matched(stack: Stack, saved: float, saves: Any, pipe: Any) -> dict[str, Any]:
    from ditbench.method.dial import dialled, is_whole, out_of_reach, turned

    if reason := stack.refusal(pipe):
        return {"stack": str(stack), "saved": None, "note": reason}
    with_dial = next((m for m in reversed(stack.methods) if m.dial), None)
    if with_dial is None:
        return {"stack": str(stack), "saved": None, "note": f"nothing in {stack} has a dial"}
    knob, low, high = with_dial.dial

    def at(value: float) -> Stack:
        return Stack(tuple(turned(m, value) if m is with_dial else m for m in stack.methods))

    @cache
    def share(value: float) -> float:
        return float(saves(at(value)))

    try:
        best, reached = dialled(share, saved, low, high, is_whole(type(with_dial), knob))
        beyond = out_of_reach(share, saved, low, high)
    except ValueError as error:
        return {"stack": str(stack), "saved": None, "note": str(error)}
    note = ""
    if beyond is not None:
        end, word = beyond
        note = (
            f"{saved:g} is out of reach: {at(end)}, where the dial ends, saves {share(end):.3f} at "
            f"{word}"
        )
    return {"stack": str(at(best)), "saved": round(reached, 4), "note": note}


def _flops(model: Model, pipe: Any, stack: Stack, weights: str, plugins: Sequence[str]) -> float:
    """FLOPs of a generation of the training requests."""
    import torch

    from ditbench.method.needs import resolve
    from ditbench.models.requests import training_requests
    from ditbench.models.sampling import count_for, sampling_of
    from ditbench.profiling.counting import count_generation
    from ditbench.profiling.flops import alike_every_call, decides_per_batch
    from ditbench.profiling.latency import Sampler
    from ditbench.quiet import quiet

    requests = training_requests(
        model, count_for(model, BATCH) if decides_per_batch(stack) else SAMPLES, 0
    )
    prepared = {
        name: artifact.folder for name, artifact in resolve(model, stack, weights, plugins).items()
    }
    with quiet(), torch.inference_mode(), stack.attached(pipe, prepared) as attached:
        sampler = Sampler(pipe, model, stack.adapt(sampling_of(model)), attached, "cpu")
        return count_generation(
            pipe, lambda: sampler(requests), alike=alike_every_call(stack)
        ).flops / len(requests)
