"""Calls that are counted without being run: only those that are seen to do what an earlier one
did."""

from contextlib import nullcontext
from dataclasses import replace
from functools import wraps
from typing import Any

import pytest
import torch
from narrow import NAMES, generate, narrow
from torch import nn

from ditbench.method import METHODS, Stage, method
from ditbench.method.stack import Stack
from ditbench.models.architecture import build
from ditbench.models.loading import load
from ditbench.models.sampling import sampling_of
from ditbench.models.table import select
from ditbench.profiling import counting
from ditbench.profiling import matched as match
from ditbench.profiling.flop_counter import Counter
from ditbench.profiling.flops import alike_every_call
from ditbench.profiling.repeated_calls import run_once
from ditbench.quiet import quiet


def declare(attach, claims=("guidance",)):
    """A throw-away method; returns its name."""
    METHODS.pop("probe_test", None)
    parts = {"attach": lambda self, pipeline, at: attach(pipeline, at), "__module__": __name__}
    method("probe_test", family="test", stage=Stage.OPERATOR, claims=claims)(
        type("Probe", (), parts)
    )
    return "probe_test"


def late(at):
    return at.now.step >= at.now.num_steps / 2


def one_pass_late(pipeline: Any, at: Any) -> None:
    """In the second half of the steps, the first guidance pass stands for both."""

    def forward(hidden: Any, **kwargs: Any) -> Any:
        if not late(at):
            return run(hidden, **kwargs)
        half = {k: v.chunk(2)[0] if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        (out,) = run(hidden.chunk(2)[0], **{**half, "return_dict": False})
        return (
            (torch.cat([out, out]),)
            if not kwargs.get("return_dict", True)
            else type("Out", (), {"sample": torch.cat([out, out])})
        )

    run = at.patch(pipeline.transformer, "forward", forward)


def no_guidance_late(pipeline: Any, at: Any) -> None:
    """From the second step on: Wan's pipeline asks before every step whether there is guidance."""

    @wraps(step := pipeline.scheduler.step)
    def stepped(*args: Any, **kwargs: Any) -> Any:
        if at.now.step == 0:
            pipeline._guidance_scale = 1.0
        return step(*args, **kwargs)

    at.patch(pipeline.scheduler, "step", stepped)


def half_of_the_mlp_late(pipeline: Any, at: Any) -> None:
    part = at.sublayers[-1].module
    run = part.forward
    at.patch(part, "forward", lambda hidden, *args: run(hidden[:, ::2] if late(at) else hidden, *args).expand_as(hidden)
             if not late(at) else run(hidden[:, ::2], *args).repeat_interleave(2, 1))  # fmt: skip


def hooked_late(pipeline: Any, at: Any) -> None:
    """More work, from a hook: another run of the same layer."""

    def hook(module: Any, inputs: Any, out: Any) -> None:
        if late(at):
            type(module).forward(module, *inputs)

    at.undo(at.sublayers[0].linears[0].register_forward_hook(hook).remove)


class Twice(nn.Module):
    """A layer that runs twice from the second half on."""

    def __init__(self, layer: Any, at: Any) -> None:
        super().__init__()
        self.layer, self.at = layer, at

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if late(self.at):
            self.layer(*args, **kwargs)
        return self.layer(*args, **kwargs)


def wrapped_layer(pipeline: Any, at: Any) -> None:
    block = pipeline.transformer.transformer_blocks[0]
    at.patch(block, "ff", Twice(block.ff, at))


class Processor:
    def __init__(self, before: Any, at: Any) -> None:
        self.before, self.at = before, at

    def __call__(self, attn: Any, hidden_states: Any, **kwargs: Any) -> Any:
        if late(self.at):
            self.before(attn, hidden_states, **kwargs)
        return self.before(attn, hidden_states, **kwargs)


def other_processor(pipeline: Any, at: Any) -> None:
    attn = pipeline.transformer.transformer_blocks[0].attn1
    at.patch(attn, "processor", Processor(attn.processor, at))


def patched_class(pipeline: Any, at: Any) -> None:
    cls, run = type(pipeline.transformer), type(pipeline.transformer).forward

    @torch.no_grad()
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if late(at):
            run(self, *args, **kwargs)
        return run(self, *args, **kwargs)

    at.undo(setattr, cls, "forward", run)
    cls.forward = forward


def fewer_blocks_late(pipeline: Any, at: Any) -> None:
    """Nothing but data changes, after the first step: a transformer of fewer blocks."""
    transformer, whole = pipeline.transformer, pipeline.transformer.transformer_blocks

    def begin() -> None:
        transformer.transformer_blocks = whole

    at.on_start(begin)
    at.undo(begin)

    @wraps(step := pipeline.scheduler.step)
    def stepped(*args: Any, **kwargs: Any) -> Any:
        if at.now.step == 0:
            transformer.transformer_blocks = whole[:1]
        return step(*args, **kwargs)

    at.patch(pipeline.scheduler, "step", stepped)


DODGES = {
    "one_pass_late": ("dit-xl-2-256", one_pass_late),
    "no_guidance_late": ("wan-2.1-1.3b", no_guidance_late),
    "half_of_the_mlp_late": ("dit-xl-2-256", half_of_the_mlp_late),
    "hooked_late": ("pixart-alpha-256", hooked_late),
    "wrapped_layer": ("dit-xl-2-256", wrapped_layer),
    "other_processor": ("dit-xl-2-256", other_processor),
    "patched_class": ("flux-1-dev", patched_class),
    "fewer_blocks_late": ("pixart-alpha-256", fewer_blocks_late),
}


@pytest.mark.parametrize("claims", [("guidance",), ("weights",)])
@pytest.mark.parametrize("which", DODGES)
def test_a_method_that_acts_by_step_is_counted_whole_whatever_it_claims(which, claims):
    name, attach = DODGES[which]
    model, changes = narrow(name)
    stack = Stack.parse(declare(attach, claims))
    with quiet():
        pipe = build(model, device="cpu", changes=changes)
        plain = counting.count_generation(pipe, lambda: generate(pipe, model))
        assert alike_every_call(stack)
        with stack.attached(pipe) as attached:
            short, whole = (
                counting.count_generation(
                    pipe,
                    lambda: (attached.start(model.steps, 1), generate(pipe, model)),
                    alike=alike,
                )
                for alike in (True, False)
            )
        row = counting.count_model(model, stack=stack, changes=changes)
    assert short == whole and whole.flops != plain.flops
    assert row["flops"] == whole.flops and row["work"] is None


def test_half_of_the_guidance_passes_dropped_are_a_quarter_of_the_work():
    model, changes = narrow("dit-xl-2-256")
    with quiet():
        rows = [
            counting.count_model(model, stack=Stack.parse(text), steps=8, changes=changes)
            for text in ("none", declare(one_pass_late))
        ]
    assert rows[0]["flops"] / rows[1]["flops"] == pytest.approx(4 / 3, rel=1e-3)


def test_match_sees_what_a_method_saves_by_step(monkeypatch):
    monkeypatch.setattr(match, "SAMPLES", 1)
    model = select("dit-tiny")[0]
    pipe = load(model, weights="bundled", device="cpu", dtype="float32")
    none, dropped = (
        match._flops(model, pipe, Stack.parse(text), "bundled", ())
        for text in ("none", declare(one_pass_late))
    )
    assert none / dropped == pytest.approx(4 / 3, rel=1e-3)


def test_a_method_that_claims_nothing_is_counted_in_every_call():
    """It may skip calls without saying so: counted from one, they would all be in the sum."""

    def attach(pipeline, at):
        kept = []

        def forward(*args, **kwargs):
            kept[:] = kept or [run(*args, **kwargs)]
            return kept[0]

        run = at.patch(pipeline.transformer, "forward", forward)

    stack = Stack.parse(declare(attach, claims=()))
    assert not alike_every_call(stack)
    model, changes = narrow("flux-1-dev")
    with quiet():
        none, some = (
            counting.count_model(model, stack=s, changes=changes)["flops"] for s in (Stack(), stack)
        )
    assert none == 3 * some


class Operations(Counter):
    """Counts the operations that are really carried out, too."""

    ran = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ran += 1
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize(
    "text, name",
    [
        pytest.param(text, name, marks=() if (i + j) % 3 == 0 else pytest.mark.slow)
        for i, text in enumerate(["none", "int8", "fewer_steps(share=0.7)"])
        for j, name in enumerate(NAMES)
    ],
)  # by turns in the ordinary suite
def test_calls_that_are_alike_are_run_once_and_counted_each_time(name, text):
    model, changes = narrow(name)
    model, stack = replace(model, steps=10), Stack.parse(text)
    found = []
    with quiet():
        pipe = build(model, device="cpu", changes=changes)
        own = pipe.transformer.forward
        with stack.attached(pipe):
            for once in (run_once, lambda *_: nullcontext(None)):
                counter = Operations()
                with counter.following(pipe), once(pipe, counter) as calls, counter.counting():
                    generate(pipe, replace(model, steps=stack.adapt(sampling_of(model)).steps))
                found.append((counter, calls))
    (short, calls), (whole, _) = found
    assert short.result() == whole.result() and pipe.transformer.forward == own
    assert calls.same and sum(calls.kinds.values()) == short.forwards > 3
    assert short.ran < whole.ran / 2
    assert (
        counting.count_model(model, stack=stack, changes=changes)["flops"] == whole.result().flops
    )


def test_hooks_that_only_watch_are_the_harnesss_own():
    """The record's notes of int8 come from hooks that are gone after the first run: two kinds of
    calls, and no more."""
    model, changes = narrow("flux-1-dev")
    model = replace(model, steps=5)
    with quiet():
        pipe = build(model, device="cpu", changes=changes)
        with Stack.parse("int8").attached(pipe) as attached, attached.inspected():
            counter = Counter()
            with counter.following(pipe), run_once(pipe, counter) as calls, counter.counting():
                generate(pipe, model)
    assert (
        sorted(calls.kinds.values()) == [5] and attached.notes()["int8.share_of_linear_macs"] > 0.5
    )
