import itertools

import pytest
import torch

from ditbench.models.requests import (
    CHUNK,
    EVALUATION,
    PREPARATION,
    TRAININGS,
    batches,
    call_arguments,
    fingerprint,
    make_requests,
    training_requests,
)
from ditbench.models.sampling import count_for, sampling_of
from ditbench.models.table import models
from ditbench.shapes.scenes import SPLITS, Scenes, draw, generator, held_out

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
        torch.randn(3, generator=g).tolist()
        for g in call_arguments(model, sampling, batch)["generator"]
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


CAPTIONED = ("pixart-tiny", "flux-tiny", "wan-tiny")
LAST = (1 << 17) - 1


@pytest.mark.parametrize("name", CAPTIONED)
def test_evaluation_asks_held_out_captions_only_and_training_never_does(name):
    """Which side a caption is on follows from its words (test_shapes), so no seed can bring one to
    both."""
    model, prompts = models()[name], {"asked": set(), "trained": set()}
    for seed in (0, 1, 77, 100_000, LAST):
        asked, trained = (
            make_requests(model, 256, seed),
            training_requests(model, 512, seed, seed % TRAININGS),
        )
        assert held_out(Scenes.of([r.truth for r in asked])).all()
        assert not held_out(Scenes.of([r.truth for r in trained])).any()
        prompts["asked"] |= {r.prompt for r in asked}
        prompts["trained"] |= {r.prompt for r in trained}
    assert len(prompts["asked"]) > 500 and not prompts["asked"] & prompts["trained"]


def test_the_class_world_asks_all_of_its_classes():
    model = models()["dit-tiny"]
    assert {r.label for r in make_requests(model, 512, 0)} == {
        r.label for r in training_requests(model, 512, 0)
    }
    assert len({r.label for r in make_requests(model, 512, 0)}) == 24


@pytest.mark.parametrize("name", [*TINY, "dit-xl-2-256", "wan-2.1-1.3b"])
def test_noise_of_training_never_meets_noise_of_evaluation(name):
    """By the highest of 32 bits, whatever the seeds."""
    model = models()[name]
    for seed in (0, 1, 50_000, 100_000):
        assert all(r.seed < 1 << 31 for r in make_requests(model, 64, seed))
        assert all(
            1 << 31 <= r.seed < 1 << 32
            for r in training_requests(model, 64, seed, seed % TRAININGS)
        )


def test_every_seed_training_and_chunk_of_requests_draws_scenes_of_its_own(monkeypatch):
    """The stream is their digits side by side: every one of them changes it, and the greatest fit
    into the split."""
    streams = []

    def recorded(world, n, *, split, seed):
        streams.append((split, seed))
        return draw(world, n, split=split, seed=seed)

    monkeypatch.setattr("ditbench.shapes.scenes.draw", recorded)
    model, seeds = models()["dit-tiny"], (0, 1, 2, 99_999, 100_000, LAST)
    for seed in seeds:
        make_requests(model, 2 * CHUNK, seed)
    for seed, training in itertools.product(seeds, (0, 1, TRAININGS - 1)):
        training_requests(model, 2 * CHUNK, seed, training)
    assert len(streams) == len(set(streams)) == 2 * len(seeds) * 4
    for purpose, trainings in ((EVALUATION, 1), (PREPARATION, TRAININGS)):
        assert trainings << 17 << purpose.chunk_bits <= SPLITS[purpose.split].seeds
    numbers = {generator(*stream, 0).initial_seed() for stream in streams}
    reference = {generator("reference", seed, 0).initial_seed() for seed in range(32)}
    assert len(numbers) == len(streams) and not numbers & reference


@pytest.mark.parametrize("name", TINY)
def test_trainings_of_one_recipe_learn_from_other_requests(name):
    model = models()[name]
    first, second = (training_requests(model, 32, 5, training) for training in (0, 1))
    assert not {r.seed for r in first} & {r.seed for r in second}
    assert [r.truth for r in first] != [r.truth for r in second]
    assert training_requests(model, 8, 5, 1) == second[:8]


def test_seeds_and_trainings_out_of_range_are_named():
    model = models()["pixart-tiny"]
    with pytest.raises(ValueError, match="seed 131072 of requests is not between 0 and 131071"):
        make_requests(model, 1, LAST + 1)
    with pytest.raises(ValueError, match="training 16 is not between 0 and 15"):
        training_requests(model, 1, 0, TRAININGS)
