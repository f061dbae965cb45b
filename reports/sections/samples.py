"""The first samples of a cell: from its samples file, or the thumbnails of a published run. No
torch.

H height, W width; pixels are uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ditbench.records.published_files import members
from ditbench.records.run_folder import RunFolder
from ditbench.records.sample_files import open_samples
from ditbench.records.text import one_line

Pixels = NDArray[np.uint8]
"""[H, W, 3]."""
Count = Callable[[bool, int], int]
"""(whether these are videos, longer side in pixels) -> how many are read at most."""
Frames = Callable[[int], Sequence[int]]
"""Frames of a video -> those of them that are read."""


def first_samples(files: RunFolder, key: str, count: Count, frames: Frames) -> list[list[Pixels]]:
    """A list per sample, of one image or of some frames; ValueError says why there are none."""
    path = files.stored_samples(key)
    if path.exists():
        return _stored(path, files.path, count, frames)
    if files.thumbnails.is_file():
        return _thumbnails(files.thumbnails, key, count, frames)
    raise ValueError("its samples file is missing")


def _stored(path: Path, within: Path, count: Count, frames: Frames) -> list[list[Pixels]]:
    try:
        stored = open_samples(path, within)
        video = len(stored.shape) == 5
        num = min(stored.shape[0], count(video, max(stored.shape[-3:-1])))
        if not video:
            return [[stored.read(i, i + 1)[0]] for i in range(num)]
        shown = frames(stored.shape[1])
        return [list(stored.read(i, i + 1, shown)[0]) for i in range(num)]
    except (ValueError, MemoryError) as error:
        text = str(error).removeprefix(f"{path} ")
        raise ValueError(f"its samples file {text}") from error


def _thumbnails(path: Path, key: str, count: Count, frames: Frames) -> list[list[Pixels]]:
    """From files KEY/SAMPLE-FRAME.webp."""
    try:
        content, unreadable = members(path, f"{key}/")
        if unreadable:
            raise ValueError(f"{unreadable[0]} cannot be read")
        by_sample: dict[int, dict[int, Pixels]] = {}
        for name, of_name in content.items():
            i, t = map(int, name.removeprefix(f"{key}/").removesuffix(".webp").split("-"))
            by_sample.setdefault(i, {})[t] = _pixels(of_name)
        if (
            len({pixels.shape for of_sample in by_sample.values() for pixels in of_sample.values()})
            > 1
        ):
            raise ValueError("they are of several sizes")
        if len({*map(len, by_sample.values())}) > 1:
            raise ValueError("they are of several lengths")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"its thumbnails are damaged ({one_line(str(error))})") from error
    if not by_sample:
        raise ValueError("it has no thumbnails")
    samples = [
        [pixels for _, pixels in sorted(of_sample.items())]
        for _, of_sample in sorted(by_sample.items())
    ]
    video = len(samples[0]) > 1
    num = count(video, max(samples[0][0].shape[:2]))
    if not video:
        return samples[:num]
    return [[sample[t] for t in frames(len(sample))] for sample in samples[:num]]


def _pixels(content: bytes) -> Pixels:
    return np.asarray(Image.open(BytesIO(content)).convert("RGB"))
