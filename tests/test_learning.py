"""Learning a schedule: the gradient is the loss's, checkpoints change nothing, and what is learned beats chance."""

import numpy as np
import pytest
import torch

from ditbench import mixing
from ditbench.learning import Recipe, learn
from ditbench.schedule import Schedule
from ditbench.stack import Stack
from ditbench.student import studio
from ditbench.testing import KINDS, tiny
from ditbench.workload import Request, call_arguments

PROMPTS = ("a small red circle", "a large blue square", "a green triangle")


def drawer(subject, kind):
    class Model:
        family = kind

    def draw(seed, num):
        requests = [Request(id=str(i), seed=1000 * seed + i, prompt=PROMPTS[i % 3], label=i % 3) for i in range(num)]
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


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_samples_as_the_method_does(kind, tmp_path):
    """The dense, blended student and the sparse method with the same schedule give the same picture."""
    subject = tiny(kind, steps=4)
    with studio(subject.pipeline, Stack(), "change", False) as (student, paint), torch.no_grad():
        names = tuple(s.name for s in student.at.sublayers)
        chosen = np.random.default_rng(0).integers(0, 5, (4, len(names)))
        chosen[0] = 4
        blended = paint(hot(chosen), subject.arguments(subject.sampling, [0]) | {"output_type": "pt"}, 4)
    Schedule(sublayers=names, chosen=chosen).write(tmp_path / "s.json")
    decoded = []
    decode = subject.pipeline.vae.decode
    with Stack.parse(f"diffsparse(schedule={str(tmp_path / 's.json')!r}, selector='change')").attached(
        subject.pipeline
    ) as attached:
        attached.start(4, 1)

        def seen(latents, *args, **kwargs):
            decoded.append(decode(latents).sample)
            return decode(latents, *args, **kwargs)

        subject.pipeline.vae.decode = seen
        try:
            with torch.no_grad():
                subject.pipeline(**subject.arguments(subject.sampling, [0]) | {"output_type": "np"})
        finally:
            del subject.pipeline.vae.decode
    assert torch.allclose((decoded[0] / 2 + 0.5).clamp(0, 1), blended, atol=1e-4)


def test_learning_logs_every_iteration_and_keeps_the_best_on_held_out_requests():
    subject = tiny("flux", steps=5)
    heard = []
    recipe = Recipe(keep=0.5, stage1=3, stage2=5, batch=2, selector="change")
    found = learn(subject.pipeline, drawer(subject, "flux"), squared, 5, recipe, tell=heard.append)
    assert [row["stage"] for row in heard] == [1] * 3 + [2] * 6 and heard == found.log
    looked = [row["held_out"] for row in heard if row["held_out"] is not None]
    assert found.schedule.notes["held_out"] == min(looked) and found.schedule.chosen.shape == (5, 8)
    assert (found.schedule.chosen[0] == 4).all()


def test_scores_are_learned_where_reuse_hurts_and_fall_where_it_is_free(tmp_path, monkeypatch):
    """A high price makes every score fall at odd steps; even steps have none to learn."""
    from types import SimpleNamespace

    from safetensors.numpy import load_file

    monkeypatch.setattr(mixing, "ITERATIONS", 6)
    monkeypatch.setattr(mixing, "BATCH", 2)
    for kind in KINDS:
        subject = tiny(kind, steps=4)
        told = []
        room = SimpleNamespace(
            pipe=subject.pipeline, model=SimpleNamespace(name=kind, family=kind), below=Stack(), sampling=subject.sampling,
            draw=drawer(subject, kind), tell=told.append,
        )  # fmt: skip
        notes = mixing.prepare_scores(tmp_path, room, price=1.0)
        scores = load_file(tmp_path / "scores.safetensors")["scores"]
        assert len(told) == 6 and notes["loss"] == told[-1]["loss"] >= 0
        start = 1 / (1 + np.exp(-mixing.CLAMP / 2))
        assert np.allclose(scores[0::2], start, atol=1e-6) and (scores[1::2] < start - 0.01).all()
        with Stack.parse("l2c(threshold=0.9)").attached(subject.pipeline, {"l2c": tmp_path}) as attached:
            attached.start(4, 1)
            subject.generate(subject.sampling, [0])
            assert attached.counters()["l2c.reused"] > 0


def test_a_mixture_with_all_scores_at_one_is_the_dense_output():
    subject = tiny("pixart", steps=4)
    mixer = mixing.Mixer()
    with Stack((mixer,)).attached(subject.pipeline) as attached:
        parts = len(attached.attachments["mixer"].sublayers)
        for value, same in ((1.0, True), (0.0, False)):
            mixer.scores, mixer.loss = torch.full((4, parts), value, requires_grad=True), 0.0
            attached.start(4, 1)
            subject.generate(subject.sampling, [0])
            assert (mixer.loss < 1e-12) is same
