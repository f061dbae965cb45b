"""Schedules as files, the programme that spends a budget, and schedules that need no training."""

import json
from functools import reduce

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ditbench.acceleration.caching import attention_map, schedule
from ditbench.acceleration.caching import knapsack as programme
from ditbench.acceleration.caching.budget import DENSE, row_weights, solve, solved, spent, untrained
from ditbench.acceleration.caching.knapsack import allocate
from ditbench.acceleration.caching.schedule import LEVELS, Schedule, looked_at
from ditbench.method.stack import Stack
from ditbench.models.sublayers import sublayers
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
        ValueError,
        match="the schedule is for 3 sampler steps, and the scheduler makes 5; prepare makes one",
    ):
        made().fitted(NAMES, 5, "prepare")
    longer = made().fitted(NAMES, 5, "prepare", stretch=True)
    assert longer.chosen.tolist() == [[4, 4], [4, 4], [0, 2], [1, 3], [1, 3]]
    assert made(((0, 0), (1, 1))).fitted(NAMES, 4, "prepare", stretch=True).chosen[0].tolist() == [
        4,
        4,
    ]


def every_choice(weight, cost):
    """Total and cost of every choice of levels [S ** R], by brute force."""
    return [reduce(np.add.outer, list(table)).ravel() for table in (weight, cost)]


@pytest.mark.parametrize("largest", [4, 30, 1000, 10**6, 10**9])
def test_the_programme_is_optimal(largest):
    rng = np.random.default_rng(largest)
    for case in range(60):
        rows, levels = rng.integers(1, 7), rng.integers(2, 6)
        weight, cost = (
            rng.integers(0, largest + 1, (rows, levels)),
            rng.standard_normal((rows, levels)),
        )
        weight = np.sort(weight, 1) if case % 2 else weight
        budget = int(rng.integers(weight.min(1).sum(), weight.max(1).sum() + 1))
        chosen = allocate(cost, weight, budget)
        totals, costs = every_choice(weight, cost)
        most = totals[totals <= budget].max()
        assert weight[np.arange(rows), chosen].sum() == most
        assert cost[np.arange(rows), chosen].sum() == pytest.approx(costs[totals == most].min())


def test_what_can_be_spent_is_spent_where_a_cheaper_choice_leaves_a_tenth():
    weight = np.array(
        [
            [0, 63728, 127455, 191182, 254910],
            [0, 216697, 433393, 650089, 866785],
            [0, 186928, 373855, 560782, 747709],
        ]
    )
    chosen = allocate(np.tile([4.0, 3, 2, 1, 0], (3, 1)), weight, 1121642)
    assert weight[np.arange(3), chosen].sum() == 1121630


@pytest.mark.parametrize(
    "spread", ["even", "some rows a thousand times as heavy", "next to nothing fits"]
)
def test_beyond_brute_force_the_stated_tolerance_is_kept(spread):
    """Twelve rows of three levels, still within reach of the oracle, and past what is looked at one
    by one."""
    rng = np.random.default_rng(len(spread))
    for case in range(6):
        weight, cost = np.sort(rng.integers(0, 10**9, (12, 3)), 1), rng.standard_normal((12, 3))
        if spread.startswith("some"):
            weight[::3] *= 1000
        budget = int(weight.min(1).sum() + np.ptp(weight, axis=1).sum() * rng.uniform(0.2, 0.8))
        if spread.startswith("next"):
            weight[:, 0], budget = 0, int(weight[:, 1:].min() * 1.5)
        assert programme.FEW < 3**12 and programme.CORE >= 12
        chosen = allocate(cost, weight, budget)
        total, paid = (table[np.arange(12), chosen].sum() for table in (weight, cost))
        totals, costs = every_choice(weight, cost)
        most, spare = totals[totals <= budget].max(), programme.TOLERANCE * budget
        assert most - spare <= total <= budget, case
        leaving = (totals >= most - 0.3 * spare) & (totals <= budget - 0.2 * spare)
        assert paid <= costs[leaving].min(initial=np.inf) + 1e-9


def least_cost(cost, weight, low, high):
    """A cost that no choice of levels with a total between `low` and `high` is below: the best of
    Lagrange's bounds (a concave search)."""

    def bound(price):
        return (cost + price * weight).min(1).sum() - price * (high if price > 0 else low)

    reach = np.ptp(cost) / np.diff(np.sort(weight, 1)).max()
    left, right = -1e4 * reach, 1e4 * reach
    for _ in range(200):
        third = (right - left) / 3
        left, right = (
            (left + third, right)
            if bound(left + third) < bound(right - third)
            else (left, right - third)
        )
    return bound((left + right) / 2)


SUBLAYERS = [[0, 3, 4, 5, 6], [0, 2, 3, 4, 5], [0, 2, 4, 6, 8]]


MACS = [  # of wan-tiny's sub-layers
    [0, 739328, 926208, 1075712, 1262592],
    [0, 671744, 856064, 1003520, 1187840],
    [0, 524288, 1179648, 1703936, 2359296],
]


@pytest.mark.parametrize("rows", [342, 1680])
@pytest.mark.parametrize(
    "kind", ["coarse", "multiply-accumulates", "fine", "fine, in no order", "dearer the more"]
)
def test_many_rows_are_spent_on_at_least_cost_within_a_bounded_amount_of_work(
    kind, rows, monkeypatch
):
    """Against Lagrange's bound, which the best choice itself may exceed by as much as one row; and
    by entries looked at."""
    rng, looked = np.random.default_rng(rows), []
    weight = {
        "coarse": lambda: np.tile(SUBLAYERS, (rows // 3, 1)),
        "multiply-accumulates": lambda: np.tile(MACS, (rows // 3, 1)),
        "fine, in no order": lambda: rng.integers(0, 10**9, (rows, 5)),
    }.get(kind, lambda: np.sort(rng.integers(0, 10**9, (rows, 5)), 1))()
    cost = rng.standard_normal((rows, 5))
    cost = np.sort(cost, 1) if kind.startswith("dearer") else cost
    run = programme._programme
    monkeypatch.setattr(
        programme,
        "_programme",
        lambda c, u, room: (looked.append(c.size * room), run(c, u, room))[1],
    )
    budget = int(weight.max(1).sum() * 0.46)
    chosen = allocate(cost, weight, budget)
    total, paid = (table[np.arange(rows), chosen].sum() for table in (weight, cost))
    assert (1 - programme.TOLERANCE) * budget <= total <= budget
    assert paid - least_cost(cost, weight, total, budget) <= np.ptp(cost, axis=1).mean()
    assert sum(looked) <= programme.WORK


def test_rows_that_one_price_decides_are_decided_as_the_whole_programme_decides_them():
    weight, cost = np.tile(MACS, (40, 1)), np.random.default_rng(3).standard_normal((120, 5))
    budget = int(weight.max(1).sum() * 0.46)
    # too much work to be done each time
    best, _ = programme._programme(cost, weight // 512, budget // 512)
    assert cost.size * (budget // 512) > programme.WORK
    window = best[int(np.ceil((1 - programme.TOLERANCE) * budget / 512)) :]
    paid = cost[np.arange(120), allocate(cost, weight, budget)].sum()
    assert window.min() <= paid + 1e-9 <= window.min() + 0.05 * np.ptp(cost, axis=1).mean()


def test_where_all_choices_cost_the_same_the_budget_is_spent():
    weight = np.sort(np.random.default_rng(0).integers(0, 10**9, (300, 5)), 1)
    budget = int(weight[:, -1].sum() * 0.46)
    assert (
        0
        <= budget - weight[np.arange(300), allocate(np.zeros((300, 5)), weight, budget)].sum()
        <= 1e-5 * budget
    )
    assert (allocate(np.zeros((300, 5)), weight, 10**15) == 4).all()


def test_a_budget_that_cannot_be_met_is_one_sentence():
    with pytest.raises(ValueError, match="cannot be met"):
        allocate(np.zeros((2, 2)), np.full((2, 2), 5), 9)
    with pytest.raises(
        ValueError,
        match=r"keep=0.1 of 5 steps cannot be met: the first step is dense and takes 0.200",
    ):
        solve(np.zeros((10, 5)), np.tile(np.arange(5), (2, 1)), 5, 0.1)


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
    assert (
        weights[0, 2] == parts[0].macs(64, 32, 16).total
        and weights[1, DENSE] == parts[1].macs(64, None, 16).total
    )


def test_what_a_sublayer_shows_is_looked_at_until_it_runs_again():
    keep = np.array([[1, 1], [0, 0.5], [0, 0], [1, 0], [0, 0], [0.25, 0], [1, 1]])
    # a ranking comes before the run whose rows it chooses, and looks at what ran last
    yes, no = True, False
    assert looked_at(keep, [0, 0])[:, 0].tolist() == [yes, yes, no, yes, yes, no, no]
    assert looked_at(keep, [0, 1])[:, 0].tolist() == [no, no, no, yes, yes, no, no]
    assert looked_at(keep, [0, 1])[:, 1].tolist() == [yes, no, no, no, no, no, no]
    half = np.array([[1, 1, 1], [0.5, 0.5, 0.5]])
    assert looked_at(half, [0, 0, 0]).tolist() == [[yes, yes, yes], [yes, yes, no]]


@pytest.mark.parametrize("selector", ["attention", "change"])
@pytest.mark.parametrize("kind", KINDS)
def test_not_noting_what_no_ranking_looks_at_changes_no_sample(
    kind, selector, tmp_path, monkeypatch
):
    tried = tiny(kind, steps=6)
    names = tuple(s.name for s in sublayers(tried.pipeline.transformer))
    # as learned ones: mostly all or nothing
    chosen = np.random.default_rng(1).choice([0, 0, 0, 4, 4, 2], size=(6, len(names)))
    chosen[0] = DENSE
    Schedule(sublayers=names, chosen=chosen).write(tmp_path / "s.json")

    def painted():
        watched, enter = [], attention_map.Watch.__enter__
        with monkeypatch.context() as patch:
            patch.setattr(
                attention_map.Watch, "__enter__", lambda self: (watched.append(1), enter(self))[1]
            )
            stack = Stack.parse(
                f"diffsparse(schedule={str(tmp_path / 's.json')!r}, selector={selector!r})"
            )
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
        sublayers=NAMES,
        chosen=np.array([[4, 4]] + [[0, 0]] * 3 + [[4, 4], [0, 0]]),
        notes={"keep": 0.5},
    )
    learned.write(tmp_path / "schedule.json")
    assert (solved(tmp_path, NAMES, weights, 6, 0.5).chosen == learned.chosen).all()
    other = solved(tmp_path, NAMES, weights, 6, 0.25)
    assert other.chosen[4].tolist() == [4, 0] and spent(other.chosen, weights) <= 0.25
    with pytest.raises(ValueError, match="is for 6 sampler steps, and the scheduler makes 4"):
        solved(tmp_path, NAMES, weights, 4, 0.4)
    # of steps 0, 2, 3, 5: not the one that costs
    fewer = solved(tmp_path, NAMES, weights, 4, 0.4, stretch=True)
    assert fewer.steps == 4 and spent(fewer.chosen, weights) <= 0.4
    some = solved(tmp_path, NAMES, weights, 11, 0.3, stretch=True)  # every step once or twice
    assert some.chosen[8, 0] == 4 and spent(some.chosen, weights) <= 0.3
