"""Preparing methods for full-size models: on a device, in bfloat16, with captions of ours or of the
user's, from the command to a run with what was made."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from command import command
from narrow import NAMES, narrow

from ditbench.acceleration import static_fp8
from ditbench.acceleration.caching import (
    learn_forecast,
    learn_router,
    learn_schedule,
    learning_at_size,
    soft_cache,
)
from ditbench.acceleration.distillation import students, training_loop
from ditbench.method import artifact
from ditbench.method.needs import needs_of
from ditbench.method.prepare import Workroom
from ditbench.method.preparing import Preparing
from ditbench.method.stack import Stack
from ditbench.models.loading import load
from ditbench.models.prompts import (
    check_apart,
    datasets,
    find_training_prompts,
    load_prompts,
    manifest,
    normalised,
    prompt_sets,
    read_prompts,
)
from ditbench.models.requests import make_requests, training_requests
from ditbench.models.sampling import sampling_of
from ditbench.models.table import models, select
from ditbench.quiet import quiet
from ditbench.records.files import file_sha256
from ditbench.records.record import read_run
from ditbench.runner.plan import plan
from ditbench.runner.spec import Spec
from ditbench.simulation.device import simulated
from ditbench.simulation.rehearsal import Stand
from ditbench.testing import KINDS, tiny

METHODS = ("diffsparse(keep=0.6)", "diffsparse(keep=0.6, allocator='sensitivity')",
           "sparsecast(keep=0.6)",
           "teacache(saved=0.5)", "l2c(threshold=0.95)", "int8(down='smoothed')", "magcache",
           "distill(steps=2, rank=2)")  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def few_iterations(monkeypatch):
    def settings(room, batch):
        own = learning_at_size.settings_for(room, batch)
        return {**own, "stage1": 1, "stage2": 1, "trials": 1}

    def forecast_settings(room, batch):
        return learning_at_size.settings_for(room, batch) | {
            "together": 1, "alone": 1, "trials": 1,
        }  # fmt: skip

    monkeypatch.setattr(learn_schedule, "settings_for", settings)
    monkeypatch.setattr(learn_forecast, "settings_for", forecast_settings)
    monkeypatch.setattr(learn_router, "ITERATIONS", 2)
    monkeypatch.setattr(students, "AT_SIZE", {"recordings": 2, "batch": 1, "iterations": 2})


def row_of(name, steps=4):
    """A narrow copy of a full-size model as a row of its own, of no repository."""
    row, changes = narrow(name)
    return replace(
        row, name=f"narrow-{row.family}", hub="", changes=row.changes | changes, steps=steps
    )


def methods_of(row):
    left_out = {"magcache"} - ({"magcache"} if row.family in ("flux", "wan") else set())
    if not row.text_tokens:  # its recordings are many
        left_out.add("distill(steps=2, rank=2)")
    return [text for text in METHODS if text not in left_out]


def test_the_captions_are_320_different_scenes_of_ours_and_none_is_evaluated():
    captions = read_prompts(find_training_prompts())
    assert len(captions) == 320 == len({normalised(c) for c in captions})
    assert all(6 <= len(c.split()) <= 30 and c.isascii() for c in captions)
    assert not {normalised(c) for c in captions} & {normalised(p) for p in load_prompts()}
    facts = manifest()["training_captions.txt"]
    assert facts["sha256"] == file_sha256(datasets() / "training_captions.txt")
    assert (facts["source"], facts["entries"], facts["ships"]) == (
        "written for ditbench",
        "320",
        "yes",
    )
    assert "training_captions.txt" not in prompt_sets()


def test_a_file_that_holds_prompts_that_are_evaluated_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text(f"a plum\n{load_prompts()[3].upper()}!\n")
    with pytest.raises(
        ValueError, match=r"mine\.txt has 1 of the bundled prompts, which are for eval"
    ):
        check_apart("mine.txt")
    (tmp_path / "mine.txt").write_text("a plum\n")
    check_apart("mine.txt")


@pytest.mark.parametrize("name", ["flux-1-dev", "wan-2.1-1.3b"])
def test_text_models_are_asked_for_training_captions_in_an_order_of_each_stream(name, tmp_path):
    model, captions = models()[name], read_prompts(find_training_prompts())
    first = training_requests(model, 320, 5)
    assert sorted(r.prompt for r in first) == sorted(captions)
    assert all(captions[r.entry] == r.prompt for r in first)
    assert training_requests(model, 8, 5) == first[:8]
    assert [r.prompt for r in training_requests(model, 330, 5)[320:]] == [
        r.prompt for r in first[:10]
    ]
    for other in (training_requests(model, 320, 6), training_requests(model, 320, 5, 1)):
        assert [r.prompt for r in other] != [r.prompt for r in first]
        assert not {r.seed for r in other} & {r.seed for r in first}
    assert not {r.seed for r in first} & {r.seed for r in make_requests(model, 320, 5)}
    (tmp_path / "mine.txt").write_text("a plum\ntwo plums\n")
    own = training_requests(model, 4, 5, prompts="mine.txt")
    assert {r.prompt for r in own} == {"a plum", "two plums"}
    assert [r.seed for r in own] == [r.seed for r in first[:4]]


def test_the_captions_are_in_the_key_and_device_and_dtype_are_not(tmp_path):
    def need(model="flux-1-dev", **how):
        how = Preparing(**how)
        return needs_of(models()[model], Stack.parse("magcache"), "random", preparing=how)[0]

    (tmp_path / "mine.txt").write_text("a plum\n")
    plain, own = need(), need(prompts="mine.txt")
    assert plain.content["prompts"] == file_sha256(find_training_prompts())
    assert own.content["prompts"] == file_sha256(tmp_path / "mine.txt") and own.key != plain.key
    assert need(device="cuda:1", dtype="bfloat16").key == plain.key
    ends = "--weights random --device cuda:1 --dtype bfloat16 --prompts mine.txt does it"
    assert need(device="cuda:1", dtype="bfloat16", prompts="mine.txt").sentence.endswith(ends)
    (tmp_path / "mine.txt").write_text("a pear\n")
    assert need(prompts="mine.txt").key != own.key
    tiny_model = needs_of(
        models()["pixart-tiny"], Stack.parse("l2c"), "bundled",
        preparing=Preparing(prompts="mine.txt"),
    )[0]  # fmt: skip
    assert "prompts" not in tiny_model.content and not tiny_model.flags
    with pytest.raises(ValueError, match=r"there is no file .none\.txt."):
        need(prompts="none.txt")


def test_a_run_looks_for_what_was_prepared_with_its_training_prompts(tmp_path):
    (tmp_path / "mine.txt").write_text("a plum\n")
    told = {}
    for prompts in ("", "mine.txt"):
        spec = Spec(
            models=("flux-1-dev",), methods=("magcache",), weights="random", dtype="bfloat16",
            training_prompts=prompts,
        )  # fmt: skip
        cell = plan(spec)[1]
        told[prompts] = cell.refusal
        artifact.create(cell.needs[0], lambda folder: {}, artifact.OWN)
        assert plan(spec)[1].refusal == "full-size models run on a GPU only: give --device cuda"
    command_ = "python run_bench.py prepare 'magcache' --models flux-1-dev --weights random --dtype"
    assert f"{command_} bfloat16 does it" in told[""]
    assert f"{command_} bfloat16 --prompts mine.txt does it" in told["mine.txt"]


def test_what_prepare_cannot_do_is_said_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "mine.txt").write_text("a plum\n")
    for words, sentence in (
        (
            ["--device", "cuda"],
            "this machine has no GPU that torch can use, and the device is cuda",
        ),
        (["--device", "tpu"], "device: 'tpu' is neither cpu, cuda nor cuda:N"),
        (["--dtype", "int8"], "dtype: 'int8' is none of float32, bfloat16"),
        (["--prompts", "none.txt"], "prompts: there is no file 'none.txt'"),
        (["--models", "dit-tiny", "--prompts", "mine.txt"], "dit-tiny would not read them"),
    ):
        done = command("prepare", "teacache(saved=0.3)", "--models", "flux-1-dev", *words)
        assert done.returncode and sentence in done.stderr and "Traceback" not in done.stderr
    assert not torch.cuda.is_initialized()


def test_a_student_of_a_full_size_text_model_is_refused_with_a_checkpoint_to_use():
    def sentence(name):
        return needs_of(models()[name], Stack.parse("distill"), "random")[0].sentence

    assert "use a published checkpoint: distill(checkpoint='schnell') or" in sentence("flux-1-dev")
    assert "distill(checkpoint='lcm-pixart')" in sentence("pixart-alpha-1024")
    assert "use a published checkpoint: distill(checkpoint='hyper-sd3-4') or" in sentence(
        "sd3-medium"
    )
    assert "does it" in sentence("dit-xl-2-256")


@pytest.fixture(params=NAMES)
def row(request):
    return row_of(request.param)


PLUGIN = """from ditbench.models import Model, register_model
import json
import os
import subprocess
import sys
register_model(Model(**json.loads({text!r})))
"""


def test_full_size_models_are_prepared_for_and_run_with_what_was_made(
    row, tmp_path, few_iterations
):
    """Registered by a plug-in, with random weights, in bfloat16; on the captions of a file."""
    (tmp_path / "narrow.py").write_text(PLUGIN.format(text=json.dumps(asdict(row))))
    (tmp_path / "mine.txt").write_text("a plum\ntwo plums on a plate\n")
    common = [
        "--models",
        row.name,
        "--weights",
        "random",
        "--dtype",
        "bf16",
        "--plugin",
        "narrow.py",
    ]
    reads = row.text_tokens > 0
    made = []
    for text in methods_of(row):
        done = command(
            "prepare", text, *common, "--json", *(["--prompts", "mine.txt"] if reads else [])
        )
        assert done.returncode == 0, done.stderr
        (told,) = json.loads(done.stdout.splitlines()[-1])
        assert told["made"] and (told["device"], told["dtype"]) == ("cpu", "bfloat16")
        if text.startswith("diffsparse"):
            assert told["distance"] == "mse.latents" and 0.5 < told["spent"] <= 0.6
            assert f"{row.name}: weights" in done.stderr and "kept outputs" in done.stderr
        made.append(told)
    done = command(
        "run", *common, "--methods", ",".join(methods_of(row)), "--num-samples", "4",
        "--batch-size", "4", "--rounds", "1", "--process", "round", "--out", "run",
        *(["--training-prompts", "mine.txt"] if reads else []),
    )  # fmt: skip
    records = read_run(tmp_path / "run").records
    assert [
        (r["stack"], r["status"], r.get("reason")) for r in records if r["status"] != "ok"
    ] == []
    assert len(records) == 1 + len(made), done.stderr
    keys = {told["folder"].rpartition("/")[2] for told in made}
    assert {a["key"] for r in records for a in r["artifacts"].values()} == keys
    assert all(a["notes"]["dtype"] == "bfloat16" for r in records for a in r["artifacts"].values())


def test_nothing_that_is_prepared_mixes_devices(row, few_iterations, monkeypatch, tmp_path):
    """On the simulated device, where a tensor of another raises; no gradient can be had there, and
    zeros stand for it."""
    monkeypatch.setattr(
        torch.autograd,
        "grad",
        lambda loss, of, **_: [torch.zeros_like(x) for x in (of if isinstance(of, list) else [of])],
    )
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    for module in (training_loop, students, static_fp8):  # there are no values to be written
        monkeypatch.setattr(module, "save_file", lambda tensors, path, *more: path.touch())
    row = replace(row, steps=2)
    with simulated() as device, quiet():
        room = Workroom(
            pipe=Stand(device, row, "bfloat16").pipe, model=row, below=Stack(),
            sampling=sampling_of(row), tell=lambda row: None,
        )  # fmt: skip
        assert room.device.type == "gpu"
        for text in ("diffsparse(keep=0.8)", "sparsecast(keep=0.8)", "l2c", "magcache", "distill(steps=1, rank=2)",
                     "fp8(scales='step')"):  # fmt: skip
            name = text.partition("(")[0]
            if any(other.startswith(name) for other in methods_of(row)) or name == "fp8":
                assert Stack.parse(text).methods[0].prepare(tmp_path, room)


def test_students_of_full_size_class_models_are_trained_in_float32(tmp_path):
    row = row_of("dit-xl-2-256", steps=8)
    pipe = load(row, weights="random", device="cpu", dtype="bfloat16")
    room = Workroom(
        pipe=pipe, model=row, below=Stack(), sampling=sampling_of(row), tell=lambda row: None
    )
    recipe = students.Recipe(steps=2, recordings=8, iterations=3, batch=4)
    notes = students.prepare_student(tmp_path, room, recipe)
    assert notes["finish"] == 0 and pipe.transformer.dtype == torch.bfloat16
    with Stack.parse("distill(steps=2)").attached(pipe, {"distill": tmp_path}) as attached:
        attached.start(2, 1)
        (sample,) = pipe(**room.draw(0, 1, steps=2, guidance=1.0), output_type="np").images
        assert np.isfinite(sample).all() and attached.counters()["distill.weights"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_waits_on_the_host_gives_the_same_gradient(kind, monkeypatch):
    """Checkpoints of steps and blocks, with what is kept between steps copied away as on a GPU."""
    from test_learning import drawer, hot, squared

    packed, subject, slopes = [], tiny(kind, steps=3), []

    def on_the_host(device):
        def pack(tensor):
            packed.append(tensor.nbytes)
            return tensor.clone()

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

    draw = drawer(subject, kind)
    for checkpointed in (False, True):
        if checkpointed:
            monkeypatch.setattr(soft_cache, "_on_the_host", on_the_host)
        with soft_cache.studio(subject.pipeline, Stack(), "change", checkpointed) as (
            student,
            paint,
        ):
            with torch.no_grad():
                teacher = paint(None, draw(1, 2), 3)
            chosen = np.random.default_rng(0).integers(0, 5, (3, len(student.at.sublayers)))
            chosen[0] = 4
            levels = hot(chosen).requires_grad_(True)
            with torch.enable_grad():
                loss = squared(teacher, paint(levels, draw(1, 2), 3)).mean()
                slopes.append(torch.autograd.grad(loss, levels)[0])
    assert packed and torch.allclose(*slopes, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("kind", ["dit", "flux", "wan"])
def test_blocks_that_are_run_again_give_scores_the_same_gradient(kind):
    from ditbench.acceleration.caching.learn_router import Mixer

    subject, slopes = tiny(kind, steps=4), []
    for checkpointed in (False, True):
        mixer = Mixer(checkpointed)
        with Stack((mixer,)).attached(subject.pipeline) as attached:
            parts = len(attached.attachments[mixer.name].sublayers)
            mixer.scores = torch.full((4, parts), 0.5, requires_grad=True)
            attached.start(4, 1)
            subject.generate(subject.sampling, [0])
            slopes.append(mixer.scores.grad)
    assert slopes[0].abs().max() > 0 and torch.allclose(*slopes, rtol=1e-4, atol=1e-12)


def test_pictures_are_compared_by_lpips_where_its_files_are_there(monkeypatch):
    from ditbench.extractors.networks import lpips

    row = replace(row_of("pixart-alpha-256"), height=64, width=64)
    room = Workroom(
        pipe=tiny("pixart").pipeline, model=row, below=Stack(), sampling=sampling_of(row),
        tell=lambda row: None,
    )  # fmt: skip

    def absent(*_):
        raise ValueError("missing")

    monkeypatch.setattr("ditbench.extractors.pinned_files.located", absent)
    distance = learning_at_size.distance_for(room)
    assert (distance.name, distance.decoded) == ("mse.latents", False)
    a, b = (
        torch.zeros(2, 4, 8, 8),
        torch.ones(2, 4, 8, 8) * torch.tensor([1.0, 2.0])[:, None, None, None],
    )
    assert distance(a, b).tolist() == [1.0, 4.0]
    generator = torch.Generator().manual_seed(0)
    layers = {f"features.{i}": p for i, p in lpips.trunk().state_dict().items() for i in [i]}
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator)
        for i, c in enumerate(lpips.CHANNELS)
    }
    monkeypatch.setattr("ditbench.extractors.pinned_files.located", lambda file, *_: file)
    monkeypatch.setattr(
        "ditbench.extractors.networks.tensors.read_tensors",
        lambda file: layers if file is lpips.BACKBONE else heads,
    )
    distance = learning_at_size.distance_for(room)
    assert (distance.name, distance.decoded) == ("lpips.alex_v0_1", True)
    pixels = torch.rand(2, 3, 64, 64, generator=generator)
    moved = (pixels + 0.1).clamp(0, 1).requires_grad_(True)
    assert (distance(pixels, pixels) == 0).all()
    (slope,) = torch.autograd.grad(distance(pixels, moved).sum(), moved)
    assert slope.abs().max() > 0
    video = replace(room, model=replace(row, frames=5))
    assert learning_at_size.distance_for(video).name == "mse.latents"


def test_requests_at_once_go_by_their_pixels():
    def at_once(name, num, *pixels):
        row = select(name)[0]
        return Workroom(
            pipe=None, model=row, below=Stack(), sampling=sampling_of(row), tell=lambda row: None
        ).at_once(num, *pixels)

    picture = learning_at_size.PICTURE
    assert [at_once(n, 8) for n in ("dit-tiny", "wan-tiny", "dit-xl-2-256")] == [8, 8, 8]
    assert [at_once(n, 8) for n in ("flux-1-dev", "wan-2.1-1.3b")] == [4, 1]
    assert [at_once(n, 4, picture) for n in ("flux-1-dev", "dit-xl-2-512", "wan-2.1-14b")] == [
        1,
        4,
        1,
    ]


PARTS = """
import hashlib
from ditbench.models.architecture import build
from ditbench.models.table import models
pipe = build(models()["dit-tiny"], device="cpu")
parts = [v.numpy().tobytes() for name in ("vae", "transformer")
         for v in getattr(pipe, name).state_dict().values()]
print(hashlib.sha256(b"".join(parts)).hexdigest())
"""


def test_random_weights_are_the_same_in_every_process():
    """What is prepared in one is used in others, whatever the seed of their hashes."""
    told = {
        subprocess.run(
            [sys.executable, "-c", PARTS], env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "1")  # two orders of a set of parts
    }  # fmt: skip
    assert len(told) == 1 and len(told.pop().strip()) == 64
