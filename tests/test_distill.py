"""Step distillation: one noise process for all models, the recipes' formulas against exact
posteriors, students put in place."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file

from ditbench.acceleration.distillation import recordings
from ditbench.acceleration.distillation.distribution_matching import (
    FakeScore,
    matching_gradient,
    matching_loss,
    noised,
)
from ditbench.acceleration.distillation.noise_process import (
    Process,
    angle,
    flow_velocity,
    level_of_angle,
    scale,
    trig_velocity,
)
from ditbench.acceleration.distillation.objectives import (
    OBJECTIVES,
    Lesson,
    meanflow_loss,
    meanflow_target,
    scm_tangent,
    simulated,
)
from ditbench.acceleration.distillation.recordings import Denoiser, record, rows
from ditbench.acceleration.distillation.scheduler import FewStepScheduler
from ditbench.acceleration.distillation.student_files import fingerprint
from ditbench.acceleration.distillation.students import Recipe, prepare_student
from ditbench.method.prepare import Workroom
from ditbench.method.preparing import Preparing
from ditbench.method.stack import Stack
from ditbench.models.calls import take_rows
from ditbench.models.differentiable import paint
from ditbench.models.loading import load
from ditbench.models.requests import call_arguments, make_requests
from ditbench.models.sampling import sampling_of
from ditbench.models.table import models
from ditbench.quiet import quiet
from ditbench.shapes.judge import load_judge
from ditbench.shapes.perceptual import Perceptual
from ditbench.testing import KINDS, Subject, check_method, tiny
from ditbench.testing.subjects import OUTPUT

TRAINED = tuple(kind for kind in KINDS if f"{kind}-tiny" in models())
"""Families with a tiny trained model."""

MEANS, SHARES, SPREAD = (
    torch.tensor([-1.3, 0.4, 1.1]).double(),
    torch.tensor([0.3, 0.5, 0.2]).double(),
    0.3,
)


def posterior(x, a, b):
    """Means of data and noise given x = a data + b noise, for data from a mixture of three
    Gaussians."""
    variance = a**2 * SPREAD**2 + b**2
    weight = (SHARES.log() - 0.5 * (x[:, None] - a * MEANS) ** 2 / variance).softmax(1)
    data = (weight * (MEANS + a * SPREAD**2 / variance * (x[:, None] - a * MEANS))).sum(1)
    return data, (x - a * data) / b


@pytest.mark.parametrize("t", [0.2, 0.7, 1.2, 1.5])
def test_noise_velocity_and_trigflow_are_one_process(t):
    t = torch.tensor(t).double()
    a, b, y = (
        t.cos(),
        t.sin(),
        1.2 * torch.randn(500, generator=torch.Generator().manual_seed(0)).double(),
    )
    data, noise = posterior(y, a, b)
    s = level_of_angle(t)
    assert torch.isclose(angle(s), t) and torch.isclose(s, b / (a + b))
    x = Process(True).state(y, s)
    assert torch.allclose(x, y / (a + b)) and torch.allclose(Process(True).own(x, s), y)
    same_data, same_noise = posterior(x, 1 - s, s)
    assert torch.allclose(same_data, data) and torch.allclose(same_noise, noise)
    v = Process(True).velocity(noise, x, s)
    assert torch.allclose(v, noise - data) and torch.allclose(x - s * v, data)
    f = a * noise - b * data
    assert torch.allclose(trig_velocity(v, x, s), f) and torch.allclose(flow_velocity(f, x, s), v)
    assert torch.isclose(scale(s), 1 / (a + b))


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DPMSolverMultistepScheduler()])
def test_timesteps_and_levels_are_inverse(scheduler):
    process = Process.of(scheduler)
    t = torch.linspace(0, 999, 333).double()
    s = process.level(t)
    assert (s.diff() > 0).all() and torch.allclose(process.timestep(s), t, atol=1e-6)
    a, b = scheduler.alphas_cumprod[500].sqrt(), (1 - scheduler.alphas_cumprod[500]).sqrt()
    assert torch.isclose(process.level(torch.tensor(500.0)), (b / (a + b)).double())


def test_another_prediction_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="predicts v_prediction; students"):
        Process.of(DDIMScheduler(prediction_type="v_prediction"))


def test_a_step_along_the_flow_is_a_ddim_step():
    ddim = DDIMScheduler(clip_sample=False)
    ddim.set_timesteps(4)
    levels = [*Process.of(ddim).level(ddim.timesteps).tolist(), 0.0]
    ours = FewStepScheduler(ddim.timesteps.tolist(), levels, noise=True)
    ours.set_timesteps(4)
    x = y = torch.randn(2, 4, 8, 8)
    for t in ddim.timesteps:
        out = torch.randn(2, 4, 8, 8)
        x, y = ddim.step(out, t, x).prev_sample, ours.step(out, t, y, return_dict=False)[0]
        assert torch.allclose(x, y, atol=2e-3 * x.abs().max().item())


def test_consistency_sampling_noises_the_clean_sample_with_fresh_noise_of_the_request():
    sampler = FewStepScheduler([900.0, 500.0], [0.9, 0.5, 0.0], noise=False, way="consistency")
    sampler.set_timesteps(2)
    noise, clean = torch.randn(3, 4, 16, 16), torch.randn(3, 4, 16, 16)
    v = (noise - clean) / 0.9  # the first state is noise alone, whatever its level
    at_half = sampler.step(v, 900.0, noise).prev_sample
    added = (at_half - 0.5 * clean) / 0.5
    assert torch.allclose(
        added.flatten(1).sort(1).values, noise.flatten(1).sort(1).values, atol=1e-4
    )
    assert abs(torch.corrcoef(torch.stack([added.flatten(), noise.flatten()]))[0, 1]) < 0.1
    alone = FewStepScheduler([900.0, 500.0], [0.9, 0.5, 0.0], noise=False, way="consistency")
    alone.set_timesteps(2)
    assert torch.equal(alone.step(v[1:2], 900.0, noise[1:2]).prev_sample, at_half[1:2])
    with pytest.raises(ValueError, match="takes 2 steps, not 3"):
        sampler.set_timesteps(3)


def test_a_consistency_function_has_no_scm_gradient():
    spread = 0.6  # of Gaussian data, whose path and consistency function are known

    def f_of(y, t):
        clean = y * spread / (spread**2 * t.cos() ** 2 + t.sin() ** 2).sqrt()
        return (t.cos() * y - clean) / t.sin()

    t, y = torch.rand(64).double() * 1.2 + 0.2, torch.randn(64).double()
    variance = spread**2 * t.cos() ** 2 + t.sin() ** 2
    along = (1 - spread**2) * t.sin() * t.cos() / variance * y
    slope = torch.func.jvp(f_of, (y, t), (along, torch.ones_like(t)))[1]
    tangent = scm_tangent(f_of(y, t), along, y, slope, t)
    assert tangent.abs().max() < 1e-12
    other = scm_tangent(f_of(y, t) + 0.1, along, y, slope, t)
    assert torch.allclose(other, -0.1 * t.cos() ** 2)


def test_meanflows_target_is_exact_on_a_linear_flow():
    rate, r = 0.8, 0.2  # dx/ds = rate x

    def mean(x, s):
        return x * (1 - torch.exp(rate * (r - s))) / (s - r)

    x, s = torch.randn(32).double(), torch.full((32,), 0.9).double()
    slope = torch.func.jvp(mean, (x, s), (rate * x, torch.ones_like(s)))[1]
    assert torch.allclose(meanflow_target(rate * x, slope, s - r), mean(x, s), atol=1e-12)


def test_meanflows_weight_makes_rows_of_any_error_pull_alike_and_bounds_the_loss():
    """p = +1: with p = -1 a row pulls by its own error, and one of 1e3 outweighs a thousand
    others."""
    error = torch.tensor([0.1, 1.0, 1e3], requires_grad=True)
    loss = meanflow_loss(error)
    (pull,) = torch.autograd.grad(loss, error)
    assert torch.allclose(pull * error, torch.full((3,), 1 / 3), rtol=0.02) and loss < 1


@cache
def room_of(kind, steps=4):
    model = models()[f"{kind}-tiny"]
    with quiet():
        pipe = load(model, weights="bundled", device="cpu", dtype="float32")
    sampling = replace(sampling_of(model), steps=steps)
    return Workroom(pipe=pipe, model=model, below=Stack(), sampling=sampling, tell=lambda row: None)


@pytest.mark.parametrize("kind", TRAINED)
def test_the_recorded_sampling_is_the_pipelines(kind):
    """What the denoiser says at the first recorded states leads to the next ones, guidance and
    all."""
    room = room_of(kind)
    found = record(room, 2, 0)
    assert (
        found.states.shape[:2] == (2, 5)
        and found.levels[-1] == 0
        and (found.levels.diff() < 0).all()
    )
    denoise = Denoiser(room.pipe.transformer, Process.of(room.pipe.scheduler))
    x, s, t = found.states[:, 0].float(), found.levels[:1].expand(2), found.timesteps[:1].expand(2)
    with torch.no_grad():
        v = denoise.guided(x, s, t, found.guided, room.sampling.guidance)
        plain = denoise(x, s, t, found.asked)
    step = (found.levels[1] - found.levels[0]) * v
    assert torch.allclose(x + step, found.states[:, 1].float(), atol=0.02 * step.abs().max().item())
    with torch.no_grad():
        first = denoise(x, s, t, found.guided[0])
    assert torch.allclose(plain, first) == (kind != "flux")  # FLUX is told the guidance scale


@pytest.mark.parametrize("kind", TRAINED)
def test_a_student_is_trained_put_in_place_and_taken_out(kind, tmp_path):
    objective = dict(zip(TRAINED, ("scm", "progressive", "meanflow", "lcm"), strict=True))[kind]
    room = room_of(kind)
    notes = trained(room, objective, tmp_path)
    assert notes["objective"] == objective and not list(tmp_path.glob("work*"))
    assert len((tmp_path / "log.csv").read_text().splitlines()) >= 2
    requests = make_requests(room.model, 2, seed=0)

    def arguments(sampling, which):
        asked = call_arguments(room.model, sampling, [requests[i] for i in which])
        return asked | {"output_type": OUTPUT[kind]}

    subject = Subject(pipeline=room.pipe, sampling=room.sampling, arguments=arguments)
    checks = check_method(
        f"distill(steps=2, objective={objective!r})", subject, {"distill": tmp_path}
    )
    assert all(c.passed for c in checks), [c for c in checks if not c.passed]
    given = check_method(f"distill(steps=2, student={str(tmp_path)!r})", subject)
    assert all(c.passed for c in given) and not any(c.name == "refused" for c in given)


def trained(room, objective, folder):
    few = Recipe(
        objective=objective, steps=2, recordings=4, iterations=4, batch=2, average=0.5, finish=0
    )
    return prepare_student(folder, room, few)


@pytest.mark.parametrize(("kind", "steps"), [("dit", 1), ("wan", 2)])
def test_a_student_by_distribution_matching_takes_its_steps_and_keeps_the_contract(
    kind, steps, tmp_path
):
    room = room_of(kind)
    teacher = {name: p.clone() for name, p in room.pipe.transformer.named_parameters()}
    few = Recipe(
        objective="dmd2", steps=steps, recordings=4, iterations=14, batch=2, average=0.5
    )  # fmt: skip
    prepare_student(tmp_path, room, few)
    for name, p in room.pipe.transformer.named_parameters():
        assert torch.equal(p, teacher[name])
    log = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert [(row[0], row[3]) for row in log] == [("7", "endings"), ("8", "scores")]
    notes = json.loads((tmp_path / "student.json").read_text())["sampler"]
    assert notes["way"] == "consistency" and len(notes["timesteps"]) == steps
    requests = make_requests(room.model, 2, seed=0)

    def arguments(sampling, which):
        asked = call_arguments(room.model, sampling, [requests[i] for i in which])
        return asked | {"output_type": OUTPUT[kind]}

    subject = Subject(pipeline=room.pipe, sampling=room.sampling, arguments=arguments)
    stack = f"distill(steps={steps}, objective='dmd2')"
    checks = check_method(stack, subject, {"distill": tmp_path})
    assert all(c.passed for c in checks), [c for c in checks if not c.passed]


def test_matching_moves_nothing_where_both_scores_are_one_and_else_towards_the_teacher():
    """With exact denoisers of two Gaussians, the student's samples come to have the teacher's
    mean."""
    centre, spread, g = 0.8, 0.5, torch.Generator().manual_seed(0)

    def denoised(x, s, mean):
        s = s.view(-1, 1)
        gain = (1 - s) * spread**2 / ((1 - s) ** 2 * spread**2 + s**2)
        return mean + gain * (x - (1 - s) * mean)

    mean = torch.tensor(-1.0, requires_grad=True)
    apart = []
    for _ in range(200):
        clean = mean + spread * torch.randn((256, 4), generator=g)
        with torch.no_grad():
            x, s, _, noise = noised(clean, Process(False), g, 0.02, 0.98)
            assert torch.allclose(x, (1 - s.view(-1, 1)) * clean + s.view(-1, 1) * noise)
            real, fake = denoised(x, s, centre), denoised(x, s, mean)
            gradient = matching_gradient(clean, real, fake)
        assert not matching_gradient(clean, real, real).any()
        (slope,) = torch.autograd.grad(matching_loss(clean, gradient), mean)
        assert torch.isclose(slope, gradient.mean(), atol=1e-6)
        with torch.no_grad():
            mean -= 0.1 * slope
        apart.append(abs(mean.item() - centre))
    assert apart[-1] < 0.05 * apart[0]
    same = torch.ones(2, 3)
    assert not matching_gradient(same, same, same).any()  # 0 / 0


@pytest.mark.parametrize("kind", ["pixart", "flux"])
def test_the_fake_score_learns_what_the_student_makes_and_the_teacher_stays(kind):
    room = room_of(kind)
    teacher, process = room.pipe.transformer, Process.of(room.pipe.scheduler)
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    recorded, g = record(room, 8, 0), torch.Generator().manual_seed(1)
    clean = -recorded.states[:, -1].float()  # which the teacher would not make
    fake = FakeScore(teacher, process, 3e-4)

    def error():
        x, s, timestep, noise = noised(clean, process, torch.Generator().manual_seed(2), 0.2, 0.8)
        with torch.no_grad():
            v = fake.denoise(x, s, timestep, recorded.asked)
        return float((v - (noise - clean)).square().mean())

    at_first = error()
    with torch.enable_grad():
        losses = [fake.learn(clean, recorded.asked, g) for _ in range(40)]
    assert error() < 0.8 * at_first and all(loss > 0 for loss in losses)
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("kind", ["pixart", "flux"])
@pytest.mark.parametrize("steps", [1, 2])
def test_backward_simulation_is_the_students_own_sampling(kind, steps):
    """The clean samples are those that the sampler's steps see, of the same noise; only the last
    step has gradients."""
    room = room_of(kind)
    recorded, process = record(room, 2, 0), Process.of(room.pipe.scheduler)
    asked = []

    class Watched(Denoiser):
        def __call__(self, x, s, timestep, conditioning):
            v = super().__call__(x, s, timestep, conditioning)
            asked.append((x, s, timestep, torch.is_grad_enabled(), v))
            return v

    student = Watched(room.pipe.transformer, process)
    grid = torch.linspace(0, 4, steps + 1).round().long()
    lesson = Lesson(
        recorded=recorded, student=student, teacher=student, process=process, grid=grid,
        guidance=1.0, batch=2, iterations=1,
    )  # fmt: skip
    which = torch.tensor([1, 0])
    taken = set()
    for seed in range(8):
        asked.clear()
        with torch.enable_grad():
            clean = simulated(lesson, which, torch.Generator().manual_seed(seed))
        taken.add(len(asked))
        assert [with_gradients for *_, with_gradients, _ in asked][:-1] == [False] * (
            len(asked) - 1
        )
        assert asked[-1][3]
        levels = recorded.levels[grid]
        sampler = FewStepScheduler(
            recorded.timesteps[grid[:-1]].tolist(), levels.tolist(), process.noise, "consistency"
        )
        sampler.set_timesteps(steps)
        for k, (x, s, timestep, _, v) in enumerate(asked):
            assert torch.equal(s, levels[k].expand(2))
            assert torch.equal(timestep, recorded.timesteps[grid[k]].expand(2))
            own = process.own(x, levels[k])
            said = (1 - levels[k]) * v + x if process.noise else v
            seen = sampler.step(said, timestep, own).pred_original_sample
        assert torch.allclose(seen, clean, atol=1e-4)
    assert taken == set(range(1, steps + 1))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", ["pixart", "flux"])
@pytest.mark.parametrize("autocast", [False, True])
def test_every_recipe_moves_the_weights_and_keeps_them_finite_on_noise_and_on_flow_models(
    kind, objective, autocast, tmp_path
):
    room, told = room_of(kind), []
    few = Recipe(
        objective=objective,
        steps=2,
        recordings=4,
        iterations=24,
        batch=4,
        rate=1e-3,
        average=0.5,
        finish=0,
    )
    trained_room = replace(room, tell=lambda row: told.append(row))
    with Preparing(autocast=autocast).context():
        prepare_student(tmp_path, trained_room, few)
    weights = load_file(tmp_path / "student.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())
    before = room.pipe.transformer.state_dict()
    moved = [
        n
        for n, w in weights.items()
        if n in before and not torch.equal(w.float(), before[n].half().float())
    ]
    assert len(moved) > 0.5 * len(before)
    assert any("loss" in row for row in told)


def test_a_student_of_other_weights_or_steps_is_refused_in_one_sentence(tmp_path):
    room = room_of("pixart")
    trained(room, "trajectory", tmp_path)
    stack = Stack.parse(f"distill(steps=2, student={str(tmp_path)!r})")
    assert stack.refusal(room.pipe) is None
    other = Stack.parse(f"distill(steps=4, student={str(tmp_path)!r})").refusal(room.pipe)
    assert other == f"distill: the student in {tmp_path} takes 2 steps, not 4"
    weight = next(room.pipe.transformer.parameters())
    with torch.no_grad():
        weight.view(-1)[0] += 1
    try:
        assert "was distilled from other weights" in stack.refusal(room.pipe)
    finally:
        with torch.no_grad():
            weight.view(-1)[0] -= 1
    notes = json.loads((tmp_path / "student.json").read_text())
    assert notes["teacher"] == fingerprint(room.pipe.transformer)
    (tmp_path / "student.json").write_text("{}")
    assert "there is no student in" in stack.refusal(room.pipe)


def test_weights_of_other_shapes_do_not_load(tmp_path):
    room = room_of("pixart")
    trained(room, "trajectory", tmp_path)
    weights = load_file(tmp_path / "student.safetensors")
    weights["proj_out.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / "student.safetensors")
    stack = Stack.parse(f"distill(steps=2, student={str(tmp_path)!r})")
    before = room.pipe.transformer.proj_out.bias.clone()
    with (
        pytest.raises(ValueError, match=r"proj_out.bias has shape \(3,\)"),
        stack.attached(room.pipe),
    ):
        pass
    assert torch.equal(room.pipe.transformer.proj_out.bias, before)


def test_recording_leaves_the_pipeline_as_it_was():
    room = room_of("dit")
    before = (
        set(vars(room.pipe.vae)),
        set(vars(room.pipe.scheduler)),
        len(room.pipe.transformer._forward_pre_hooks),
    )
    record(room, 2, 0)
    assert before == (
        set(vars(room.pipe.vae)),
        set(vars(room.pipe.scheduler)),
        len(room.pipe.transformer._forward_pre_hooks),
    )


def test_a_student_as_slow_as_its_teacher_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="a student of 4 steps is no shorter than its teacher's 4"):
        prepare_student(tmp_path, room_of("pixart"), Recipe(steps=4))


def test_the_log_of_a_training_in_stages_goes_on_counting(tmp_path):
    few = Recipe(objective="progressive", steps=1, recordings=2, iterations=4, batch=2, average=0.5)
    prepare_student(tmp_path, room_of("pixart"), few)  # 4 steps to 2 to 1
    steps = [line.split(",")[0] for line in (tmp_path / "log.csv").read_text().splitlines()]
    assert steps == ["step", "2", "4"]
    assert all(
        line.endswith(",jumps") for line in (tmp_path / "log.csv").read_text().splitlines()[1:]
    )
    assert len(json.loads((tmp_path / "student.json").read_text())["sampler"]["timesteps"]) == 1


def test_finishing_brings_the_students_pixels_nearer_to_the_teachers(tmp_path):
    room, distance = room_of("pixart"), Perceptual(load_judge("scene"))
    few = Recipe(steps=2, recordings=4, iterations=4, batch=2, average=0.5, finish=0)
    before = {name: p.clone() for name, p in room.pipe.transformer.named_parameters()}
    apart = []
    for finish in (0, 16):
        folder = tmp_path / str(finish)
        folder.mkdir()
        prepare_student(
            folder,
            room,
            replace(few, finish=finish, finish_batch=2, finish_rate=3e-4, finish_average=0.0),
        )
        with torch.no_grad():
            target = paint(room.pipe, room.draw(9, 12))
            adapted = Stack.parse(f"distill(steps=2, student={str(folder)!r})")
            with adapted.attached(room.pipe) as attached:
                arguments = room.draw(9, 12, steps=2, guidance=1.0)
                attached.start(2, 12)
                apart.append(float(distance(target, paint(room.pipe, arguments)).mean()))
    assert apart[1] < apart[0]
    assert all(torch.equal(p, before[name]) for name, p in room.pipe.transformer.named_parameters())
    kinds = [
        line.rpartition(",")[2] for line in (tmp_path / "16" / "log.csv").read_text().splitlines()
    ]
    assert kinds == ["loss_of", "jumps", "pixels"]


def test_rows_of_a_conditioning_are_those_that_take_rows_gives_the_transformer():
    """In mappings and tuples too; what a family shares stays whole."""
    texts, ids = torch.arange(12.0).view(4, 3), torch.arange(8.0).view(4, 2)
    asked = {
        "encoder_hidden_states": texts, "added_cond_kwargs": {"resolution": None, "ratio": texts},
        "pair": (ids, texts), "img_ids": ids, "return_dict": False,
    }  # fmt: skip
    pipe, which = tiny("flux").pipeline, torch.tensor([2, 0])
    call = {"hidden_states": texts, **asked}
    _, expected = take_rows(pipe.transformer, (), call, which)
    mine = rows(asked, which)
    assert mine.keys() == asked.keys() and mine["img_ids"] is ids
    for name, value in mine.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    both = recordings.joined([rows(asked, torch.tensor([i])) for i in range(4)])
    for name, value in both.items():
        torch.testing.assert_close(value, asked[name], rtol=0, atol=0)


def test_another_training_gives_another_student_and_the_same_one_the_same(tmp_path):
    students = []
    for i, training in enumerate((0, 1, 1)):
        (tmp_path / str(i)).mkdir()
        trained(replace(room_of("pixart"), training=training), "trajectory", tmp_path / str(i))
        students.append(load_file(tmp_path / str(i) / "student.safetensors"))
    assert any(not torch.equal(value, students[1][name]) for name, value in students[0].items())
    assert all(torch.equal(value, students[2][name]) for name, value in students[1].items())
