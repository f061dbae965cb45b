"""A preparation that is stopped goes on from where it was, to what it would have come to."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_learning import drawer, squared

from ditbench.acceleration.caching import learn_schedule
from ditbench.acceleration.distillation import recordings
from ditbench.acceleration.distillation.students import Recipe, prepare_student
from ditbench.acceleration.distillation.training_loop import fit
from ditbench.method import METHODS, Stage, artifact, method, prepare
from ditbench.method.half_done import Journal, half_done
from ditbench.method.needs import needs_of
from ditbench.method.stack import Stack
from ditbench.models.table import models
from ditbench.records.lock import writing_to
from ditbench.testing import tiny


class Stopped(BaseException):
    """A kill."""


def stopping_at(count, of):
    """`tell`, which is killed when it hears of so many of `of`."""

    def tell(row):
        if row.get("of") == of and row["done"] == count:
            raise Stopped

    return tell


def test_a_training_that_was_stopped_comes_to_the_same_weights_and_log(tmp_path):
    def trained(folder, tell=lambda row: None):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))

        def loss_of(step):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            return (model(x) - x.sum(1, keepdim=True)).square().mean()

        fit(model, loss_of, steps=40, lr=1e-2, folder=folder, every=10, warm_up=15, tell=tell)
        return model.state_dict()

    def rows(folder):
        return [row[:2] for row in csv.reader((folder / "loss.csv").open())]

    whole = trained(tmp_path / "whole")
    for count in (10, 30):
        with pytest.raises(Stopped):
            trained(tmp_path / "parts", stopping_at(count, 40))
    with (tmp_path / "parts" / "loss.csv").open("a") as log:
        log.write("40,0.1,7\n")  # its state was not written any more
    again = trained(tmp_path / "parts")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_calls_of_a_journal_are_made_once_until_another_is_asked_for(tmp_path):
    made = []

    def call(journal, value):
        def compute():
            made.append(value)
            return np.array([value, value / 3])

        return journal(compute, value)

    first = [call(journal, value) for journal in [Journal(tmp_path)] for value in (1, 2, 3)]
    journal = Journal(tmp_path)
    again = [call(journal, value) for value in (1, 5, 3)]
    assert made == [1, 2, 3, 5, 3]
    assert np.array_equal(again[0], first[0]) and np.array_equal(again[2], first[2])
    assert call(Journal(None), 4).tolist() == [4, 4 / 3] and made[-1] == 4


def test_a_schedule_goes_on_from_the_iteration_that_was_stopped(tmp_path):
    subject = tiny("flux", steps=4)
    recipe = learn_schedule.Recipe(keep=0.5, stage1=2, stage2=3, batch=1, selector="change")
    heard = []

    def learned(journal, tell=heard.append):
        draws = []
        draw = drawer(subject, "flux")

        def counted(seed, num):
            draws.append(seed)
            return draw(seed, num)

        args = subject.pipeline, counted, squared, 4, recipe
        return learn_schedule.learn(*args, tell=tell, journal=journal), draws

    whole, every = learned(Journal(None))

    def tell(row):
        if row["iteration"] == 1 and row["stage"] == 2:
            raise Stopped

    with pytest.raises(Stopped):
        learned(Journal(tmp_path), tell)
    again, draws = learned(Journal(tmp_path))
    assert np.array_equal(again.cost, whole.cost)
    assert np.array_equal(again.schedule.chosen, whole.schedule.chosen)
    assert again.log == whole.log and len(draws) < len(every)


@pytest.fixture
def narrow_room(monkeypatch):
    """A room of `tiny('flux')`, whose students are trained in a moment."""
    from test_distill import room_of

    monkeypatch.setattr(recordings, "CHUNK", 2)
    return room_of("flux", steps=3)


def test_a_student_that_was_stopped_is_the_one_it_would_have_been(
    narrow_room, tmp_path, monkeypatch
):
    recipe = Recipe(steps=1, recordings=4, iterations=4, batch=2, finish=2, finish_batch=1)
    drawn, draw = [], type(narrow_room).draw

    def counted(room, seed, num, **other):
        drawn.append(seed)
        return draw(room, seed, num, **other)

    monkeypatch.setattr(type(narrow_room), "draw", counted)

    def made(name, half=None, tell=lambda row: None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        drawn.clear()
        prepare_student(folder, replace(narrow_room, half_done=half, tell=tell), recipe)
        return (folder / "student.safetensors").read_bytes()

    whole, every = made("whole"), len(drawn)
    half = tmp_path / "half"
    half.mkdir()
    with pytest.raises(Stopped):
        made("stopped", half, stopping_at(1, 2))  # of two chunks of recordings
    with pytest.raises(Stopped):
        made("stopped", half, stopping_at(4, 4))  # once the jumps are learned
    assert made("parts", half) == whole and len(drawn) < every
    assert (tmp_path / "parts" / "log.csv").is_file()


@pytest.fixture
def patient(tmp_path, monkeypatch):
    """A method whose preparation is stopped as often as `KILLS` says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(artifact, "BUNDLED", tmp_path / "bundled")
    kills = [Stopped, RuntimeError]

    @method("patient_test", family="test", stage=Stage.SCHEDULE, claims={"block-schedule"})
    class Patient:
        def recipe(self):
            return {"version": 1}

        def prepare(self, folder, room):
            steps = len(list(room.half_done.glob("step-*")))
            (room.half_done / f"step-{steps}").mkdir()
            (folder / "partial.txt").write_text("half")
            room.tell({"done": steps, "of": 3})
            if kills:
                raise kills.pop()
            return {"steps_before": steps}

        def attach(self, pipeline, at):
            pass

    yield "patient_test"
    METHODS.pop("patient_test", None)


def test_what_is_half_done_waits_for_the_same_command_and_is_gone_afterwards(patient):
    heard = []

    def ready():
        models_, stack = [models()["dit-tiny"]], Stack.parse(patient)
        return prepare.prepare(models_, stack, "bundled", lambda need: heard.append)[0]

    for error in (RuntimeError, Stopped):
        with pytest.raises(error):
            ready()
    (folder,) = (artifact.OWN / patient).iterdir()
    assert folder.name.endswith(".half") and not list(folder.glob("partial.txt"))
    with writing_to(folder), pytest.raises(ValueError, match="another command writes to"):
        ready()
    row = ready()
    assert row["steps_before"] == 2 and row["interrupted"] == 2
    assert [path.name for path in (artifact.OWN / patient).iterdir()] == [row["folder"][-12:]]
    assert all({"done", "of"} <= row.keys() for row in heard)
    notes = [row["note"] for row in heard if "note" in row]
    assert f"goes on from {folder}; remove that folder to begin anew" in notes


def test_what_another_command_made_meanwhile_is_not_made_again(patient, monkeypatch):
    models_, stack, made = [models()["dit-tiny"]], Stack.parse(patient), []
    find, looked = prepare.find, []

    def found(need, root):
        """The first look is before the other command has ended."""
        looked.append(need)
        return None if len(looked) == 1 else find(need, root)

    monkeypatch.setattr(prepare, "create", lambda *given: made.append(given))
    need = needs_of(models_[0], stack, "bundled")[-1]
    other = artifact.create(need, lambda folder: {})
    monkeypatch.setattr(prepare, "find", found)
    row = prepare.prepare(models_, stack, "bundled", lambda need: lambda row: None)[0]
    assert (row["made"], row["folder"]) == (False, str(other.folder)) and not made
    assert [path.name for path in other.folder.parent.iterdir()] == [need.key]


def test_nothing_goes_on_with_another_device_or_dtype_and_nothing_is_lost(tmp_path):
    with pytest.raises(Stopped), half_done(tmp_path / "key", "cuda in bfloat16") as own:
        own.listening(lambda row: None)({"done": 0, "of": 2})
        (own.folder / "state").write_text("kept")
        raise Stopped
    sentence = "this preparation by cuda in bfloat16, and this command asks for cpu in float32"
    with pytest.raises(ValueError, match=sentence), half_done(tmp_path / "key", "cpu in float32"):
        raise AssertionError("it began")
    with half_done(tmp_path / "key", "cuda in bfloat16") as own:
        assert own.commands == 1 and (own.folder / "state").read_text() == "kept"


def test_what_a_killed_command_was_about_to_write_is_removed(tmp_path):
    for name in (".key.7.partial", ".other.7.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("part")
    with half_done(tmp_path / "key"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".other.7.partial"]


@pytest.mark.parametrize(
    ("stack", "sentence"),
    [
        ("stitch(decide='confidence',small='pixart-tiny')", "dit-tiny: stitch: "),
        (
            "distill+fpsattention(trained=True)",
            "fpsattention: its finetuned weights take the places",
        ),
        ("teacache(saved=0.3)+diffsparse", "both claim block-schedule"),
    ],
)
def test_what_could_not_be_run_is_not_prepared(stack, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        prepare.prepare(
            [models()["dit-tiny"]], Stack.parse(stack), "bundled",
            lambda need: lambda row: None, tmp_path,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_seconds_are_those_of_all_commands(tmp_path, monkeypatch):
    from ditbench.method import half_done as module

    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with pytest.raises(Stopped), half_done(tmp_path / "key") as own:
        hear = own.listening(lambda row: None)
        hear({"done": 0, "of": 2})
        now[0] += 30
        hear({"done": 1, "of": 2})
        raise Stopped
    with half_done(tmp_path / "key") as own:
        assert (own.earlier, own.commands) == (30, 1)
    assert not list(tmp_path.iterdir())
    with half_done(tmp_path / "key") as own:
        assert (own.earlier, own.commands) == (0, 0)
    with pytest.raises(Stopped), half_done(tmp_path / "key"):
        raise Stopped
    assert not list(tmp_path.iterdir())  # nothing was kept


@pytest.mark.parametrize("begin", ["squares", "best"])
def test_forecasts_go_on_from_the_iteration_that_was_stopped(begin, narrow_room, tmp_path):
    from ditbench.acceleration.caching.forecast_recipe import Recipe
    from ditbench.acceleration.caching.learn_forecast import prepare_forecast

    recipe = Recipe(keep=0.6, begin=begin, together=2, alone=3, batch=1, trial_batch=1, trials=1)

    def made(name, half=None, tell=lambda row: None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        notes = prepare_forecast(folder, replace(narrow_room, half_done=half, tell=tell), recipe)
        return notes, (folder / "forecast.safetensors").read_bytes()

    def tell(row):
        if (row.get("stage"), row.get("iteration")) == (2, 1):
            raise Stopped

    half = tmp_path / "half"
    with pytest.raises(Stopped):
        made("stopped", half, tell)
    before = len(list((half / "journal").iterdir()))
    assert made("parts", half) == made("whole")
    assert len(list((half / "journal").iterdir())) > before > 3
