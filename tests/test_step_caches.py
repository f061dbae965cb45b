"""Caches that replace whole passes of the transformer give what their formulas say, worked out again
beside them in numpy."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_parts import B, D, Fake, method_of, near, paths, tensor
from safetensors.numpy import save_file

from ditbench.acceleration.caching import linear_predictor
from ditbench.acceleration.caching.passes import follows_interval
from ditbench.acceleration.caching.spectral import filtered, low_band, wiener_gain
from ditbench.acceleration.distillation.noise_process import level_of_step
from ditbench.method.prepare import Workroom
from ditbench.method.stack import Stack
from ditbench.models.table import models
from ditbench.testing import check_method, tiny


def pass_outputs(fake, entering, leaving, steps):
    """What a pass through two blocks gives at every step, where the blocks by themselves give half of
    the way each."""
    outs = []
    for step in range(steps):
        fake.at_step(step)
        x, y = tensor(entering[step]), tensor(leaving[step])
        given = (x + y) / 2, y
        outs.append(fake.through_blocks((x,), lambda b, _s, given=given: (given[b.index],))[0])
    return outs


def last_block_ran(fake):
    return [step for step, index in fake.computed if index == 1]


@pytest.mark.parametrize(
    ("interval", "first", "computed"),
    [(3, 1, [0, 3, 6, 9]), (3, 3, [0, 1, 2, 5, 8]), (2.5, 2, [0, 1, 4, 6, 9]), (1, 2, list(range(10)))],
)  # fmt: skip
def test_an_interval_begins_at_the_last_of_the_first_steps(interval, first, computed):
    assert [t for t in range(10) if follows_interval(t, interval, first)] == computed


# seacache


def gain_in_numpy(grid, sigma, power):
    gain = np.ones(grid)
    for axis, n in enumerate(grid):
        if n == 1:
            continue
        s = 1 / (np.abs(np.fft.fftfreq(n)) ** power + 1e-16)
        along = (1 - sigma) * s / ((1 - sigma) ** 2 * s + sigma**2 + 1e-16)
        gain = gain * along.reshape([-1 if i == axis else 1 for i in range(3)])
    return gain / gain.mean()


@pytest.mark.parametrize(("grid", "sigma", "power"), [((1, 4, 6), 0.7, 2.0), ((3, 4, 4), 0.2, 3.0)])
def test_the_filter_of_seacache_is_the_best_linear_denoiser(grid, sigma, power):
    gain = gain_in_numpy(grid, sigma, power)
    near(wiener_gain(grid, sigma, power, "cpu")[..., 0], gain)
    x = np.random.default_rng(0).normal(size=(B, int(np.prod(grid)), D))
    spectrum = np.fft.fftn(x.reshape(B, *grid, D), axes=(1, 2, 3)) * gain[..., None]
    expected = np.fft.ifftn(spectrum, axes=(1, 2, 3)).real.reshape(x.shape)
    near(filtered(tensor(x), grid, wiener_gain(grid, sigma, power, "cpu")), expected)


def test_a_level_is_the_flows_sigma_and_of_a_model_of_noise_its_share_of_noise():
    flow = SimpleNamespace(config={}, timesteps=torch.tensor([900.0, 250.0]))
    assert level_of_step(flow, 1) == pytest.approx(0.25)
    alphas = torch.linspace(0.999, 0.01, 1000)
    noise = SimpleNamespace(
        config={"prediction_type": "epsilon"}, timesteps=[500], alphas_cumprod=alphas
    )
    a, b = float(alphas[500]) ** 0.5, (1 - float(alphas[500])) ** 0.5
    assert level_of_step(noise, 0) == pytest.approx(b / (a + b))
    student = SimpleNamespace(config={}, levels=[1.0, 0.4])
    assert level_of_step(student, 1) == pytest.approx(0.4)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 1.0])
def test_seacache_decides_by_the_filtered_input_and_adds_what_the_blocks_added(threshold):
    steps, grid = 9, (1, 3, 4)
    entering, leaving = paths(steps, 12), paths(steps, 12, seed=1)
    timesteps = torch.linspace(950, 50, steps)
    fake = Fake(
        method_of("seacache", threshold=threshold), steps=steps, grid=grid, family="flux",
        scheduler=SimpleNamespace(config={}, timesteps=timesteps),
    )  # fmt: skip
    first = fake.at.sublayers[0]
    outs = []
    for step in range(steps):
        fake.at_step(step)
        x, y = tensor(entering[step]), tensor(leaving[step])

        def own(block, streams, x=x, y=y):
            if block.index == 0:
                first(lambda *_: x, 2 * x)  # the modulated input is twice the block's
            return (y,)

        outs.append(fake.through_blocks((x,), own)[0])
    computed, total, before, last = [], 0.0, None, 0
    for step in range(steps):
        seen = 2 * entering[step]
        if step in (0, steps - 1):
            computed.append(step)
            total = 0.0
        else:
            gain = gain_in_numpy(grid, float(timesteps[step]) / 1000, 2.0)[..., None]
            spectrum = np.fft.fftn(seen.reshape(B, *grid, D), axes=(1, 2, 3)) * gain
            seen = np.fft.ifftn(spectrum, axes=(1, 2, 3)).real.reshape(seen.shape)
            total += np.abs(seen - before).mean() / np.abs(before).mean()
            if total >= threshold:
                computed.append(step)
                total = 0.0
        before = seen
        if step in computed:
            last = step
            near(outs[step], leaving[step])
        else:
            near(outs[step], entering[step] + leaving[last] - entering[last])
    assert last_block_ran(fake) == computed
    assert fake.at.counters["passes_computed"] == len(computed)


# easycache


@pytest.mark.parametrize("threshold", [0.0, 1.5, 3.0, 99.0])
def test_easycache_predicts_the_change_and_the_conditional_pass_decides(threshold):
    steps, retain = 10, 0.2
    x = paths(steps, 4)
    y = [paths(steps, 4, seed=2), paths(steps, 4, seed=3)]
    fake = Fake(
        method_of("easycache", threshold=threshold, retain=retain), steps=steps, family="wan"
    )
    ran = []
    fake.output = lambda hidden: (
        ran.append((fake.at.now.step, fake.at.now.branch)),
        tensor(y[fake.at.now.branch][fake.at.now.step]),
    )[1]
    outs = {}
    for step in range(steps):
        for branch in (0, 1):
            fake.at_step(step, branch)
            outs[step, branch] = fake.pipeline.transformer.forward(hidden_states=tensor(x[step]))[0]
    computed, total, rate, last = [], 0.0, None, None
    for step in range(steps):
        skip = False
        if step < retain * steps or step == steps - 1 or rate is None:
            total = 0.0
        else:
            change = np.abs(x[step] - x[step - 1]).mean() / np.abs(y[0][last]).mean()
            total += rate * change
            skip = total < threshold
            total = total if skip else 0.0
        if skip:
            for branch in (0, 1):
                near(outs[step, branch], x[step] + y[branch][last] - x[last])
            continue
        if last is not None:
            moved = np.abs(x[step] - x[last]).mean()
            rate = np.abs(y[0][step] - y[0][last]).mean() / moved
        computed.append(step)
        last = step
    assert ran == [(step, branch) for step in computed for branch in (0, 1)]
    assert len(computed) == {0: 10, 1.5: 5, 3: 4, 99: 3}[threshold]


def test_easycache_reuses_channels_that_the_input_has_not_as_they_are():
    fake = Fake(method_of("easycache", threshold=9.0, retain=0.0), steps=6)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(6, B, 2, 3, 3)), random.normal(size=(6, B, 4, 3, 3))
    fake.output = lambda hidden: tensor(y[fake.at.now.step])
    outs = []
    for step in range(6):
        fake.at_step(step)
        outs.append(fake.pipeline.transformer.forward(hidden_states=tensor(x[step]))[0])
    assert fake.at.counters == {"passes_computed": 3, "passes_reused": 3}
    near(outs[4][:, :2], x[4] + y[1][:, :2] - x[1])
    near(outs[4][:, 2:], y[1][:, 2:])


# dicache


@pytest.mark.parametrize(("family", "most"), [("flux", 1.5), ("wan", 2.0)])
def test_dicache_combines_the_last_two_residuals_as_the_probe_moved(family, most):
    steps, threshold = 12, 0.5
    entering, leaving = paths(steps, 4), paths(steps, 4, seed=4)
    probed = paths(steps, 4, seed=5)
    fake = Fake(method_of("dicache", threshold=threshold), steps=steps, family=family, blocks=3)
    outs = []
    for step in range(steps):
        fake.at_step(step)
        own = {0: probed[step], 1: probed[step], 2: leaving[step]}
        text = torch.full((B, 1, D), float(step))
        given = (tensor(entering[step]), text)
        outs.append(
            fake.through_blocks(given, lambda b, s, own=own: (tensor(own[b.index]), s[1] + 1))
        )
    early = int(0.2 * steps)
    total, computed, residuals, probes = 0.0, [], [], []
    for step in range(steps):
        forced = step < early if family == "wan" else step <= early or step == steps - 1
        if step and not forced:
            change = np.abs(probed[step] - probed[step - 1]).mean()
            total += change / np.abs(probed[step - 1]).mean()
        if step == 0 or forced or total >= threshold:
            total = 0.0
            computed.append(step)
            residuals = [*residuals, leaving[step] - entering[step]][-2:]
            probes = [*probes, probed[step] - entering[step]][-2:]
            near(outs[step][0], leaving[step])
            continue
        r1, r2 = residuals
        for row in range(B):
            q = (probed[step] - entering[step])[row]
            g = np.abs(q - probes[0][row]).mean() / np.abs(probes[1][row] - probes[0][row]).mean()
            expected = r1[row] + min(max(g, 1), most) * (r2[row] - r1[row])
            near(outs[step][0][row], entering[step][row] + expected)
        assert float(outs[step][1].max()) == step  # the text as it came
    assert [step for step, index in fake.computed if index == 0] == list(range(steps))
    assert [step for step, index in fake.computed if index == 2] == computed
    assert 3 < len(computed) < steps


# freqca


def low_in_numpy(x, grid, cutoff):
    """By whole transforms: what lies within the cutoff, of tokens [B,N,D]."""
    y = x.reshape(len(x), *grid, -1)
    bases = []
    for n in grid:
        k, i = np.arange(n)[:, None], np.arange(n)[None]
        basis = np.cos(np.pi * (i + 0.5) * k / n) * np.sqrt(2 / n)
        basis[0] = np.sqrt(1 / n)
        assert np.allclose(basis @ basis.T, np.eye(n))
        bases.append(basis)
    y = np.einsum("fi,hj,wk,bijkd->bfhwd", *bases, y)
    size = np.sqrt(sum(np.square(axis) for axis in np.indices(grid)))
    y = y * (size <= cutoff * size.max())[None, ..., None]
    return np.einsum("fi,hj,wk,bfhwd->bijkd", *bases, y).reshape(x.shape)


@pytest.mark.parametrize(
    ("grid", "cutoff"), [((1, 6, 5), 0.3), ((3, 4, 4), 0.4), ((1, 4, 4), 0.0), ((1, 3, 3), 1.0)]
)
def test_the_low_band_is_that_of_a_whole_cosine_transform(grid, cutoff):
    x = np.random.default_rng(0).normal(size=(B, int(np.prod(grid)), D))
    low = low_in_numpy(x, grid, cutoff)
    near(low_band(tensor(x), grid, cutoff), low)
    if cutoff == 0:
        near(low, np.broadcast_to(x.mean(1, keepdims=True), x.shape))
    if cutoff == 1:
        near(low, x)


def test_freqca_reuses_the_low_band_and_forecasts_the_high_one():
    steps, grid, s = 11, (1, 3, 4), 0.71
    entering, leaving = paths(steps, 12), paths(steps, 12, seed=6)
    fake = Fake(method_of("freqca", interval=4, cutoff=0.4), steps=steps, grid=grid)
    outs = pass_outputs(fake, entering, leaving, steps)
    low = [low_in_numpy(y, grid, 0.4) for y in leaving]
    high = [y - part for y, part in zip(leaving, low, strict=True)]
    assert last_block_ran(fake) == [0, 1, 2, 6, 10]
    # of the first three steps the last alone takes a difference, so that step 6 is the first with two
    one = high[2] - high[1]
    for step in (3, 4, 5):
        near(outs[step], low[2] + high[2] + s * (2 * s * (step - 2)) * one)
    slope = (high[6] - high[2]) / 4
    curve = (slope - one) / 4
    for step in (7, 8, 9):
        u = s * (step - 6)
        forecast = high[6] + s * 2 * u * slope + s**2 * (4 * u**2 - 2) / 2 * curve
        near(outs[step], low[6] + forecast)


# barycache


def test_two_anchors_of_barycache_are_a_straight_line():
    steps = 10
    entering, leaving = paths(steps, 4), paths(steps, 4, seed=7)
    fake = Fake(method_of("barycache", interval=3), steps=steps)
    outs = pass_outputs(fake, entering, leaving, steps)
    assert last_block_ran(fake) == [0, 1, 2, 5, 8]
    for step, (s0, s1) in {3: (1, 2), 4: (1, 2), 6: (2, 5), 7: (2, 5), 9: (5, 8)}.items():
        slope = (leaving[s1] - leaving[s0]) / (s1 - s0)
        near(outs[step], leaving[s1] + slope * (step - s1))


@pytest.mark.parametrize(("history", "decay"), [(3, 0.95), (4, 0.75)])
def test_more_anchors_of_barycache_have_evened_alternating_weights(history, decay):
    steps = 16
    entering, leaving = paths(steps, 4), paths(steps, 4, seed=8)
    fake = Fake(method_of("barycache", interval=3, history=history, first=1), steps=steps)
    outs = pass_outputs(fake, entering, leaving, steps)
    near(outs[1], leaving[0])
    anchors = [0, 3, 6, 9, 12][-history:]
    ends = np.ones(history)
    ends[[0, -1]] = 0.5
    u = ends * (-1.0) ** np.arange(history) / (14 - np.array(anchors))
    weights = np.sign(u) * np.abs(u) ** decay
    weights /= weights.sum()
    near(outs[14], sum(w * leaving[s] for w, s in zip(weights, anchors, strict=True)))


# meancache


def test_meancache_corrects_the_last_velocity_by_the_mean_one():
    steps, span, sigmas = 9, 3, torch.linspace(1, 0, 10) ** 1.5
    latents = paths(steps + 1, 4)
    velocity = {0: paths(steps, 4, seed=9), 1: paths(steps, 4, seed=10)}
    scheduler = SimpleNamespace(config={"prediction_type": "flow_prediction"}, sigmas=sigmas)
    scheduler.step = lambda *_: (tensor(latents[fake.at.now.step + 1]),)
    fake = Fake(
        method_of("meancache", interval=4, first=3, span=span), steps=steps, family="wan",
        scheduler=scheduler,
    )  # fmt: skip
    fake.output = lambda hidden: tensor(velocity[fake.at.now.branch][fake.at.now.step])
    outs, guided = {}, []
    for step in range(steps):
        z = tensor(latents[step])
        for branch in (0, 1):
            fake.at_step(step, branch)
            outs[step, branch] = fake.pipeline.transformer.forward(hidden_states=z)[0]
        guided.append(outs[step, 1] + 5 * (outs[step, 0] - outs[step, 1]))
        scheduler.step(guided[-1], None, z)
    assert fake.at.counters == {"passes_computed": 2 * 4, "passes_reused": 2 * 5}
    s = sigmas.double().numpy()
    for step in (3, 4, 5, 7, 8):
        r = step - span
        mean = (latents[step] - latents[r]) / (s[step] - s[r])
        slope = (mean - guided[r].numpy()) / (s[step] - s[r])
        near(guided[step], guided[step - 1].numpy() + (s[step + 1] - s[step]) * slope, 1e-3)
    near(outs[0, 1], velocity[1][0])


def test_meancache_refuses_what_is_no_flow():
    scheduler = SimpleNamespace(config={"prediction_type": "epsilon"}, sigmas=[1.0], step=None)
    reason = "extrapolates the velocity of a flow, and SimpleNamespace does not move along one"
    assert reason in method_of("meancache").check(SimpleNamespace(scheduler=scheduler))
    with pytest.raises(ValueError, match=f"meancache: it {reason}"):
        Fake(method_of("meancache"), steps=4, scheduler=scheduler)


# l2p


def test_l2p_gives_the_ridge_solution_over_the_computed_steps(tmp_path):
    steps = 9
    y = paths(steps, 4)
    random = np.random.default_rng(1)
    flat = random.normal(size=(steps, 60)).cumsum(0)
    gram = flat @ flat.T / 60
    save_file({"gram": gram}, tmp_path / "gram.safetensors")
    fake = Fake(method_of("l2p", interval=3, first=2), steps=steps, artifact=tmp_path)
    ran = []
    fake.output = lambda hidden: (ran.append(fake.at.now.step), tensor(y[fake.at.now.step]))[1]
    outs = []
    for step in range(steps):
        fake.at_step(step)
        outs.append(fake.pipeline.transformer.forward(hidden_states=tensor(y[step]))[0])
    assert ran == [0, 1, 4, 7]
    for step, before in {2: [0, 1], 3: [0, 1], 5: [0, 1, 4], 6: [0, 1, 4], 8: [0, 1, 4, 7]}.items():
        x = flat[before].T / np.sqrt(60)
        ridge = 1e-5 * np.square(x).sum(0).mean()
        # the least squares problem with the ridge as rows of its own
        rows = np.vstack([x, np.sqrt(ridge) * np.eye(len(before))])
        goal = np.concatenate([flat[step] / np.sqrt(60), np.zeros(len(before))])
        weights = np.linalg.lstsq(rows, goal, rcond=None)[0]
        near(outs[step], sum(w * y[s] for w, s in zip(weights, before, strict=True)), 1e-3)


def test_l2p_computes_the_authors_steps_of_fifty_on_flux(tmp_path):
    save_file({"gram": np.eye(50)}, tmp_path / "gram.safetensors")
    for family, expected in (("flux", [0, 1, 2, 4, 16, 32]), ("sd3", [0, 1, 2, 18, 34])):
        fake = Fake(method_of("l2p", interval=16), steps=50, family=family, artifact=tmp_path)
        ran = []
        fake.output = lambda hidden, fake=fake, ran=ran: (ran.append(fake.at.now.step), hidden)[1]
        for step in range(50):
            fake.at_step(step)
            fake.pipeline.transformer.forward(hidden_states=torch.zeros(1, 2, 3))
        assert ran == expected


def test_l2p_refuses_a_matrix_of_another_number_of_steps(tmp_path):
    save_file({"gram": np.eye(5)}, tmp_path / "gram.safetensors")
    fake = Fake(method_of("l2p"), steps=6, artifact=tmp_path)
    with pytest.raises(ValueError, match="the Gram matrix is for 5 sampler steps"):
        fake.pipeline.transformer.forward(hidden_states=torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="l2p has not been prepared"):
        Fake(method_of("l2p"), steps=6)


@pytest.mark.parametrize("kind", ["dit", "flux", "wan"])
def test_l2p_is_prepared_from_whole_generations_and_keeps_the_contract(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(linear_predictor, "TRAJECTORIES", 3)
    monkeypatch.setattr(linear_predictor, "BATCH", 2)
    steps, tried, seen = 4, tiny(kind, steps=4), []
    model = replace(models()[f"{kind}-tiny"], steps=steps)
    room = Workroom(
        pipe=tried.pipeline, model=model, below=Stack(), sampling=tried.sampling, tell=seen.append
    )
    outputs = []
    hook = tried.pipeline.transformer.register_forward_hook(
        lambda _module, _inputs, out: outputs.append(out[0].double().numpy())
    )
    notes = method_of("l2p").prepare(tmp_path, room)
    hook.remove()
    assert [row["done"] for row in seen] == [2, 3] and notes["samples"] == 3
    calls = 2 if kind == "wan" else 1
    half = steps * calls
    parts = [
        np.stack([x.ravel() for x in batch[branch::calls]])
        for batch in (outputs[:half], outputs[half:])
        for branch in range(calls)
    ]
    numbers = sum(part.shape[1] for part in parts)
    near(linear_predictor.read_gram(tmp_path / "gram.safetensors"), sum(p @ p.T for p in parts) / numbers)  # fmt: skip
    checks = check_method("l2p(interval=2,first=1)", tried, {"l2p": tmp_path})
    assert not [check for check in checks if not check.passed] and len(checks) == 13
