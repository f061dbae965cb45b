"""The table, and the one way to load any model: narrow copies of all four full-size pipelines go
through it."""

import json
import logging
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from narrow import NAMES, generate, narrow

from ditbench.models import loading, weights
from ditbench.models import table as models
from ditbench.models.architecture import build, describe
from ditbench.models.family import families
from ditbench.quiet import quiet
from ditbench.records.files import file_sha256

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_is_read_without_torch():
    code = "import sys, run_bench, ditbench.models.table as m, ditbench.profiling.counting; "
    code += "m.select('tiny,full'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_groups_and_names_select_each_model_once_in_order():
    assert [m.name for m in models.select("tiny")] == [
        "dit-tiny",
        "pixart-tiny",
        "flux-tiny",
        "wan-tiny",
    ]
    assert [m.name for m in models.select("wan-tiny, tiny,wan-tiny")] == [
        "wan-tiny",
        "dit-tiny",
        "pixart-tiny",
        "flux-tiny",
    ]
    assert [m.name for m in models.select("small")] == [
        "dit-mini", "pixart-small", "pixart-medium", "flux-mini", "wan-small",
    ]  # fmt: skip
    assert len(models.select("tiny,small,full")) == len(models.models()) == 19


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("flux-tyni", "flux-tiny"),
        ("wan-2.1-1.3", "wan-2.1-1.3b"),
        ("tinny", "tiny"),
        ("", "or a group: tiny, small, full"),
    ],
)
def test_an_unknown_model_is_told_its_nearest_names(text, hint):
    with pytest.raises(ValueError, match="no model") as error:
        models.select(text)
    assert hint in str(error.value)


def test_every_row_of_the_table_is_complete():
    for model in models.models().values():
        assert model.family in families() and model.steps > 0
        assert (
            bool(model.hub)
            == bool(model.architecture)
            == (model.group == "full")
            == (not model.world)
        )
        assert (model.text_tokens > 0) == (model.family != "dit") and (model.frames > 1) == (
            model.family == "wan"
        )
        if model.architecture:
            assert (
                describe(model)["pipeline"]["class"]
                == f"diffusers.{families()[model.family].pipeline}"
            )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A hub cache with a narrow copy of every full-size pipeline, and what each generated before it
    was saved."""
    cache, made = tmp_path_factory.mktemp("hub"), {}
    for name in NAMES:
        model, changes = narrow(name)
        with quiet():
            pipe = loading.load(
                model, weights="random", device="cpu", dtype="float32", changes=changes
            )
            place = cache / ("models--" + model.hub.replace("/", "--"))
            pipe.save_pretrained(place / "snapshots" / "0123abc")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("0123abc")
        made[name] = generate(pipe, model)
    return cache, made


SCHEDULERS = {
    "DDIMScheduler": {"clip_sample": False},
    "DPMSolverMultistepScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {},
    "UniPCMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    "LCMScheduler": {},
}


@pytest.mark.parametrize("name", [*SCHEDULERS, "FewStepScheduler"])
def test_a_sampler_steps_in_float32_whatever_the_models_dtype(name):
    import diffusers

    from ditbench.acceleration.distillation.scheduler import FewStepScheduler
    from ditbench.models.precision import step_in_float32

    def scheduler():
        if name == "FewStepScheduler":
            made = FewStepScheduler([999.0, 700.0, 300.0], [0.99, 0.7, 0.3, 0.0], noise=True)
        else:
            made = getattr(diffusers, name)(**SCHEDULERS[name])
        made.set_timesteps(3)
        return made

    g = torch.Generator().manual_seed(0)
    state = torch.randn(2, 4, 8, 8, generator=g).bfloat16()
    velocities = [torch.randn(2, 4, 8, 8, generator=g).bfloat16() for _ in range(3)]
    plain, wide = scheduler(), scheduler()
    step_in_float32(wide)
    step_in_float32(wide)
    assert type(wide).__name__ == name and isinstance(wide, type(plain))
    x = state
    for t, v in zip(plain.timesteps, velocities, strict=True):
        torch.manual_seed(0)
        expected = plain.step(v.float(), t, x.float(), return_dict=False)[0]
        torch.manual_seed(0)
        x = wide.step(v, t, x).prev_sample
        assert x.dtype == torch.bfloat16 and torch.equal(x, expected.bfloat16())
    same, x, y = scheduler(), state.float(), state.float()  # in float32 not a bit is changed
    plain, wide = scheduler(), same
    step_in_float32(same)
    for t, v in zip(plain.timesteps, velocities, strict=True):
        torch.manual_seed(0)
        x = plain.step(v.float(), t, x).prev_sample
        torch.manual_seed(0)
        y = wide.step(v.float(), t, y).prev_sample
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", NAMES)
def test_wans_decoder_is_in_float32_as_its_card_asks(saved, name):
    model, changes = narrow(name)
    for source in ("random", str(saved[0])):
        pipe = loading.load(
            model, weights=source, device="cpu", dtype="bfloat16",
            changes=changes if source == "random" else None,
        )  # fmt: skip
        wide = torch.float32 if model.family == "wan" else torch.bfloat16
        assert {p.dtype for p in pipe.vae.parameters()} == {wide}
        assert torch.bfloat16 in {p.dtype for p in pipe.transformer.parameters()}
        assert pipe.scheduler.step.in_float32
        assert np.isfinite(generate(pipe, model)).all()
    plain = loading.load(model, weights=str(saved[0]), device="cpu", dtype="float32")
    assert not hasattr(plain.scheduler.step, "in_float32")


@pytest.mark.parametrize("name", NAMES)
def test_a_full_size_pipeline_loads_from_a_local_hub_cache(saved, name):
    cache, before = saved
    model, _ = narrow(name)
    pipe = loading.load(model, weights=str(cache), device="cpu", dtype="float32")
    assert type(pipe).__name__ == families()[model.family].pipeline
    samples = generate(pipe, model)
    frames = (model.frames,) if model.frames > 1 else ()
    assert samples.shape == (1, *frames, model.height, model.width, 3)
    # weights read from a file lie at other addresses, and some processors then round otherwise
    assert np.allclose(samples, before[name], rtol=0, atol=2e-6)


def test_a_plain_diffusers_folder_loads_too_and_in_the_type_asked_for(saved, tmp_path):
    model, _ = narrow("wan-2.1-1.3b")
    shutil.copytree(weights.locate(model, str(saved[0])), tmp_path / model.name)
    for folder in (tmp_path, tmp_path / model.name):
        assert weights.locate(model, str(folder)) == tmp_path / model.name
    pipe = loading.load(model, weights=str(tmp_path), device="cpu", dtype="bfloat16")
    fresh = loading.load(
        model, weights="random", device="cpu", dtype="bfloat16", changes=narrow(model.name)[1]
    )
    types = {name: p.dtype for name, p in pipe.transformer.named_parameters()}
    # Wan keeps its norms and time embedding in float32
    assert set(types.values()) == {
        torch.bfloat16,
        torch.float32,
    }
    assert types == {name: p.dtype for name, p in fresh.transformer.named_parameters()}
    assert np.isfinite(generate(fresh, model)).all()


def test_a_bundled_model_is_loaded_described_and_counted_from_its_folder(
    saved, tmp_path, monkeypatch
):
    from ditbench.models import architecture
    from ditbench.profiling import counting

    source, _ = narrow("pixart-alpha-256")
    tiny = replace(models.select("pixart-tiny")[0], height=16, width=16, steps=3, text_tokens=12)
    for module in (weights, architecture):
        monkeypatch.setattr(module, "ZOO", tmp_path)
    with pytest.raises(ValueError, match="pixart-tiny has not been trained yet"):
        loading.load(tiny, weights="bundled", device="cpu", dtype="float32")
    shutil.copytree(weights.locate(source, str(saved[0])), tmp_path / "pixart-tiny")
    pipe = loading.load(tiny, weights="bundled", device="cpu", dtype="float32")
    assert np.isfinite(generate(pipe, tiny)).all()
    counted = counting.count_generation(pipe, lambda: generate(pipe, tiny))
    assert counting.count_model(tiny)["flops"] == counted.flops > 0
    fresh = loading.load(tiny, weights="random", device="cpu", dtype="float32")
    assert generate(fresh, tiny).shape == (1, 16, 16, 3) and type(fresh.tokenizer) is type(
        pipe.tokenizer
    )


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone():
    model, changes = narrow("dit-xl-2-256")
    state = torch.random.get_rng_state()
    first, second = (
        build(model, device="cpu", changes=changes).transformer.state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (
        torch.equal(torch.random.get_rng_state(), state)
        and torch.get_default_dtype() == torch.float32
    )


def test_full_size_architectures_have_the_published_numbers_of_parameters():
    # FLUX.1 11.90 B, Wan2.1 1.42 B and 14.29 B, DiT-XL/2 675 M and diffusers' per-block embedders,
    # PixArt-alpha 0.61 B
    billions = {
        "dit-xl-2-256": 0.750,
        "pixart-alpha-1024": 0.611,
        "flux-1-dev": 11.901,
        "wan-2.1-1.3b": 1.419,
        "wan-2.1-14b": 14.288,
    }
    for name, expected in billions.items():
        pipe = build(
            models.select(name)[0], device="meta", parts=("transformer", "vae", "scheduler")
        )
        assert sum(p.numel() for p in pipe.transformer.parameters()) / 1e9 == pytest.approx(
            expected, abs=6e-4
        )


@pytest.mark.parametrize("name", ["pixart-alpha-1024", "flux-1-dev", "wan-2.1-1.3b"])
def test_full_size_text_encoders_are_the_xxl_ones(name):
    parts = [part for part in describe(models.select(name)[0]) if part.startswith("text_encoder")]
    pipe = build(models.select(name)[0], device="meta", parts=parts)
    sizes = [
        round(sum(p.numel() for p in getattr(pipe, part).parameters()) / 1e9, 2) for part in parts
    ]
    assert (
        sizes
        == {"pixart-alpha-1024": [4.76], "flux-1-dev": [0.12, 4.76], "wan-2.1-1.3b": [5.68]}[name]
    )


def test_a_change_of_a_part_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no part 'text_encoder' to change d_model of"):
        describe(models.select("dit-xl-2-256")[0], {"text_encoder.d_model": 8})


@pytest.fixture
def folder(saved, tmp_path):
    model, _ = narrow("pixart-alpha-256")
    shutil.copytree(weights.locate(model, str(saved[0])), tmp_path / "copy")
    return model, tmp_path / "copy"


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_weight_file_is_refused_by_name(folder, keep):
    model, at = folder
    file = at / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"text_encoder/model\.safetensors is damaged") as error:
        loading.load(model, weights=str(at), device="cpu", dtype="float32")
    assert "\n" not in str(error.value)


def test_a_header_of_garbage_is_refused_by_name(folder):
    _, at = folder
    file = at / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[8:16] = b"\xff" * 8
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"vae/diffusion_pytorch_model\.safetensors is damaged"):
        weights.check_folder(at)


def test_a_missing_shard_a_foreign_pipeline_and_pickled_weights_are_refused(folder):
    model, at = folder
    with pytest.raises(ValueError, match="holds a PixArtAlphaPipeline, not a FluxPipeline"):
        loading.load(models.select("flux-1-dev")[0], weights=str(at), device="cpu", dtype="float32")
    index = at / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(
        json.dumps(
            {"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "part-2.safetensors"}}
        )
    )
    with pytest.raises(ValueError, match=r"part-2\.safetensors is missing"):
        weights.check_folder(at)
    index.unlink()
    file = at / "transformer" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(
        ValueError,
        match=r"transformer has its weights as \.bin only, .*; python run_bench\.py convert",
    ):
        loading.load(model, weights=str(at), device="cpu", dtype="float32")


def test_weights_that_do_not_fit_the_architecture_are_one_sentence(folder):
    model, at = folder
    sizes = json.loads((at / "transformer" / "config.json").read_text())
    (at / "transformer" / "config.json").write_text(json.dumps(sizes | {"caption_channels": 48}))
    with pytest.raises(ValueError, match="cannot be loaded as pixart-alpha-256") as error:
        loading.load(model, weights=str(at), device="cpu", dtype="float32")
    assert "\n" not in str(error.value)


def test_weights_that_are_nowhere_are_refused(tmp_path):
    dit, flux = models.select("dit-tiny,flux-1-dev")
    with pytest.raises(ValueError, match="holds no diffusers pipeline for flux-1-dev"):
        loading.load(flux, weights=str(tmp_path), device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="flux-1-dev has no bundled weights"):
        weights.locate(flux, "bundled")
    with pytest.raises(ValueError, match="dit-tiny is not on the hub"):
        weights.locate(dit, "hub")
    with pytest.raises(ValueError, match="dtype: 'int8' is no floating-point type"):
        loading.load(dit, weights="bundled", device="cpu", dtype="int8")


def test_a_hub_that_refuses_or_cannot_be_reached_is_one_sentence(monkeypatch):
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    model = models.select("flux-1-dev")[0]
    errors = {
        GatedRepoError: "is gated",
        RepositoryNotFoundError: "not found",
        LocalEntryNotFoundError: "cannot be reached",
    }
    errors |= {ConnectionError: "cannot be reached", RuntimeError: "cannot be fetched: first"}
    for kind, said in errors.items():
        error = kind.__new__(kind, "first\nsecond")
        monkeypatch.setattr(
            DiffusionPipeline, "download", lambda *a, error=error, **k: (_ for _ in ()).throw(error)
        )
        with pytest.raises(ValueError, match=said) as told:
            loading.load(model, weights="hub", device="cpu", dtype="bfloat16")
        assert model.hub in str(told.value) and "\n" not in str(told.value)
    gated = GatedRepoError.__new__(GatedRepoError, "licence")
    wrapped = OSError("diffusers tells the network's errors as one of its own")
    wrapped.__cause__ = gated
    assert "is gated" in weights.trouble(wrapped)


def test_the_weights_hash_follows_the_content(folder, tmp_path):
    model, at = folder
    before = weights.weights_sha256(model, str(at))
    shutil.copytree(at, tmp_path / "again")
    assert weights.weights_sha256(model, str(tmp_path / "again")) == before
    file = tmp_path / "again" / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert weights.weights_sha256(model, str(tmp_path / "again")) != before
    one, other = models.select("wan-2.1-1.3b,wan-2.1-14b")
    assert len({weights.weights_sha256(m, "random") for m in (one, other)}) == 2


def test_a_hub_cache_is_not_read_to_be_hashed(tmp_path):
    blob = tmp_path / ("ab" * 32)
    blob.write_bytes(b"anything")
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert weights._hash(tmp_path / "model.safetensors", 8, 0) == "ab" * 32
    assert (
        weights._hash(blob, 8, 0)
        == "ee0874170b7f6f32b8c2ac9573c428d35b575270a66b757c2c0185d2bd09718d"
    )


def test_quiet_silences_warnings_and_logs_and_puts_everything_back(caplog):
    filters, disabled = list(warnings.filters), logging.root.manager.disable
    with warnings.catch_warnings(record=True) as seen, quiet():
        warnings.warn("noise", stacklevel=1)
        logging.getLogger("anything").warning("noise")
        logging.getLogger("anything").error("signal")
    assert not seen and [r.message for r in caplog.records] == ["signal"]
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert warnings.filters == filters and logging.root.manager.disable == disabled


def test_a_large_file_is_hashed_once_on_a_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "LARGE", 8)
    hashed = []
    monkeypatch.setattr(
        weights, "file_sha256", lambda path: hashed.append(path) or file_sha256(path)
    )
    file = tmp_path / "model.safetensors"

    def sha256():
        weights._hash.cache_clear()  # another process
        stat = file.stat()
        return weights._hash(file, stat.st_size, stat.st_mtime_ns)

    file.write_bytes(b"weights 1")
    first = sha256()
    assert first == sha256() == file_sha256(file) and len(hashed) == 1
    file.write_bytes(b"weights 22")
    assert first != sha256() == file_sha256(file) and len(hashed) == 2
    (tmp_path / "cache" / "ditbench" / "weights-sha256.json").write_text("[]")
    assert sha256() == file_sha256(file) and len(hashed) == 3
    weights._hash.cache_clear()


def test_the_gpu_that_is_named_becomes_the_current_one_before_anything_is_loaded(monkeypatch):
    """Events and streams are of the current device: another's would tell of nothing."""
    chosen = []

    def choose(index):
        chosen.append(index)
        raise KeyboardInterrupt  # there is none here

    monkeypatch.setattr(torch.cuda, "set_device", choose)
    with pytest.raises(KeyboardInterrupt):
        loading.load(
            models.models()["dit-tiny"], weights="random", device="cuda:1", dtype="float32"
        )
    assert chosen == [1]
    loading.load(models.models()["dit-tiny"], weights="random", device="cpu", dtype="float32")
    assert chosen == [1]
