import numpy as np
import pytest
import torch

from ditbench.method.stack import Stack
from ditbench.models import loading
from ditbench.models import table as models
from ditbench.models.requests import make_requests
from ditbench.models.sampling import sampling_of
from ditbench.profiling import latency as measure

TINY = ("dit-tiny", "pixart-tiny", "flux-tiny", "wan-tiny")


@pytest.fixture(scope="module")
def pipes():
    return {
        name: loading.load(models.models()[name], weights="bundled", device="cpu", dtype="float32")
        for name in TINY
    }


def sample(pipe, name, requests, batch, steps=4):
    import dataclasses

    model = models.models()[name]
    sampling = dataclasses.replace(sampling_of(model), steps=steps)
    with torch.inference_mode(), Stack.parse("none").attached(pipe) as attached:
        sampler = measure.Sampler(pipe, model, sampling, attached, "cpu")
        parts = [requests[i : i + batch] for i in range(0, len(requests), batch)]
        return np.concatenate([sampler(part)[0] for part in parts]), sampler(parts[0])[1]


@pytest.mark.parametrize("name", TINY)
def test_samples_do_not_depend_on_the_batch_size(pipes, name):
    requests = make_requests(models.models()[name], 8 if name != "wan-tiny" else 4, 0)
    one, _ = sample(pipes[name], name, requests, 1)
    eight, _ = sample(pipes[name], name, requests, 8)
    # the last bit of a byte, from rounding
    assert np.abs(one.astype(int) - eight.astype(int)).max() <= 1
    assert (one != eight).mean() < 0.01


@pytest.mark.parametrize("name", TINY)
def test_the_three_stages_add_up_to_the_call_and_leave_no_trace(pipes, name):
    pipe = pipes[name]
    before = set(vars(pipe.vae)), len(pipe.transformer._forward_pre_hooks)
    pixels, timing = sample(pipe, name, make_requests(models.models()[name], 2, 0), 2)
    assert pixels.dtype == np.uint8 and pixels.shape[-1] == 3
    assert timing.text_s + timing.denoise_s + timing.decode_s == pytest.approx(timing.call_s)
    assert min(timing.text_s, timing.denoise_s, timing.decode_s) > 0
    assert (set(vars(pipe.vae)), len(pipe.transformer._forward_pre_hooks)) == before


def test_rounding_to_bytes_clips_and_refuses_what_is_not_finite():
    assert measure.to_bytes(np.array([-0.5, 0.499 / 255, 0.501 / 255, 1.5])).tolist() == [
        0,
        0,
        1,
        255,
    ]
    with pytest.raises(ValueError, match="not finite"):
        measure.to_bytes(np.array([0.1, np.nan]))
