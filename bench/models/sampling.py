"""How a sample is drawn from a model, and what it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditbench.models.table import Model

PER_VIDEO = 4
"""A video counts as this many samples: `--num-samples 64` is 64 pictures or 16 videos, and a batch
likewise."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a sample is drawn; a method's `adapt` may return another."""

    steps: int
    """Sampler steps."""
    guidance: float
    """Classifier-free guidance scale, or the embedded scale for FLUX."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    frames: int
    """1 for pictures."""
    text_tokens: int
    """Prompt tokens, padding included; 0 for class-conditional models."""


def noun_for(frames: int) -> str:
    """What samples of so many frames are called beside their number."""
    return "samples" if frames == 1 else "videos"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sample asked of a model."""

    id: str
    seed: int
    prompt: str | None = None
    label: int | None = None
    truth: dict[str, Any] | None = None
    """What the picture should show, where that is known exactly (`shapes.Scenes`)."""
    entry: int | None = None
    """Line of the prompt file it is from, counted from 0: two lines with one text stay two
    prompts."""


def sampling_of(model: Model) -> Sampling:
    """A model's default sampling."""
    return Sampling(
        steps=model.steps,
        guidance=model.guidance,
        height=model.height,
        width=model.width,
        frames=model.frames,
        text_tokens=model.text_tokens,
    )


def count_for(model: Model, num: int) -> int:
    """How many samples of a model `num` stands for: videos count four."""
    return num if model.frames == 1 else max(1, num // PER_VIDEO)
