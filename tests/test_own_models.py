"""Models of one's own: a folder, and low-rank updates."""

import json
import shlex
import shutil

import pytest
import torch
from command import command
from safetensors.torch import load_file, save_file

from ditbench import ZOO
from ditbench.models import own
from ditbench.models.architecture import describe
from ditbench.models.loading import load
from ditbench.models.own import Lora, register_own, with_lora
from ditbench.models.table import REGISTRY, models
from ditbench.models.weights import weights_sha256
from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder
from ditbench.runner.plan import plan
from ditbench.runner.spec import Spec

LAYER = "transformer_blocks.0.attn.to_q"


@pytest.fixture(autouse=True)
def forget_own():
    yield
    REGISTRY.forget(own.MODULE)


@pytest.fixture
def update(tmp_path):
    """A file of updates of one layer of flux-tiny."""
    width = describe(models()["flux-tiny"])["transformer"]
    size = width["num_attention_heads"] * width["attention_head_dim"]
    torch.manual_seed(0)
    state = {
        f"transformer.{LAYER}.lora_A.weight": torch.randn(2, size),
        f"transformer.{LAYER}.lora_B.weight": torch.randn(size, 2),
    }
    save_file(state, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors", state


def test_a_folder_is_a_model_of_the_table(tmp_path):
    shutil.copytree(ZOO / "dit-tiny", tmp_path / "mine")
    model = register_own(f"mine=dit-tiny:{tmp_path / 'mine'}")
    tiny = models()["dit-tiny"]
    assert models()["mine"] is model and model.steps == tiny.steps
    assert describe(model) == describe(tiny)
    assert weights_sha256(model, "bundled") == weights_sha256(tiny, "bundled")
    assert register_own(f"mine=dit-tiny:{tmp_path / 'mine'}") == model  # named again by a command


def test_a_family_is_its_first_full_size_model(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    model = register_own(f"mine=flux:{tmp_path}")
    dev = models()["flux-1-dev"]
    assert (model.steps, model.guidance, model.height) == (dev.steps, dev.guidance, dev.height)
    assert not model.hub and not model.revision


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mine", "model: 'mine' is not NAME=FAMILY:FOLDER"),
        ("mine=flux", "model: 'mine=flux' is not NAME=FAMILY:FOLDER"),
        ("=flux:.", "model: '=flux:.' is not NAME=FAMILY:FOLDER"),
        ("a b=flux:.", "model: 'a b' is no name for a model"),
        ("tiny=flux:.", "model: 'tiny' is no name for a model"),
        ("flux-1-dev=flux:.", "model: 'flux-1-dev' is in the table already; choose another name"),
        ("mine=flax:.", "model: no family or model 'flax'; "),
        ("mine=flux:nowhere", "model: nowhere holds no model_index.json of a diffusers pipeline"),
    ],
)
def test_a_model_that_is_none_is_one_sentence(text, sentence):
    done = command("run", "--model", text, "--methods", "fora")
    assert done.returncode == 2 and done.stderr.startswith(f"ditbench: --{sentence}")


def test_a_run_of_ones_own_model_makes_what_the_same_weights_make(tmp_path):
    shutil.copytree(ZOO / "dit-tiny", tmp_path / "mine")
    out = tmp_path / "run"
    name = f"mine=dit-tiny:{tmp_path / 'mine'}"
    done = command(
        "run", "--model", name, "--models", "mine,dit-tiny", "--methods", "fora", "--num-samples",
        "2", "--rounds", "1", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = {(r["model"], r["stack"]): r for r in read_run(out).records}
    assert len(records) == 4
    made = {
        key: load_file(RunFolder(out).samples(record["key"]))["samples"]
        for key, record in records.items()
    }
    for stack in ("none", "fora"):
        assert torch.equal(made["mine", stack], made["dit-tiny", stack])
    shown = " ".join(done.stdout.split())
    assert "float32, mine weights" in shown and "float32, bundled weights" in shown
    again = command("reproduce", out, "mine/fora").stdout
    assert f"--model {name}" in " ".join(again.split())
    assert "--model" not in command("reproduce", out, "dit-tiny/fora").stdout.replace(
        "--models", ""
    )


def test_a_refusal_names_the_model_and_its_updates_in_its_command(tmp_path, update):
    shutil.copytree(ZOO / "flux-tiny", tmp_path / "mine")
    name = f"mine=flux-tiny:{tmp_path / 'mine'}"
    spec = Spec(
        models=("mine",), methods=("teacache(saved=0.2)",), own_models=(name,),
        lora=(f"{update[0]}@0.5",),
    )  # fmt: skip
    words = shlex.split(plan(spec)[1].refusal.partition("; ")[2].removesuffix(" does it"))
    assert words[words.index("--model") + 1] == name
    assert words[words.index("--lora") + 1] == f"{update[0]}@0.5"


def test_updates_are_added_to_the_weights_they_name(update):
    file, state = update
    tiny = models()["flux-tiny"]
    model = with_lora(tiny, [f"{file}@0.5"])
    assert model.lora == (Lora(str(file), 0.5),)
    before, after = (
        dict(
            load(m, weights="bundled", device="cpu", dtype="float32").transformer.named_parameters()
        )
        for m in (tiny, model)
    )
    down, up = state.values()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == [f"{LAYER}.weight"]
    expected = before[changed[0]] + 0.5 * up @ down
    assert torch.allclose(after[changed[0]], expected, atol=1e-5)


def test_updates_are_part_of_what_samples_depend_on(update, tmp_path):
    file, state = update
    tiny = models()["flux-tiny"]
    save_file({k: v * 2 for k, v in state.items()}, tmp_path / "other.safetensors")
    hashes = {
        weights_sha256(with_lora(tiny, texts), "bundled")
        for texts in ([], [str(file)], [f"{file}@0.5"], [str(tmp_path / "other.safetensors")])
    }
    assert len(hashes) == 4
    keys = {
        plan(Spec(models=("flux-tiny",), methods=("fora",), lora=texts))[1].key
        for texts in ((), (str(file),), (f"dit-tiny={file}",), (f"flux-tiny={file}",))
    }
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nowhere.safetensors", "lora: there is no file 'nowhere.safetensors'"),
        ("{file}@much", "lora: 'much' in "),
        ("{file}@nan", "lora: 'nan' in "),
        ("{folder}/weights.bin", "weights.bin' is no .safetensors file"),
    ],
)
def test_updates_that_are_none_are_one_sentence(text, sentence, update, tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"x")
    text = text.format(file=update[0], folder=tmp_path)
    with pytest.raises(ValueError) as error:
        with_lora(models()["flux-tiny"], [text])
    assert sentence in str(error.value)


def test_a_pipeline_without_updates_says_so(update):
    for name, pipeline in (("dit-tiny", "DiTPipeline"), ("pixart-tiny", "PixArtAlphaPipeline")):
        with pytest.raises(ValueError, match=f"lora: {pipeline} takes none, and {name} has one"):
            with_lora(models()[name], [str(update[0])])


def test_updates_of_another_model_are_a_failed_cell_with_the_reason(tmp_path):
    save_file(
        {"transformer.nowhere.lora_A.weight": torch.ones(2, 8), "transformer.nowhere.lora_B.weight": torch.ones(8, 2)},
        tmp_path / "other.safetensors",
    )  # fmt: skip
    out = tmp_path / "run"
    done = command(
        "run", "--models", "flux-tiny", "--methods", "fora", "--num-samples", "2", "--rounds", "1",
        "--lora", tmp_path / "other.safetensors", "--out", out, "--json",
    )  # fmt: skip
    assert done.returncode == 3
    reasons = {r["reason"] for r in read_run(out).records}
    assert all("none of its 2 keys matches a layer of this transformer" in r for r in reasons)
    assert json.loads((out / "spec.json").read_text())["spec"]["lora"]
