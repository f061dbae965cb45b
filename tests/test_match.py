"""Methods at matched compute: dials are turned until FLOPs agree."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from ditbench.method import METHODS, Stage, find, method
from ditbench.method.stack import Stack
from ditbench.models.table import models
from ditbench.profiling import matched as matching


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
        "note": "",
    }


def test_savings_are_those_of_real_generations():
    fora, sparse = rows("fora", "diffsparse(allocator='uniform')")
    assert abs(fora["saved"] - 0.5) <= 0.03 and fora["stack"].startswith("fora(interval=")
    assert sparse["saved"] == pytest.approx(0.5, abs=0.03) and not fora["note"] + sparse["note"]


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
    ],
)
def test_a_dial_is_a_knob_within_its_range(name):
    knob, low, high = find(name).dial
    for value in (low, high):
        assert getattr(find(name)(**{knob: value}), knob) == value
