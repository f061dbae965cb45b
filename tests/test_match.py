"""Methods at matched compute: dials are turned until FLOPs agree."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ditbench.acceleration.caching.passes import reuse_residual
from ditbench.cli.commands import main
from ditbench.method import METHODS, Stage, find, knob, method
from ditbench.method.dial import CLOSE, NEAR, as_learned, dialled, ends_taken, is_whole
from ditbench.method.stack import Stack
from ditbench.models.table import models
from ditbench.profiling import computed_steps as counting_steps
from ditbench.profiling import matched as matching
from ditbench.testing import tiny


@pytest.fixture(autouse=True)
def one_sample(monkeypatch):
    monkeypatch.setattr(matching, "SAMPLES", 1)


def rows(*texts, saved=0.5):
    model = replace(models()["dit-tiny"], steps=8)
    return matching.match(model, [Stack.parse(text) for text in texts], saved, "bundled")


def turned(text, saved, saves):
    """A dial turned by what `saves` says of its value alone."""

    def of(stack):
        (method,) = [m for m in stack.methods if m.dial]
        return saves(getattr(method, method.dial[0]))

    transformer = type("DiTTransformer2DModel", (), {})()
    pipe = SimpleNamespace(scheduler=None, transformer=transformer)
    return matching._matched(Stack.parse(text), saved, of, pipe)


@pytest.mark.parametrize(
    "text, saves",
    [
        ("fora", lambda interval: 1 - round(20 / interval) / 20),
        ("toca", lambda ratio: 0.65 - 0.5 * ratio),
        ("fewer_steps", lambda share: 1 - share),
        ("teacache", lambda threshold: 1 - 1 / (1 + threshold)),
    ],
)
@pytest.mark.parametrize("saved", [0.43, 0.54])
def test_a_dial_is_turned_until_the_saving_is_the_one_asked_for(text, saves, saved):
    row = turned(text, saved, saves)
    assert row["note"] == "" and abs(row["saved"] - saved) <= 0.03
    assert str(Stack.parse(row["stack"])) == row["stack"] and row["stack"].startswith(text)


def test_the_nearest_is_told_where_the_saving_is_out_of_reach():
    assert turned("toca", 0.97, lambda ratio: 0.6 - 0.5 * ratio) == {
        "stack": "toca(ratio=0.0)",
        "saved": 0.6,
        "note": "0.97 is out of reach: toca(ratio=0.0), where the dial ends, saves 0.600 at most",
    }
    row = turned("toca", 0.05, lambda ratio: 0.6 - 0.5 * ratio)
    assert row["stack"] == "toca(ratio=1.0)" and row["note"].endswith("saves 0.100 at least")


def whole_method():
    """A method whose dial is an integer knob."""
    METHODS.pop("whole_test", None)
    parts = {
        "attach": lambda self, pipeline, at: None,
        "dial": ("every", 1, 10),
        "every": knob(2, low=1),
        "__annotations__": {"every": int},
        "__module__": __name__,
    }
    return method("whole_test", family="test", stage=Stage.SCHEDULE)(type("Whole", (), parts))


@pytest.mark.parametrize("saved", [0.1, 0.4, 0.5, 0.66, 0.75, 0.8, 0.85])
def test_the_dial_of_an_integer_knob_is_turned_over_integers(saved):
    whole_method()

    def saves(every):
        assert type(every) is int
        return 1 - 1 / every

    row = turned("whole_test", saved, saves)
    nearest = min(range(1, 11), key=lambda every: abs(saves(every) - saved))
    assert row["saved"] == round(saves(nearest), 4)
    assert Stack.parse(row["stack"]).methods[0].every == nearest
    assert (row["note"] == "") == (abs(row["saved"] - saved) <= NEAR)
    assert dialled(saves, saved, 1, 10, whole=True)[0] == nearest
    METHODS.pop("whole_test")


@pytest.mark.parametrize(
    ("hint", "whole"),
    [(int, True), (int | None, True), (int | float, False), (float, False), (float | None, False)],
)
def test_an_integer_knob_is_known_by_its_type(hint, whole):
    assert is_whole(type("Cls", (), {"__annotations__": {"x": hint}}), "x") == whole


def taking(low, high):
    def saves(value):
        if not low <= value <= high:
            raise ValueError(f"{value} is refused")
        return float(value)

    return saves


def test_an_end_that_is_refused_is_moved_to_what_is_taken():
    assert ends_taken(taking(0, 1), 0.1, 1) == (0.1, 1)
    low, high = ends_taken(taking(0.25, 1), 0.1, 1)
    assert 0.25 <= low < 0.252 and high == 1
    low, high = ends_taken(taking(0, 0.6), 0.1, 1)
    assert low == 0.1 and 0.598 < high <= 0.6
    assert ends_taken(taking(3, 10), 1, 10, whole=True) == (3, 10)
    assert ends_taken(taking(1, 9), 1, 10, whole=True) == (1, 9)
    assert ends_taken(taking(5, 6), 1, 10, whole=True) == (5, 6)
    with pytest.raises(ValueError, match="1 is refused"):  # what is left is the end that is off
        ends_taken(taking(10, 10), 1, 10, whole=True)


def test_a_single_step_that_a_sampler_refuses_does_not_end_the_search(capsys):
    wanted = "match --saved=0.5 --models=pixart-tiny --methods=fewer_steps --steps=6 --json"
    assert main(wanted.split()) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["saved"] == 0.5 and round(6 * Stack.parse(row["stack"]).methods[0].share) == 3


def test_savings_are_those_of_real_generations():
    fora, sparse = rows("fora", "diffsparse(allocator='uniform')")
    assert abs(fora["saved"] - 0.5) <= 0.03 and fora["stack"].startswith("fora(interval=")
    assert sparse["saved"] == pytest.approx(0.5, abs=0.03) and not fora["note"] + sparse["note"]


def test_stacks_are_matched_at_the_steps_that_are_asked_for(capsys):
    command = [
        "match",
        "--saved=0.5",
        "--models=dit-tiny",
        "--methods=fewer_steps",
        "--json",
        "--steps",
    ]
    assert main([*command, "pixart-tiny=3,dit-tiny=4"]) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["saved"] == 0.5 and round(4 * Stack.parse(row["stack"]).methods[0].share) == 2
    assert main([*command, "dit-tiny=1"]) == 3  # a step cannot be halved
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["saved"] == 0 and "0.5 is out of reach" in row["note"]


def test_the_end_of_a_dial_of_shares_is_all_steps_and_not_one():
    def saves(computed):
        return 1 - (computed if isinstance(computed, float) else computed / 20)

    row = turned("schedule", 0.5, saves)
    assert row["note"] == "" and abs(row["saved"] - 0.5) < 0.01


def test_a_budget_between_two_values_of_a_dial_is_said_to_be_out_of_reach():
    row = turned("toca", 0.5, lambda ratio: 0.57 if ratio < 0.4 else 0.41)
    assert row["saved"] == 0.57
    assert row["note"] == "0.5 is out of reach: no value of the dial comes nearer than 0.570"
    row = turned("toca", 0.5, lambda ratio: 0.52 if ratio < 0.4 else 0.41)
    assert (row["saved"], row["note"]) == (0.52, "")


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("diffsparse", 0.46),
        ("diffsparse(keep=0.5, training=1)", 0.5),
        ("sparsecast", 0.46),
        ("sparsecast(learns='coefficients', coefficients='local')", 0.46),
    ],
)
def test_a_dial_that_is_learned_for_each_value_is_turned_over_what_was_learned_at_one(text, at):
    """Without `learned_at` every value would have to be prepared."""
    row = turned(text, 0.5, lambda keep: 1 - keep)
    name = text.partition("(")[0]
    learned = as_learned(Stack.parse(text).methods[0])
    assert learned.learned_at == at and learned.keep == at and as_learned(learned) is None
    assert row["saved"] is None and row["note"].startswith(f"every keep of {name} is learned by")
    assert f"learned_at={at}" in row["note"]
    again = turned(str(Stack((learned,))), 0.5, lambda keep: 1 - keep)
    assert again["note"] == "" and abs(again["saved"] - 0.5) <= CLOSE
    assert f"learned_at={at}" in again["stack"]


@pytest.mark.parametrize(
    "text",
    [
        "diffsparse(allocator='uniform')",
        "diffsparse(allocator='local')",
        "sparsecast(learns='coefficients', coefficients='one')",
        "fora",
        "l2c",
    ],
)
def test_other_dials_need_no_learned_value(text):
    assert as_learned(Stack.parse(text).methods[0]) is None
    assert turned(text, 0.5, lambda value: value / 20)["saved"] is not None


def test_what_cannot_be_turned_or_is_not_prepared_is_said():
    found = rows("int8", "firstblock", "diffsparse(learned_at=0.123)")
    assert found[0]["note"] == "nothing in int8 has a dial"
    assert (
        "no cache for DiTTransformer2DModel" in found[1]["note"]
        and "has not been prepared" in found[2]["note"]
    )
    assert all(row["saved"] is None for row in found)


def test_a_method_that_breaks_down_is_a_row_and_the_others_stay():
    METHODS.pop("breaks_test", None)
    parts = {
        "attach": lambda self, pipeline, at: at.sublayers[1000],
        "dial": ("every", 1, 4),
        "every": 1.0,
    }
    parts |= {"__annotations__": {"every": float}, "__module__": __name__}
    method("breaks_test", family="test", stage=Stage.OPERATOR)(type("Breaks", (), parts))
    broken, fora = rows("breaks_test", "fora")
    assert broken["note"] == "IndexError: list index out of range" and broken["saved"] is None
    assert fora["saved"] > 0.4


@pytest.mark.parametrize(
    "name",
    [
        "fora",
        "toca",
        "duca",
        "taylorseer",
        "teacache",
        "delta_dit",
        "diffsparse",
        "fewer_steps",
        "l2c",
        "magcache",
        "seacache",
        "easycache",
        "dicache",
        "hicache",
        "speca",
        "clusca",
        "freqca",
        "barycache",
        "meancache",
        "l2p",
        "schedule",
    ],
)
def test_a_dial_is_a_knob_within_its_range(name):
    knob, low, high = find(name).dial
    for value in (low, high):
        assert getattr(find(name)(**{knob: value}), knob) == value


def steps_of(text, computed, mean, monkeypatch):
    """The row of a stack whose mean computed steps of 20 are `mean(dial)`."""
    monkeypatch.setattr(counting_steps, "sampler_steps", lambda model, pipe: 20)
    monkeypatch.setattr(
        counting_steps,
        "computed_steps",
        lambda model, pipe, stack, weights, plugins: mean(
            getattr(stack.methods[0], stack.methods[0].dial[0])
        ),
    )
    transformer = type("DiTTransformer2DModel", (), {})()
    pipe = SimpleNamespace(scheduler=None, transformer=transformer)
    monkeypatch.setattr("ditbench.models.loading.load", lambda *_, **__: pipe)
    model = SimpleNamespace(name="some-model")
    (row,) = matching.match_steps(model, [Stack.parse(text)], computed, "bundled")
    return row


def test_a_dial_is_turned_until_as_many_steps_are_computed(monkeypatch):
    row = steps_of("teacache", 9, lambda threshold: 20 / (1 + threshold), monkeypatch)
    assert row["note"] == "" and abs(row["computed"] - 9) <= 0.3
    assert row["stack"].startswith("teacache(threshold=")
    jumps = steps_of("teacache", 9, lambda t: 20 if t < 1 else 12 if t < 2 else 6, monkeypatch)
    assert jumps["computed"] in (12, 6) and "9 steps are out of reach" in jumps["note"]
    least = steps_of("teacache", 2, lambda threshold: 20 / (1 + threshold), monkeypatch)
    assert (
        least["stack"] == "teacache(threshold=4.0)" and "2 steps are out of reach" in least["note"]
    )
    with pytest.raises(ValueError, match="20 is no number of computed steps below the 20 that"):
        steps_of("teacache", 20, lambda threshold: 20, monkeypatch)


def test_computed_steps_are_those_whose_passes_no_method_reuses(monkeypatch):
    """Of both guidance passes, and of prompts that decide apart."""
    METHODS.pop("apart_test", None)
    generations = []

    def attach(self, pipeline, at):
        at.on_start(lambda: generations.append(None))
        reuse_residual(at, lambda run, streams: at.now.step in range(1, 1 + len(generations) % 3))

    parts = {"attach": attach, "__module__": __name__}
    method("apart_test", family="test", stage=Stage.SCHEDULE, decides_per_batch=True)(
        type("Apart", (), parts)
    )
    monkeypatch.setattr(counting_steps, "PROMPTS", 6)
    subject, model = tiny("wan", steps=4), replace(models()["wan-tiny"], steps=4)
    monkeypatch.setattr("ditbench.models.sampling.sampling_of", lambda _: subject.sampling)

    def mean(text):
        stack = Stack.parse(text)
        return counting_steps.computed_steps(model, subject.pipeline, stack, "bundled")

    assert counting_steps.sampler_steps(model, subject.pipeline) == 4
    assert mean("schedule(computed=3)") == 3 and mean("fewer_steps(steps=2)") == 2
    assert mean("fewer_steps(steps=2)+schedule(computed=1)") == 1
    assert mean("apart_test") == pytest.approx(4 - (1 + 2 + 0) / 3)
    with pytest.raises(ValueError, match=r"fora replaces no whole step .* match it by --saved"):
        mean("fora")
    METHODS.pop("apart_test")
