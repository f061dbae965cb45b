"""The last stage of a student's training: its whole sampling, back-propagated from the pixels.

Regressing single jumps leaves textures smooth, and never shows a student the states it makes
itself. Here teacher and student paint the same fresh requests from the same noise, and the student
learns to repeat the teacher's pixels: by the perceptual distance schedules are learned by (as
InstaFlow's and consistency models' LPIPS, Liu et al. 2023, arXiv:2309.06380) and by their
squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ditbench.acceleration.distillation.low_rank import train
from ditbench.acceleration.distillation.training_loop import fit
from ditbench.models.differentiable import paint

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom

SEED = 20_000
"""First stream of requests: no recording's."""
PIXELS = 50.0
"""Weight of the mean squared error of pixels beside the perceptual distance: a sixth of it at the
start, on pixart-tiny."""


def finish(
    room: Workroom, student: Any, scheduler: Any, distance: Callable[[Tensor, Tensor], Tensor],
    folder: Path, *,
    iterations: int, batch: int, rate: float, teacher_steps: int, average: float,
) -> None:  # fmt: skip
    """Train `student` in place under `scheduler`, `batch` requests an iteration; a log of it in
    `folder`.

    `distance(a, b)` [B] of two batches of pixels; `teacher_steps` the teacher takes for what is to
    be repeated.
    """
    pipe, steps = room.pipe, len(scheduler.timesteps)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)

    def loss_of(step: int) -> Tensor:
        with torch.no_grad():
            target = paint(pipe, room.draw(SEED + step, batch, steps=teacher_steps))
        with in_place(pipe, student, scheduler):
            samples = paint(pipe, room.draw(SEED + step, batch, steps=steps, guidance=1.0))
        return distance(target, samples).mean() + PIXELS * (samples - target).square().mean()

    train(student)
    with torch.enable_grad():
        fit(
            student, loss_of, steps=iterations, lr=rate, folder=folder, average=average,
            weight_decay=0.0, warm_up=20, every=20,
            tell=room.tell,
        )  # fmt: skip


@contextmanager
def in_place(pipe: Any, transformer: Any, scheduler: Any) -> Iterator[None]:
    """The pipeline with another transformer and scheduler."""
    before = pipe.transformer, pipe.scheduler
    pipe.transformer, pipe.scheduler = transformer, scheduler
    try:
        yield
    finally:
        pipe.transformer, pipe.scheduler = before
