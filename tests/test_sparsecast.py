"""Sparsecast: the forecast's formula, its closed form and its gradient, and schedules that keep their
budget."""

import itertools
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from ditbench.acceleration.caching.forecast import ForecastCache, of_rows, spread
from ditbench.acceleration.caching.forecast_recipe import Recipe, start_scores
from ditbench.acceleration.caching.local_forecast import (
    best_common_steps,
    fit,
    local_coefficients,
    local_errors,
)
from ditbench.acceleration.caching.schedule import Schedule
from ditbench.acceleration.caching.whole_rows import (
    evenly,
    mask_of_schedule,
    round_to_budget,
    schedule_of_mask,
    soft_mask,
    spent_by,
)
from ditbench.cli.commands import main
from ditbench.method.attachment import Attachment
from ditbench.method.generation import Now
from ditbench.method.stack import Stack
from ditbench.models.sublayers import sublayers
from ditbench.testing import tiny

WEIGHTS = np.array([30, 10, 60])


class Part:
    """A sub-layer, as far as a cache looks at it."""

    index = 0


def forecasts(values, computed, order, coefficients):
    """What stands for each of `values` [T] where only the steps `computed` are run."""
    now, out = Now(num_steps=len(values)), []
    table = torch.tensor(coefficients, dtype=torch.float64)[None, :, None]
    cache = ForecastCache(Attachment(None, now, ExitStack()), order, lambda *_: table)
    for t, value in enumerate(values):
        now.step = t
        dense = torch.full((2, 3, 4), value, dtype=torch.float64)
        given = cache.compute(Part, lambda x=dense: x) if t in computed else cache.forecast(Part)
        out.append(float(given[0, 0, 0]))
    return out


def test_a_forecast_is_the_polynomial_through_the_computed_outputs():
    line, parabola = [3 + 2 * t for t in range(9)], [1 - t + 0.5 * t * t for t in range(9)]
    assert forecasts(line, {0, 1, 4}, 1, [1.0]) == pytest.approx(line)
    assert forecasts(parabola, {0, 1, 3, 4}, 2, [1.0, 1.0])[5:] == pytest.approx(parabola[5:])
    assert forecasts(parabola, {0, 2}, 2, [0.0, 0.0])[3:] == [parabola[2]] * 6
    half = forecasts(line, {0, 2}, 1, [0.5])
    assert half[1] == 3 and half[3:6] == pytest.approx([7 + 1, 7 + 2, 7 + 3])


def test_guidance_passes_and_groups_of_channels_have_coefficients_of_their_own():
    table = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])  # [P,O,G]
    rows = of_rows(table, Now(guidance="batched, conditional first", passes=2), 4)
    assert rows[:, 0, 0].tolist() == [1, 1, 3, 3]
    rows = of_rows(table, Now(guidance="batched, conditional last", passes=2), 4)
    assert rows[:, 0, 0].tolist() == [3, 3, 1, 1]
    assert of_rows(table, Now(guidance="batched, conditional last"), 4).tolist() == [[[1, 2]]]
    assert of_rows(table, Now(guidance="two calls", branch=1), 4).tolist() == [[[3, 4]]]
    assert spread(table[0], torch.ones(1, 1, 4)).tolist() == [[[1, 1, 2, 2]]]
    with pytest.raises(ValueError, match="2 groups do not divide 5 channels"):
        spread(table[0], torch.ones(1, 1, 5))


@pytest.mark.parametrize("keep", [0.21, 0.46, 0.57, 1.0])
def test_rounding_keeps_the_budget_and_the_highest_scores(keep):
    scores = np.random.default_rng(0).standard_normal((6, 3))
    mask = round_to_budget(scores, WEIGHTS, keep)
    assert mask[0].all() and spent_by(mask, WEIGHTS) <= keep + 1e-9
    totals = np.array(list(itertools.product([0, 1], repeat=15))).reshape(-1, 5, 3)
    used = (totals @ WEIGHTS).sum(1)
    within = used <= int(keep * 600 + 1e-6) - 100
    full = within & (used == used[within].max())
    value = (totals * scores[1:]).sum((1, 2))
    assert (mask[1:] * scores[1:]).sum() == pytest.approx(value[full].max())
    soft = soft_mask(scores, WEIGHTS, keep, 0.1)
    assert (soft @ WEIGHTS).sum() <= keep * 600 + 1e-6
    assert (soft @ WEIGHTS).sum() >= keep * 600 - 0.1
    assert ((soft >= 0) & (soft <= 1)).all()
    sharp = soft_mask(scores, WEIGHTS, keep, 1e-4)[1:]
    priced = (scores[1:] / (WEIGHTS / WEIGHTS.mean())).ravel()[np.argsort(sharp.ravel())]
    assert keep == 1 or priced[-1] > priced[0]


def test_a_budget_below_the_first_step_is_one_sentence():
    with pytest.raises(ValueError, match=r"keep=0.1 of 6 steps cannot be met"):
        round_to_budget(np.zeros((6, 3)), WEIGHTS, 0.1)


def test_evenly_spaced_steps_are_whole_and_a_schedule_rounds_at_half():
    mask = evenly(8, WEIGHTS, 0.5)
    assert mask.tolist() == [[t % 2 == 0] * 3 for t in range(8)]
    assert spent_by(evenly(20, WEIGHTS, 0.46), WEIGHTS) == pytest.approx(0.46, abs=0.006)
    back = mask_of_schedule(schedule_of_mask(("a", "b", "c"), mask, {}))
    assert (back == mask).all()
    levels = Schedule(sublayers=("a", "b"), chosen=np.array([[0, 4], [1, 2], [3, 0]]))
    assert mask_of_schedule(levels).tolist() == [[True, True], [False, True], [True, False]]


def outputs(steps=7, seed=0):
    return np.random.default_rng(seed).standard_normal((steps, 40)).cumsum(0)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_local_coefficients_leave_the_least_squared_error(order):
    rows = outputs()
    gram, steps = rows @ rows.T, [4, 3, 1]
    coefficients, error = fit(gram, steps, 6, order)
    slope = rows[4] - rows[3]
    bend = (slope - (rows[3] - rows[1]) / 2) / 3
    changes = np.stack([2 * slope, 2 * 3 * bend])[:order]
    best, *_ = np.linalg.lstsq(changes.T, rows[6] - rows[4], rcond=None)
    assert coefficients == pytest.approx(best, rel=1e-4)
    left = rows[6] - rows[4] - best @ changes
    assert error == pytest.approx((left @ left) / (rows[6] @ rows[6]), rel=1e-6)


def test_common_steps_are_those_of_the_least_sum_of_forecast_errors():
    grams = np.stack([[r @ r.T for r in (outputs(seed=i), outputs(seed=9 + i))] for i in range(2)])
    sums = {}
    for steps in itertools.combinations(range(1, 7), 2):
        mask = np.zeros((7, 2), bool)
        mask[[0, *steps]] = True
        sums[steps] = local_errors(grams, mask, 1)[~mask].sum()
    chosen = best_common_steps(grams, 3, 1)
    assert chosen[0] == 0 and sums[tuple(chosen[1:])] == pytest.approx(min(sums.values()), rel=1e-4)
    assert start_scores(grams, np.array([1, 1]), Recipe(keep=3 / 7), None).shape == (7, 2)
    table = local_coefficients(grams, mask, 2, 1)
    assert table.shape == (7, 2, 1, 2) and not table[0].any()


def sampled(subject, text):
    """Two samples under a stack, and what was attached."""
    with Stack.parse(text).attached(subject.pipeline) as attached:
        attached.start(subject.sampling.steps, 2)
        return subject.generate(subject.sampling, [0, 1]), attached


@pytest.fixture(scope="module")
def flux():
    return tiny("flux", steps=5)


def test_without_coefficients_it_is_diffsparse_and_with_one_it_is_taylorseer(flux, tmp_path):
    names = [s.name for s in sublayers(flux.pipeline.transformer)]
    mask = np.random.default_rng(1).random((5, len(names))) < 0.5
    mask[0] = True
    file = tmp_path / "s.json"
    schedule_of_mask(names, mask, {}).write(file)
    fixed = f"learns='coefficients', schedule={str(file)!r}"
    reuse, _ = sampled(flux, f"sparsecast({fixed}, coefficients='zero')")
    sparse, _ = sampled(flux, f"diffsparse(schedule={str(file)!r}, selector='norm')")
    assert np.array_equal(reuse, sparse)
    one, attached = sampled(flux, f"sparsecast({fixed}, coefficients='one')")
    assert not np.array_equal(one, reuse)
    assert (np.array(attached.schedule()["keep"]) == mask).all()
    mask[:] = (np.arange(5) % 2 == 0)[:, None]
    schedule_of_mask(names, mask, {}).write(file)
    series, _ = sampled(flux, f"sparsecast({fixed}, coefficients='one')")
    taylor, _ = sampled(flux, "taylorseer(interval=2, order=1, first=1)")
    assert np.array_equal(series, taylor)
    for off in ("sparsecast(keep=1.0)", f"sparsecast({fixed}, coefficients='zero', order=2)"):
        mask[:] = True
        schedule_of_mask(names, mask, {}).write(file)
        assert np.array_equal(sampled(flux, off)[0], sampled(flux, "none")[0])


@pytest.mark.parametrize(
    "knobs, message",
    [
        ("learns='schedule'", "learns='schedule' leaves the coefficients as they are"),
        ("learns='nothing'", "learns='nothing' leaves the coefficients as they are"),
        ("learns='coefficients', coefficients='one', training=1", "training has no meaning"),
        ("learns='coefficients', coefficients='zero', learned_at=0.5", "learned_at has no meaning"),
        ("learns='coefficients', coefficients='one', groups=2", "groups has no meaning"),
        ("order=3", "order"),
    ],
)
def test_knobs_that_contradict_each_other_are_one_sentence(knobs, message):
    with pytest.raises(ValueError, match=message) as error:
        Stack.parse(f"sparsecast({knobs})")
    assert "\n" not in str(error.value)


def test_learning_may_begin_with_the_best_of_six_and_is_never_behind_it(tmp_path, monkeypatch):
    from test_distill import room_of

    from ditbench.acceleration.caching.forecast_recipe import Recipe
    from ditbench.acceleration.caching.learn_forecast import Learning, prepare_forecast

    seen, trial = [], Learning.trial

    def noted(learning, controls):
        seen.append(trial(learning, controls))
        return seen[-1]

    monkeypatch.setattr(Learning, "trial", noted)
    room = room_of("flux", steps=4)
    few = {"keep": 0.6, "batch": 1, "trial_batch": 1, "trials": 1}
    for moved in ({"together": 0, "alone": 0}, {"together": 2, "alone": 2, "rate": 5.0}):
        seen.clear()
        notes = prepare_forecast(tmp_path, room, Recipe(begin="best", **few, **moved))
        assert len(set(seen[:6])) > 3 and notes["held_out"] <= min(seen[:6])
    seen.clear()
    plain = prepare_forecast(tmp_path, room, Recipe(**few, together=0, alone=0))
    assert plain["held_out"] >= notes["held_out"]
    with pytest.raises(ValueError, match="begin='best' chooses schedule and coefficients"):
        Stack.parse("sparsecast(begin='best', learns='coefficients')")
    by_default = Stack.parse("sparsecast").methods[0].recipe()
    assert by_default == Stack.parse("sparsecast(begin='best')").methods[0].recipe()
    assert by_default["begin"] == "best"
    for knobs in ("learns='coefficients'", "begin='squares'"):
        assert "begin" not in Stack.parse(f"sparsecast({knobs})").methods[0].recipe()


@pytest.mark.parametrize("family", ["dit", "pixart", "flux", "wan", "sd3"])
def test_groups_that_do_not_divide_the_width_are_refused_before_anything_is_learned(family):
    pipe = tiny(family).pipeline
    width = pipe.transformer.config.num_attention_heads * pipe.transformer.config.attention_head_dim
    for groups in range(1, 12):
        refusal = Stack.parse(f"sparsecast(groups={groups})").refusal(pipe)
        sentence = f"sparsecast: groups={groups} does not divide the {width} channels of this model"
        assert refusal == (None if width % groups == 0 else sentence)


def test_prepare_refuses_groups_that_do_not_divide_the_width(tmp_path, monkeypatch, capsys):
    def never(*_):
        raise AssertionError("something is learned")

    monkeypatch.setattr("ditbench.acceleration.caching.learn_forecast.prepare_forecast", never)
    words = ["prepare", "sparsecast(groups=7)", "--models", "flux-tiny", "--out", str(tmp_path)]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "flux-tiny: sparsecast: groups=7 does not divide the" in told
    assert not any(tmp_path.rglob("*.json"))
