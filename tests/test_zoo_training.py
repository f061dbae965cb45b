"""Making the bundled models again: pictures of any size, rendered by several processes, and a
training from the command to a pipeline folder."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from ditbench import ZOO
from ditbench.acceleration.distillation import training_loop
from ditbench.acceleration.distillation.training_loop import fit, steps_within
from ditbench.metrics.samples import Sampled
from ditbench.shapes import scenes as shapes
from ditbench.shapes.judge import agreement, load_judge, spread_over_time
from ditbench.shapes.second_judge import load_check
from ditbench.simulation.device import simulated
from ditbench.zoo import models
from ditbench.zoo.latents import SPARE, latents, rendered
from ditbench.zoo.pipelines import build
from ditbench.zoo.train import pictures


@pytest.mark.parametrize(
    ("world", "resolution", "num_frames"),
    [("scene", None, None), ("scene", 128, None), ("class", 96, None), ("video", 48, 9)],
)
@pytest.mark.parametrize("at_once", [1, 3])
def test_pictures_do_not_depend_on_how_many_are_painted_together(
    world, resolution, num_frames, at_once, monkeypatch
):
    def made():
        return pictures(world, 7, "train", 3, resolution, num_frames)[1]

    whole = made()
    side = resolution or shapes.WORLDS[world].resolution
    monkeypatch.setattr(shapes, "RENDERED_AT_ONCE", at_once * side * side)
    assert torch.equal(made(), whole)


def test_a_video_of_nine_frames_goes_the_way_of_one_of_five():
    scenes, five = pictures("video", 4, "train", 1)
    nine = shapes.render(scenes, "video", split="train", seed=1, num_frames=9)
    assert nine.shape == (4, 3, 9, 48, 48)
    assert torch.equal(spread_over_time(nine, 5), five)
    assert not torch.equal(nine[:, :, 1], nine[:, :, 0])
    for num in (4, 6):  # not at equal distances: as it is
        assert torch.equal(spread_over_time(nine, num), nine)
    for world, num in (("scene", 5), ("video", 1)):
        scenes = shapes.draw(world, 1, split="train", seed=0)
        with pytest.raises(ValueError, match=f"{num} frames are none of the world {world}"):
            shapes.render(scenes, world, split="train", seed=0, num_frames=num)


@pytest.mark.parametrize("load", [load_judge, load_check])
def test_both_judges_read_videos_of_more_pixels_and_frames(load):
    truth, pixels = pictures("video", 64, "test", 31, 96, 9)
    right = agreement(load("video").read(pixels), truth, "video")
    assert all(share.mean() >= 0.95 for share in right.values()), right


def test_several_processes_render_the_same_pictures_in_order():
    chunk, workers = 4, 2
    n = chunk * (2 * (workers + SPARE) + 1)  # each buffer is used again
    for world, num_frames in (("scene", None), ("video", 9)):
        alone, together = (
            torch.cat(
                [
                    part.clone()
                    for part in rendered(
                        world, n, num_frames=num_frames, workers=count, chunk=chunk
                    )
                ]
            )
            for count in (1, workers)
        )
        assert len(alone) == n and torch.equal(alone, together)


def test_what_fails_in_a_process_that_renders_is_said():
    with pytest.raises(ValueError, match="5 frames are none of the world scene"):
        list(rendered("scene", 12, num_frames=5, workers=2, chunk=4))


def test_pictures_are_asked_for_by_the_chunk(tmp_path):
    with pytest.raises(ValueError, match="which 100 is no multiple of"):
        latents("scene", None, tmp_path, None, 100)


def test_an_optimiser_of_one_kernel_goes_on_from_where_it_was_stopped(tmp_path, monkeypatch):
    """As on CUDA, where `fit` asks for it."""

    class Fused(torch.optim.AdamW):
        def __init__(self, params, **options):
            super().__init__(params, **{**options, "fused": True})

    class Stopped(BaseException):
        pass

    def trained(folder, stop=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 4)

        def loss_of(step):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            return (model(x) - x.sum(1, keepdim=True)).square().mean()

        def tell(row):
            if row["done"] == stop:
                raise Stopped

        fit(model, loss_of, steps=30, lr=1e-2, folder=folder, every=10, tell=tell)
        return model.state_dict()

    monkeypatch.setattr(torch.optim, "AdamW", Fused)
    whole = trained(tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(tmp_path / "parts", stop=20)
    again = trained(tmp_path / "parts")
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_the_steps_that_a_time_has_room_for_change_no_weight():
    model = torch.nn.Linear(4, 4)
    before, asked = model.weight.detach().clone(), []

    def loss_of(step):
        asked.append(step)
        return model(torch.ones(1, 4)).square().sum()

    assert steps_within(0.0, model, loss_of) == 1
    assert asked == [*range(20), *range(60)]
    assert steps_within(1.0, model, loss_of) > 10
    assert torch.equal(model.weight, before)


@pytest.fixture
def parts_folder(tmp_path):
    for name, model in (("codec", "pixart-tiny"), ("video-codec", "wan-tiny")):
        shutil.copytree(ZOO / model / "vae", tmp_path / "parts" / name / "weights")
    return tmp_path / "parts"


def test_a_model_is_trained_on_from_another_and_saved_with_notes(parts_folder, tmp_path):
    out, start = tmp_path / "out", ZOO / "pixart-tiny"
    machine = models.Machine(workers=2)
    models.train("pixart-tiny", parts_folder, out, 2, 2, 1e-3, start, examples=256, machine=machine)
    notes = json.loads((out / "train-pixart-tiny" / "notes.json").read_text())
    assert notes["started from"] == "pixart-tiny" and notes["examples"] == 256
    assert "bf16" not in notes
    before, after = (
        load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        for folder in (start, out / "pixart-tiny")
    )
    assert all(v.dtype == torch.float16 for v in after.values())
    # two steps while the rate warms up
    assert 0 < max((after[k].float() - before[k].float()).abs().max() for k in before) < 1e-3
    cached = parts_folder / "latents-scene-first-256.safetensors"
    pixels = pictures("scene", 256, "train", 0)[1] * 2 - 1
    vae = DiffusionPipeline.from_pretrained(out / "pixart-tiny", dtype=torch.float32).vae
    with torch.no_grad():
        expected = vae.encode(pixels[:16]).latent_dist.mean.half()
    assert torch.equal(load_file(cached)["latents"][:16], expected)


@pytest.mark.parametrize(
    ("name", "begun", "shape"),
    [
        ("pixart-medium", "pixart-small", (1, 4, 64, 64)),
        ("wan-small", "wan-tiny", (1, 8, 3, 24, 24)),
    ],
)
def test_a_larger_model_begins_with_the_weights_of_a_smaller_one(name, begun, shape, parts_folder):
    pipe = build(name, parts_folder)
    for part in ("transformer", "text_encoder"):
        models._take(getattr(pipe, part), ZOO / begun / part)
    model = models.Trained(pipe).eval()
    ids = pipe.tokenizer(
        ["a large red circle top-left on plain grey"], padding="max_length", return_tensors="pt"
    ).input_ids
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([500])
    with torch.no_grad():
        plain = models.PREDICT[name](model, x, timestep, ids, None)
        with models.Machine(bf16=True).autocast():
            narrow = models.PREDICT[name](model, x, timestep, ids, None)
    assert plain.shape == shape and plain.isfinite().all()
    difference = (narrow.float() - plain).square().mean() / plain.square().mean()
    assert 0 < difference < 1e-2


@pytest.mark.parametrize(
    ("name", "shape"),
    [("dit-tiny", (4, 16, 16)), ("pixart-tiny", (4, 16, 16)), ("flux-tiny", (4, 16, 16)),
     ("wan-small", (8, 3, 24, 24))],
)  # fmt: skip
def test_a_training_on_a_device_puts_all_of_a_step_there_and_waits_for_none(
    name, shape, parts_folder, tmp_path, monkeypatch
):
    """On the simulated device, where tensors of the host in one operation with its own raise."""
    made = torch.randn((8, *shape)), ["a red circle"] * 8, torch.zeros(8, dtype=torch.long)
    monkeypatch.setattr(models, "latents", lambda *args: made)
    # autograd has no thread for a device that it began without
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    # what has no values cannot be written
    monkeypatch.setattr(training_loop, "save_file", lambda *args: None)
    monkeypatch.setattr(models, "save", lambda *args: None)
    with simulated() as device:
        models.train(
            name, parts_folder, tmp_path / "out", 10, 2, 1e-3, machine=models.Machine("gpu")
        )
        syncs = dict(device.work.syncs)
    # the losses of a row, and the state that is saved with it
    assert {line.rpartition(":")[0] for line in syncs} == {training_loop.__name__}, syncs
    assert len(syncs) == 2
    assert sum(device.work.kernels.values()) > 10 * 100


@pytest.mark.parametrize(("frames", "why"), [(5, ""), (7, "reads 5 frames, not 7"), (9, "")])
def test_the_second_judge_says_which_numbers_of_frames_it_can_spread(frames, why):
    samples = SimpleNamespace(num_frames=frames, shape=(2, frames, 96, 96, 3))
    cell = Sampled("video", "bundled", samples, None, None)
    assert cell.unchecked.endswith(why) and bool(cell.unchecked) == bool(why)
    assert cell.unjudged == ""
