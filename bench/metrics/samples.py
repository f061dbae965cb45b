"""The samples of one cell as the metric families see them: pixels on disk, what was asked for, and
the baseline's.

n samples, T frames, H height, W width, Q = 4 quadrants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from ditbench.extractors.shelf import Shelf
from ditbench.records.sample_files import Shards, SingleFile, open_samples

if TYPE_CHECKING:
    import torch

    from ditbench.shapes.judge import Judge
    from ditbench.shapes.scenes import Scenes
    from ditbench.shapes.second_judge import CheckJudge

CHUNK = 64
"""Pictures looked at together; a video counts each of its frames."""


@dataclass(frozen=True)
class Samples:
    """The samples of a cell, a file or a folder of shards, read a chunk at a time; opening raises
    ValueError naming what is damaged, and so does reading."""

    path: Path
    within: Path | None = None
    """The folder that no link may lead out of."""
    stored: SingleFile | Shards = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stored", open_samples(self.path, self.within))

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, H, W, 3] or [n, T, H, W, 3]."""
        return self.stored.shape

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def num_frames(self) -> int:
        """1 for pictures."""
        return self.shape[1] if len(self.shape) == 5 else 1

    @property
    def sha256(self) -> str:
        """Of the file, or of all shards."""
        return self.stored.sha256()

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        """Consecutive samples, uint8 [at most CHUNK / T, ...], whatever files they lie in."""
        size = max(1, CHUNK // self.num_frames)
        for start in range(0, len(self), size):
            yield self.stored.read(start, min(start + size, len(self)))

    def as_file(self, folder: Path) -> Path:
        """A safetensors file of all of them, in `folder` unless they lie in one anyway."""
        return self.stored.as_file(folder)


@dataclass(frozen=True)
class Sampled:
    """One cell's samples and what they are to be held against."""

    world: str
    """"class", "scene", "video", or "" for a model of no shapes world."""
    weights: str
    """Where the model's weights came from; with "random" no quality is measured."""
    samples: Samples
    truths: list[dict[str, Any]] | None
    """What each sample should show, as `shapes.Scenes.truths` tells it."""
    baseline: Samples | None
    """The same requests under `none`."""
    no_baseline: str = ""
    """Why there is no baseline."""
    judge_folder: Path | None = None
    """Where the weights of both judges lie; None: those that ditbench carries."""
    prompts: list[str] | None = None
    """What each sample was asked for in words; None where not every one was."""
    shelf: Shelf = field(default_factory=Shelf)
    """The networks to look through."""
    stored: dict[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)
    """Under "arrays": those of the scores file as it stands, so that features that are there are
    not extracted again."""
    parts: Path | None = None
    """Folder for features of some of the samples while they are extracted; None: all at once."""

    @property
    def features(self) -> Mapping[str, NDArray[Any]]:
        """Arrays that have been extracted of these samples so far, by name."""
        return self.stored.get("arrays", {})

    @property
    def judge_path(self) -> Path:
        """The weights that judge this world."""
        from ditbench.shapes.judge import weights_path

        return weights_path(self.world, self.judge_folder)

    @property
    def unpaired(self) -> str:
        """Why the samples are no pictures beside prompts, or ""."""
        if len(self.samples.shape) == 5:
            return "these are videos, and it was trained on pictures"
        return "" if self.prompts is not None else "the requests carry no prompts"

    @property
    def unjudged(self) -> str:
        """Why the judge cannot look at these samples, or ""."""
        if not self.world:
            return "the judge reads shapes worlds only, and this model paints none"
        if not self.judge_path.is_file():
            return f"the judge has no weights ({self.judge_path.name} is missing)"
        return self._too_small

    @property
    def _too_small(self) -> str:
        """Why samples are too small for the judges, or "": they divide what remains of a picture,
        an eighth of its sides, into quadrants, and of a video they look at chosen frames."""
        from ditbench.shapes.judge import FRAMES, SIDE

        if self.world not in FRAMES:
            return f"there is no judge of a world {self.world!r}"
        *_, high, wide, _channels = self.samples.shape
        if min(high, wide) < SIDE:
            return f"the judge needs pictures of at least {SIDE} pixels a side, not {high} x {wide}"
        frames = self.samples.shape[1] if len(self.samples.shape) == 5 else 1
        if frames <= max(FRAMES[self.world]):
            return f"the judge needs {max(FRAMES[self.world]) + 1} frames, not {frames}"
        return ""

    @cached_property
    def judged(self) -> tuple[NDArray[np.float32], Scenes]:
        """The judge's features [n, 64] and what it sees in each sample; ValueError when its weights
        are damaged."""
        return self._looked(self.judge())

    @property
    def check_path(self) -> Path:
        """The weights of the second judge of this world."""
        from ditbench.shapes.second_judge import weights_path

        return weights_path(self.world, self.judge_folder)

    @property
    def unchecked(self) -> str:
        """Why the second judge cannot look at these samples, or ""."""
        if not self.world:
            return "the second judge reads shapes worlds only, and this model paints none"
        if not self.check_path.is_file():
            return f"the second judge has no weights ({self.check_path.name} is missing)"
        from ditbench.shapes.scenes import WORLDS
        from ditbench.shapes.second_judge import SIDES

        if self.world not in SIDES:
            return self._too_small
        side, (*_, high, wide, _channels) = SIDES[self.world], self.samples.shape
        if high != wide or high % side:
            return f"the second judge reads {side} x {side} pixels, not {high} x {wide}"
        frames = WORLDS[self.world].num_frames
        if frames > 1 and (self.samples.num_frames - 1) % (frames - 1):
            return f"the second judge reads {frames} frames, not {self.samples.num_frames}"
        return self._too_small

    @cached_property
    def checked(self) -> tuple[NDArray[np.float32], Scenes]:
        """The same of the second judge; ValueError when its weights are damaged."""
        from ditbench.shapes.second_judge import load_check

        try:
            return self._looked(load_check(self.world, self.judge_folder))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"{self.check_path} is damaged ({str(error).splitlines()[0]})"
            ) from error

    def _looked(self, judge: Judge | CheckJudge) -> tuple[NDArray[np.float32], Scenes]:
        import torch

        from ditbench.shapes.scenes import Scenes

        features: list[Any] = []
        seen: list[Any] = []
        with torch.inference_mode():
            for chunk in self.samples.chunks():
                pixels = to_pixels(chunk)
                features.append(judge.features(pixels).numpy())
                seen.extend(judge.read(pixels).truths())
        return np.concatenate(features), Scenes.of(seen)

    def judge(self) -> Judge:
        """The judge of this world; ValueError when its weights are damaged."""
        from ditbench.shapes.judge import load_judge

        try:
            return load_judge(self.world, self.judge_folder)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"{self.judge_path} is damaged ({str(error).splitlines()[0]})"
            ) from error


def to_pixels(chunk: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [n, H, W, 3] or [n, T, H, W, 3] -> float32 in 0..1, [n, 3, H, W] or [n, 3, T, H, W];
    TypeError for other dtypes.
    """
    import torch

    if chunk.dtype != np.uint8:
        raise TypeError(f"samples are uint8, got {chunk.dtype}")
    pixels = torch.from_numpy(np.ascontiguousarray(chunk)).float() / 255
    return pixels.movedim(-1, 1)
