"""Learning a forecasting schedule: gradients are the loss's, checkpoints change nothing, and what is
learned is what is run."""

import csv

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from test_distill import room_of
from test_learning import decoded, drawer, squared

from ditbench.acceleration.caching.forecast_recipe import Recipe, start_scores
from ditbench.acceleration.caching.forecast_student import (
    HIGHEST,
    LOWEST,
    Controls,
    ForecastStudent,
)
from ditbench.acceleration.caching.learn_forecast import Learning, learn, prepare_forecast
from ditbench.acceleration.caching.soft_cache import studio_of
from ditbench.acceleration.caching.whole_rows import round_to_budget, schedule_of_mask, spent_by
from ditbench.method.stack import Stack
from ditbench.models.sublayers import sublayers
from ditbench.testing import tiny

STEPS = 5


@pytest.fixture(scope="module", params=["flux", "wan", "pixart"])
def subject(request):
    return request.param, tiny(request.param, steps=STEPS)


def controls_for(pipeline, passes, order, seed=0):
    layers = len(sublayers(pipeline.transformer))
    drawn = np.random.default_rng(seed)
    mask = drawn.random((STEPS, layers)) < 0.6
    mask[0] = True
    table = drawn.random((STEPS, layers, passes, order, 1)).astype(np.float32)
    return mask, torch.from_numpy(table)


def test_gradients_are_those_of_the_loss_and_checkpoints_do_not_change_them(subject):
    kind, tried = subject
    draw, slopes = drawer(tried, kind), []
    mask, table = controls_for(tried.pipeline, 2, 2)
    shares = torch.from_numpy(0.2 + 0.6 * mask).float()  # neither forecast nor computed
    shares[0] = 1.0
    for checkpointed in (False, True):
        student = ForecastStudent(2, checkpointed)
        with studio_of(student, tried.pipeline, Stack()) as paint:
            with torch.no_grad():
                teacher = paint(None, draw(1, 2), STEPS)

            def loss_at(shares, table, paint=paint, teacher=teacher):
                samples = paint(Controls(shares, table), draw(1, 2), STEPS)
                return squared(teacher, samples).mean()

            with torch.enable_grad():
                leaves = shares.clone().requires_grad_(True), table.clone().requires_grad_(True)
                slopes.append(torch.autograd.grad(loss_at(*leaves), leaves))
            if not checkpointed:
                moved = []
                for i, leaf in enumerate((shares, table)):
                    at = slopes[0][i].clone()
                    at[0] = 0
                    where = np.unravel_index(int(at.abs().argmax()), at.shape)
                    losses, h = [], 0.1  # less drowns in the rounding of a loss of 1e-8
                    for sign in (1, -1):
                        changed = [shares.clone(), table.clone()]
                        changed[i][where] = leaf[where] + sign * h
                        changed[0].requires_grad_(True)
                        losses.append(float(loss_at(*changed)))
                    moved.append((losses[0] - losses[1]) / (2 * h))
                    assert moved[i] == pytest.approx(float(slopes[0][i][where]), rel=0.05)
    for plain, again in zip(*slopes, strict=True):
        assert torch.allclose(plain, again, rtol=1e-3, atol=1e-9)


def test_a_share_of_one_or_zero_is_to_run_or_to_forecast(subject):
    kind, tried = subject
    draw = drawer(tried, kind)
    mask, table = controls_for(tried.pipeline, 2, 2)
    shares = torch.from_numpy(mask).float()
    with studio_of(ForecastStudent(2, False), tried.pipeline, Stack()) as paint, torch.no_grad():
        hard = paint(Controls(shares, table), draw(1, 2), STEPS)
        blended = paint(Controls(shares.clone().requires_grad_(True), table), draw(1, 2), STEPS)
    assert torch.allclose(hard, blended, atol=1e-5)


def test_the_method_samples_as_the_student_that_was_trained(tmp_path, monkeypatch):
    tried = tiny("pixart", steps=STEPS)
    names = [s.name for s in sublayers(tried.pipeline.transformer)]
    mask, table = controls_for(tried.pipeline, 2, 1)
    arguments = tried.arguments(tried.sampling, [0, 1])
    with studio_of(ForecastStudent(1, False), tried.pipeline, Stack()) as paint:
        controls = Controls(torch.from_numpy(mask).float(), table)
        student = decoded(tried, monkeypatch, lambda: paint(controls, arguments, STEPS))
    schedule_of_mask(names, mask, {"keep": 0.5}).write(tmp_path / "schedule.json")
    tables = {"learned": table.numpy(), "local": table.numpy() * 0}
    scores = {"scores": mask.astype(np.float32)}
    save_file(tables | scores, tmp_path / "forecast.safetensors")
    samples = {}
    for knobs in ("", ", coefficients='local'", ", coefficients='zero'"):
        stack = Stack.parse(f"sparsecast(keep=0.5{knobs})")
        with stack.attached(tried.pipeline, {"sparsecast": tmp_path}) as attached:
            attached.start(STEPS, 2)
            call = tried.arguments(tried.sampling, [0, 1]) | {"output_type": "np"}
            samples[knobs] = decoded(tried, monkeypatch, lambda call=call: tried.pipeline(**call))
    assert float((student - samples[""]).norm() / student.norm()) <= 1e-5
    local, zero = samples[", coefficients='local'"], samples[", coefficients='zero'"]
    assert torch.equal(local, zero) and not torch.equal(zero, samples[""])


GRAMS = np.stack([np.eye(STEPS) + i for i in range(8)])[None]


@pytest.mark.parametrize("learns", ["both", "schedule", "coefficients", "nothing"])
def test_learning_keeps_the_budget_and_the_best_on_held_out_requests(learns):
    tried, heard = tiny("flux", steps=STEPS), []
    layers = len(sublayers(tried.pipeline.transformer))
    under = {"schedule": "one", "nothing": "local"}
    recipe = Recipe(
        learns=learns, coefficients=under.get(learns, "learned"), keep=0.5,
        together=3, alone=3, batch=1, draws=2, trial_batch=2, checkpointed=False,
    )  # fmt: skip
    weights = np.arange(1, layers + 1)
    grams = np.broadcast_to(GRAMS[:, :1], (1, layers, STEPS, STEPS))
    with studio_of(ForecastStudent(1, False), tried.pipeline, Stack()) as paint:
        learning = Learning(paint, drawer(tried, "flux"), squared, STEPS, recipe, heard.append)
        learning.look_at_plain()
        learned = learn(learning, weights, grams, None, 1, "cpu")
        best = Controls(
            torch.from_numpy(learned.mask).float(), torch.from_numpy(learned.coefficients)
        )
        assert learning.trial(best) == pytest.approx(learned.held_out, rel=1e-4)
    assert learned.mask[0].all() and spent_by(learned.mask, weights) <= 0.5
    looks = [row["held_out"] for row in heard if row["stage"] == 2 and row["held_out"] is not None]
    assert learned.held_out == min(looks)
    assert len(learning.teachers) == (0 if learns == "nothing" else 2)
    stages = [row["stage"] for row in heard]
    expected = {
        "both": [1] * 4 + [2] * 4, "schedule": [1] * 4 + [2], "coefficients": [2] * 4, "nothing": [2],
    }  # fmt: skip
    assert stages == expected[learns]
    if learns == "schedule":
        assert (learned.coefficients == 1).all()
    if learns == "nothing":  # the steps of least local error, and no gradient
        scores = start_scores(grams, weights, recipe, None)
        assert (learned.mask == round_to_budget(scores, weights, 0.5)).all()


@pytest.mark.parametrize(
    ("steps", "keep", "order"), [(2, 0.5, 1), (2, 0.999, 2), (3, 0.99, 2), (4, 0.46, 0)]
)
@pytest.mark.parametrize("begin", ["squares", "best"])
def test_coefficients_that_nothing_depends_on_stay_as_they_are(steps, keep, order, begin, tmp_path):
    """Of two steps, where nothing is skipped after two computed ones, and of order 0."""
    few = {"together": 2, "alone": 2, "batch": 1, "trial_batch": 1}
    recipe = Recipe(keep=keep, order=order, begin=begin, **few)
    notes = prepare_forecast(tmp_path, room_of("flux", steps=steps), recipe)
    assert np.isfinite(notes["held_out"]) and notes["spent"] <= keep + 1e-4
    tables = load_file(tmp_path / "forecast.safetensors")
    assert tables["learned"].shape[:1] == (steps,) and tables["learned"].shape[3] == order
    assert all(np.isfinite(table).all() for table in tables.values())
    with_gradient = {row["iteration"] for row in rows_of(tmp_path / "log.csv") if row["loss"]}
    assert with_gradient == {"0", "1"}
    if steps == 2 and begin == "squares":
        start = 0.5 * tables["local"]
        assert np.allclose(tables["learned"], np.clip(start, LOWEST, HIGHEST), atol=1e-6)


def rows_of(file):
    with file.open(encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_fewer_steps_take_more_iterations_for_the_same_work():
    few, usual = Recipe().for_steps(5), Recipe()
    for name in ("together", "alone", "draws", "trials"):
        assert getattr(few, name) == 4 * getattr(usual, name)
    assert usual.for_steps(20) == usual.for_steps(50) == usual  # nothing is taken from longer ones
    assert few.batch == usual.batch and few.stage1 + few.stage2 == 4 * (usual.stage1 + usual.stage2)


@pytest.mark.parametrize("seed", range(3))
def test_the_better_of_two_trainings_on_held_out_requests_is_taken(seed):
    tried, drawn = tiny("flux", steps=STEPS), np.random.default_rng(seed)
    layers = len(sublayers(tried.pipeline.transformer))
    outputs = drawn.normal(size=(1, layers, STEPS, 40)).cumsum(2)
    grams, learned, starts = outputs @ outputs.swapaxes(2, 3), {}, {}
    few = {"keep": 0.6, "together": 1, "alone": 2, "batch": 1, "trial_batch": 2}
    with studio_of(ForecastStudent(1, False), tried.pipeline, Stack()) as paint:
        for begin in ("squares", "best"):
            heard, recipe = [], Recipe(begin=begin, **few)
            learning = Learning(paint, drawer(tried, "flux"), squared, STEPS, recipe, heard.append)
            learning.look_at_plain()
            learned[begin] = learn(learning, np.full(layers, 100), grams, None, 1, "cpu")
            starts[begin] = [row for row in heard if (row["stage"], row["iteration"]) == (1, 0)]
    assert learned["best"].held_out <= learned["squares"].held_out
    assert len(starts["squares"]) == 1 and starts["best"][0] == starts["squares"][0]
    assert len(starts["best"]) in (1, 2) and learned["best"].start
    if learned["best"].held_out == learned["squares"].held_out:
        assert np.array_equal(learned["best"].coefficients, learned["squares"].coefficients)
    assert [row["iteration"] for row in learned["best"].log if row["stage"] == 2] == [0, 1, 2]
