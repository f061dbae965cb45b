"""Artefacts: keyed by what they depend on, whole or absent, never made by a run, and named when
missing or damaged."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ditbench.acceleration.caching.schedule import Schedule
from ditbench.cli import main
from ditbench.method import METHODS, Stage, artifact, knob, method, prepare, preparing
from ditbench.method.needs import needs_of, resolve
from ditbench.method.probe import Trainee
from ditbench.method.stack import Stack
from ditbench.models.requests import make_requests, training_requests
from ditbench.models.table import models
from ditbench.runner.plan import plan
from ditbench.runner.spec import Spec


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(artifact, "BUNDLED", tmp_path / "bundled")


SEEN = []
"""Noise seeds of the first requests of every preparation."""


@pytest.fixture
def trained():
    """A method that has to be prepared: it writes how often it was asked to."""
    METHODS.pop("trained_test", None)

    @method("trained_test", family="test", stage=Stage.SCHEDULE, claims={"block-schedule"})
    class Trained:
        size: int = knob(3)
        speed: float = knob(1.0)
        training: int = knob(0, low=0, high=15)

        def recipe(self):
            return {"version": 1, "size": self.size}

        def prepare(self, folder, room):
            (folder / "table.txt").write_text(
                f"{room.model.name} {room.below} {room.sampling.steps} {self.size}"
            )
            SEEN.append([g.initial_seed() for g in room.draw(0, 3)["generator"]])
            room.tell({"done": 1, "of": 1})
            return {"note": "made"}

        def attach(self, pipeline, at):
            at.count((at.artifact / "table.txt").read_text())

    yield "trained_test"
    METHODS.pop("trained_test", None)


def need(stack, model="dit-tiny"):
    (found,) = needs_of(models()[model], Stack.parse(stack), "bundled")
    return found


def ready(stack, model="dit-tiny"):
    return prepare.prepare(
        [models()[model]], Stack.parse(stack), "bundled", lambda need: lambda row: None
    )


def test_a_cell_without_its_artefact_is_refused_with_the_command_and_planned_once_it_is_there(
    trained,
):
    spec = Spec(models=("dit-tiny",), methods=(f"fora+{trained}", trained), num_samples=4)
    cells = {str(cell.stack): cell for cell in plan(spec)}
    told = (
        "trained_test has not been prepared for dit-tiny with 20 steps; "
        "python run_bench.py prepare 'trained_test' --models dit-tiny does it"
    )
    assert cells[trained].refusal == told
    (row,) = ready(trained)
    assert row["made"] and row["note"] == "made" and json.loads(json.dumps(row)) == row
    assert not ready(trained)[0]["made"]
    cell = next(c for c in plan(spec) if str(c.stack) == trained)
    assert cell.refusal == "" and cell.needs[0].key == need(trained).key


def test_keys_know_recipe_steps_weights_and_the_stack_below_but_not_running_knobs(trained):
    plain = need(trained)
    assert need("trained_test(speed=2.0)").key == plain.key
    others = {
        need("trained_test(size=4)").key,
        need("int8+trained_test").key,
        need("fewer_steps(steps=10)+trained_test").key,
    }
    assert len(others | {plain.key, need(trained, "pixart-tiny").key}) == 5
    assert replace(plain, model="another name").key == plain.key
    assert need("int8+trained_test").below == "int8"


def test_every_training_has_a_key_a_command_and_requests_of_its_own(trained):
    SEEN.clear()
    stacks = [trained, "trained_test(training=1)", "trained_test(training=15)"]
    needs = [need(stack) for stack in stacks]
    assert (
        len({n.key for n in needs}) == 3
        and "training" not in needs[0].recipe
        and needs[1].recipe["training"] == 1
    )
    assert "prepare 'trained_test(training=1)' --models dit-tiny" in needs[1].sentence
    for stack in stacks:
        assert ready(stack)[0]["made"]
    assert len({seed for seeds in SEEN for seed in seeds}) == 9
    with pytest.raises(ValueError, match="training must be at least 0 and at most 15, not 16"):
        Stack.parse("trained_test(training=16)")


def test_what_is_learned_on_top_of_another_training_is_another_table():
    tables = [
        "distill+diffsparse",
        "distill(training=1)+diffsparse",
        "distill+diffsparse(training=1)",
    ]
    keys = {needs_of(models()["dit-tiny"], Stack.parse(t), "bundled")[1].key for t in tables}
    assert len(keys) == 3
    with pytest.raises(ValueError, match="takes a training or a given student, not both"):
        Stack.parse("distill(student='s', training=1)")


def test_the_first_training_keeps_the_keys_of_what_comes_along(monkeypatch):
    monkeypatch.undo()
    for stack in ("diffsparse", "distill", "distill+diffsparse", "l2c", "teacache(saved=0.43)"):
        for found in needs_of(models()["pixart-tiny"], Stack.parse(stack), "bundled"):
            assert (artifact.BUNDLED / found.folder / artifact.MANIFEST).is_file(), found.sentence


@pytest.mark.parametrize(
    ("stack", "cautious"),
    [
        ("l2c", ["flux-tiny", "wan-tiny"]),
        ("int8+l2c", ["flux-tiny", "wan-tiny"]),
        ("l2c(price=0.001)", []),
        ("l2c(threshold=0.5)", []),
        ("diffsparse", []),
    ],
)
def test_what_would_reuse_nothing_is_said_before_it_is_trained(
    monkeypatch, capsys, stack, cautious
):
    from ditbench.cli.commands import main

    def stop(*_, **__):
        raise ValueError("here it would be trained")

    monkeypatch.setattr("ditbench.method.prepare.prepare", stop)
    assert main(["prepare", stack, "--models", "tiny"]) == 2
    *cautions, last = capsys.readouterr().err.splitlines()
    assert last == "ditbench: here it would be trained"
    assert [line.split(": ")[1] for line in cautions] == cautious
    assert all("no score of l2c came out at or below 0.1 here" in line for line in cautions)


def test_what_is_prepared_reaches_the_method(trained):
    from ditbench.testing import tiny

    ready(trained)
    folders = {
        name: a.folder
        for name, a in resolve(models()["dit-tiny"], Stack.parse(trained), "bundled").items()
    }
    with Stack.parse(trained).attached(tiny("dit").pipeline, folders) as attached:
        assert attached.counters() == {"trained_test.dit-tiny none 20 3": 1}


def test_a_failed_preparation_leaves_nothing(trained, monkeypatch):
    def fail(self, folder, room):
        (folder / "half.txt").write_text("half")
        raise RuntimeError("stopped")

    monkeypatch.setattr(METHODS[trained], "prepare", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        ready(trained)
    assert artifact.find(need(trained)) is None and not list(artifact.OWN.rglob("*.txt"))


def test_a_card_that_a_full_disk_left_out_is_written_by_the_next_preparation(
    trained, monkeypatch, capsys
):
    from ditbench.cli.commands import main

    words = ["prepare", trained, "--models", "dit-tiny"]

    def full(folder, stem, *_):
        raise OSError(28, "No space left on device", f"{folder}/{stem}.png")

    with monkeypatch.context() as patch:
        patch.setattr(
            "ditbench.reports.figures.training_curve.draw_training", lambda f: full(f, "x")
        )
        assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("x.png: No space left on device")
    made = artifact.find(need(trained))
    assert made is not None and not (made.folder / "README.md").exists()
    assert (
        main(words) == 0 and "trained_test for dit-tiny" in (made.folder / "README.md").read_text()
    )


def test_a_note_that_no_record_holds_is_named_and_scalars_of_numpy_are_kept(trained, monkeypatch):
    monkeypatch.setattr(
        METHODS[trained], "prepare", lambda self, folder, room: {"held_out": np.float32("nan")}
    )
    with pytest.raises(ValueError, match="the note held_out of trained_test's preparation is nan"):
        ready(trained)
    assert artifact.find(need(trained)) is None
    monkeypatch.setattr(
        METHODS[trained], "prepare", lambda self, folder, room: {"held_out": np.float32(0.5)}
    )
    assert ready(trained)[0]["held_out"] == 0.5


def test_what_is_below_is_found_in_the_folder_everything_is_made_in(trained, tmp_path):
    """`--out` elsewhere: the methods on top are prepared with what was just made there, not with
    what is nowhere."""

    @method("above_test", family="test", stage=Stage.COMPILE, claims={"compile"})
    class Above:
        def recipe(self):
            return {"version": 1}

        def prepare(self, folder, room):
            return {"below": (room.prepared[trained] / "table.txt").read_text()}

        def attach(self, pipeline, at):
            pass

    try:
        told = (lambda need: lambda row: None), tmp_path / "elsewhere"
        rows = prepare.prepare(
            [models()["dit-tiny"]], Stack.parse(f"{trained}+above_test"), "bundled", *told
        )
        assert [row["made"] for row in rows] == [True, True] and rows[1][
            "below"
        ] == "dit-tiny none 20 3"
        rows = prepare.prepare(
            [models()["dit-tiny"]], Stack.parse(f"{trained}+above_test"), "bundled", *told
        )
        assert [row["made"] for row in rows] == [False, False]
    finally:
        METHODS.pop("above_test", None)


def test_a_damaged_artefact_is_named(trained):
    ready(trained)
    path = artifact.find(need(trained)).folder / "table.txt"
    path.write_text("other")
    with pytest.raises(
        ValueError, match=r"table.txt is damaged or missing; remove .*prepare 'trained_test'"
    ):
        artifact.find(need(trained))
    assert (
        "damaged" in plan(Spec(models=("dit-tiny",), methods=(trained,), num_samples=4))[1].refusal
    )


def test_a_stack_that_needs_nothing_is_told():
    with pytest.raises(ValueError, match="nothing in fora has to be prepared"):
        ready("fora")


def test_diffsparse_names_its_command():
    cells = plan(
        Spec(
            models=("pixart-tiny",),
            methods=("diffsparse", "diffsparse(allocator='uniform')"),
            num_samples=4,
        )
    )
    assert "python run_bench.py prepare 'diffsparse' --models pixart-tiny" in cells[1].refusal
    assert cells[2].refusal == ""


def test_a_learned_table_is_of_one_budget_and_a_measured_one_of_all():
    at = {keep: need(f"diffsparse(keep={keep})").key for keep in (0.46, 0.57)}
    assert at[0.46] != at[0.57] == need("diffsparse(keep=0.46, learned_at=0.57)").key
    assert "prepare 'diffsparse(keep=0.57)'" in need("diffsparse(keep=0.57)").sentence
    measured = {
        need(f"diffsparse(allocator='sensitivity', keep={keep})").key for keep in (0.46, 0.57)
    }
    assert len(measured) == 1 and not measured & set(at.values())


def test_a_file_a_knob_names_is_part_of_the_cell_and_refuses_it_when_missing(tmp_path):
    spec = Spec(models=("dit-tiny",), methods=("diffsparse(schedule='s.json')",), num_samples=4)
    assert "there is no schedule s.json; python run_bench.py prepare" in plan(spec)[1].refusal
    keys = set()
    for level in (1, 2, 1):
        chosen = np.full((20, 1), level)
        Schedule(sublayers=("0.self",), chosen=chosen).write(tmp_path / "s.json")
        assert not plan(spec)[1].refusal
        keys.add(plan(spec)[1].key)
    assert len(keys) == 2


@pytest.mark.parametrize("name", ["dit-tiny", "pixart-tiny", "dit-xl-2-256", "flux-1-dev"])
def test_training_requests_are_disjoint_from_every_evaluation(name):
    model = models()[name]
    trained = {r.seed for seed in range(3) for r in training_requests(model, 64, seed)}
    asked = {r.seed for seed in range(3) for r in make_requests(model, 64, seed)}
    assert len(trained) == 192 and not trained & asked


def test_what_is_tuned_alone_is_prepared_on_the_plain_model_and_its_steps(trained):
    def needs(text):
        return {
            n.method: n for n in needs_of(models()["pixart-tiny"], Stack.parse(text), "bundled")
        }

    alone, stacked = needs("distill+diffsparse(tuned='alone')"), needs("distill+diffsparse")
    assert alone["diffsparse"].key == needs("diffsparse")["diffsparse"].key
    assert (alone["diffsparse"].below, alone["diffsparse"].steps) == ("none", 20)
    assert (stacked["diffsparse"].below, stacked["diffsparse"].steps) == ("distill", 4)
    assert alone["distill"].key == stacked["distill"].key == needs("distill")["distill"].key
    assert "prepare 'distill+diffsparse' --models pixart-tiny" in stacked["diffsparse"].sentence


def test_fewer_steps_are_below_whatever_is_prepared_though_they_attach_later():
    def needs(text):
        (need,) = needs_of(models()["pixart-tiny"], Stack.parse(text), "bundled")
        return need

    fewer = needs("fewer_steps+diffsparse")
    assert (fewer.below, fewer.steps) == ("fewer_steps", 10)
    assert "prepare 'fewer_steps+diffsparse' --models pixart-tiny" in fewer.sentence
    assert fewer.key != needs("diffsparse").key
    frozen = needs("fewer_steps+diffsparse(tuned='alone')")
    assert frozen.key == needs("diffsparse").key
    assert needs("fewer_steps+teacache(saved=0.43)").steps == 10


def test_what_is_prepared_below_is_in_place_when_the_next_is_prepared(trained, monkeypatch):
    seen = {}

    @method("above_test", family="test", stage=Stage.COMPILE, claims={"compile"})
    class Above:
        def recipe(self):
            return {"version": 1}

        def prepare(self, folder, room):
            probe = Trainee()
            probe.attach, probe.traits = (
                lambda pipeline, at: None,
                replace(Trainee.traits, claims=frozenset()),
            )
            with room.attached(probe) as attached:
                seen.update(attached.counters())
            return {}

        def attach(self, pipeline, at):
            pass

    try:
        ready(f"{trained}+above_test")
    finally:
        METHODS.pop("above_test", None)
    assert seen == {f"{trained}.dit-tiny none 20 3": 1}


def test_autocast_is_for_trainings_that_say_so_and_in_no_key(trained, monkeypatch, capsys):
    words = ["prepare", trained, "--models", "dit-tiny", "--autocast"]
    assert main(words) == 2
    assert (
        f"{trained} cannot be prepared with autocast; leave --autocast out"
        in capsys.readouterr().err
    )
    products = []

    def multiply(self, folder, room):
        products.append(torch.ones(2, 2) @ torch.ones(2, 2))
        return {"note": "made"}

    monkeypatch.setattr(METHODS[trained], "autocasts", True)
    monkeypatch.setattr(METHODS[trained], "prepare", multiply)
    assert main(words) == 0 and products[0].dtype == torch.bfloat16
    artifacts = resolve(models()["dit-tiny"], Stack.parse(trained), "bundled")
    assert artifacts[trained].manifest["notes"]["autocast"] == "bfloat16"
    how = preparing.Preparing(autocast=True)
    assert how.flags == ("--autocast",) and how.arithmetic == "cpu in float32 with autocast"
    assert (
        needs_of(models()["dit-tiny"], Stack.parse(trained), "bundled", preparing=how)[0].key
        == need(trained).key
    )


def test_weights_that_change_are_cast_anew_under_autocast():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    with preparing.Preparing(autocast=True).context():
        before = torch.nn.functional.linear(torch.ones(1, 2), weight)
        with torch.no_grad():
            weight.fill_(3)
        after = torch.nn.functional.linear(torch.ones(1, 2), weight)
    assert (before == 2).all() and (after == 6).all()
