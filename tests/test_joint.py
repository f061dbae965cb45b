"""Students that are trained together with a schedule of token sparsity."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_distill import room_of

from ditbench.acceleration.caching.schedule import Schedule
from ditbench.acceleration.distillation import students
from ditbench.acceleration.distillation.joint_finetuning import JointRecipe, finish_jointly
from ditbench.acceleration.distillation.scheduler import FewStepScheduler
from ditbench.acceleration.distillation.student_files import student_notes
from ditbench.acceleration.distillation.students import Recipe, prepare_student
from ditbench.method.stack import Stack
from ditbench.models.sampling import sampling_of
from ditbench.models.table import models

FEW = {
    "stage1": 1, "stage2": 2, "iterations": 16, "draws": 6, "batch": 2, "average": 0.5, "rate": 3e-5,
}  # fmt: skip


def squared(a, b):
    return (a - b).square().flatten(1).mean(1)


def student_of(kind, folder):
    """Room, a student's transformer and the settings of its sampler, a folder of it."""
    room = room_of(kind)
    few = Recipe(steps=3, recordings=4, iterations=4, batch=2, average=0.5, finish=0)
    room = replace(room, sampling=replace(room.sampling, steps=6))
    prepare_student(folder, room, few)
    transformer = copy.deepcopy(room.pipe.transformer)
    transformer.load_state_dict(students.load_file(folder / students.WEIGHTS))
    return SimpleNamespace(
        room=room, transformer=transformer, folder=folder,
        sampler=student_notes(folder)["sampler"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def flux_student(tmp_path_factory):
    return student_of("flux", tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def dit_student(tmp_path_factory):
    return student_of("dit", tmp_path_factory.mktemp("dit"))


@pytest.fixture(params=["dit", "flux"])
def student(request):
    return request.getfixturevalue(f"{request.param}_student")


def trained(student, out, **changes):
    transformer, told = copy.deepcopy(student.transformer), []
    recipe = JointRecipe(**FEW | changes)
    notes = finish_jointly(
        replace(student.room, tell=told.append), transformer, FewStepScheduler(**student.sampler), squared, out / "log", recipe,
        teacher_steps=6, out=out,
    )  # fmt: skip
    assert told and all(0 < row["done"] <= row["of"] for row in told)
    return transformer, notes


def test_weights_and_schedule_move_within_the_budget_and_come_nearer_to_the_teacher(
    student, tmp_path
):
    teacher = {name: p.clone() for name, p in student.room.pipe.transformer.named_parameters()}
    transformer, notes = trained(student, tmp_path, keep=0.5)
    for name, p in student.room.pipe.transformer.named_parameters():
        assert torch.equal(p, teacher[name])
    moved = [
        not torch.equal(a, b)
        for a, b in zip(transformer.parameters(), student.transformer.parameters(), strict=True)
    ]
    assert np.mean(moved) > 0.5
    if student.room.model.family == "flux":  # a few small steps are too few for the other one
        assert notes["held_out"] < notes["held_out_before"]
    schedule = Schedule.read(tmp_path / "schedule.json")
    assert schedule.steps == 3 and (schedule.keep[0] == 1).all()
    assert 0.4 < notes["spent"] <= 0.5 and schedule.notes["keep"] == 0.5


def test_the_schedule_moves_with_the_weights(flux_student, tmp_path):
    """What it begins with is what `learn_schedule` learns of the student as it is."""
    trained(flux_student, tmp_path, keep=0.5, iterations=1, moving=1.0)
    begun = Schedule.read(tmp_path / "schedule.json")
    trained(flux_student, tmp_path, keep=0.5, iterations=8, moving=1.0, table_rate=2.0)
    moved = Schedule.read(tmp_path / "schedule.json")
    assert (begun.chosen != moved.chosen).any()


def test_the_control_is_the_same_training_without_a_schedule(flux_student, tmp_path):
    transformer, notes = trained(flux_student, tmp_path, keep=1.0)
    assert "spent" not in notes and not (tmp_path / "schedule.json").exists()
    assert notes["held_out"] < notes["held_out_before"]
    assert not torch.equal(
        next(iter(transformer.parameters())), next(iter(flux_student.transformer.parameters()))
    )


def test_a_budget_that_the_first_step_exceeds_is_refused(flux_student, tmp_path):
    with pytest.raises(ValueError, match=r"keep=0\.2 of 3 steps cannot be met"):
        trained(flux_student, tmp_path, keep=0.2)
    model, distill = models()["dit-tiny"], Stack.parse("distill(joint=0.2)").methods[0]
    assert "does not pay for the first step" in distill.unpreparable(sampling_of(model))


def test_its_stack_samples_by_the_schedule_that_came_with_the_student(flux_student, tmp_path):
    out = tmp_path / "student"
    out.mkdir()
    room, transformer = flux_student.room, flux_student.transformer
    notes = trained(flux_student, out, keep=0.5)[1]
    students.save_file(students.state_of(transformer), out / students.WEIGHTS)
    (out / students.NOTES).write_text((flux_student.folder / students.NOTES).read_text())
    stack = Stack.parse("distill(steps=3, joint=0.5)+diffsparse(keep=0.5, allocator='joint')")
    assert [m.recipe() is None for m in stack.methods] == [False, True]
    with stack.attached(room.pipe, {"distill": out}) as attached:
        attached.start(3, 2)
        with torch.no_grad():
            room.pipe(**room.draw(0, 2, steps=3, guidance=1.0) | {"output_type": "latent"})
        keep = attached.schedule()["keep"]
    assert np.allclose(keep, Schedule.read(out / "schedule.json").keep) and notes["spent"] <= 0.5
    with (
        stack.attached(room.pipe, {"distill": flux_student.folder}) as attached,
        pytest.raises(ValueError, match="has not been prepared"),
    ):
        attached.start(3, 2)
        room.pipe(**room.draw(0, 2, steps=3, guidance=1.0) | {"output_type": "latent"})


@pytest.mark.parametrize(
    ("below", "there"),
    [
        ("", False),
        ("distill+", False),
        ("distill(joint=1.0)+", False),
        ("distill(joint=0.46)+", True),
    ],
)
def test_its_schedule_without_its_student_is_refused_before_anything_runs(below, there):
    problems = Stack.parse(f"{below}diffsparse(allocator='joint')").problems("flux")
    assert (problems == []) == there
    assert there or "there is none in this stack" in problems[0]
    assert Stack.parse(f"{below}diffsparse(allocator='joint', keep=1.0)").problems("flux") == []


@pytest.mark.parametrize("knobs", ["student='x'", "rank=4", "objective='lcm'"])
def test_what_is_not_trained_here_in_all_weights_has_no_joint_stage(knobs):
    with pytest.raises(ValueError, match="joint is of students that are trained here"):
        Stack.parse(f"distill(joint=0.5, {knobs})")


def test_a_joint_student_goes_on_from_the_dense_one(flux_student, tmp_path, monkeypatch):
    """Its dense stages are not trained again where the plain student has been prepared."""
    calls = []

    def finished(room, transformer, scheduler, distance, folder, recipe, **_):
        calls.append(next(iter(transformer.parameters())).clone())
        folder.mkdir(parents=True)
        (folder / "loss.csv").write_text("step,loss,seconds\n1,0.5,1\n")
        return {"held_out": 0.1}

    monkeypatch.setattr(students, "finish_jointly", finished)
    monkeypatch.setattr(students, "_distance", lambda room: squared)
    notes = prepare_student(
        tmp_path, flux_student.room, Recipe(steps=3, joint=0.5), start=flux_student.folder
    )
    assert (notes["start"], notes["start_seconds"]) == (flux_student.folder.name, 0)
    assert notes["joint"] == 0.5
    assert torch.equal(calls[0], next(iter(flux_student.transformer.parameters())))
    assert (tmp_path / "log.csv").read_text().splitlines()[1:] == ['1,0.5,1,"pixels, sparse"']
