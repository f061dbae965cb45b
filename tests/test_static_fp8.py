"""`fp8` with calibrated scales, on the CPU, which computes the same products."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditbench.acceleration.quantization import linears_of
from ditbench.acceleration.static_fp8 import LARGEST
from ditbench.method.needs import needs_of
from ditbench.method.prepare import Workroom
from ditbench.method.stack import Stack
from ditbench.models.loading import load
from ditbench.models.sampling import sampling_of
from ditbench.models.sublayers import sublayers
from ditbench.models.table import models

STEPS = 3


@pytest.fixture(scope="module")
def room():
    model = models()["dit-tiny"]
    pipe = load(model, weights="bundled", device="cpu", dtype="bfloat16")
    sampling = replace(sampling_of(model), steps=STEPS)
    return Workroom(pipe=pipe, model=model, below=Stack(), sampling=sampling, tell=lambda row: None)


@pytest.fixture(scope="module")
def calibrated(room, tmp_path_factory):
    """Folder of the calibration, and the notes of it."""
    folder = tmp_path_factory.mktemp("fp8")
    return folder, Stack.parse("fp8(scales='step')").methods[0].prepare(folder, room)


def test_the_largest_input_of_every_layer_at_every_step_is_what_was_seen(room, calibrated):
    folder, notes = calibrated
    largest = load_file(folder / "ranges.safetensors")["largest"]
    linears = linears_of(sublayers(room.pipe.transformer))
    assert largest.shape == (STEPS, len(linears)) and (largest > 0).all()
    assert notes["largest_over_smallest_step"] >= 1 and notes["samples"] >= 1
    seen: list[float] = []
    hook = linears[4].register_forward_pre_hook(
        lambda module, inputs: seen.append(float(inputs[0].abs().amax()))
    )
    with torch.no_grad():
        room.pipe(**room.draw(0, notes["samples"]))
    hook.remove()
    assert seen == largest[:, 4].tolist()


@pytest.mark.parametrize("scales", ["layer", "step"])
def test_a_layer_multiplies_in_e4m3_by_the_scale_of_the_step(room, calibrated, scales):
    folder, _ = calibrated
    transformer = room.pipe.transformer
    linear = linears_of(sublayers(transformer))[4]
    largest = load_file(folder / "ranges.safetensors")["largest"][:, 4]
    weight, before = linear.weight, dict(vars(linear))
    x = torch.randn(2, 5, linear.in_features, dtype=torch.bfloat16)
    exact = linear(x)
    stack = Stack.parse(f"fp8(scales='{scales}')")
    with torch.no_grad(), stack.attached(room.pipe, {"fp8": folder}) as attached:
        attached.start(STEPS, 2)
        assert linear.weight.dtype == torch.float8_e4m3fn and transformer.dtype == torch.bfloat16
        got = linear(x)  # of step 0
        reach = largest[0] if scales == "step" else largest.max()
        of_x, of_w = reach / LARGEST, weight.abs().amax().float() / LARGEST
        a = (x / of_x).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).float() * of_x
        b = (weight / of_w.bfloat16()).to(torch.float8_e4m3fn).float() * of_w
        expected = a @ b.t() + linear.bias.float()
    assert got.shape == exact.shape and got.dtype == torch.bfloat16
    assert float((got.float() - expected).norm() / expected.norm()) < 0.005
    assert 0.005 < float((got - exact).float().norm() / exact.float().norm()) < 0.1
    assert linear.weight is weight and dict(vars(linear)) == before


def test_steps_are_scaled_by_their_own_ranges(room, tmp_path):
    """With a range a thousand times too large at one step, that step alone loses its inputs."""
    linears = linears_of(sublayers(room.pipe.transformer))
    largest = torch.ones(STEPS, len(linears))
    largest[1] = 1e6
    save_file({"largest": largest}, tmp_path / "ranges.safetensors")
    x = torch.full((1, 1, linears[0].in_features), 0.5, dtype=torch.bfloat16)
    sums = {}
    for scales in ("step", "layer"):
        method = Stack.parse(f"fp8(scales='{scales}')")
        with torch.no_grad(), method.attached(room.pipe, {"fp8": tmp_path}) as attached:
            for step in range(STEPS):
                attached.now.step = step
                sums[scales, step] = float((linears[0](x) - linears[0].bias).abs().sum())
    assert sums["step", 0] == sums["step", 2] > 0
    assert sums["step", 1] == sums["layer", 0] == sums["layer", 1] == sums["layer", 2] == 0


def product(a, b, *, scale_a, scale_b, bias, out_dtype):
    """What `torch._scaled_mm` gives, which takes a minute for these on the CPU."""
    return (a.float() @ b.float() * scale_a * scale_b + bias.float()).to(out_dtype)


def test_generations_stay_close_and_one_calibration_serves_both(room, calibrated, monkeypatch):
    folder, _ = calibrated
    monkeypatch.setattr(torch, "_scaled_mm", product)
    keys = {
        needs_of(room.model, Stack.parse(f"fp8(scales='{scales}')"), "bundled")[0].key
        for scales in ("layer", "step")
    }
    assert len(keys) == 1 and not needs_of(room.model, Stack.parse("fp8"), "bundled")

    def images():
        return torch.as_tensor(room.pipe(**room.draw(1, 2) | {"output_type": "np"}).images)

    with torch.no_grad():
        exact = images()
        with Stack.parse("fp8(scales='step')").attached(room.pipe, {"fp8": folder}) as attached:
            attached.start(STEPS, 2)
            rounded = images()
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.2
    assert torch.equal(images(), exact)


def test_a_calibration_of_another_model_is_refused(room, tmp_path):
    save_file({"largest": torch.ones(STEPS, 7)}, tmp_path / "ranges.safetensors")
    with (
        pytest.raises(ValueError, match="is of 7 linear layers, and the model has"),
        Stack.parse("fp8(scales='layer')").attached(room.pipe, {"fp8": tmp_path}),
    ):
        pass
    with (
        pytest.raises(ValueError, match="fp8 has not been prepared"),
        Stack.parse("fp8(scales='layer')").attached(room.pipe),
    ):
        pass
