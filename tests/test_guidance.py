"""Guidance passes left out at some steps and computed again, and the methods that do so: formulas
against numpy, on every guidance layout."""

from functools import cache

import diffusers
import numpy as np
import pytest
import torch

from ditbench.acceleration.guidance import noise_levels, similarity
from ditbench.method import Stack
from ditbench.models.family import families
from ditbench.profiling.counting import count_generation
from ditbench.testing import KINDS, tiny

STEPS, SCALE = 4, 3.0
GUIDED = [kind for kind in KINDS if families()[kind].guidance != "embedded"]


@cache
def subject(kind):
    return tiny(kind, steps=STEPS)


def watched(text, kind, *which, guidance=SCALE):
    """Samples, counters, what every step was given as its prediction, and the two passes' own
    predictions of every step (None where one was left out), [B,C,...] of numpy."""
    tried, family = subject(kind), families()[kind]
    pipe, given, passes = tried.pipeline, [], [{} for _ in range(STEPS)]
    sampling = tried.sampling.__class__(**vars(tried.sampling) | {"guidance": guidance})
    channels = pipe.transformer.config.in_channels
    with Stack.parse(text).attached(pipe) as attached:
        now, step = attached.now, pipe.scheduler.step

        def look(_module, _args, out):
            rows = out[0][:, :channels].float().numpy().copy()
            conditional = rows[now.conditional]
            if len(conditional):
                passes[now.step]["conditional"] = conditional
            if family.batched and len(rows) > len(conditional):
                first = now.conditional.start == 0
                half = len(rows) // 2
                passes[now.step]["unconditional"] = rows[half:] if first else rows[:half]
            elif not len(conditional):
                passes[now.step]["unconditional"] = rows

        def stepped(model_output, *args, **kwargs):
            given.append(model_output[: len(which), :channels].float().numpy().copy())
            return step(model_output, *args, **kwargs)

        hook = pipe.transformer.register_forward_hook(look)
        pipe.scheduler.step = stepped
        try:
            attached.start(STEPS, len(which))
            samples = tried.generate(sampling, which)
        finally:
            hook.remove()
            pipe.scheduler.step = step
        counters = attached.counters()
    pairs = [(p.get("conditional"), p.get("unconditional")) for p in passes]
    return samples, counters, given, pairs


def first_below_1000(kind):
    """The first step whose timestep is below 1000, where SD3's sampling begins."""
    scheduler = subject(kind).pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    return int((scheduler.timesteps >= 1000).sum())


def guided(conditional, unconditional, scale=SCALE):
    return unconditional + scale * (conditional - unconditional)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", GUIDED)
def test_the_kept_difference_stands_for_the_unconditional_pass(kind):
    _, counters, given, pairs = watched("cfg_cache(interval=2,first=1000)", kind, 0, 1)
    late = first_below_1000(kind)
    left_out = [step for step, (_, u) in enumerate(pairs) if u is None]
    assert left_out == [step for step in range(STEPS) if step > late and (step - late) % 2]
    assert counters == {"cfg_cache.guidance_passes_dropped": 2 * len(left_out)}
    difference = None
    for step, (conditional, unconditional) in enumerate(pairs):
        if unconditional is not None:
            difference = conditional - unconditional
        close(given[step], guided(conditional, conditional - difference))


@pytest.mark.parametrize("kind", GUIDED)
def test_guidance_within_an_interval_of_noise_levels_comes_and_goes(kind):
    scheduler = subject(kind).pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    t = scheduler.timesteps.double().numpy()
    if kind in ("sd3", "wan"):
        sigma = (t / 1000) / np.maximum(1 - t / 1000, 1e-9)
    else:
        alpha = scheduler.alphas_cumprod.double().numpy()[t.astype(int)]
        sigma = np.sqrt((1 - alpha) / alpha)
    np.testing.assert_allclose(noise_levels(scheduler, STEPS).numpy(), sigma, rtol=1e-6)
    # the second and third of four steps are guided
    low, high = float(sigma[3]), float(sigma[1])
    text = f"guidance_interval(low={low},high={high * 1.0001})"
    _, counters, given, pairs = watched(text, kind, 0, 1)
    assert [u is not None for _, u in pairs] == [False, True, True, False]
    assert counters == {"guidance_interval.guidance_passes_dropped": 4}
    for step, (conditional, unconditional) in enumerate(pairs):
        other = conditional if unconditional is None else unconditional
        close(given[step], guided(conditional, other))


def test_similarity_is_the_cosine_of_whole_samples():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 5))
    expected = [
        float((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(
        similarity(torch.tensor(a), torch.tensor(b)).numpy(), expected, rtol=1e-5
    )


@pytest.mark.parametrize("kind", GUIDED)
def test_a_sample_loses_guidance_by_its_own_similarity(kind):
    pairs = watched("adaptive_guidance(threshold=0.999999)", kind, 0, 1)[3]
    cosines = np.array(
        [
            [float((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())) for x, y in zip(c, u, strict=True)]
            for c, u in pairs[:1]
        ]
    )[0]  # fmt: skip
    threshold = float(cosines.mean())  # one of the two exceeds it at the first step
    one = int(cosines.argmax())
    text = f"adaptive_guidance(threshold={threshold})"
    together, _, given, pairs = watched(text, kind, 0, 1)
    assert pairs[1][1] is not None  # the other still has both
    close(given[1][one], pairs[1][0][one])
    close(given[1][1 - one], guided(*(p[1 - one] for p in pairs[1])))
    for sample in (0, 1):
        alone, counters, _, pairs = watched(text, kind, sample)
        close(together[sample], alone[0])
        if sample == one:
            assert [u is None for _, u in pairs] == [False, True, True, True]
            assert counters == {"adaptive_guidance.guidance_passes_dropped": 3}


@pytest.mark.parametrize("kind", GUIDED)
def test_caches_start_anew_where_the_pass_comes_back(kind):
    """FORA at an interval of four would compute the first step alone."""
    late = first_below_1000(kind)
    text = "fora(interval=4)+cfg_cache(interval=2,first=1000)"
    _, counters, _, pairs = watched(text, kind, 0)
    returns = [s for s in range(1, STEPS) if pairs[s][1] is not None and pairs[s - 1][1] is None]
    assert returns == [2 + late]
    sublayers = counters["fora.computed"] + counters["fora.reused"]
    calls = sum(1 if u is None or families()[kind].batched else 2 for _, u in pairs)
    per_call = sublayers // calls
    plain = watched("fora(interval=4)", kind, 0)[1]["fora.computed"]
    again = per_call * (1 if families()[kind].batched else 2)
    assert counters["fora.computed"] == plain + again


@pytest.mark.parametrize("kind", GUIDED)
@pytest.mark.parametrize(
    "text",
    [
        "adaptive_guidance(threshold=-1.0)",
        "guidance_interval(low=1e9,high=None)",
        "cfg_cache(interval=2,first=1000)",
    ],
)
def test_without_guidance_nothing_is_left_out(text, kind):
    plain = watched("none", kind, 0, guidance=1.0)[0]
    same, counters, _, _ = watched(text, kind, 0, guidance=1.0)
    assert torch.equal(plain, same) and counters == {}


@pytest.mark.parametrize("kind", GUIDED)
def test_a_step_without_the_pass_costs_half(kind):
    tried, flops = subject(kind), {}
    for text in (
        "none",
        "guidance_interval(low=1e9,high=None)",
        "adaptive_guidance(threshold=-1.0)",
    ):
        with Stack.parse(text).attached(tried.pipeline) as attached:

            def run(attached=attached):
                attached.start(STEPS, 1)
                tried.generate(
                    tried.sampling.__class__(**vars(tried.sampling) | {"guidance": 3.0}), [0]
                )

            flops[text] = count_generation(tried.pipeline, run, alike=True).flops
    whole, none_guided, one_guided = flops.values()
    assert 2 * none_guided == whole
    assert 2 * STEPS * one_guided == whole * (STEPS + 1)


def test_levels_of_other_predictions_are_refused():
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction")
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="predicts v_prediction"):
        noise_levels(scheduler, 2)


def test_noise_levels_are_the_sigmas_that_schedulers_have():
    own = diffusers.EulerDiscreteScheduler()
    heun = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    unipc = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    for scheduler, flow in ((own, False), (heun, True), (unipc, True)):
        scheduler.set_timesteps(5)
        steps = len(scheduler.timesteps)
        sigmas = scheduler.sigmas[:steps].double().numpy()
        expected = sigmas / np.maximum(1 - sigmas, 1e-9) if flow else sigmas
        # what UniPC tells the transformer is rounded to a whole number
        tolerance = 5e-3 if scheduler is unipc else 1e-4
        levels = noise_levels(scheduler, steps).numpy()
        np.testing.assert_allclose(levels[1:], expected[1:], rtol=tolerance)
        assert levels[0] >= 0.99 * min(expected[0], 999)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("kind", ["dit", "wan"])
def test_few_steps_will_do(kind, steps):
    tried = tiny(kind, steps=steps)
    rest = "w4a4+fp8_attention+frequency_tokens(stride=3,begin=0)"
    for text in (f"cfg_cache(interval=2)+{rest}", "adaptive_guidance", "guidance_interval+w6a8"):
        with Stack.parse(text).attached(tried.pipeline) as attached:
            attached.start(steps, 1)
            assert torch.isfinite(tried.generate(tried.sampling, [0]).float()).all()


def test_what_begins_again_where_the_pass_comes_back_has_no_ratios_by_step():
    (problem,) = Stack.parse("cfg_cache+magcache").problems()
    assert "cfg_cache" in problem and "magcache" in problem


def test_similarity_is_not_looked_at_before_its_start():
    text = "adaptive_guidance(threshold=-1.0,start=0.5)"
    _, counters, _, pairs = watched(text, "dit", 0)
    assert [u is None for _, u in pairs] == [False, False, False, True]
    assert counters == {"adaptive_guidance.guidance_passes_dropped": 1}
