"""Fixed schedules: how they are written, named and ruled, and what stands between computed steps."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ditbench.acceleration.caching.between_steps import RULES, compute_at
from ditbench.acceleration.caching.fixed_steps import (
    by_rule,
    count_of,
    misfit,
    published,
    text_of,
    written,
)
from ditbench.acceleration.caching.forecasts import (
    hermite,
    mean_velocity,
    taylor,
    timed_coefficient,
    two_anchors,
)
from ditbench.acceleration.caching.passes import added, reroute_passes
from ditbench.method.probe import Trainee
from ditbench.method.stack import Stack
from ditbench.models.sampling import sampling_of
from ditbench.models.table import models
from ditbench.testing import tiny

STEPS = 5


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("0", (0,)), ("0-2-4", (0, 2, 4)), ("10101", (0, 2, 4)), ("11", (0, 1)), ("uniform", None)],
)
def test_a_schedule_is_written_as_steps_or_bits(text, chosen):
    assert written(text) == chosen
    if chosen:
        assert written(text_of(chosen)) == chosen


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ("steps='1-2'", "the first step, 0, is always computed, but not in '1-2'"),
        ("steps='0110'", "of bits 1 is computed and 0 replaced"),
        ("steps='0-3-2'", "do not ascend"),
        ("steps='geometrc'", "did you mean geometric"),
        ("computed=1.5", "computed is a share up to 1.0 or a whole number of steps, not 1.5"),
        ("steps='0-2', computed=3", "with steps='0-2' computed has no meaning"),
        ("trials=5", "with steps='uniform' trials has no meaning"),
        ("steps='uniform', draw=1", "with steps='uniform' draw has no meaning"),
        ("order=2", "between='reuse' has no order; taylor and hermite have"),
    ],
)
def test_what_is_no_schedule_is_one_sentence(knobs, sentence):
    with pytest.raises(ValueError, match="in the stack") as error:
        Stack.parse(f"schedule({knobs})")
    assert sentence in str(error.value)


def test_rules_compute_as_many_steps_as_asked_for_the_first_among_them():
    for steps in (1, 2, 7, 20, 50):
        for count in range(1, steps + 1):
            for rule in ("uniform", "geometric", "random"):
                chosen = by_rule(rule, count, steps)
                assert len(chosen) == len(set(chosen)) == count and chosen == tuple(sorted(chosen))
                assert chosen[0] == 0 and chosen[-1] < steps
                assert count == 1 or rule != "geometric" or chosen[-1] == steps - 1
    assert by_rule("uniform", 10, 20) == tuple(range(0, 20, 2))
    assert by_rule("uniform", 6, 20) == (0, 3, 6, 10, 13, 16)
    assert by_rule("geometric", 9, 50) == (0, 1, 2, 3, 6, 11, 18, 30, 49)
    assert by_rule("random", 9, 50, 1) != by_rule("random", 9, 50, 2)
    assert [count_of(c, 20) for c in (0.5, 3, 1.0, 1, 0.01, 99)] == [10, 3, 20, 1, 1, 20]


def test_published_schedules_have_as_many_steps_as_their_name_says():
    assert {row.family for row in published()} == {"flux", "wan"} and len(published()) >= 17
    for row in published():
        replaced = int(row.name.rpartition("-k")[2])
        assert len(row.computed) == row.steps - replaced and row.computed[0] == 0
        assert row.computed == tuple(sorted(set(row.computed))) and "arXiv" in row.source


def test_a_published_schedule_is_for_its_family_and_its_steps_alone():
    (schedule,) = Stack.parse("schedule(steps='dpcache-k37')").methods
    sampling = sampling_of(models()["flux-tiny"])
    assert (
        schedule.unfit(sampling)
        == "the schedule dpcache-k37 is of 50 sampler steps, and here are 20"
    )
    assert schedule.unfit(replace(sampling, steps=50)) is None
    wan = SimpleNamespace(transformer=type("WanTransformer3DModel", (), {})(), scheduler=None)
    assert schedule.check(wan) == "the schedule dpcache-k37 is published for flux alone"
    assert misfit("0-2-30", 20) == "steps='0-2-30' computes step 30, and the last of 20 is 19"
    assert misfit("1010", 20) == "steps='1010' has 4 bits, and there are 20 sampler steps"
    assert misfit("1010", 4) is misfit("0-3", 4) is misfit("uniform", 4) is None


class Tracked(Trainee):
    """Computes some steps, and keeps what goes into and comes out of all blocks, and of the
    transformer, at each of them."""

    def __init__(self, chosen, between="reuse", order=None):
        self.chosen, self.between, self.order = chosen, between, order
        self.inputs, self.outputs, self.latents, self.residuals = [], [], [], {}

    def attach(self, pipeline, at):
        transformer = pipeline.transformer

        def observe(streams, output):
            self.residuals[at.now.step] = added(streams, output)[0]

        if self.chosen is None:
            reroute_passes(at, lambda run, streams: None, observe)
        else:
            compute_at(
                pipeline, at, lambda step, branch: step in self.chosen, self.between, self.order
            )
        for hook in (
            transformer.register_forward_pre_hook(
                lambda _m, _a, kwargs: self.latents.append(kwargs["hidden_states"].clone()),
                with_kwargs=True,
            ),
            transformer.register_forward_hook(
                lambda _m, _a, out: self.outputs.append(out[0].clone())
            ),
            transformer.norm_out.register_forward_pre_hook(
                lambda _m, args: self.inputs.append(args[0].clone())
            ),
        ):
            at.undo(hook.remove)


@pytest.fixture(scope="module")
def flux():
    return tiny("flux", steps=STEPS)


def tracked(subject, *args):
    trainee = Tracked(*args)
    with Stack((trainee,)).attached(subject.pipeline) as attached:
        attached.start(STEPS, 1)
        subject.generate(subject.sampling, [0])
    return trainee, attached


@pytest.mark.parametrize("between", [rule for rule in RULES if rule != "meanvelocity"])
def test_the_first_replaced_step_is_the_forecast_from_the_computed_ones(flux, between):
    """Until then the trajectory is the un-accelerated one, whose residuals are known."""
    dense, _ = tracked(flux, None)
    ours, attached = tracked(flux, {0, 1, 4}, between)
    values, times = [dense.residuals[0], dense.residuals[1]], [0, 1]
    forecast = {
        "reuse": lambda: values[-1],
        "taylor": lambda: taylor(values, times, 2, 1),
        "hermite": lambda: hermite(values, times, 2, 2),
        "twoanchor": lambda: two_anchors(*values, timed_coefficient(times, 2, 1.5)),
    }[between]()
    # of FLUX the last norm is given the image's tokens alone
    entered = dense.inputs[2] - dense.residuals[2][:, -dense.inputs[2].shape[1] :]
    expected = entered + forecast[:, -entered.shape[1] :]
    assert torch.allclose(ours.inputs[2], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours.inputs[2], dense.inputs[2], rtol=1e-4, atol=1e-5)
    assert attached.counters() == {"trainee.passes_computed": 3, "trainee.passes_reused": 2}
    shares = attached.schedule()
    assert [row[0] for row in shares["keep"]] == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert {step for step, _ in shares["skipped"]} == {2, 3}


def test_mean_velocities_are_those_of_the_forecast(flux):
    dense, _ = tracked(flux, None)
    ours, attached = tracked(flux, {0, 1, 2}, "meanvelocity")
    sigmas = [float(sigma) for sigma in flux.pipeline.scheduler.sigmas]
    expected = mean_velocity(
        dense.latents[:3], dense.outputs[:3], sigmas[:3], dense.latents[3], sigmas[3], sigmas[4]
    )
    assert torch.allclose(ours.outputs[3], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours.outputs[3], dense.outputs[2], rtol=1e-4, atol=1e-5)
    # replaced velocities are the past of the next one
    again = mean_velocity(
        ours.latents[:4], ours.outputs[:4], sigmas[:4], ours.latents[4], sigmas[4], sigmas[5]
    )
    assert torch.allclose(ours.outputs[4], again, rtol=1e-4, atol=1e-5)
    assert attached.counters()["trainee.passes_reused"] == 2


def test_guidance_passes_of_a_replaced_step_change_by_as_much():
    """Wan's two calls: the guided velocity is the forecast, whatever the guidance scale."""
    subject = tiny("wan", steps=STEPS)
    guided, latents, branches = [], [], []

    class Watched(Tracked):
        def attach(self, pipeline, at):
            compute_at(pipeline, at, lambda step, branch: step in self.chosen, "meanvelocity")

            def stepped(model_output, timestep, sample, *args, **kwargs):
                guided.append(model_output.clone())
                latents.append(sample.clone())
                return step(model_output, timestep, sample, *args, **kwargs)

            step = at.patch(pipeline.scheduler, "step", stepped)
            hook = pipeline.transformer.register_forward_hook(
                lambda _m, _a, out: branches.append(out[0].clone())
            )
            at.undo(hook.remove)

    tracked_by = Watched({0, 1, 2, 4})
    with Stack((tracked_by,)).attached(subject.pipeline) as attached:
        attached.start(STEPS, 1)
        subject.generate(subject.sampling, [0])
    sigmas = [float(sigma) for sigma in subject.pipeline.scheduler.sigmas]
    expected = mean_velocity(latents[:3], guided[:3], sigmas[:3], latents[3], sigmas[3], sigmas[4])
    assert torch.allclose(guided[3].float(), expected.float(), rtol=1e-3, atol=1e-4)
    one, two = (branches[6 + i] - branches[4 + i] for i in range(2))
    assert torch.allclose(one, two, rtol=1e-3, atol=1e-4) and one.abs().max() > 1e-4
