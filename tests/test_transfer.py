"""Schedules without learning of a model's own: transferred from the tiny model of the family, or by
each sub-layer's own change."""

import shutil
from itertools import combinations

import numpy as np
import pytest
import torch
from command import command
from narrow import NAMES, generate, narrow
from safetensors.numpy import load_file

from ditbench.acceleration.caching.budget import solved, spent
from ditbench.acceleration.caching.common_steps import common_steps, schedule_of
from ditbench.acceleration.caching.local_schedule import relative_distances
from ditbench.acceleration.caching.schedule import LEVELS, Schedule
from ditbench.acceleration.caching.transfer import same_kind, sources, transferred
from ditbench.method import artifact
from ditbench.method.needs import needs_of
from ditbench.method.stack import Stack
from ditbench.models.loading import load
from ditbench.models.table import models, select
from ditbench.records.record import read_run
from ditbench.runner.plan import plan
from ditbench.runner.spec import Spec


@pytest.fixture(autouse=True)
def with_a_gpu(monkeypatch):
    """Full-size models are planned as where they run."""
    monkeypatch.setattr("ditbench.runner.plan.too_slow", lambda *_: "")


FULL = [m for m in models().values() if m.group == "full"]
TRANSFERRED = "diffsparse(allocator='transferred')"


def test_each_sub_layer_has_the_costs_of_its_kind_at_the_same_depth():
    of = ["0.self", "0.mlp", "1.self", "1.mlp", "2.self", "2.mlp"]
    assert same_kind(of, of).tolist() == list(range(6))
    to = [f"{i}.{kind}" for i in range(5) for kind in ("self", "mlp")]
    assert same_kind(of, to).tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 4, 5]
    assert same_kind(of, ["0.mlp", "1.mlp"]).tolist() == [1, 5]
    with pytest.raises(ValueError, match=r"no sub-layer to take the costs of cross from"):
        same_kind(of, ["0.self", "0.cross"])


def tables(model):
    """The learned table of a tiny model, and the weights of one whose sub-layers cost alike."""
    (learned,) = (
        a
        for a in sources(models()[model].family)
        if (a.manifest["below"], a.manifest["steps"]) == ("none", 20)
    )
    names = Schedule.read(learned.folder / "schedule.json").sublayers
    return learned, names, np.tile(np.arange(len(LEVELS)) * 1000, (len(names), 1))


@pytest.mark.parametrize("model", ["dit-tiny", "pixart-tiny", "flux-tiny", "wan-tiny"])
def test_to_its_own_model_a_table_gives_what_it_gave(model):
    learned, names, weights = tables(model)
    own = solved(learned.folder, names, weights, 20, 0.5)
    moved = transferred(models()[model].family, names, weights, 20, 0.5)
    assert np.array_equal(own.chosen, moved.chosen)
    assert (moved.notes["from"], moved.notes["from_steps"]) == (model, 20)


def test_a_deeper_model_and_other_steps_keep_the_budget_and_the_nearest_table():
    deep = [f"{i}.{kind}" for i in range(28) for kind in ("self", "mlp")]
    weights = np.tile(np.arange(len(LEVELS)) * 1000, (len(deep), 1))
    for steps, keep, source in ((50, 0.46, 20), (250, 0.3, 20), (28, 0.46, 20), (5, 0.46, 4)):
        schedule = transferred("dit", deep, weights, steps, keep)
        assert schedule.chosen.shape == (steps, 56)
        assert keep - 0.02 < spent(schedule.chosen, weights) <= keep
        assert schedule.notes["from_steps"] == source
        assert schedule.notes["from"] == ("dit-tiny" if source == 20 else "dit-tiny under distill")
        assert (schedule.chosen[0] == len(LEVELS) - 1).all()


def test_a_family_without_a_tiny_model_has_nothing_to_transfer():
    with pytest.raises(ValueError, match="no schedule to transfer comes with ditbench for the"):
        transferred("sd3", ["0.joint"], np.ones((1, len(LEVELS)), int), 20, 0.5)


def test_a_full_model_runs_what_is_transferred_and_its_row_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = plan(Spec(models=("full",), methods=("diffsparse",), weights="random"))
    by_model = {c.model.name: c for c in cells if c.stack.methods}
    assert set(by_model) == {model.name for model in FULL}
    for model in FULL:
        cell = by_model[model.name]
        if model.family == "sd3":
            assert cell.refusal and str(cell.stack) == "diffsparse"
            continue
        assert str(cell.stack) == TRANSFERRED and not cell.refusal and TRANSFERRED in cell.label
        assert cell.note.startswith(f"{TRANSFERRED} runs in its place: diffsparse has not been")
        assert cell.requested == "diffsparse"
        again = plan(Spec(models=(model.name,), methods=(TRANSFERRED,), weights="random"))[1]
        assert again.key == cell.key and not again.note


def test_knobs_of_a_training_do_not_stand_in_the_name_of_what_was_not_trained():
    requested = ("diffsparse(training=2)", "diffsparse(keep=0.3,learned_at=0.46,tuned='alone')")
    cells = plan(Spec(models=("flux-1-dev",), methods=requested, weights="random"))[1:]
    assert [str(cell.stack) for cell in cells] == [
        TRANSFERRED,
        "diffsparse(keep=0.3, allocator='transferred')",
    ]
    for knob in ("training=1", "learned_at=0.46"):
        with pytest.raises(ValueError, match=rf"so that {knob.split('=')[0]} has no meaning"):
            Stack.parse(f"diffsparse(allocator='transferred',{knob})")


def test_a_tiny_model_is_refused_as_before():
    cell = plan(Spec(models=("dit-tiny",), methods=("diffsparse(keep=0.77)",)))[1]
    assert "diffsparse has not been prepared for dit-tiny" in cell.refusal and not cell.note


def test_once_its_own_is_prepared_nothing_stands_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = Spec(models=("dit-xl-2-256",), methods=("diffsparse",), weights="random")
    assert str(plan(spec)[1].stack) == TRANSFERRED
    (need,) = needs_of(models()["dit-xl-2-256"], Stack.parse("diffsparse"), "random")
    artifact.create(need, lambda folder: ((folder / "cost.txt").write_text("") and {}) or {})
    cell = plan(spec)[1]
    assert str(cell.stack) == "diffsparse" and not cell.note and not cell.refusal


@pytest.mark.parametrize("name", NAMES)
def test_a_narrow_pipeline_of_each_family_runs_it(name):
    model, changes = narrow(name)
    pipe = load(model, weights="random", device="cpu", dtype="float32", changes=changes)
    stack = Stack.parse(TRANSFERRED)
    if model.family == "sd3":
        assert "no schedule to transfer to the family sd3" in stack.refusal(pipe)
        return
    assert stack.refusal(pipe) is None
    with stack.attached(pipe) as attached:
        attached.start(model.steps, 1)
        generate(pipe, model)
        counters, notes = attached.counters(), attached.notes()
    # four steps: the table of the student of four steps
    assert notes["diffsparse.from"] == f"{model.family}-tiny under distill"
    tokens = {
        kind: sum(n for name, n in counters.items() if name.endswith(f"_tokens_{kind}"))
        for kind in ("recomputed", "reused")
    }
    assert 0.3 < tokens["recomputed"] / sum(tokens.values()) < 0.7


LOCAL = "diffsparse(allocator='local')"


def test_local_distances_are_measured_in_one_generation_and_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("prepare", LOCAL, "--models", "dit-tiny")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "artifacts" / "diffsparse").iterdir()
    distance = load_file(folder / "distance.safetensors")["distance"]
    assert distance.shape == (20, 20, 12)
    same = np.eye(20, dtype=bool)
    assert (distance[same] == 0).all() and (distance[~same] > 0).all()
    done = command(
        "run", "--models", "dit-tiny", "--methods", f"{LOCAL},diffsparse(allocator='local',keep=0.3)",
        "--num-samples", "2", "--rounds", "1", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    none, half, third = read_run(tmp_path / "run").records
    assert half["status"] == third["status"] == "ok"
    shares = [r["flops"]["flops"] / none["flops"]["flops"] for r in (half, third)]
    assert 0.44 < shares[0] < 0.52 and 0.28 < shares[1] < 0.36


def test_common_steps_are_the_best_of_all_choices():
    rng = np.random.default_rng(0)
    for count in (1, 2, 4, 7):
        distance = rng.random((8, 8, 3))

        def total(chosen, distance=distance):
            last = [max(r for r in chosen if r <= s) for s in range(8)]
            return sum(distance[s, last[s]].sum() for s in range(8) if s not in chosen)

        best = min(total((0, *rest)) for rest in combinations(range(1, 8), count - 1))
        chosen = common_steps(distance, count)
        assert chosen == sorted({*chosen}) and chosen[0] == 0 and len(chosen) == count
        assert total(chosen) == pytest.approx(best)


def test_a_schedule_of_distances_spends_the_budget_and_no_more():
    rng = np.random.default_rng(0)
    where = np.cumsum(rng.random((12, 5)), 0)
    distance = np.abs(where[:, None] - where[None])
    macs = np.array([3, 5, 8, 2, 4])[:, None] * np.arange(5)
    for keep in (1 / 12, 0.3, 0.46, 0.8, 1.0):
        chosen = schedule_of(distance, macs, keep)
        assert (chosen[0] == 4).all() and set(np.unique(chosen)) <= {0, 4}
        share = spent(chosen, macs)
        assert keep - 3 / 22 / 12 < share <= keep + 1e-9  # the smallest would not fit
    with pytest.raises(ValueError, match=r"the first step is dense and takes 0\.083"):
        schedule_of(distance, macs, 0.05)


def test_distances_are_relative_to_the_later_output():
    rows = torch.tensor([[3.0, 4.0], [3.0, 0.0], [0.0, 0.0]])
    expected = torch.tensor([[0, 4 / 5, 1], [4 / 3, 0, 1], [5e12, 3e12, 0]])
    assert torch.allclose(relative_distances(rows), expected)


def test_two_methods_that_stack_are_read_by_the_names_they_ran_under():
    from ditbench.analysis.interaction import interactions

    def record(model, stack):
        return {
            "model": model, "family": "dit", "world": "", "stack": stack, "status": "refused",
            "reason": "not here", "methods": [], "run": {}, "key": stack,
        }  # fmt: skip

    parts = {
        "a": [Stack.parse("fora"), Stack.parse("int8")],
        "b": [Stack.parse("fora(interval=5)"), Stack.parse("int8")],
    }
    rows = interactions([record("a", "none"), record("b", "none")], {}, parts)
    assert [(row["model"], row["stack"]) for row in rows] == [
        ("a", "int8+fora"), ("b", "int8+fora(interval=5)"),
    ]  # fmt: skip


def test_every_shipped_table_is_whole(tmp_path):
    assert len(artifact.bundled("diffsparse")) == len(
        list((artifact.BUNDLED / "diffsparse").glob("*/manifest.json"))
    )
    copy = tmp_path / "copy"
    shutil.copytree(artifact.BUNDLED / "diffsparse", copy)
    assert artifact.bundled("no-such-method") == []


def test_the_full_models_are_of_families_that_are_here():
    assert {m.family for m in FULL} >= {"dit", "pixart", "flux", "wan"}
    assert all(sources(m.family) for m in FULL if m.family != "sd3")
    assert select("full") == FULL
