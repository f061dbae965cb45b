"""Published distilled checkpoints: the table, updates merged, transformers swapped, and what is
said when a file is not there."""

import copy

import huggingface_hub.constants
import pytest
import torch
from diffusers import LCMScheduler
from safetensors.torch import save_file

from ditbench.acceleration.distillation import checkpoints
from ditbench.acceleration.distillation.checkpoints import Checkpoint
from ditbench.method.stack import Stack
from ditbench.models.table import models
from ditbench.profiling.conventions import count_in
from ditbench.profiling.counting import count_model
from ditbench.testing import check_method, tiny


@pytest.fixture
def table(monkeypatch):
    """Adds rows to the table for the time of a test."""
    rows = dict(checkpoints.checkpoints())
    monkeypatch.setattr(checkpoints, "checkpoints", lambda: rows)

    def add(name, **row):
        rows[name] = Checkpoint(
            name=name, **{"steps": 2, "guidance": 1.0, "licence": "", "kind": "lora", **row}
        )

    return add


def lora(pipeline, folder, names, rank=2, wrong=0):
    """A file of low-rank updates for some layers, as diffusers writes it; the updates
    themselves."""
    g, told, updates = torch.Generator().manual_seed(0), {}, {}
    for name in names:
        layer = pipeline.transformer.get_submodule(name)
        a = torch.randn(rank, layer.in_features + wrong, generator=g)
        b = torch.randn(layer.out_features, rank, generator=g)
        told[f"transformer.{name}.lora_A.weight"], told[f"transformer.{name}.lora_B.weight"] = a, b
        updates[name] = b @ a
    save_file(told, folder / "lora.safetensors")
    return updates


def test_the_table_is_whole():
    for row in checkpoints.checkpoints().values():
        assert (
            row.kind in ("lora", "transformer")
            and bool(row.file) == (row.kind == "lora")
            and row.steps >= 1
        )
        assert row.family in ("dit", "pixart", "flux", "wan", "sd3") and "/" in row.hub
    stack = Stack.parse("distill(checkpoint='turbo-flux')")
    sampling = stack.adapt(tiny("flux").sampling)
    assert (sampling.steps, sampling.guidance) == (8, 3.5)
    with pytest.raises(ValueError, match="no checkpoint 'turbo'; did you mean"):
        Stack.parse("distill(checkpoint='turbo')")
    with pytest.raises(ValueError, match="a student or a checkpoint, not both"):
        Stack.parse("distill(checkpoint='schnell', student='x')")


def test_a_checkpoint_that_is_not_to_be_had_here_says_why_and_is_counted(table):
    table("elsewhere", family="dit", hub="a/b", kind="transformer", refusal="is written on paper")
    (reason,) = [Stack.parse("distill(checkpoint='elsewhere')").refusal(tiny("dit").pipeline)]
    assert reason == "distill: elsewhere can be counted only: it is written on paper"
    rows = [r for r in checkpoints.checkpoints().values() if r.refusal and r.name != "elsewhere"]
    assert {row.name for row in rows} == {"flash-pixart", "dmd-pixart", "fastwan", "turbo-wan"}
    counted = count_model(
        models()["dit-tiny"], stack=Stack.parse("distill(checkpoint='elsewhere')")
    )
    whole = count_model(models()["dit-tiny"], steps=2)
    assert counted["status"] == "ok" and counted["steps"] == 2
    assert 2 * counted["flops"] == whole["flops"]  # guidance of 1 is one pass


def test_fewer_blocks_are_fewer_that_are_counted(table):
    table("short", family="flux", hub="a/b", kind="transformer", blocks=1, steps=2, guidance=3.5)
    model = models()["flux-tiny"]
    short = count_model(model, stack=Stack.parse("distill(checkpoint='short')"))
    whole = count_model(model, steps=2)
    assert 0.3 < short["flops"] / whole["flops"] < 1
    names = short["work"]["sublayers"]
    assert "0.joint" in names and "1.single" in names and "1.joint" not in names


@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_low_rank_updates_are_merged_and_taken_back(kind, table, tmp_path):
    subject = tiny(kind)
    names = [
        n
        for n, m in subject.pipeline.transformer.named_modules()
        if n.endswith(("to_q", "to_out.0"))
    ]
    updates = lora(subject.pipeline, tmp_path, names)
    table("local", family=kind, hub=str(tmp_path), file="lora.safetensors", scale=0.5)
    before = {
        name: subject.pipeline.transformer.get_submodule(name).weight.clone() for name in names
    }
    with Stack.parse("distill(checkpoint='local')").attached(subject.pipeline) as attached:
        assert attached.counters() == {"distill.weights": len(names)}
        for name in names:
            now = subject.pipeline.transformer.get_submodule(name).weight
            assert torch.allclose(now, before[name] + 0.5 * updates[name], atol=1e-5)
    checks = check_method("distill(checkpoint='local')", subject)
    assert all(c.passed for c in checks) and len(checks) > 2, [c for c in checks if not c.passed]


def test_a_whole_transformer_and_its_sampler_take_the_models_place(table, tmp_path):
    subject = tiny("pixart")
    other = copy.deepcopy(subject.pipeline.transformer)
    with torch.no_grad():
        other.proj_out.bias += 1
    other.save_pretrained(tmp_path / "transformer")
    table(
        "lcm",
        family="pixart",
        hub=str(tmp_path),
        kind="transformer",
        scheduler="LCMScheduler",
        guidance=0.0,
    )
    own = subject.pipeline.transformer, subject.pipeline.scheduler
    with Stack.parse("distill(checkpoint='lcm')").attached(subject.pipeline):
        assert torch.equal(subject.pipeline.transformer.proj_out.bias, other.proj_out.bias)
        assert isinstance(subject.pipeline.scheduler, LCMScheduler)
    assert (subject.pipeline.transformer, subject.pipeline.scheduler) == own


def test_what_does_not_fit_or_is_not_there_is_one_sentence(table, tmp_path, monkeypatch):
    subject = tiny("flux")

    def refusal(name):
        return Stack.parse(f"distill(checkpoint={name!r})").refusal(subject.pipeline)

    table("absent", family="flux", hub=str(tmp_path), file="lora.safetensors")
    assert refusal("absent") == f"distill: {tmp_path / 'lora.safetensors'} is missing"
    save_file(
        {"transformer.nowhere.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors"
    )
    assert "none of its 1 keys matches a layer of this transformer" in refusal("absent")
    lora(subject.pipeline, tmp_path, ["transformer_blocks.0.attn.to_q"], wrong=3)
    assert "transformer_blocks.0.attn.to_q is 128 x 131, and in this model (128, 128)" in refusal(
        "absent"
    )
    assert refusal("causvid-wan") == "distill: causvid-wan is for wan models, not for flux"
    # read from the environment when the library was imported: else it waits for the network
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "cannot be reached" in refusal("turbo-flux") or "cannot be fetched" in refusal(
        "turbo-flux"
    )


def test_a_checkpoints_cost_is_known_without_weights():
    rows, _ = count_in(
        "flops",
        [models()["flux-1-dev"]],
        [Stack.parse("none"), Stack.parse("distill(checkpoint='schnell')")],
    )
    whole, few = (row["flops"] for row in rows)
    assert whole / few == pytest.approx(models()["flux-1-dev"].steps / 4, rel=0.01)
