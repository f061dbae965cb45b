"""Stacks at matched compute: one knob of a method, its dial, is turned until the share of FLOPs
saved, or the number of steps computed, is what was asked for.

Only so can methods be compared at equal cost: their own defaults save anything between a tenth and
three quarters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ditbench.method.artifact import quoted
from ditbench.method.dial import CLOSE
from ditbench.method.dial import NEAR as NEAR_SHARE
from ditbench.method.stack import Stack
from ditbench.profiling.counting import first_line

if TYPE_CHECKING:
    from ditbench.models.table import Model

SAMPLES = 4
"""Training requests that are generated to count; methods that decide by values decide on them."""
BATCH = 16
"""The same where one decision is taken for the batch: a spec's batch size; a video counts as
four."""
NEAR = 0.3
"""How near the mean of the computed steps is to be to what was asked for (arXiv:2609.39343)."""
Saves = Callable[[Stack], float]


def match(
    model: Model, stacks: list[Stack], saved: float, weights: str, plugins: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row for each stack: the stack with its dial set, the share of the model's FLOPs it saves,
    and in `note` why not, if not, or that the share is out of reach; a method that breaks down is
    such a row.

    A model is sampled as its row says (`workload.with_workload` for other steps or sizes). The dial
    is that of the stack's last method that has one; one whose every value would have to be prepared
    is turned with the knob `learned_at` alone. Raises ValueError for a model without
    training requests.
    """
    from ditbench.models.loading import load

    pipe = load(model, weights=weights, device="cpu", dtype="float32")
    dense = _flops(model, pipe, Stack(), weights, plugins)

    def saves(stack: Stack) -> float:
        return 1 - _flops(model, pipe, stack, weights, plugins) / dense

    def row_of(stack: Stack) -> dict[str, Any]:
        return _matched(stack, saved, saves, pipe)

    return _rows(model, stacks, row_of, "saved")


def match_steps(
    model: Model, stacks: list[Stack], computed: float, weights: str, plugins: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row for each stack: the stack with its dial set so that it computes so many steps of the
    transformer, the mean over 50 training prompts, each sampled alone; that mean; and a note as
    `match` has it, or that no value of the dial comes within `NEAR`.

    Raises ValueError for a model without training requests, and for no fewer steps than it takes.
    """
    from ditbench.models.loading import load
    from ditbench.profiling.computed_steps import computed_steps, sampler_steps

    pipe = load(model, weights=weights, device="cpu", dtype="float32")
    steps = sampler_steps(model, pipe)
    if not 0 < computed < steps:
        raise ValueError(
            f"{computed:g} is no number of computed steps below the {steps} that {model.name} takes"
        )

    def row_of(stack: Stack) -> dict[str, Any]:
        means: dict[str, float] = {}

        def saves(turned: Stack) -> float:
            means[str(turned)] = computed_steps(model, pipe, turned, weights, plugins)
            return 1 - means[str(turned)] / steps

        best, _, note = _turned_to(stack, 1 - computed / steps, saves, pipe, NEAR / steps)
        if best is None:
            return {"stack": str(stack), "computed": None, "note": note}
        mean = means[str(best)]
        if abs(mean - computed) > NEAR:
            note = f"{computed:g} steps are out of reach: no value of the dial comes nearer"
        return {"stack": str(best), "computed": round(mean, 2), "note": note}

    return _rows(model, stacks, row_of, "computed")


def _rows(
    model: Model, stacks: list[Stack], row_of: Callable[[Stack], dict[str, Any]], value: str
) -> list[dict[str, Any]]:
    rows = []
    for stack in stacks:
        try:
            row = row_of(stack)
        except Exception as error:  # the method's: the other rows are still wanted
            note = f"{type(error).__name__}: {first_line(error)}"
            row = {"stack": str(stack), value: None, "note": note}
        rows.append({"model": model.name, **row})
    return rows


def _matched(stack: Stack, saved: float, saves: Saves, pipe: Any) -> dict[str, Any]:
    best, reached, note = _turned_to(stack, saved, saves, pipe)
    if best is None:
        return {"stack": str(stack), "saved": None, "note": note}
    if not note and abs(reached - saved) > NEAR_SHARE:
        note = f"{saved:g} is out of reach: no value of the dial comes nearer than {reached:.3f}"
    return {"stack": str(best), "saved": round(reached, 4), "note": note}


def _turned_to(
    stack: Stack, saved: float, saves: Saves, pipe: Any, close: float = CLOSE
) -> tuple[Stack | None, float, str]:
    """The stack whose dial saves nearest to a share, that share, and why it is not within reach;
    None and why where there is none."""
    from ditbench.method.dial import (
        as_learned,
        dialled,
        ends_taken,
        is_whole,
        out_of_reach,
        turned,
    )

    if reason := stack.refusal(pipe):
        return None, 0.0, reason
    with_dial = next((m for m in reversed(stack.methods) if m.dial), None)
    if with_dial is None:
        return None, 0.0, f"nothing in {stack} has a dial"
    knob, low, high = with_dial.dial
    if (learned := as_learned(with_dial)) is not None:
        other = Stack(tuple(learned if m is with_dial else m for m in stack.methods))
        return (
            None,
            0.0,
            (
                f"every {knob} of {with_dial.name} is learned by itself; {quoted(str(other))} turns what "
                f"was learned at {learned.learned_at:g}"
            ),
        )

    def at(value: float) -> Stack:
        return Stack(tuple(turned(m, value) if m is with_dial else m for m in stack.methods))

    @cache
    def share(value: float) -> float:
        return float(saves(at(value)))

    try:
        whole = is_whole(type(with_dial), knob)
        low, high = ends_taken(share, low, high, whole)
        best, reached = dialled(share, saved, low, high, whole, close)
        beyond = out_of_reach(share, saved, low, high, close)
    except ValueError as error:
        return None, 0.0, str(error)
    note = ""
    if beyond is not None:
        end, word = beyond
        note = (
            f"{saved:g} is out of reach: {at(end)}, where the dial ends, saves {share(end):.3f} at "
            f"{word}"
        )
    return at(best), reached, note


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
