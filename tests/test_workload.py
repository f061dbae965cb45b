import pytest
import torch

from ditbench.models import models
from ditbench.workload import batches, call_arguments, count_for, fingerprint, make_requests, sampling_of

TINY = ("dit-tiny", "pixart-tiny", "flux-tiny", "wan-tiny")


@pytest.mark.parametrize("name", TINY)
def test_a_longer_list_of_requests_begins_with_the_shorter(name):
    model = models()[name]
    assert make_requests(model, 100, 0)[:7] == make_requests(model, 7, 0)
    assert make_requests(model, 7, 1) != make_requests(model, 7, 0)


@pytest.mark.parametrize("name", ["dit-xl-2-256", "pixart-alpha-512", "wan-2.1-1.3b"])
def test_full_size_models_are_asked_too(name):
    requests = make_requests(models()[name], 5, 0)
    assert all((r.label is None) != (r.prompt is None) and r.truth is None for r in requests)
    assert len({r.seed for r in requests}) == 5


def test_noise_depends_on_the_request_alone():
    model = models()["pixart-tiny"]
    requests = make_requests(model, 6, 0)
    sampling = sampling_of(model)
    noise = lambda batch: [  # noqa: E731
        torch.randn(3, generator=g).tolist() for g in call_arguments(model, sampling, batch)["generator"]
    ]
    whole = noise(requests)
    apart = [n for batch in batches(requests, 4) for n in noise(batch)]
    assert whole == apart
    assert noise(requests[::-1]) == whole[::-1]
    assert len({tuple(n) for n in whole}) == 6


def test_videos_count_four():
    assert [count_for(models()[name], 64) for name in TINY] == [64, 64, 64, 16]
    assert count_for(models()["wan-tiny"], 2) == 1


def test_the_fingerprint_changes_with_any_request():
    requests = make_requests(models()["dit-tiny"], 4, 0)
    assert fingerprint(requests) == fingerprint(list(requests))
    assert fingerprint(requests) != fingerprint(requests[:3])
