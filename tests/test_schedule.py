"""Schedules as files, the programme that spends a budget, and schedules that need no training."""

import itertools
import json
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ditbench import schedule, selectors
from ditbench.anatomy import sublayers
from ditbench.budget import DENSE, row_weights, solve, solved, spent, untrained
from ditbench.programme import allocate
from ditbench.schedule import LEVELS, Schedule, looked_at
from ditbench.stack import Stack
from ditbench.testing import KINDS, tiny

NAMES = ("0.self", "0.mlp")


def made(rows=((4, 4), (0, 2), (1, 3))):
    return Schedule(sublayers=NAMES, chosen=np.array(rows), notes={"from": "a test"})


def test_a_schedule_reads_back_and_is_readable(tmp_path):
    made().write(tmp_path / "s.json")
    back = Schedule.read(tmp_path / "s.json")
    assert (
        back.sublayers == NAMES
        and back.notes == {"from": "a test"}
        and back.chosen.tolist() == [[4, 4], [0, 2], [1, 3]]
    )
    assert json.loads((tmp_path / "s.json").read_text())["steps"] == ["44", "02", "13"]
    assert back.keep.tolist() == [[1, 1], [0, 0.5], [0.25, 0.75]]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"steps": ["44", "0"]}, "every step must have 2 digits"),
        ({"steps": ["44", "05"]}, "a digit is above 4"),
        ({"steps": ["44", "0x"]}, "not a whole schedule"),
        ({"levels": [0, 0.25, 0.5, 0.75, 1.5]}, "not all shares between 0 and 1"),
        ({"format": "other"}, "not a schedule"),
    ],
)
def test_a_schedule_that_is_none_is_named_in_one_sentence(tmp_path, change, told):
    path = tmp_path / "s.json"
    made().write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=told) as error:
        Schedule.read(path)
    assert "s.json" in str(error.value) and "\n" not in str(error.value)


def test_an_absent_schedule_names_the_command(tmp_path):
    with pytest.raises(ValueError, match="prepare diffsparse"):
        Schedule.read(tmp_path / "none.json")


def test_a_schedule_of_another_model_or_length_is_refused_and_stretched_where_that_is_asked_for():
    with pytest.raises(ValueError, match=r"2 sub-layers.*3 .*prepare"):
        made().fitted(["0.self", "0.cross", "0.mlp"], 3, "prepare")
    with pytest.raises(
        ValueError, match="the schedule is for 3 sampler steps, and the scheduler makes 5; prepare makes one"
    ):
        made().fitted(NAMES, 5, "prepare")
    longer = made().fitted(NAMES, 5, "prepare", stretch=True)
    assert longer.chosen.tolist() == [[4, 4], [4, 4], [0, 2], [1, 3], [1, 3]]
    assert made(((0, 0), (1, 1))).fitted(NAMES, 4, "prepare", stretch=True).chosen[0].tolist() == [4, 4]


def test_the_programme_is_optimal():
    rng = np.random.default_rng(0)
    for _ in range(100):
        weight, cost = rng.integers(0, 5, (4, 3)), rng.standard_normal((4, 3))
        budget = int(rng.integers(weight.min(1).sum(), weight.max(1).sum() + 1))
        found, rows = allocate(cost, weight, budget), np.arange(4)
        offers = [
            (int(weight[rows, list(c)].sum()), float(cost[rows, list(c)].sum()))
            for c in itertools.product(range(3), repeat=4)
        ]
        most = max(w for w, _ in offers if w <= budget)
        assert weight[rows, found].sum() == most
        assert cost[rows, found].sum() == pytest.approx(min(c for w, c in offers if w == most))


def test_a_budget_finer_than_the_units_is_kept_and_nearly_spent():
    rng = np.random.default_rng(1)
    weight = np.sort(rng.integers(0, 10**9, (300, 5)), axis=1)
    cost, budget = rng.standard_normal((300, 5)), int(weight[:, -1].sum() * 0.46)
    total = weight[np.arange(300), allocate(cost, weight, budget)].sum()
    assert 0.999 * budget <= total <= budget


def test_a_budget_that_cannot_be_met_is_one_sentence():
    with pytest.raises(ValueError, match="cannot be met"):
        allocate(np.zeros((2, 2)), np.full((2, 2), 5), 9)
    with pytest.raises(ValueError, match=r"keep=0.1 of 5 steps cannot be met: the first step is dense and takes 0.200"):
        solve(np.zeros((10, 5)), np.tile(np.arange(5), (2, 1)), 5, 0.1)


def test_1680_rows_of_five_levels_are_quick():
    rng = np.random.default_rng(0)
    weight = np.tile(np.outer([4, 2, 8], np.arange(5)), (560, 1))
    began = time.process_time()
    allocate(rng.standard_normal((1680, 5)), weight, int(weight[:, -1].sum() * 0.46))
    assert time.process_time() - began <= 1.0  # 0.15 s on a quiet core


@pytest.mark.parametrize("how", ["uniform", "random"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_macs", [True, False])
def test_untrained_schedules_meet_their_budget(how, kind, by_macs):
    parts = sublayers(tiny(kind).pipeline.transformer)
    weights = row_weights(parts, 64, 16, by_macs=by_macs)
    schedule = untrained(how, [s.name for s in parts], weights, 20, 0.46)
    assert 0.45 <= spent(schedule.chosen, weights) <= 0.46 + 1e-9
    assert (schedule.chosen[0] == DENSE).all()
    if how == "uniform":
        assert set(np.unique(schedule.chosen[1:])) <= {1, 2}


def test_weights_are_the_multiply_accumulates_of_the_anatomy():
    parts = sublayers(tiny("pixart").pipeline.transformer)
    weights = row_weights(parts, 64, 16)
    assert weights.shape == (len(parts), len(LEVELS)) and (weights[:, 0] == 0).all()
    assert weights[0, 2] == parts[0].macs(64, 32, 16).total and weights[1, DENSE] == parts[1].macs(64, None, 16).total


def test_what_a_sublayer_shows_is_looked_at_until_it_runs_again():
    keep = np.array([[1, 1], [0, 0.5], [0, 0], [1, 0], [0, 0], [0.25, 0], [1, 1]])
    assert looked_at(keep, [0, 0])[:, 0].tolist() == [True, True, False, True, True, True, False]
    assert looked_at(keep, [0, 1])[:, 0].tolist() == [False, False, False, True, True, True, False]
    assert looked_at(keep, [0, 1])[:, 1].tolist() == [True, True, False, False, False, False, False]


@pytest.mark.parametrize("selector", ["attention", "change"])
@pytest.mark.parametrize("kind", KINDS)
def test_not_noting_what_no_ranking_looks_at_changes_no_sample(kind, selector, tmp_path, monkeypatch):
    tried = tiny(kind, steps=6)
    names = tuple(s.name for s in sublayers(tried.pipeline.transformer))
    chosen = np.random.default_rng(1).choice(
        [0, 0, 0, 4, 4, 2], size=(6, len(names))
    )  # as learned ones: mostly all or nothing
    chosen[0] = DENSE
    Schedule(sublayers=names, chosen=chosen).write(tmp_path / "s.json")

    def painted():
        watched, enter = [], selectors._Watch.__enter__
        with monkeypatch.context() as patch:
            patch.setattr(selectors._Watch, "__enter__", lambda self: (watched.append(1), enter(self))[1])
            stack = Stack.parse(f"diffsparse(schedule={str(tmp_path / 's.json')!r}, selector={selector!r})")
            with stack.attached(tried.pipeline) as attached:
                attached.start(6)
                return tried.generate(tried.sampling, [0]), len(watched)

    some, few = painted()
    monkeypatch.setattr(schedule, "looked_at", lambda keep, blocks: np.ones(keep.shape, bool))
    same, many = painted()
    assert torch.equal(some, same)
    assert few < many if selector == "attention" else few == many == 0


def test_a_table_serves_other_budgets_and_other_numbers_of_steps(tmp_path):
    weights = np.tile([0, 1, 2, 3, 4], (2, 1))
    cost = np.zeros((6, 2, 5))
    cost[4, 0, :4] = 5.0  # of all rows, reusing this one costs
    save_file({"cost": cost.reshape(12, 5).astype(np.float32)}, tmp_path / "cost.safetensors")
    learned = Schedule(
        sublayers=NAMES, chosen=np.array([[4, 4]] + [[0, 0]] * 3 + [[4, 4], [0, 0]]), notes={"keep": 0.5}
    )
    learned.write(tmp_path / "schedule.json")
    assert (solved(tmp_path, NAMES, weights, 6, 0.5).chosen == learned.chosen).all()
    other = solved(tmp_path, NAMES, weights, 6, 0.25)
    assert other.chosen[4].tolist() == [4, 0] and spent(other.chosen, weights) <= 0.25
    with pytest.raises(ValueError, match="is for 6 sampler steps, and the scheduler makes 4"):
        solved(tmp_path, NAMES, weights, 4, 0.4)
    fewer = solved(tmp_path, NAMES, weights, 4, 0.4, stretch=True)  # of steps 0, 2, 3, 5: not the one that costs
    assert fewer.steps == 4 and spent(fewer.chosen, weights) <= 0.4
    some = solved(tmp_path, NAMES, weights, 11, 0.3, stretch=True)  # every step once or twice
    assert some.chosen[8, 0] == 4 and spent(some.chosen, weights) <= 0.3
