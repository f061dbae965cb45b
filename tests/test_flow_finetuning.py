"""Weights finetuned under changed attention (FPSAttention), on samples of the model's world."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_distill import room_of

from ditbench.acceleration.distillation import flow_finetuning
from ditbench.acceleration.distillation.flow_finetuning import FlowRecipe, Place, finetune
from ditbench.method.needs import needs_of
from ditbench.method.stack import Stack
from ditbench.models.table import models

FEW = FlowRecipe(examples=8, held_out=16, iterations=3, batch=2)


@pytest.fixture(scope="module")
def room():
    return room_of("wan", steps=8)


def trained(room, folder, stack="fpsattention(trained=True)", **more):
    folder.mkdir()
    (method,) = Stack.parse(stack).methods
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_finetuning, "FlowRecipe", lambda: replace(FEW, **more))
        weights = {n: p.detach().clone() for n, p in room.pipe.transformer.named_parameters()}
        try:
            return method.prepare(folder, room)
        finally:
            room.pipe.transformer.load_state_dict(weights, strict=False)


def test_training_lowers_the_loss_that_the_change_raised_and_is_taken_back(room, tmp_path):
    notes = trained(room, tmp_path / "a", iterations=12, rate=1e-3, warm_up=2, average=0.5)
    assert notes["loss_before"] > 1.1 * notes["loss_plain"]
    assert notes["loss_plain"] < notes["loss_after"] < notes["loss_before"]
    weights = load_file(tmp_path / "a" / "weights.safetensors")
    own = dict(room.pipe.transformer.named_parameters())
    assert weights.keys() == own.keys() and {w.dtype for w in weights.values()} == {torch.float16}
    before = {name: p.detach().clone() for name, p in own.items()}
    stack = Stack.parse("fpsattention(trained=True)")
    with stack.attached(room.pipe, {"fpsattention": tmp_path / "a"}) as attached:
        assert all(torch.equal(own[n], weights[n].float()) for n in own)
        assert attached.counters()["fpsattention.weights"] == len(own)
    assert all(torch.equal(own[n], before[n]) for n in own)
    assert any(not torch.equal(weights[n].float(), before[n].half().float()) for n in own)
    rows = (tmp_path / "a" / "log.csv").read_text().splitlines()
    assert rows[0] == "step,loss,seconds,loss_of" and rows[-1].startswith("12,")


def test_without_any_change_it_is_plain_finetuning(room, tmp_path):
    stack = "fpsattention(trained=True, quantised=False, sparse=False)"
    notes = trained(room, tmp_path / "b", stack)
    assert notes["loss_before"] == notes["loss_plain"]


def test_samples_are_of_the_requests_that_the_captions_are_of(room, tmp_path, monkeypatch):
    """With the captions of other samples the model's own loss is higher."""
    own = trained(room, tmp_path / "own", iterations=1, held_out=48)["loss_plain"]
    examples = flow_finetuning._examples

    def shuffled(*args):
        latents, asked = examples(*args)
        return latents.roll(1, 0), asked

    monkeypatch.setattr(flow_finetuning, "_examples", shuffled)
    other = trained(room, tmp_path / "other", iterations=1, held_out=48)["loss_plain"]
    assert other > 1.1 * own


def test_a_batch_is_of_steps_that_compute_alike_and_every_phase_has_its_turn(room, tmp_path):
    places, levels = [], []
    denoise = flow_finetuning.Denoiser.__call__

    def install(at, place):
        def note(denoiser, x, s, *args):
            places.append(place.step)
            levels.append(s)
            return denoise(denoiser, x, s, *args)

        patch.setattr(flow_finetuning.Denoiser, "__call__", note)

    with pytest.MonkeyPatch.context() as patch:
        recipe = replace(FEW, iterations=20, rate=0.0)
        finetune(room, install, lambda step: step // 3, tmp_path, recipe)
    bounds = flow_finetuning.levels_of(room)
    assert {step // 3 for step in places} == {0, 1, 2}
    for step, s in zip(places, levels, strict=True):
        first = 3 * (step // 3)
        above, below = bounds[first], bounds[min(first + 3, len(bounds) - 1)]
        assert (s <= above).logical_or(torch.tensor(first == 0)).all() and (s > below).all()


@pytest.mark.parametrize("kind", ["dit", "pixart"])
def test_models_of_pictures_are_trained_likewise(kind, tmp_path):
    notes = trained(room_of(kind, steps=6), tmp_path / kind, iterations=1)
    assert 0 < notes["loss_plain"] < 1.5


def test_where_weights_cannot_be_finetuned_it_is_said():
    for model, words in (
        ("wan-2.1-1.3b", "there are none for wan-2.1-1.3b"),
        ("flux-tiny", "distilled"),
    ):
        weights = "bundled" if model == "flux-tiny" else "random"
        (need,) = needs_of(models()[model], Stack.parse("fpsattention(trained=True)"), weights)
        assert words in need.hopeless
    for stack in ("distill+fpsattention(trained=True)", "int8+fpsattention(trained=True)"):
        (problem,) = Stack.parse(stack).problems()
        assert "its finetuned weights take the places of the model's own" in problem
    assert not Stack.parse("distill+fpsattention").problems()
    with pytest.raises(ValueError, match="nothing is trained"):
        Stack.parse("fpsattention(training=1)")
    assert Place(1, 2).steps == 2
