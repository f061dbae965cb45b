"""A trained student in a folder: put in the place of its teacher, and what says whether it fits."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from ditbench.acceleration.distillation.interval_embedding import NAME, Intervals
from ditbench.acceleration.distillation.scheduler import FewStepScheduler
from ditbench.models.lora import matched, updated

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment

WEIGHTS, NOTES = "student.safetensors", "student.json"


def put_in_place(folder: Path, pipeline: Any, at: Attachment) -> None:
    """The student's weights and sampler, until detached. Away from the CPU the teacher's weights
    wait in host memory."""
    transformer, sampler, weights = (
        pipeline.transformer,
        student_notes(folder)["sampler"],
        load_file(folder / WEIGHTS),
    )
    if any(name.startswith(NAME) for name in weights):
        _add_intervals(transformer, sampler["levels"], at)
    if any(name.endswith(".lora_A.weight") for name in weights):
        for weight, up, down in matched(weights, transformer, f"the student in {folder}"):
            at.replace(weight, updated(weight, up, down, 1.0))
            at.count("weights")
        at.patch(pipeline, "scheduler", FewStepScheduler(**sampler))
        return
    own = dict(transformer.named_parameters()) | dict(transformer.named_buffers())
    for name, value in weights.items():
        if (target := own.get(name)) is None or target.shape != value.shape:
            here = f"shape {tuple(target.shape)} here" if target is not None else "no place here"
            raise ValueError(
                f"the student in {folder} does not fit: {name} has shape {tuple(value.shape)}, and "
                f"{here}"
            )
        at.replace(target, value)
        at.count("weights")
    at.patch(pipeline, "scheduler", FewStepScheduler(**sampler))


def _add_intervals(transformer: Any, levels: list[float], at: Attachment) -> None:
    """MeanFlow's second time, told at every step how far it goes."""
    intervals = Intervals(transformer).to(transformer.device, transformer.dtype)
    at.undo(intervals.remove, transformer)

    # on the device: a CUDA graph copies nothing from the host
    lengths = intervals.of_steps = torch.tensor(
        [high - low for high, low in pairwise(levels)], device=transformer.device
    )

    def tell(*_: Any) -> None:
        intervals.length = lengths[at.now.step, None]

    at.undo(transformer.register_forward_pre_hook(tell).remove)


def fingerprint(transformer: Any) -> str:
    """sha256 of every parameter's name, shape and first sixteen values: tells one checkpoint from
    another, in any number format."""
    digest = hashlib.sha256()
    for name, value in transformer.named_parameters():
        few = value.detach().flatten()[:16].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {tuple(value.shape)} ".encode() + few.numpy().tobytes())
    return digest.hexdigest()


def unfit(folder: Path, transformer: Any, steps: int) -> str | None:
    """Why the student in a folder cannot take the transformer's place for so many steps, in one
    sentence; None when it can."""
    try:
        notes = student_notes(folder)
    except ValueError as error:
        return str(error)
    if (taken := len(notes["sampler"]["timesteps"])) != steps:
        return f"the student in {folder} takes {taken} steps, not {steps}"
    if notes["teacher"] != fingerprint(transformer):
        return f"the student in {folder} was distilled from other weights than this model's"
    return None


def student_notes(folder: Path) -> dict[str, Any]:
    """Its teacher's fingerprint and the settings of its sampler; ValueError where there is none."""
    try:
        notes = json.loads((folder / NOTES).read_text(encoding="utf-8"))
        notes["teacher"], notes["sampler"]["timesteps"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"there is no student in {folder}: {NOTES} {error}") from None
    return dict(notes)
