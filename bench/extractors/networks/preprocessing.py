"""How pictures become the input of a network: one function per preprocessing id, uint8 [n, H, W, 3]
-> float32 [n, 3, size, size].

The id is part of an extractor's key, for a change of resize changes a Fréchet distance by more than
most methods do (Parmar et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation of the channels in 0..1."""
INCEPTION_SIZE = 299


def legacy_tf(pictures: NDArray[np.uint8], size: int = 0) -> torch.Tensor:
    """299 pixels by TensorFlow 1's bilinear resize, then (x - 128) / 128: what the 2015 graph does
    inside."""
    return (resize_like_tensorflow1(to_channels(pictures), INCEPTION_SIZE) - 128) / 128


def resize_like_tensorflow1(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """[n, 3, H, W] -> [n, 3, size, size], bilinear, without antialias and with the legacy grid:
    output i reads at i * H / size.

    (`tf.image.resize_bilinear(align_corners=False)` before half-pixel centres; a shrunk picture
    skips pixels, as it did there.)
    """
    for axis in (2, 3):
        length = pixels.shape[axis]
        at = torch.arange(size, dtype=torch.float32) * torch.tensor(
            length / size, dtype=torch.float32
        )
        low = at.long().clamp(max=length - 1)
        high = (low + 1).clamp(max=length - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = size
        share = (at - low).view(shape)
        below, above = pixels.index_select(axis, low), pixels.index_select(axis, high)
        pixels = below + (above - below) * share
    return pixels


def bicubic224(pictures: NDArray[np.uint8], size: int = 0) -> torch.Tensor:
    """The whole picture squeezed to 224 x 224 by Pillow's bicubic, then ImageNet's mean and
    deviation (Stein et al. 2023)."""
    squeezed = [
        np.asarray(Image.fromarray(p).resize((224, 224), Image.Resampling.BICUBIC))
        for p in pictures
    ]
    return _normalised(np.stack(squeezed), IMAGENET)


def clip224(pictures: NDArray[np.uint8], size: int = 0) -> torch.Tensor:
    """CLIP's own: the shorter side to `size` (224) by Pillow's bicubic, the middle square, CLIP's
    mean and deviation."""
    size = size or 224
    height, width = pictures.shape[1:3]
    short = min(height, width)
    tall, wide = (size * height // short, size * width // short)
    top, left = (tall - size) // 2, (wide - size) // 2
    resized = [
        np.asarray(Image.fromarray(p).resize((wide, tall), Image.Resampling.BICUBIC))
        for p in pictures
    ]
    return _normalised(np.stack(resized)[:, top : top + size, left : left + size], CLIP)


def square336(pictures: NDArray[np.uint8], size: int = 0) -> torch.Tensor:
    """CMMD's: the middle square to `size` (336) by Pillow's bicubic, CLIP's mean and deviation
    (Jayasumana et al. 2024)."""
    size = size or 336
    height, width = pictures.shape[1:3]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    box = (left, top, left + short, top + short)
    resized = [
        np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC, box))
        for p in pictures
    ]
    return _normalised(np.stack(resized), CLIP)


def to_channels(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [n, H, W, 3] -> float32 [n, 3, H, W] in 0..255."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()


def _normalised(
    pictures: NDArray[np.uint8], by: tuple[tuple[float, ...], tuple[float, ...]]
) -> torch.Tensor:
    mean, deviation = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in by)
    return (to_channels(pictures) / 255 - mean) / deviation


PREPROCESSINGS: dict[str, Callable[[NDArray[np.uint8], int], torch.Tensor]] = {
    "legacy_tf": legacy_tf, "bicubic224": bicubic224, "clip224": clip224, "square336": square336,
}  # fmt: skip
"""By id."""
