"""The frontier of quality against time, and the probability of being on it."""

import csv
import itertools

import numpy as np
import pytest
from report_runs import write_run

from ditbench import reports
from ditbench.reports.sections.frontier import DRAWS, dominated, frontier, probabilities
from ditbench.reports.sections.section import read_sections

M = "align.shapes_v1"


def row(key, seconds, value, se=0.0, spread=1.0, better="higher", status="ok"):
    """`spread`: high over low of the speed-up against a baseline of one second."""
    factor = 1 / seconds
    told = {"value": factor, "low": factor / spread**0.5, "high": factor * spread**0.5}
    delta = {"value": value, "low": None, "high": None, "se": se}
    entry = {
        "value": {"value": value},
        "level": value,
        "against_none": False,
        "delta": None if key == "none" else delta,
        "better": better,
    }
    return {
        "key": key, "status": status, "baseline": key == "none", "speedup_call": told,
        "timing": {"call_s": {"value": seconds}},
        "quality": {M: entry},
    }  # fmt: skip


def keys(rows):
    return [r["key"] for r in rows]


def test_the_frontier_is_what_a_slow_search_finds():
    rng = np.random.default_rng(0)
    rows = [row(str(i), t, q) for i, (t, q) in enumerate(rng.integers(1, 8, (30, 2)).tolist())]

    def beaten(a, b):
        (t, q), (u, r) = (
            (x["timing"]["call_s"]["value"], x["quality"][M]["level"]) for x in (a, b)
        )
        return u <= t and r >= q and (u < t or r > q)

    free = [r for r in rows if not any(beaten(r, other) for other in rows)]
    places = {(r["timing"]["call_s"]["value"], r["quality"][M]["level"]) for r in free}
    found = frontier(rows, M)
    assert {(r["timing"]["call_s"]["value"], r["quality"][M]["level"]) for r in found} == places
    assert [r["timing"]["call_s"]["value"] for r in found] == sorted(t for t, _ in places)


def test_lower_may_be_better():
    rows = [
        row(k, t, q, better="lower")
        for k, t, q in (("a", 1.0, 5.0), ("b", 2.0, 3.0), ("c", 3.0, 4.0))
    ]
    assert keys(frontier(rows, M)) == ["a", "b"]
    x, y = dominated(rows, M)
    assert x.tolist() == [1, 2, 2] and y.tolist() == [5, 5, 3]


def test_without_errors_the_probability_is_nought_or_one():
    rows = [row("none", 1.0, 0.0), row("a", 0.5, -0.1), row("b", 0.7, -0.2)]
    assert probabilities(rows, M) == {"none": 1.0, "a": 1.0, "b": 0.0}


def test_the_probability_is_that_of_two_normals():
    """b is as fast as a for certain, so it is on the frontier when its quality is the higher
    draw."""
    rows = [row("none", 1.0, 0.0), row("a", 0.5, 0.01, se=0.01), row("b", 0.5, 0.0, se=0.02)]
    chance = 0.3274  # P(N(-0.01, sqrt(0.01^2 + 0.02^2)) > 0)
    found = probabilities(rows, M)
    assert abs(found["b"] - chance) < 4 * np.sqrt(chance * (1 - chance) / DRAWS)
    assert abs(found["a"] + found["b"] - 1) < 1e-12
    assert found == probabilities(rows, M)


def test_an_uncertain_time_is_drawn_on_its_logarithm():
    certain = [row("none", 1.0, 0.0), row("a", 0.5, -0.1), row("b", 0.52, -0.1)]
    unsure = [
        row("none", 1.0, 0.0),
        row("a", 0.5, -0.1, spread=1.5),
        row("b", 0.52, -0.1, spread=1.5),
    ]
    assert probabilities(certain, M)["b"] == 0
    assert 0.3 < probabilities(unsure, M)["b"] < 0.5


def test_a_row_without_a_time_beside_the_baselines_is_never_on_it():
    rows = [row("none", 1.0, 0.0), row("a", 0.1, 1.0) | {"speedup_call": None}, row("b", 0.5, 0.1)]
    assert keys(frontier(rows, M)) == ["b"] and set(probabilities(rows, M)) == {"none", "b"}


def test_the_probability_stands_in_the_tables(tmp_path):
    folder = write_run(tmp_path / "run", n=40)
    report = reports.build([folder])
    text = (folder / "report/tables/quality.md").read_text()
    (section,) = read_sections([folder])
    chances = probabilities(section.rows, M)
    assert f"{M} on frontier" in text and "On frontier: the probability" in text
    found = {line["key"]: line["frontier"] for line in csv.DictReader((folder / "report/tables/quality.csv").open())
             if (line["metric"], line["part"]) == (M, "")}  # fmt: skip
    assert {key: float(told) for key, told in found.items() if told} == pytest.approx(chances)
    assert "On frontier" in report.page.read_text()


def test_only_rows_that_ran_and_were_scored_can_be_on_it(tmp_path):
    (section,) = read_sections([write_run(tmp_path / "run", n=40)])
    found = probabilities(section.rows, M)
    measured = {r["key"] for r in section.rows if r["status"] == "ok"}
    assert set(found) == measured and set(keys(frontier(section.rows, M))) <= measured
    for a, b in itertools.pairwise(frontier(section.rows, M)):
        assert a["quality"][M]["level"] < b["quality"][M]["level"]
    assert probabilities([row("a", 1.0, 0.0, status="failed")], M) == {}
