"""What distilled students are trained to do, one function per recipe: each gives the loss of a
batch of recorded teacher samplings.

Everything is said in the flow's terms (see `noise_process`): states x of level s, velocities v, x0 = x -
s v.

B rows of a batch, T steps of the teacher, K steps of the student.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ditbench.acceleration.distillation.distribution_matching import (
    EARLIEST,
    LATEST,
    RATIO,
    FakeScore,
    matching_gradient,
    matching_loss,
    noised,
)
from ditbench.acceleration.distillation.noise_process import (
    Process,
    level_of_angle,
    scale,
    trig_velocity,
    wide,
)
from ditbench.acceleration.distillation.recordings import Denoiser, Recorded, rows


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a loss is made of."""

    recorded: Recorded
    student: Denoiser
    teacher: Denoiser
    process: Process
    grid: Tensor
    """[K+1]: the recorded states the student goes through, by number."""
    guidance: float
    batch: int
    iterations: int
    training: int = 0
    """Which training of the recipe: each has random numbers of its own."""
    fake: FakeScore | None = None
    """Of `dmd2`."""

    def draw(self, step: int) -> tuple[torch.Generator, Tensor]:
        """Random numbers of this iteration, and which recordings [B] it learns from."""
        g = torch.Generator().manual_seed((self.training << 24) + step)
        return g, torch.randint(len(self.recorded.states), (self.batch,), generator=g)

    def at(self, which: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States [B,...], levels [B] and timesteps [B] of recordings `which` at places [B]; the
        clean sample's timestep is 0."""
        r = self.recorded
        timesteps = torch.cat([r.timesteps, torch.zeros(1)])
        return r.states[which, place].float(), r.levels[place], timesteps[place]


Objective = Callable[[Lesson, int], Tensor]


def trajectory(lesson: Lesson, step: int) -> Tensor:
    """The mean velocity of the teacher between two states of the student's grid, whatever the
    teacher's steps were (Luhman and Luhman 2021, arXiv:2101.02388, for one step; for several,
    progressive distillation's target in a single stage)."""
    g, which = lesson.draw(step)
    k = torch.randint(len(lesson.grid) - 1, (lesson.batch,), generator=g)
    x, s, timestep = lesson.at(which, lesson.grid[k])
    y, until, _ = lesson.at(which, lesson.grid[k + 1])
    target = (y - x) / wide(until - s, x)
    return (
        (lesson.student(x, s, timestep, rows(lesson.recorded.asked, which)) - target)
        .square()
        .mean()
    )


def lcm(lesson: Lesson, step: int, huber: float = 0.001) -> Tensor:
    """Latent consistency distillation (Luo et al. 2023, arXiv:2310.04378): the clean sample seen
    from one state of the teacher's sampling is the one seen from the next, and at the end the
    sample itself. Pseudo-Huber distance with c = 0.001, as PixArt-LCM.

    The recorded states stand for the guided solver's steps, and the student as it is for its
    running average.
    """
    g, which = lesson.draw(step)
    last = len(lesson.recorded.levels) - 1
    i = torch.randint(last, (lesson.batch,), generator=g)
    conditioning = rows(lesson.recorded.asked, which)

    def clean(place: Tensor) -> Tensor:
        x, s, timestep = lesson.at(which, place)
        return x - wide(s, x) * lesson.student(x, s, timestep, conditioning)

    with torch.no_grad():
        end, _, _ = lesson.at(which, torch.full_like(i, last))
        target = torch.where(wide(i + 1 < last, end), clean((i + 1).clamp(max=last - 1)), end)
    return ((clean(i) - target).square() + huber**2).sqrt().mean()


def progressive(lesson: Lesson, step: int) -> Tensor:
    """One step where the teacher, itself a student of twice the steps, takes two (Salimans and Ho
    2022, arXiv:2202.00512, algorithm 2), with states of the first teacher's sampling as starting
    points."""
    g, which = lesson.draw(step)
    k = torch.randint(len(lesson.grid) - 1, (lesson.batch,), generator=g)
    conditioning = rows(lesson.recorded.asked, which)
    x, s, timestep = lesson.at(which, lesson.grid[k])
    _, middle, then = lesson.at(which, (lesson.grid[k] + lesson.grid[k + 1]) // 2)
    _, until, _ = lesson.at(which, lesson.grid[k + 1])
    with torch.no_grad():
        half = x + wide(middle - s, x) * lesson.teacher(x, s, timestep, conditioning)
        y = half + wide(until - middle, x) * lesson.teacher(half, middle, then, conditioning)
        target = (y - x) / wide(until - s, x)
    return (lesson.student(x, s, timestep, conditioning) - target).square().mean()


SCM_MEAN, SCM_STD, SCM_WARM_UP, SCM_DATA = 0.2, 1.6, 0.25, 0.5
"""Log-normal noise levels and spread of the data as T2I-Distill (arXiv:2512.13006) has them; share
of the training in which the tangent is warmed up (theirs is longer than their training)."""
TANGENT = 5e-3
"""Half width, in angle, of the central difference that stands for the derivative along the
teacher's path. The transformers' sinusoids of 1000 s swing faster than that, so that the difference
is also what the paper's rescaled time input is for: a bounded derivative."""


def scm(lesson: Lesson, step: int) -> Tensor:
    """Continuous-time consistency distillation (Lu and Song 2024, arXiv:2410.11081) as T2I-Distill
    trains it: normalised tangent, warmed up, weight 1 / tan t; without their learned weight of
    noise levels."""
    g, which = lesson.draw(step)
    t = (
        (torch.exp(SCM_MEAN + SCM_STD * torch.randn(lesson.batch, generator=g)) / SCM_DATA)
        .arctan()
        .clamp(0.02, 1.55)
    )
    conditioning = rows(lesson.recorded.asked, which)
    data = lesson.recorded.states[which, -1].float()
    noise = torch.randn(data.shape, generator=g)

    def velocity(
        denoise: Callable[[Tensor, Tensor, Tensor], Tensor], y: Tensor, t: Tensor
    ) -> Tensor:
        """F at the TrigFlow state y."""
        s = level_of_angle(t)
        n, broad = wide(scale(s), y), wide(s, y)
        return trig_velocity(denoise(n * y, s, lesson.process.timestep(s)), n * y, broad)

    def student(x: Tensor, s: Tensor, timestep: Tensor) -> Tensor:
        return lesson.student(x, s, timestep, conditioning)

    def teacher(x: Tensor, s: Tensor, timestep: Tensor) -> Tensor:
        return lesson.teacher.guided(
            x, s, timestep, tuple(rows(a, which) for a in lesson.recorded.guided), lesson.guidance
        )

    sin, cos = wide(t.sin(), data), wide(t.cos(), data)
    y = cos * data + sin * noise
    f = velocity(student, y, t)
    with torch.no_grad():
        along = velocity(teacher, y, t)
        ahead = velocity(student, y + TANGENT * along, t + TANGENT)
        behind = velocity(student, y - TANGENT * along, t - TANGENT)
        tangent = scm_tangent(
            f,
            along,
            y,
            (ahead - behind) / (2 * TANGENT),
            t,
            min(1.0, step / (SCM_WARM_UP * lesson.iterations)),
        )
        tangent = tangent / (tangent.flatten(1).norm(dim=1).view(-1, *[1] * (y.dim() - 1)) + 0.1)
    error = (f - f.detach() - tangent).square().flatten(1).mean(1)
    loss: Tensor = (error / t.tan()).mean()
    return loss


def scm_tangent(
    f: Tensor, along: Tensor, y: Tensor, slope: Tensor, t: Tensor, warmth: float = 1.0
) -> Tensor:
    """-cos^2 t (F - dy/dt) - warmth cos t sin t (y + dF/dt): cos t times the derivative of the
    consistency function along the teacher's path, so nothing for a consistency function."""
    sin, cos = wide(t.sin(), y), wide(t.cos(), y)
    return -(cos**2) * (f - along) - warmth * cos * sin * (y + slope)


MEAN_LOGIT, STD_LOGIT, SAME = -0.4, 1.0, 0.25
"""MeanFlow's logit-normal times, and the share of rows whose interval is nothing (T2I-Distill)."""
MEANFLOW_POWER = 1.0
"""p of the weight (error + c)^-p, chosen by measurement on the tiny models (LOG.md): at
T2I-Distill's paper's best, gamma = 2 or p = -1, training diverges on both that were tried; +1 is
what its released script leaves."""
MEANFLOW_C = 1e-3
"""c of the same weight."""


def meanflow(lesson: Lesson, step: int) -> Tensor:
    """Distillation of the mean velocity over an interval (Geng et al. 2025, arXiv:2505.13447) as
    T2I-Distill trains it: u = v - (s - r) du/ds along the teacher's guided velocity v, weight by
    the error's own power."""
    g, which = lesson.draw(step)
    draws = (
        torch.sigmoid(MEAN_LOGIT + STD_LOGIT * torch.randn(2, lesson.batch, generator=g))
        .sort(0)
        .values
    )
    r, s = draws[0], draws[1].clamp(max=0.985)
    r = torch.where(torch.rand(lesson.batch, generator=g) < SAME, s, r.minimum(s))
    conditioning = rows(lesson.recorded.asked, which)
    data = lesson.recorded.states[which, -1].float()
    broad = wide(s, data)
    x = (1 - broad) * data + broad * torch.randn(data.shape, generator=g)

    def mean(x: Tensor, s: Tensor) -> Tensor:
        lesson.student.transformer.intervals.length = s - r
        return lesson.student(x, s, lesson.process.timestep(s), conditioning)

    u = mean(x, s)
    with torch.no_grad():
        timestep = lesson.process.timestep(s)
        guided = tuple(rows(a, which) for a in lesson.recorded.guided)
        v = lesson.teacher.guided(x, s, timestep, guided, lesson.guidance)
        h = torch.full_like(s, TANGENT)
        slope = (mean(x + wide(h, x) * v, s + h) - mean(x - wide(h, x) * v, s - h)) / (2 * TANGENT)
        target = meanflow_target(v, slope, s - r)
    return meanflow_loss((u - target).square().flatten(1).mean(1))


def meanflow_loss(error: Tensor) -> Tensor:
    """Mean of the rows' squared errors [B], each by the weight (error + c)^-p, through which no
    gradient goes."""
    return (error * (error.detach() + MEANFLOW_C) ** -MEANFLOW_POWER).mean()


def meanflow_target(v: Tensor, slope: Tensor, interval: Tensor) -> Tensor:
    """v - (s - r) du/ds: MeanFlow's identity (its eq. 6)."""
    return v - wide(interval, v) * slope


def endings(lesson: Lesson, step: int) -> Tensor:
    """The clean sample that the teacher comes to from each state of the student's grid: what a
    student begins with before `dmd2`, as DMD2's one-step students of SDXL do (arXiv:2405.14867,
    section 5.3)."""
    g, which = lesson.draw(step)
    k = torch.randint(len(lesson.grid) - 1, (lesson.batch,), generator=g)
    x, s, timestep = lesson.at(which, lesson.grid[k])
    clean = lesson.recorded.states[which, -1].float()
    seen = x - wide(s, x) * lesson.student(x, s, timestep, rows(lesson.recorded.asked, which))
    return (seen - clean).square().mean()


def simulated(lesson: Lesson, which: Tensor, g: torch.Generator) -> Tensor:
    """Clean samples [B,...] that the student makes of fresh noise, at one of its steps, the same for
    all rows: it takes the steps before without gradients, as it samples (DMD2's backward
    simulation, section 4.4)."""
    asked, levels = rows(lesson.recorded.asked, which), lesson.recorded.levels[lesson.grid]
    timesteps = lesson.recorded.timesteps[lesson.grid[:-1]]
    shape = (len(which), *lesson.recorded.states.shape[2:])
    last = int(torch.randint(len(timesteps), (1,), generator=g))

    def seen(x: Tensor, k: int) -> Tensor:
        s, timestep = levels[k].expand(len(x)), timesteps[k].expand(len(x))
        return x - levels[k] * lesson.student(x, s, timestep, asked)

    x = lesson.process.state(torch.randn(shape, generator=g), levels[0])
    with torch.no_grad():
        for k in range(last):
            noise = torch.randn(shape, generator=g)
            x = (1 - levels[k + 1]) * seen(x, k) + levels[k + 1] * noise
    return seen(x, last)


def dmd2(lesson: Lesson, step: int) -> Tensor:
    """Distribution matching (Yin et al. 2024, arXiv:2405.14867): `RATIO` updates of the fake score
    on what the student makes, then the difference of both scores at noised samples of the student,
    the teacher's with guidance."""
    if lesson.fake is None:
        raise ValueError("dmd2 needs a fake score")
    g, which = lesson.draw(step)
    for _ in range(RATIO):
        others = torch.randint(len(lesson.recorded.states), (lesson.batch,), generator=g)
        with torch.no_grad():
            clean = simulated(lesson, others, g)
        lesson.fake.learn(clean, rows(lesson.recorded.asked, others), g)
    clean = simulated(lesson, which, g)
    with torch.no_grad():
        x, s, timestep, _ = noised(clean, lesson.process, g, EARLIEST, LATEST)
        guided = tuple(rows(a, which) for a in lesson.recorded.guided)
        real = lesson.teacher.guided(x, s, timestep, guided, lesson.guidance)
        fake = lesson.fake.denoise(x, s, timestep, rows(lesson.recorded.asked, which))
        broad = wide(s, x)
        gradient = matching_gradient(clean, x - broad * real, x - broad * fake)
    return matching_loss(clean, gradient)


OBJECTIVES: dict[str, Objective] = {
    "trajectory": trajectory, "progressive": progressive, "lcm": lcm, "scm": scm,
    "meanflow": meanflow, "dmd2": dmd2,
}  # fmt: skip
