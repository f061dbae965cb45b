"""Learning a schedule: the gradient is the loss's, checkpoints change nothing, and the best on
held-out requests is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ditbench.acceleration.caching import learn_router as mixing
from ditbench.acceleration.caching.budget import solve, weights_of
from ditbench.acceleration.caching.learn_schedule import Recipe, learn, prepare_schedule
from ditbench.acceleration.caching.schedule import Schedule
from ditbench.acceleration.caching.soft_cache import studio
from ditbench.acceleration.caching.token_settings import SELECTORS
from ditbench.method.prepare import Workroom
from ditbench.method.stack import Stack
from ditbench.models.loading import load
from ditbench.models.requests import Request, call_arguments
from ditbench.models.sampling import sampling_of
from ditbench.models.sublayers import sublayers
from ditbench.models.table import models
from ditbench.testing import KINDS, tiny

PROMPTS = ("a small red circle", "a large blue square", "a green triangle")


def drawer(subject, kind):
    class Model:
        family = kind
        negative_prompt = ""

    def draw(seed, num):
        requests = [
            Request(id=str(i), seed=1000 * seed + i, prompt=PROMPTS[i % 3], label=i % 3)
            for i in range(num)
        ]
        return call_arguments(Model, subject.sampling, requests)

    return draw


def squared(a, b):
    return (a - b).square().flatten(1).mean(1)


def hot(chosen):
    return torch.nn.functional.one_hot(torch.from_numpy(chosen), 5).float()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_loss_and_checkpoints_do_not_change_it(kind):
    subject = tiny(kind, steps=4)
    draw, slopes = drawer(subject, kind), []
    for checkpointed in (False, True):
        with studio(subject.pipeline, Stack(), "change", checkpointed) as (student, paint):
            with torch.no_grad():
                teacher = paint(None, draw(1, 2), 4)
            chosen = np.random.default_rng(0).integers(0, 5, (4, len(student.at.sublayers)))
            chosen[0] = 4

            def loss_at(levels, paint=paint, teacher=teacher):
                return squared(teacher, paint(levels, draw(1, 2), 4)).mean()

            levels = hot(chosen).requires_grad_(True)
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(loss_at(levels), levels)
            slopes.append(slope)
    assert torch.allclose(slopes[0], slopes[1], rtol=1e-3, atol=1e-9)
    where = np.unravel_index(int(slope[1:].abs().argmax()), slope[1:].shape)
    at, step = (where[0] + 1, *where[1:]), 1e-2
    with torch.no_grad(), studio(subject.pipeline, Stack(), "change", False) as (student, paint):
        moved = []
        for sign in (1, -1):
            levels = hot(chosen)
            levels[at] += sign * step
            moved.append(float(squared(teacher, paint(levels, draw(1, 2), 4)).mean()))
    assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(float(slope[at]), rel=0.05)


def decoded(subject, monkeypatch, paint):
    """The latents of two samples that `paint()` gives to the autoencoder, [2,...]."""
    latents, kind = [], type(subject.pipeline.vae)
    decode = kind.decode

    def seen(vae, latent, *args, **kwargs):
        latents.append(latent)
        return decode(vae, latent, *args, **kwargs)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(kind, "decode", seen)
        paint()
    return latents[0]


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_student_samples_as_the_method_does(kind, selector, tmp_path, monkeypatch):
    """The dense, blended student and the sparse method rank alike, and give the same samples for
    the same schedule."""
    subject = tiny(kind, steps=6)
    names = tuple(s.name for s in sublayers(subject.pipeline.transformer))
    chosen = np.random.default_rng(0).choice([0, 1, 1, 2, 2, 3, 4], (6, len(names)))
    chosen[0] = 4
    Schedule(sublayers=names, chosen=chosen).write(tmp_path / "s.json")
    with studio(subject.pipeline, Stack(), selector, False) as (_, paint):
        arguments = subject.arguments(subject.sampling, [0, 1])
        student = decoded(subject, monkeypatch, lambda: paint(hot(chosen), arguments, 6))
    stack = Stack.parse(f"diffsparse(schedule={str(tmp_path / 's.json')!r}, selector={selector!r})")
    with stack.attached(subject.pipeline) as attached:
        attached.start(6, 2)
        arguments = subject.arguments(subject.sampling, [0, 1]) | {"output_type": "np"}
        method = decoded(subject, monkeypatch, lambda: subject.pipeline(**arguments))
        assert any(0 < share < 1 for step in attached.schedule()["keep"] for share in step)
    assert student.shape[0] == 2 and float((student - method).norm() / method.norm()) <= 1e-5


def test_learning_logs_every_iteration_and_keeps_the_best_on_held_out_requests():
    subject = tiny("flux", steps=5)
    heard = []
    recipe = Recipe(keep=0.5, stage1=3, stage2=5, batch=2, selector="change")
    found = learn(subject.pipeline, drawer(subject, "flux"), squared, 5, recipe, tell=heard.append)
    assert [row["stage"] for row in heard] == [1] * 3 + [2] * 6 and heard == found.log
    looked = [row["held_out"] for row in heard if row["held_out"] is not None]
    assert found.schedule.notes["held_out"] == min(looked) and found.schedule.chosen.shape == (5, 8)
    assert (found.schedule.chosen[0] == 4).all()
    # the table is the one the schedule came from
    with Stack.parse("diffsparse(allocator='uniform')").attached(subject.pipeline) as attached:
        attached.start(5, 1)
        subject.generate(subject.sampling, [0])
        weights = weights_of(attached.attachments["diffsparse"])
    assert (solve(found.cost, weights, 5, 0.5) == found.schedule.chosen).all()


def test_a_schedule_that_keeps_everything_is_no_distance_from_the_model_whenever_it_is_looked_at():
    """Every look draws the same noise: with another the distance would be that of two pictures."""
    subject = tiny("dit", steps=3)
    recipe = Recipe(keep=1.0, stage1=1, stage2=11, batch=2, selector="change")
    found = learn(subject.pipeline, drawer(subject, "dit"), squared, 3, recipe)
    looked = [row["held_out"] for row in found.log if row["held_out"] is not None]
    assert len(looked) == 4 and max(looked) < 1e-9 and found.schedule.notes["spent"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_as_sensitive_as_sampling_with_that_row_alone_says(kind):
    """The steps before the row's are replayed, which changes nothing."""
    subject, heard = tiny(kind, steps=4), []
    draw, recipe = (
        drawer(subject, kind),
        Recipe(allocator="sensitivity", keep=0.5, batch=2, selector="change"),
    )
    found = learn(subject.pipeline, draw, squared, 4, recipe, tell=heard.append)
    layers = len(found.schedule.sublayers)
    cost = found.cost.reshape(4, layers, 5)
    assert (
        (cost[0] == 0).all()
        and (cost[..., 4] == 0).all()
        and (cost[1:, :, 0].max(1) > 0).all()
        and len(heard) == 3
    )
    t, layer, level = 3, int(cost[3, :, 1].argmax()), 1
    chosen = np.full((4, layers), 4)
    chosen[t, layer] = level
    with studio(subject.pipeline, Stack(), "change", False) as (_, paint), torch.no_grad():
        plain, moved = (paint(levels, draw(0, 2), 4) for levels in (None, hot(chosen)))
    assert cost[t, layer, level] == pytest.approx(float(squared(plain, moved).mean()), rel=1e-4)


@pytest.mark.parametrize("how", ["learned", "sensitivity"])
def test_a_schedule_is_prepared_for_a_trained_model_and_spends_its_budget(how, tmp_path):
    model = replace(models()["dit-tiny"], steps=3)
    pipe, told = load(model, weights="bundled", device="cpu", dtype="float32"), []
    room = Workroom(
        pipe=pipe, model=model, below=Stack(), sampling=sampling_of(model), tell=told.append
    )
    more = {"stage1": 2, "stage2": 2} if how == "learned" else {}
    notes = prepare_schedule(
        how, tmp_path, room, keep=0.5, selector="change", by_macs=True, batch=2, **more
    )
    schedule = Schedule.read(tmp_path / "schedule.json")
    assert 0.47 <= notes["spent"] <= 0.5 and notes["held_out"] == schedule.notes["held_out"] > 0
    assert told[-1]["done"] == told[-1]["of"] and (schedule.chosen[0] == 4).all()
    stack = Stack.parse("diffsparse(keep=0.5, selector='change')")
    with stack.attached(pipe, {"diffsparse": tmp_path}) as attached:
        attached.start(3, 2)
        pipe(**room.draw(0, 2), output_type="np")
        assert attached.schedule()["keep"] == schedule.keep.tolist()


def test_a_price_lowers_the_scores_of_odd_steps_and_even_steps_have_none_to_learn(
    tmp_path, monkeypatch
):
    from types import SimpleNamespace

    from safetensors.numpy import load_file

    monkeypatch.setattr(mixing, "ITERATIONS", 6)
    monkeypatch.setattr(mixing, "BATCH", 2)
    for kind in KINDS:
        subject = tiny(kind, steps=4)
        told = []
        room = SimpleNamespace(
            pipe=subject.pipeline, model=SimpleNamespace(name=kind, family=kind, world="scene"),
            sampling=subject.sampling, device="cpu", at_once=lambda num: num,
            draw=drawer(subject, kind), tell=told.append, calls=4,
            attached=lambda mixer, pipe=subject.pipeline: Stack((mixer,)).attached(pipe),
        )  # fmt: skip
        notes = mixing.prepare_scores(tmp_path, room, price=1.0)
        scores = load_file(tmp_path / "scores.safetensors")["scores"]
        assert notes["lowest_score"] == pytest.approx(scores[1::2].min())
        assert len(told) == 6 and notes["loss"] == told[-1]["loss"] >= 0
        start = 1 / (1 + np.exp(-mixing.CLAMP / 2))
        assert np.allclose(scores[0::2], start, atol=1e-6) and (scores[1::2] < start - 0.01).all()
        with Stack.parse("l2c(threshold=0.9)").attached(
            subject.pipeline, {"l2c": tmp_path}
        ) as attached:
            attached.start(4, 1)
            subject.generate(subject.sampling, [0])
            assert attached.counters()["l2c.reused"] > 0


def test_a_mixture_with_all_scores_at_one_is_the_dense_output():
    subject = tiny("pixart", steps=4)
    mixer = mixing.Mixer()
    with Stack((mixer,)).attached(subject.pipeline) as attached:
        parts = len(attached.attachments[mixer.name].sublayers)
        for value, same in ((1.0, True), (0.0, False)):
            mixer.scores, mixer.loss = torch.full((4, parts), value, requires_grad=True), 0.0
            attached.start(4, 1)
            subject.generate(subject.sampling, [0])
            assert (mixer.loss < 1e-12) is same
