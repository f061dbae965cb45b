"""Training a student of few steps from its teacher's recorded sampling (see `recordings` and
`objectives`)."""

from __future__ import annotations

import copy
import csv
import functools
import json
import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from ditbench.acceleration.distillation.distribution_matching import RATIO, FakeScore
from ditbench.acceleration.distillation.interval_embedding import Intervals
from ditbench.acceleration.distillation.joint_finetuning import JointRecipe, finish_jointly
from ditbench.acceleration.distillation.low_rank import low_rank_copy, state_of
from ditbench.acceleration.distillation.noise_process import Process
from ditbench.acceleration.distillation.objectives import (
    OBJECTIVES,
    Lesson,
    Objective,
    dmd2,
    endings,
    trajectory,
)
from ditbench.acceleration.distillation.pixel_finetuning import finish
from ditbench.acceleration.distillation.recordings import Denoiser, record
from ditbench.acceleration.distillation.scheduler import FewStepScheduler, Way
from ditbench.acceleration.distillation.student_files import (
    NOTES,
    WEIGHTS,
    fingerprint,
    student_notes,
)
from ditbench.acceleration.distillation.training_loop import fit
from ditbench.method.artifact import MANIFEST
from ditbench.models.requests import takes_prompts
from ditbench.records.files import read_json
from ditbench.shapes.judge import load_judge
from ditbench.shapes.perceptual import Perceptual

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom

WAYS: dict[str, Way] = {
    "trajectory": "flow", "progressive": "flow", "lcm": "consistency", "scm": "consistency",
    "meanflow": "flow", "dmd2": "consistency",
}  # fmt: skip
"""How a recipe's student is sampled."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a student is trained. All numbers are ours: the papers train thousands of times
    longer."""

    objective: str = "trajectory"
    steps: int = 4
    """Of the student."""
    recordings: int = 2560
    """Requests the teacher is recorded on. With 1024 the student knows them by heart: on
    pixart-tiny the error of its final latents was .02 of their variance on those, .05 on others."""
    teacher_steps: int = 12
    """Of the teacher while it is recorded, unless all its own are needed: those of DDIM, a
    first-order sampler of a noise process, are."""
    iterations: int = 1200
    batch: int = 32
    rate: float = 4e-4
    """1e-3 undoes the teacher: on pixart-tiny the loss stood at .4 until the rate fell, where 4e-4
    is below .15 after 150 iterations."""
    average: float = 0.998
    """Decay of the running average that is kept."""
    finish: int = 200
    """Iterations of the last stage, `ditbench.acceleration.distillation.pixel_finetuning`, of a
    `trajectory` student; nothing else is finished, to compare recipes alone."""
    finish_batch: int = 8
    """Pictures, or half as many videos."""
    finish_rate: float = 3e-5
    """2e-4 did well on flux-tiny and undid dit-tiny's jumps."""
    finish_average: float = 0.95
    seed: int = 0
    warm_up: float = 0.5
    """Share of the iterations of a `dmd2` student that it learns the teacher's `endings` first; of
    the rest, `RATIO` are of the fake score for one of its own."""
    matching_rate: float = 1e-4
    """Of both networks in `dmd2`."""
    rank: int = 0
    """Of the updates that are trained in place of all weights; 0: all weights are."""
    joint: float | None = None
    """Share of the multiply-accumulates at which a last stage trains weights and a schedule
    together (`joint_finetuning`); None: there is none."""


AT_SIZE: dict[str, Any] = {"recordings": 256, "batch": 1}
"""Of full-size text models, whose recordings and activations are a thousand times those of a tiny
one's."""


def prepare_student(
    folder: Path, room: Workroom, recipe: Recipe, start: Path | None = None
) -> dict[str, Any]:
    """Train a student and write `student.safetensors` (half precision), `student.json` and
    `log.csv`; returns notes. A student that is trained together with a schedule goes on from the
    dense one in the folder `start`, if there is one.

    Raises ValueError for a student of as many steps as its teacher, for a sampler that makes other
    steps than it is asked for, and for a tiny model in another format than float32.
    """
    if room.model.group == "full" and takes_prompts(room.model):
        recipe = replace(recipe, **AT_SIZE)
    if recipe.steps >= room.sampling.steps:
        raise ValueError(
            f"a student of {recipe.steps} steps is no shorter than its teacher's {room.sampling.steps}"
        )
    if room.calls != room.sampling.steps:
        name = type(room.pipe.scheduler).__name__
        raise ValueError(
            "students are trained on the states of samplers that make a step of each one asked "
            f"for, and {name} makes {room.calls} of {room.sampling.steps}"
        )
    if room.model.world and room.pipe.transformer.dtype != torch.float32:
        raise ValueError("students of the tiny models are trained in float32; leave --dtype out")
    room.pipe.transformer.eval().requires_grad_(False)
    if recipe.objective != "trajectory" or not room.model.world:
        recipe = replace(recipe, finish=0)
    work = room.half_done or folder / "work"
    logs: list[tuple[Path, str, int]] = []
    notes = {name: value for name, value in asdict(recipe).items() if value is not None}
    if start is None:
        student, sampler = _dense(room, recipe, work, logs)
    else:
        student, sampler = (
            copy.deepcopy(room.pipe.transformer).float(),
            student_notes(start)["sampler"],
        )
        student.load_state_dict(load_file(start / WEIGHTS))
        notes |= {"start": start.name, "start_seconds": _seconds(start)}
    if recipe.joint is not None:
        joint = JointRecipe(keep=recipe.joint)
        shutil.rmtree(work / "joint", ignore_errors=True)  # so does the table of costs
        notes |= finish_jointly(
            room, student, FewStepScheduler(**sampler), _distance(room), work / "joint", joint,
            teacher_steps=_teacher_steps(room, recipe)[0], out=folder,
        )  # fmt: skip
        earlier = 0 if start else recipe.iterations + recipe.finish
        logs.append((work / "joint", "pixels, sparse", earlier))
        notes["joint_iterations"] = joint.iterations
    save_file(state_of(student), folder / WEIGHTS)
    (folder / NOTES).write_text(
        json.dumps({"teacher": fingerprint(room.pipe.transformer), "sampler": sampler}, indent=1)
        + "\n",
        encoding="utf-8",
    )
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["step", "loss", "seconds", "loss_of"])
        for at, what, earlier in logs:
            _, *rows = csv.reader((at / "loss.csv").open(newline="", encoding="utf-8"))
            writer.writerows([int(step) + earlier, *rest, what] for step, *rest in rows)
    if not room.half_done:
        shutil.rmtree(work)
    return notes


def _seconds(folder: Path) -> float:
    """What it took to make an artefact; 0 for a folder that is none."""
    path = folder / MANIFEST
    return float(read_json(path)["seconds"]) if path.is_file() else 0.0


def _distance(room: Workroom) -> Perceptual:
    return Perceptual(load_judge(room.model.world).to(room.device))


def _teacher_steps(room: Workroom, recipe: Recipe) -> tuple[int, int]:
    """Of the teacher while it is recorded, and how often a progressive student is halved."""
    process, steps = Process.of(room.pipe.scheduler), room.sampling.steps
    if recipe.objective == "progressive":  # from as many steps as halving can begin with
        stages = max(1, int(math.log2(steps / recipe.steps)))
        return recipe.steps * 2**stages, stages
    if not process.noise or room.pipe.scheduler.config.get("solver_order", 1) > 1:
        steps = max(recipe.steps, min(steps, recipe.teacher_steps))
    return steps, 1


def _dense(
    room: Workroom, recipe: Recipe, work: Path, logs: list[tuple[Path, str, int]]
) -> tuple[Any, dict[str, Any]]:
    """A student that computes everything, and the settings of its sampler; adds to `logs` folders,
    what their losses are of, and the iterations before them."""
    teacher, process, before = room.pipe.transformer, Process.of(room.pipe.scheduler), 0
    steps, stages = _teacher_steps(room, recipe)
    parts = work / "recorded" if room.half_done else None
    recorded = record(room, recipe.recordings, recipe.seed, steps, parts)
    if recipe.rank:
        student = low_rank_copy(teacher, recipe.rank, recipe.seed)
        if room.model.group == "full":
            student.enable_gradient_checkpointing()
    else:  # AdamW's small changes would be lost in a shorter format
        student = copy.deepcopy(teacher).float().requires_grad_(True)
    if recipe.objective == "meanflow":
        Intervals(student).to(room.device)
    for number, stage in enumerate(_stages(recipe, stages)):
        grid = (
            torch.linspace(0, len(recorded.timesteps), recipe.steps * stage.halvings + 1)
            .round()
            .long()
        )
        fake = None
        if stage.objective is dmd2:
            shutil.rmtree(work / str(number), ignore_errors=True)  # the fake score begins anew
            with torch.enable_grad():
                fake = FakeScore(teacher, process, stage.rate)
        lesson = Lesson(
            recorded=recorded, student=Denoiser(student, process),
            teacher=Denoiser(teacher, process), process=process, grid=grid,
            guidance=room.sampling.guidance, batch=recipe.batch,
            iterations=stage.iterations, training=room.training, fake=fake,
        )  # fmt: skip
        with torch.enable_grad():
            fit(
                student, functools.partial(stage.objective, lesson), steps=lesson.iterations,
                lr=stage.rate, folder=work / str(number), warm_up=stage.warm_up,
                average=recipe.average, weight_decay=0.0, tell=room.tell,
            )  # fmt: skip
        logs.append((work / str(number), stage.loss_of, before))
        before += stage.iterations
        if recipe.objective == "progressive":
            teacher = copy.deepcopy(student).requires_grad_(False)
    sampler = {
        "timesteps": recorded.timesteps[grid[:-1]].tolist(),
        "levels": recorded.levels[grid].tolist(), "noise": process.noise,
        "way": WAYS[recipe.objective],
    }  # fmt: skip
    if recipe.finish:
        finish(
            room, student, FewStepScheduler(**sampler), _distance(room), work / "finish",
            iterations=recipe.finish,
            batch=max(1, recipe.finish_batch // (1 if room.model.frames == 1 else 2)),
            rate=recipe.finish_rate,
            teacher_steps=steps, average=recipe.finish_average,
        )  # fmt: skip
        logs.append((work / "finish", "pixels", before))
    return student, sampler


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A part of a training, with an optimiser of its own."""

    objective: Objective
    iterations: int
    rate: float
    halvings: int = 1
    """Steps of the student in this stage for each that it takes in the end."""
    warm_up: int = 100
    loss_of: str = "jumps"


def _stages(recipe: Recipe, halvings: int) -> list[_Stage]:
    """`halvings`: how often the steps of a progressive student are halved, from its first stage on;
    1 for others."""
    own = OBJECTIVES[recipe.objective]
    if recipe.objective == "dmd2":
        first = round(recipe.warm_up * recipe.iterations)
        rest = max(1, (recipe.iterations - first) // RATIO)
        begin = _Stage(objective=endings, iterations=first, rate=recipe.rate, loss_of="endings")
        match = _Stage(
            objective=own, iterations=rest, rate=recipe.matching_rate, warm_up=20, loss_of="scores"
        )
        return [begin, match] if first else [match]
    return [
        _Stage(
            objective=trajectory if recipe.objective == "progressive" and stage == 0 else own,
            iterations=recipe.iterations // halvings, rate=recipe.rate,
            halvings=2 ** (halvings - 1 - stage),
        )
        for stage in range(halvings)
    ]  # fmt: skip
