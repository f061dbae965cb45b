"""Searches for a schedule: they find the best of a small space, keep to their trials, and are
prepared for a pipeline."""

from __future__ import annotations

import csv
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from ditbench.acceleration.caching import prepare_steps as preparing
from ditbench.acceleration.caching.fixed_steps import by_rule, written
from ditbench.acceleration.caching.search_steps import (
    Trials,
    finalists,
    least_error,
    neighbours,
    proposal,
    search,
)
from ditbench.method.prepare import Workroom
from ditbench.method.stack import Stack
from ditbench.models.table import models
from ditbench.testing import tiny

T, COUNT = 12, 5
BEST = (0, 1, 3, 6, 10)


def rugged(chosen):
    """How far a schedule is from `BEST`, with ripples that climbing alone is caught in."""
    distance = sum(abs(a - b) for a, b in zip(chosen, BEST, strict=True))
    return distance + 0.7 * np.sin(5.0 * sum(chosen))


SPACE = {(0, *rest): rugged((0, *rest)) for rest in itertools.combinations(range(1, T), COUNT - 1)}
BY_LOSS = sorted(SPACE, key=SPACE.__getitem__)


@pytest.mark.parametrize("how", ["annealing", "climbing"])
@pytest.mark.parametrize("seed", range(4))
def test_a_search_finds_one_of_the_best_in_a_third_of_the_space(how, seed):
    trials = Trials(rugged, 110)
    starts = [by_rule(rule, COUNT, T) for rule in ("geometric", "uniform")]
    ends = search(trials, how, starts, T, np.random.default_rng(seed))
    assert ends[0] in BY_LOSS[:3] and len(trials.losses) <= 110 < len(SPACE) / 2
    assert list(trials.losses)[:2] == starts
    for a, b in itertools.combinations(ends, 2):
        assert len(set(a) ^ set(b)) >= 4


def test_a_search_is_the_same_again_and_ends_where_all_is_tried():
    def run(count, steps, most):
        trials = Trials(lambda chosen: float(sum(chosen)), most)
        starts = [by_rule("uniform", count, steps)]
        return search(trials, "annealing", starts, steps, np.random.default_rng(0)), trials

    assert run(5, 12, 40)[0] == run(5, 12, 40)[0]
    ends, trials = run(2, 4, 1000)
    assert ends[0] == (0, 1) and set(trials.losses) == {(0, 1), (0, 2), (0, 3)}
    for count, steps in ((1, 6), (6, 6)):
        assert run(count, steps, 10)[0] == [by_rule("uniform", count, steps)]


def test_moves_keep_the_first_step_and_the_count():
    rng = np.random.default_rng(0)
    start = (0, 2, 5, 9)
    for other in [*neighbours(start, 10), *(proposal(start, 10, rng) for _ in range(50))]:
        assert other[0] == 0 and len(set(other)) == 4 and max(other) < 10
        assert len(set(other) & set(start)) == 3
    assert len(set(neighbours(start, 10))) == len(list(neighbours(start, 10)))


def test_finalists_differ():
    trials = Trials(lambda chosen: float(sum(chosen)), 100)
    for chosen in ((0, 1, 2), (0, 1, 3), (0, 3, 4), (0, 5, 6), (0, 8, 9)):
        trials(chosen)
    assert finalists(trials) == [(0, 1, 2), (0, 3, 4), (0, 5, 6)]


def test_the_dynamic_programme_is_exact():
    """Against all paths with the gaps it may take."""
    rng = np.random.default_rng(3)
    error = rng.random((T, T))
    error[0] = 0
    cost = np.cumsum(error, 1) * (np.arange(T) ** 2)[:, None]
    gaps = range(1, 4)  # 12 / 5 is 2, and one less or more

    def total(chosen):
        pairs = list(itertools.pairwise(chosen))
        if any(b - a not in gaps for a, b in pairs):
            return np.inf
        return sum(cost[b - a - 1, b] for a, b in pairs)

    paths = [(0, *rest, T - 1) for rest in itertools.combinations(range(1, T - 1), COUNT - 2)]
    chosen = least_error(error, COUNT)
    assert total(chosen) == min(map(total, paths)) < np.inf
    assert least_error(error, 1) == (0,) and least_error(error, T) == tuple(range(T))
    assert least_error(error, 2) == (0, T - 1)


def room_of(kind, steps, rows):
    subject = tiny(kind, steps=steps)
    model = replace(models()[f"{kind}-tiny"], steps=steps)
    return subject, Workroom(
        pipe=subject.pipeline, model=model, below=Stack(), sampling=subject.sampling,
        tell=rows.append,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "knobs"),
    [
        ("flux", "search='climbing', trials=6, between='taylor', computed=3"),
        ("wan", "search='dp', computed=0.5"),
        ("dit", "trials=4, computed=2"),
    ],
)
def test_a_schedule_is_searched_for_a_pipeline_and_used(monkeypatch, tmp_path, kind, knobs):
    monkeypatch.setattr(preparing, "REQUESTS", 1)
    monkeypatch.setattr(preparing, "HELD_OUT", 2)
    monkeypatch.setattr(preparing, "GENERATION", 1)
    rows = []
    subject, room = room_of(kind, 6, rows)
    text = f"schedule(steps='searched', {knobs})"
    (schedule,) = Stack.parse(text).methods
    notes = schedule.prepare(tmp_path, room)
    (chosen,), steps = preparing.read_steps(tmp_path)
    assert steps == 6 and chosen == written(notes["steps"]) and len(chosen) == (3, 2)[kind == "dit"]
    assert rows[-1]["done"] == rows[-1]["of"]
    if schedule.search != "dp":
        log = list(csv.DictReader((tmp_path / "log.csv").open()))
        assert len(log) == schedule.trials and all(float(row["loss"]) > 0 for row in log)
        held_out = [notes["loss_held_out_geometric"], notes["loss_held_out_uniform"]]
        assert notes["loss_held_out"] <= min(held_out)
    samples = {}
    for name in (text, f"schedule(steps='{notes['steps']}', between='{schedule.between}')"):
        with Stack.parse(name).attached(subject.pipeline, {"schedule": tmp_path}) as attached:
            attached.start(6, 1)
            samples[name] = subject.generate(subject.sampling, [0])
            assert attached.notes() == {"schedule.steps": notes["steps"]}
    assert torch.equal(*samples.values())


def test_a_schedule_of_another_length_or_none_is_refused(tmp_path):
    subject = tiny("dit", steps=4)
    stack = Stack.parse("schedule(steps='searched')")
    with (
        pytest.raises(ValueError, match="schedule has not been prepared for this model"),
        stack.attached(subject.pipeline),
    ):
        pass
    preparing.write_steps(tmp_path, [(0, 2)], 5)
    with stack.attached(subject.pipeline, {"schedule": tmp_path}) as attached:
        attached.start(4, 1)
        with pytest.raises(ValueError, match="is for 5 sampler steps, and the scheduler makes 4"):
            subject.generate(subject.sampling, [0])
    (tmp_path / "steps.json").write_text('{"format": "ditbench steps 1", "steps": 4}')
    with pytest.raises(ValueError, match=r"steps\.json holds no schedule"):
        preparing.read_steps(tmp_path)


def test_the_key_of_a_search_is_what_it_depends_on():
    def recipe(knobs):
        return Stack.parse(f"schedule({knobs})").methods[0].recipe()

    assert recipe("steps='uniform'") is recipe("steps='searched', computed=1.0") is None
    annealing = recipe("steps='searched'")
    assert annealing == {
        "version": 1, "search": "annealing", "computed": 0.5, "between": "reuse", "order": 0,
        "trials": 100,
    }  # fmt: skip
    # accumulated errors do not depend on what stands between
    dp = "steps='searched', search='dp'"
    assert recipe(dp) == recipe(f"{dp}, between='taylor'")


def test_errors_are_the_cosine_distances_of_one_generation(tmp_path):
    _, room = room_of("flux", 4, [])
    error = preparing.measured_errors(room)
    assert error.shape == (4, 4) and not error[0].any() and not np.tril(error, -1).any()
    assert (error[1, 1:] > 0).all() and (error < 2).all()


def test_decibels_of_a_known_difference():
    dense = torch.zeros(2, 3, 4)
    latents = torch.stack([torch.full((3, 4), 0.1), torch.full((3, 4), 1.0)])
    assert preparing.decibels(latents, dense) == pytest.approx((-20 + 0) / 2)
