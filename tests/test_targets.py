"""What caches of whole passes keep: predictions said as noise, clean sample or velocity and back, put
in place of the transformer's, and chosen by measurement."""

import json
import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from ditbench.acceleration.caching import targets
from ditbench.acceleration.caching.targets import Codec, Target, chosen, codec_at, why_no_target
from ditbench.acceleration.distillation.scheduler import FewStepScheduler
from ditbench.method.prepare import Workroom
from ditbench.method.stack import Stack
from ditbench.models.differentiable import paint
from ditbench.models.loading import load
from ditbench.models.sampling import sampling_of
from ditbench.models.table import models
from ditbench.quiet import quiet
from ditbench.testing import KINDS, tiny

OF_PREDICTION = [target for target in get_args(Target) if target != "residual"]
CACHES = (
    "teacache(threshold=5.0, target={!r})",
    "seacache(threshold=5.0, target={!r})",
    "easycache(threshold=99.0, retain=0.0, target={!r})",
    "schedule(steps='0-2-5', target={!r})",
)


def drawn(seed):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)).double().float()


def test_targets_of_a_model_of_noise_are_those_of_autotarget():
    """arXiv:2610.03577's conversions for PixArt under LCM's sampler, written out with alpha-bar: kept
    at one state and time, made again at another."""
    scheduler = LCMScheduler()
    scheduler.set_timesteps(4)
    y, z, e = drawn(0), drawn(1), drawn(2)
    earlier, later = codec_at(scheduler, 0, y), codec_at(scheduler, 2, z)

    def numbers(step):
        alpha = float(scheduler.alphas_cumprod[scheduler.timesteps[step]])
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(
            scheduler.timesteps[step]
        )
        return alpha, 1 - alpha, float(skip), float(out)

    alpha, beta, skip, out = numbers(0)
    x0 = (y - math.sqrt(beta) * e) / math.sqrt(alpha)
    denoised = out * x0 + skip * y
    kept = {
        "epsilon": e, "x0": x0, "v": math.sqrt(alpha) * e - math.sqrt(beta) * x0,
        "denoised": denoised, "denoised_residual": denoised - y,
    }  # fmt: skip
    alpha, beta, skip, out = numbers(2)

    def noise_of(x0):
        return (z - math.sqrt(alpha) * x0) / math.sqrt(beta)

    made = {
        "epsilon": e, "x0": noise_of(kept["x0"]),
        "v": math.sqrt(alpha) * kept["v"] + math.sqrt(beta) * z,
        "denoised": noise_of((kept["denoised"] - skip * z) / out),
        "denoised_residual": noise_of((kept["denoised_residual"] + z - skip * z) / out),
    }  # fmt: skip
    assert kept.keys() == set(OF_PREDICTION)
    for target in OF_PREDICTION:
        # near pure noise the clean sample is a difference of two numbers nearly alike
        torch.testing.assert_close(earlier.said(e, target), kept[target], rtol=2e-3, atol=2e-2)
        torch.testing.assert_close(
            later.prediction(kept[target], target), made[target], rtol=2e-3, atol=2e-2
        )


def test_targets_of_a_flow_are_its_clean_sample_noise_and_velocity():
    x0, e, s, t = drawn(0), drawn(1), 0.9, 0.35
    y, z, v = (1 - s) * x0 + s * e, drawn(2), e - x0
    at = Codec(y, s, False)
    kept = {"epsilon": e, "x0": x0, "v": v, "denoised": x0, "denoised_residual": x0 - y}
    made = {
        "epsilon": (e - z) / (1 - t), "x0": (z - x0) / t, "v": v, "denoised": (z - x0) / t,
        "denoised_residual": (y - x0) / t,
    }  # fmt: skip
    for target in OF_PREDICTION:
        torch.testing.assert_close(at.said(v, target), kept[target], rtol=1e-4, atol=1e-5)
        other = Codec(z, t, False).prediction(kept[target], target)
        torch.testing.assert_close(other, made[target], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("target", OF_PREDICTION)
def test_at_its_own_state_a_prediction_comes_back(target, noise):
    prediction = drawn(3)
    for level in (0.1, 0.5, 0.9):
        codec = Codec(drawn(4), level, noise, skip=0.2, out=0.7)
        back = codec.prediction(codec.said(prediction, target), target)
        torch.testing.assert_close(back, prediction, rtol=1e-4, atol=1e-4)


def test_a_students_level_and_process_are_its_own():
    student = FewStepScheduler([900.0, 500.0], [0.9, 0.4, 0.0], noise=True)
    student.set_timesteps(2)
    codec = codec_at(student, 1, drawn(0))
    assert codec.level == pytest.approx(0.4) and codec.noise
    assert (codec.skip, codec.out) == (0.0, 1.0)


def watched(kind, text):
    """(step, hidden states, output) of every call of the transformer as the pipeline sees it, and
    what the stack counted."""
    subject, calls = tiny(kind), []
    sampling = subject.sampling
    with Stack.parse(text).attached(subject.pipeline) as attached:
        transformer = subject.pipeline.transformer
        inner = transformer.forward

        def forward(*args, **kwargs):
            result = inner(*args, **kwargs)
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            out = result[0] if isinstance(result, tuple) else result.sample
            calls.append((attached.now.step, attached.now.branch, hidden, out))
            return result

        transformer.forward = forward
        try:
            attached.start(sampling.steps, 1)
            subject.generate(sampling, [0])
            scheduler = subject.pipeline.scheduler
        finally:
            transformer.forward = inner
        counted = attached.counters()
    return calls, counted, scheduler


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", CACHES)
def test_a_reused_pass_stands_for_what_was_kept(cache, kind):
    # along Euler's straight steps noise, clean sample and velocity of a flow stay what they are
    straight = kind in ("flux", "sd3")
    target = "denoised_residual" if straight or kind == "pixart" else "x0"
    text = cache.format(target)
    if (reason := Stack.parse(text).refusal(tiny(kind).pipeline)) is not None:
        pytest.fail(reason)
    calls, counted, scheduler = watched(kind, text)
    name = text.partition("(")[0]
    assert counted[f"{name}.passes_reused"] and counted[f"{name}.passes_computed"]
    said, plain, differing = {}, {}, 0
    for step, branch, hidden, out in calls:
        codec = codec_at(scheduler, step, hidden)
        own = out[:, : hidden.shape[1]] if hidden.dim() > 3 else out
        now = codec.said(own, target)
        if branch in said and torch.allclose(now, said[branch], rtol=1e-3, atol=1e-3):
            differing += not torch.allclose(own, plain[branch], rtol=1e-3, atol=1e-3)
        elif branch in said:
            counted[f"{name}.passes_computed"] -= 1
        else:
            counted[f"{name}.passes_computed"] -= 1
        said[branch], plain[branch] = now, own
    # every pass is a new one or says the same of the target; and not by saying the same prediction
    assert counted[f"{name}.passes_computed"] == 0 and differing


def test_the_velocity_of_a_flow_and_the_noise_of_a_model_of_noise_are_reused_as_they_are():
    for kind, target in (("flux", "v"), ("wan", "v"), ("dit", "epsilon"), ("pixart", "epsilon")):
        calls, _, _ = watched(kind, f"schedule(steps='0-2', target={target!r})")
        by_step = {}
        for step, branch, _, out in calls:
            by_step.setdefault(branch, {})[step] = out
        for outs in by_step.values():
            torch.testing.assert_close(outs[1], outs[0], rtol=1e-5, atol=1e-5)
            assert not torch.equal(outs[2], outs[0])


def test_a_target_is_refused_where_the_prediction_is_another_and_with_a_forecast():
    pipe = SimpleNamespace(scheduler=DDIMScheduler(prediction_type="v_prediction"))
    assert why_no_target(pipe, "residual") is None
    sentence = "target='x0' is known of models of noise and of flows, not of v_prediction"
    assert why_no_target(pipe, "x0") == sentence
    with pytest.raises(ValueError, match="between='taylor' has no target; 'reuse' has"):
        Stack.parse("schedule(between='taylor', target='x0')")
    with pytest.raises(ValueError, match="is searched for the residual"):
        Stack.parse("schedule(steps='searched', target='auto')")
    with pytest.raises(ValueError, match="target"):
        Stack.parse("seacache(target='auto')")


@cache
def room():
    model = models()["flux-tiny"]
    with quiet():
        pipe = load(model, weights="bundled", device="cpu", dtype="float32")
    sampling = replace(sampling_of(model), steps=4)
    return Workroom(pipe=pipe, model=model, below=Stack(), sampling=sampling, tell=lambda row: None)


def test_the_target_is_chosen_by_the_pixels_and_used_from_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "SAMPLES", 2)
    (method,) = Stack.parse("schedule(steps='0-1', target='auto')").methods
    assert method.recipe() and Stack.parse("schedule(steps='0-1')").methods[0].recipe() is None
    notes = method.prepare(tmp_path, room())
    document = json.loads((tmp_path / "target.json").read_text())
    risks = document["risks"]
    assert set(risks) == set(get_args(Target)) - {"denoised"}
    # along straight steps these three make the same samples, and none of them rivals the others
    assert risks["epsilon"] == pytest.approx(risks["x0"], rel=1e-3)
    assert risks["v"] == pytest.approx(risks["x0"], rel=1e-3)
    first, second, *_ = sorted(risks[name] for name in ("residual", "x0", "denoised_residual"))
    decided = second >= 1.1 * first
    assert notes["decided"] == document["decided"] == decided
    best = min(risks, key=risks.get)
    better = risks["residual"] >= 1.1 * risks[best]
    assert document["target"] == (best if better else "residual") == chosen(tmp_path)

    def pixels(text, artifacts=None):
        with Stack.parse(text).attached(room().pipe, artifacts) as attached, torch.no_grad():
            attached.start(4, 2)
            return paint(room().pipe, room().draw(0, 2)), attached.notes()

    plain, _ = pixels("none")
    mine, _ = pixels("schedule(steps='0-1', target='x0')")
    assert risks["x0"] == pytest.approx(float((mine - plain).square().mean()), rel=1e-4)
    by_file, told = pixels("schedule(steps='0-1', target='auto')", {"schedule": tmp_path})
    given, _ = pixels(f"schedule(steps='0-1', target={document['target']!r})")
    assert torch.equal(by_file, given) and told["schedule.target"] == document["target"]


def test_where_nothing_is_reused_the_target_is_undecided_and_a_damaged_file_is_named(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(targets, "SAMPLES", 1)
    (method,) = Stack.parse("teacache(threshold=0.0, target='auto')").methods
    notes = method.prepare(tmp_path, room())
    assert (notes["target"], notes["decided"]) == ("residual", False)
    (tmp_path / "target.json").write_text('{"target": "auto"}')
    with pytest.raises(ValueError, match=r"target.json holds no target \('auto' is no target\)"):
        chosen(tmp_path)
    with (
        pytest.raises(ValueError, match="teacache has not been prepared"),
        Stack.parse("teacache(target='auto')").attached(room().pipe),
    ):
        pass


def test_a_threshold_that_was_found_for_the_residual_keeps_its_key():
    """The bundled ones are of recipes without a target."""
    (plain,) = Stack.parse("teacache(saved=0.43)").methods
    assert plain.recipe() == {"version": 2, "saved": 0.43, "polynomial": []}
    (other,) = Stack.parse("teacache(saved=0.43, target='x0')").methods
    assert other.recipe() == {**plain.recipe(), "target": "x0"}
