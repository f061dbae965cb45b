"""Surfaces: what a method gives between whole steps, where the truth is known."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from report_runs import edit, lines_of, write_run

from ditbench import reports
from ditbench.analysis.surfaces import grid, surfaces
from ditbench.cli.commands import main
from ditbench.method.stack import Stack
from ditbench.records.scores import Scores
from ditbench.reports.figures.surface import CLOSEST, _apart
from ditbench.reports.publishing.surface import surface_table

N = 64
SCORE, DISTANCE = "align.shapes_v1", "perceptual.shapes_v1"
COST = {1: 100.0, 2: 200.0, 4: 400.0, 8: 800.0}
"""FLOPs, and milliseconds, of so many steps; eight are the un-accelerated model."""
TRUTH = {1: 0.5, 2: 0.7, 4: 0.85, 8: 0.9}
"""Mean score of so many whole steps."""


def method(name, **knobs):
    family = "control" if name == "fewer_steps" else "cache"
    return {"name": name, "knobs": knobs, "family": family}


def record(steps, methods, cost, seconds=None):
    stack = "+".join(f"{m['name']}{sorted(m['knobs'].items())}" for m in methods) or "none"
    call = (cost if seconds is None else seconds) / 1000
    timing = [
        {"session": "s", "round": i, "batch": 0, "size": 4, "call_s": call} for i in range(3)
    ]  # fmt: skip
    return {
        "key": stack, "model": "dit-tiny", "stack": stack, "status": "ok", "methods": methods,
        "sampling": {"steps": steps}, "flops": {"flops": cost}, "timing": timing,
    }  # fmt: skip


def scored(of, seed=0, **arrays):
    """Scores that differ from sample to sample alike in all cells, `of` on average."""
    spread = np.random.default_rng(0).normal(0, 0.05, N)
    values = of + spread - spread.mean() + np.random.default_rng(seed).normal(0, 1e-3, N)
    return Scores(samples_sha256="", arrays={SCORE: values, "group": np.arange(N), **arrays})


@pytest.fixture
def cells():
    """Whole steps, and a method at two and four steps whose score is 0.05 beyond the mixture where
    it computes half of a step and as good as the mixture where it computes nine tenths."""
    records, scores = [], {}
    for k, cost in COST.items():
        records.append(record(k, [] if k == 8 else [method("fewer_steps", steps=k)], cost))
        scores[records[-1]["key"]] = scored(TRUTH[k], seed=k)
    for k in (2, 4):
        for keep, beyond in ((0.75, 0.05), (0.9, 0.0)):
            pair = [method("fewer_steps", steps=k), method("diffsparse", keep=keep, selector="x")]
            records.append(record(k, pair, COST[k] * keep))
            weight = (COST[k] * keep - COST[k // 2]) / (COST[k] - COST[k // 2])
            mixture = (1 - weight) * TRUTH[k // 2] + weight * TRUTH[k]
            scores[records[-1]["key"]] = scored(mixture + beyond, seed=10 * k)
    return records, scores


def test_a_gain_is_the_score_beyond_requests_divided_between_whole_steps(cells):
    (surface,) = surfaces(*cells)
    assert (surface.of, surface.method, surface.dial) == ("none", "diffsparse", "keep")
    assert surface.metrics == (SCORE,)
    points = {(p.steps, p.dial): p for p in surface.points}
    assert [k for k, dial in points if dial is None] == [1, 2, 4, 8]
    for k in (2, 4):
        for cost in ("flops", "time"):
            real, none = (points[k, v].gain[cost, SCORE] for v in (0.75, 0.9))
            assert real.value == pytest.approx(0.05, abs=2e-3) and real.low > 0.04
            assert none.value == pytest.approx(0.0, abs=2e-3)
            # paired: the spread from sample to sample, 0.05, is not in it
            assert real.high - real.low < 2e-3
    assert points[4, 0.75].cost == pytest.approx({"flops": 0.375, "time": 0.375})
    assert not points[8, None].gain  # whole steps are what gains are measured from


def test_beyond_what_whole_steps_cost_there_is_no_gain_and_time_is_apart_from_flops(cells):
    records, scores = cells
    slow = record(
        2, [method("fewer_steps", steps=2), method("diffsparse", keep=0.3, selector="x")],
        cost=60.0, seconds=150.0,
    )  # fmt: skip
    (surface,) = surfaces([*records, slow], scores | {slow["key"]: scored(0.6)})
    (point,) = (p for p in surface.points if p.dial == 0.3)
    assert {cost for cost, _ in point.gain} == {"time"}  # fewer FLOPs than one whole step
    assert point.gain["time", SCORE].value == pytest.approx(0.0, abs=1e-3)
    assert point.best["flops", SCORE] and point.cost["time"] == pytest.approx(150 / 800)


def test_the_best_are_those_that_nothing_cheaper_equals(cells):
    (surface,) = surfaces(*cells)
    by_score = {(p.steps, p.dial) for p in surface.points if p.best["flops", SCORE]}
    assert {(2, 0.75), (4, 0.75), (1, None), (8, None)} <= by_score
    means = sorted((p.cost["flops"], p.quality[SCORE].value) for p in surface.points)
    best = sorted(
        (p.cost["flops"], p.quality[SCORE].value) for p in surface.points if p.best["flops", SCORE]
    )
    running, expected = -1.0, []
    for cost, value in means:
        if value > running:
            expected.append((cost, value))
            running = value
    assert best == expected


@pytest.mark.parametrize("short", ["steps", "dial", "other method"])
def test_what_does_not_span_a_plane_is_no_surface(cells, short):
    records, scores = cells
    if short == "steps":
        records = [
            r for r in records if "diffsparse" not in r["stack"] or r["sampling"]["steps"] == 2
        ]
    elif short == "dial":
        records = [r for r in records if "0.9" not in r["stack"]]
    else:  # a knob beside the dial differs: other methods
        for r in records:
            for m in r["methods"]:
                if m["knobs"].get("keep") == 0.9:
                    m["knobs"]["selector"] = "y"
        records = [r for r in records if r["sampling"]["steps"] != 4 or "0.9" not in r["stack"]]
    assert not surfaces(records, scores)


def test_the_distance_of_the_model_to_itself_is_zero(cells):
    records, scores = cells
    far = {"none": None}
    for r in records:
        if r["methods"]:
            far[r["key"]] = np.full(N, 1.0 - 0.1 * r["sampling"]["steps"])
    scores = {
        key: Scores(samples_sha256="", arrays={**s.arrays, **({} if far[key] is None else {DISTANCE: far[key]})})
        for key, s in scores.items()
    }  # fmt: skip
    (surface,) = surfaces(records, scores)
    points = {(p.steps, p.dial): p for p in surface.points}
    assert surface.metrics == (SCORE, DISTANCE)
    assert points[8, None].quality[DISTANCE].value == 0
    # a smaller distance than the mixture's is a positive gain
    mixture = 0.5 * 0.9 + 0.5 * 0.8
    assert points[2, 0.75].gain["flops", DISTANCE].value == pytest.approx(mixture - 0.8)


def test_times_that_are_not_reliable_are_held_equal_nowhere(cells):
    records, scores = cells
    for r in records:
        r["timing"] = r["timing"][:1]  # one round
    (surface,) = surfaces(records, scores)
    assert all(set(p.cost) == {"flops"} for p in surface.points)
    assert {cost for p in surface.points for cost, _ in p.gain} == {"flops"}


@pytest.mark.parametrize("rounds", [3, 1])
def test_the_report_has_a_table_a_figure_and_a_fold_for_it(tmp_path, rounds):
    stacks = [("none", "ok"), ("fewer_steps(steps=4)", "ok"), ("fewer_steps(steps=8)", "ok")]
    stacks += [(f"fewer_steps(steps={k})+fora(interval={v})", "ok") for k in (4, 8) for v in (2, 4)]
    run = write_run(
        tmp_path / "run", models=("dit-tiny", "flux-tiny"), stacks=stacks, rounds=rounds
    )

    def planned(r):
        r["sampling"]["steps"] = 20
        for m in r["methods"]:
            m["knobs"] = {name: int(value) for name, value in m["knobs"].items()}
            if "steps" in m["knobs"]:
                r["sampling"]["steps"] = m["knobs"]["steps"]
        kept = 0.7 if "fora" in r["stack"] else 1.0
        r["flops"]["flops"] = 1e9 * r["sampling"]["steps"] * kept

    edit(run, planned)
    report = reports.build([run])
    lines = lines_of(report.out / "tables" / "surface.csv")
    assert len(lines) == 2 * 7 and {line["model"] for line in lines} == {"dit-tiny", "flux-tiny"}
    assert {line["value"] for line in lines} == {"", "2.0", "4.0"}
    assert "gain at equal FLOPs" in (report.out / "tables" / "surface.md").read_text()
    for model in ("dit-tiny", "flux-tiny"):
        with Image.open(report.out / "plots" / f"{model}-surface.png") as drawn:
            assert drawn.width > 1000
    page = report.page.read_text()
    assert "Between whole steps" in page and "buy between whole steps" in page


@pytest.mark.parametrize(
    ("parts", "settings", "words"),
    [
        (["taylorseer", "fora"], ["steps=2", "interval=2"], "takes two methods"),
        (["fewer_steps"], ["steps=2", "interval=2"], "takes two methods"),
        (["fewer_steps", "int8"], ["steps=2"], "int8 has no dial"),
        (["fewer_steps", "fora"], ["steps=2", "keep=2"], "'keep' is neither steps nor interval"),
        (["fewer_steps", "fora"], ["steps=2", "interval=two"], "is no list of numbers"),
        (["fewer_steps", "fora"], ["steps=2,4"], "values of interval are missing"),
        (["fewer_steps", "fora"], ["steps=2,4", "interval=0,2"], "interval must be at least 1"),
        (["fewer_steps", "fora"], ["steps=2", "interval=2,2"], "two values of interval"),
        (["distill", "fora"], ["steps=2", "interval=2,3"], "two values of steps"),
        (["fewer_steps", "fora"], ["steps=2", "steps=4", "interval=2,3"], "steps are given twice"),
    ],
)
def test_what_makes_no_surface_is_said(parts, settings, words):
    with pytest.raises(ValueError, match=words):
        grid([Stack.parse(text) for text in parts], settings)


def test_stack_plans_a_surface_whichever_comes_first(capsys):
    words = ["--models", "flux-tiny", "--dry-run", "--json", "--surface"]
    assert main(["stack", "fora", "fewer_steps", *words, "interval=2,4", "steps=4,8"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    whole = [f"fewer_steps(steps={k})" for k in (4, 8)]
    turned = [f"fora(interval={v})" for v in (2, 4)]
    both = [f"{a}+{b}" for a in whole for b in turned]
    assert {row["stack"] for row in rows} == {"none", *whole, *turned, *both}
    assert main(["stack", "fora", "int8", *words, "interval=2"]) == 2


def test_numbers_under_a_logarithmic_axis_do_not_cover_each_other():
    kept = _apart([0.2, 0.6, 0.68, 1.0], [0.05, 1.2])
    assert kept == [0.2, 0.68, 1.0]
    gaps = np.diff(np.log(kept)) / np.log(1.2 / 0.05)
    assert gaps.min() >= CLOSEST
    assert _apart([0.1, 0.2, 0.4, 1.0], [0.05, 1.0]) == [0.1, 0.2, 0.4, 1.0]
    assert _apart([1.0], [1.0]) == [1.0]


def test_the_table_for_readmes_is_of_flops_or_of_time(cells):
    (surface,) = surfaces(*cells)
    section = SimpleNamespace(surfaces=[surface])
    gains = r"keep.*; ([+-]\d\.\d{3})"
    by_flops, by_time = surface_table(section), surface_table(section, "time")
    # what a step costs is 100 FLOPs, and 100 milliseconds
    assert re.findall(gains, by_flops) == re.findall(gains, by_time) != []
    records, scores = cells
    for r in records:
        if r["methods"] and r["methods"][-1]["name"] == "diffsparse":
            r["timing"] = [t | {"call_s": 1.2 * t["call_s"]} for t in r["timing"]]
    (slower,) = surfaces(records, scores)
    rows = [surface_table(SimpleNamespace(surfaces=[slower]), by) for by in ("flops", "time")]
    assert rows[0] == by_flops
    beyond = [re.findall(gains, table) for table in rows]
    assert all(float(b) < float(a) for a, b in zip(*beyond, strict=True) if b) and beyond[1]
    with pytest.raises(ValueError, match="'clock' is no cost of a surface"):
        surface_table(section, "clock")
