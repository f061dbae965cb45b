"""Methods at matched compute: dials are turned until FLOPs agree."""

import pytest

from ditbench.match import match
from ditbench.method import find
from ditbench.models import models
from ditbench.stack import Stack


def rows(*texts, saved=0.54, model="dit-tiny"):
    return match(models()[model], [Stack.parse(text) for text in texts], saved, "bundled")


def test_dials_are_turned_until_the_saving_is_the_one_asked_for():
    found = rows("fora", "taylorseer(first=2)", "toca", "diffsparse(allocator='uniform')", "fewer_steps", "int8+fora")
    assert not [row["note"] for row in found if row["note"]]
    assert all(abs(row["saved"] - 0.54) <= 0.03 for row in found), found
    assert found[3]["saved"] == pytest.approx(0.54, abs=0.006)
    for row, text in zip(found, ("fora", "taylorseer", "toca", "diffsparse", "fewer_steps", "int8"), strict=True):
        assert row["stack"].startswith(text) and str(Stack.parse(row["stack"])) == row["stack"]
    assert "first=2" in found[1]["stack"] and found[5]["stack"].replace("int8+", "") == found[0]["stack"]


def test_what_cannot_be_turned_or_is_not_prepared_is_said():
    found = rows("int8", "firstblock", "diffsparse(learned_at=0.123)")
    assert found[0]["note"] == "nothing in int8 has a dial"
    assert "no cache for DiTTransformer2DModel" in found[1]["note"] and "has not been prepared" in found[2]["note"]
    assert all(row["saved"] is None for row in found)


def test_the_nearest_is_told_where_the_saving_is_out_of_reach():
    (row,) = rows("toca", saved=0.97)
    assert row["stack"] == "toca(ratio=0.0)" and 0.5 < row["saved"] < 0.97


@pytest.mark.parametrize(
    "name", ["fora", "toca", "duca", "taylorseer", "teacache", "delta_dit", "diffsparse", "fewer_steps", "l2c"]
)
def test_a_dial_is_a_knob_within_its_range(name):
    knob, low, high = find(name).dial
    for value in (low, high):
        assert getattr(find(name)(**{knob: value}), knob) == value
