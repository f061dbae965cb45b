"""Simulated number formats and the methods that have them, against numpy."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ditbench.acceleration import fake_formats as formats
from ditbench.acceleration.quantization import ERROR, linears_of
from ditbench.method import Stack
from ditbench.method.prepare import Workroom
from ditbench.models.loading import load
from ditbench.models.sampling import sampling_of
from ditbench.models.sublayers import sublayers
from ditbench.models.table import models
from ditbench.testing import tiny


def values_of_e4m3():
    """All finite magnitudes: 3 bits of mantissa, exponents of bias 7, the last code is NaN."""
    codes = range(127)
    return np.array(
        [
            (c & 7) / 8 * 2.0**-6 if c < 8 else (1 + (c & 7) / 8) * 2.0 ** ((c >> 3) - 7)
            for c in codes
        ]
    )


def nearest(x, values):
    """Each |x| to the nearest of values, of two as near the one of even place; with x's sign."""
    distances = np.abs(np.abs(x)[..., None] - values)
    least = distances.min(-1, keepdims=True)
    candidates = distances == least
    places = np.arange(len(values))
    even = np.where(candidates & (places % 2 == 0), places, len(values)).min(-1)
    anyone = np.where(candidates, places, len(values)).min(-1)
    return np.sign(x) * values[np.where(even < len(values), even, anyone)]


def e4m3(x):
    return nearest(np.clip(x, -448, 448), values_of_e4m3())


def e2m1(x):
    return nearest(np.clip(x, -6, 6), np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6]))


def integers(x, bits, group):
    most = 2 ** (bits - 1) - 1
    parts = x.reshape(*x.shape[:-1], -1, group)
    scale = np.abs(parts).max(-1, keepdims=True) / most
    return (np.round(parts / scale) * scale).reshape(x.shape)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_e4m3_and_e2m1_are_rounded_to_the_nearest_value():
    x = np.concatenate([draw(500) * 30, np.arange(-8, 8, 0.25), [1e4, -1e4, 0]])
    np.testing.assert_array_equal(formats.to_e4m3(torch.tensor(x)).numpy(), e4m3(x))
    small = np.clip(x, -6, 6)
    np.testing.assert_array_equal(formats.to_e2m1(torch.tensor(small)).numpy(), e2m1(small))


@pytest.mark.parametrize(("bits", "group"), [(4, 16), (6, 32), (8, 64)])
def test_integers_have_a_scale_for_each_group(bits, group):
    x = draw(5, 64)
    ours = formats.to_integers(torch.tensor(x), bits, group).numpy()
    np.testing.assert_allclose(ours, integers(x, bits, group), rtol=1e-9, atol=1e-12)
    assert len(np.unique(np.round(ours[0, :group] / ours[0, :group].max(), 6))) <= 2**bits


def test_nvfp4_has_scales_of_e4m3_under_an_outer_one():
    x = draw(3, 48).astype(np.float32)
    outer = np.abs(x).max(-1, keepdims=True)
    unit = outer[..., None] / (6 * 448)
    parts = x.reshape(3, 3, 16)
    scale = e4m3(np.abs(parts).max(-1, keepdims=True) / 6 / unit) * unit
    expected = (e2m1(parts / scale) * scale).reshape(3, 48)
    ours = formats.to_nvfp4(torch.tensor(x), torch.tensor(outer)).numpy()
    assert np.mean(np.isclose(ours, expected, rtol=1e-5, atol=1e-6)) > 0.99  # ties of float32


@pytest.mark.parametrize("smoothed", [False, True])
def test_a_layer_in_four_bits_is_a_low_rank_branch_and_a_rounded_rest(smoothed):
    torch.manual_seed(25)  # no weight is so near a half step that decompositions may differ
    linear = nn.Linear(64, 24).double()
    weight, bias = linear.weight.detach().numpy().copy(), linear.bias.detach().numpy()
    x, reach = draw(7, 64), np.abs(draw(64, seed=1)) + 0.1
    factors = reach**0.5 / np.abs(weight).max(0) ** 0.5 if smoothed else np.ones(64)
    given = None
    if smoothed:
        given = formats.smoothing_factors(torch.tensor(reach), linear.weight, 0.5)
        np.testing.assert_allclose(given.detach().numpy(), factors, rtol=1e-6)
        factors = given.detach().numpy()
    formats.w4a4(
        linear, SimpleNamespace(patch=setattr), rank=4, form="int4", group=32, factors=given
    )
    u, s, v = np.linalg.svd((weight * factors).astype(np.float32), full_matrices=False)
    branch = (u[:, :4] * s[:4]) @ v[:4]
    rest = integers(weight * factors - branch, 4, 32)
    expected = (x / factors) @ branch.T + integers(x / factors, 4, 32) @ rest.T + bias
    with torch.no_grad():
        ours = linear(torch.tensor(x)).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("smooth", [False, True])
def test_attention_in_e4m3(block, smooth):
    q, k, v = (draw(1, 2, n, 8, seed=n).astype(np.float32) for n in (5, 7, 7))
    k = k + 3

    def scaled(x, axes):
        scale = np.abs(x).max(axes, keepdims=True) / 448
        return e4m3(x / scale) * scale

    def by_block(x):
        cuts = range(block, x.shape[2], block)
        return np.concatenate([scaled(part, (-2, -1)) for part in np.split(x, cuts, 2)], 2)

    moved = k - k.mean(2, keepdims=True) if smooth else k
    scores = by_block(q) @ by_block(moved).transpose(0, 1, 3, 2) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = e4m3(weights * 448) / 448 @ scaled(v, (-2,)) / weights.sum(-1, keepdims=True)
    tensors = [torch.tensor(x) for x in (q, k, v)]
    ours = formats.attention_in_e4m3(*tensors, block=block, smooth=smooth).numpy()
    # a value on the border of two of E4M3 may go either way in float32
    np.testing.assert_allclose(ours, expected, rtol=0.02, atol=0.02)
    exact = torch.nn.functional.scaled_dot_product_attention(*tensors).numpy()
    assert 0 < np.abs(ours - exact).max() < 0.3


@cache
def subject(kind):
    return tiny(kind, steps=2)


@pytest.mark.parametrize("kind", ["dit", "flux"])
def test_errors_grow_with_fewer_bits_and_shrink_with_the_branch(kind):
    tried, errors = subject(kind), {}
    for text in ("w6a8", "w4a4(rank=0)", "w4a4(rank=16)", "w4a4(form='nvfp4',rank=0)"):
        with Stack.parse(text).attached(tried.pipeline) as attached, attached.inspected():
            attached.start(2, 1)
            tried.generate(tried.sampling, [0])
            notes = attached.notes()
        name = text.partition("(")[0]
        errors[text] = notes[f"{name}.{ERROR}"]
        assert "no speed-up" in notes[f"{name}.caution"]
    assert 0 < errors["w6a8"] < errors["w4a4(rank=16)"] < errors["w4a4(rank=0)"]
    assert errors["w6a8"] < errors["w4a4(form='nvfp4',rank=0)"] < 0.3


def test_groups_that_do_not_divide_a_layer_are_refused():
    pipeline = subject("dit").pipeline
    widths = {m.in_features for m in linears_of(sublayers(pipeline.transformer))}
    assert 128 in widths
    reason = Stack.parse("w6a8(group=48)").refusal(pipeline)
    assert reason == "w6a8: groups of 48 do not divide a layer of 128 inputs"


def test_smoothing_is_calibrated_by_sampling_and_helps_where_channels_differ(tmp_path):
    model = models()["dit-tiny"]
    pipe = load(model, weights="bundled", device="cpu", dtype="float32")
    sampling = replace(sampling_of(model), steps=2)
    room = Workroom(pipe=pipe, model=model, below=Stack(), sampling=sampling, tell=lambda row: None)
    stack = Stack.parse("w4a4(smoothed=True)")
    linears = linears_of(sublayers(pipe.transformer))
    with pytest.raises(ValueError, match="prepare"), stack.attached(pipe):
        pass
    stack.methods[0].prepare(tmp_path, room)
    ranges = load_file(tmp_path / "ranges.safetensors")
    assert [len(ranges[str(i)]) for i in range(len(linears))] == [m.in_features for m in linears]
    # inputs of the calibrated reach: the products of smoothed and of plain rounding
    inputs = [
        torch.tensor(draw(9, m.in_features)).float() * ranges[str(i)] for i, m in enumerate(linears)
    ]
    exact, errors = [m(x) for m, x in zip(linears, inputs, strict=True)], {}
    for text in ("w4a4(rank=0)", "w4a4(rank=0, smoothed=True)"):
        with torch.no_grad(), Stack.parse(text).attached(pipe, {"w4a4": tmp_path}):
            errors[text] = sum(
                float((m(x) - y).norm() / y.norm())
                for m, x, y in zip(linears, inputs, exact, strict=True)
            )
    plain, smoothed = errors.values()
    assert 0 < smoothed < plain
    assert all(torch.equal(m(x), y) for m, x, y in zip(linears, inputs, exact, strict=True))
