"""How videos move, from pixels alone: `vstyle.*` of each video, and its frame differences against
the un-accelerated video's.

No network and no weights, so none of it is VBench, though each stands where VBench has a dimension
that needs a network. Static videos do best on the first three: read them beside
`vstyle.block_motion` and `motion_energy_ratio.vs_none`. T frames.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ditbench.metrics import fidelity
from ditbench.metrics.samples import Sampled
from ditbench.metrics.table import Metric

VERSION = "video 1"
BLOCK, REACH = 8, 4
"""Side of the blocks that are matched, and how far they are looked for, in pixels of the small
picture."""
SMALL = 128
"""Pictures are averaged down until their shorter side is below twice this, before blocks are
matched."""
BINS = 8
"""Bins of a histogram: of each colour channel, and of gradient directions."""

Video = NDArray[np.uint8]
"""[T, H, W, 3]."""


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has none of it, or ""."""
    frames, side = cell.samples.num_frames, min(cell.samples.shape[-3:-1])
    if len(cell.samples.shape) == 4:
        return "these are pictures, not videos"
    needed = 3 if metric.name in ("vstyle.second_diff", "vstyle.linear_interp_smooth") else 2
    if frames < needed:
        return f"needs videos of at least {needed} frames, got {frames}"
    if metric.name == "vstyle.block_motion" and side < 2 * BLOCK:
        return f"block matching needs at least {2 * BLOCK} pixels a side, got {side}"
    return fidelity.refuse(cell, metric) if metric.against_none else ""


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """Names everything the values depend on besides the samples: the baseline's where it is
    compared with them."""
    baseline = fidelity.fingerprint(cell, metric) if metric.against_none else ""
    return hashlib.sha256((VERSION + baseline).encode()).hexdigest()


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray[np.float64]]:
    """The metric [n]; `tdiff_fidelity.vs_none` with its part `mae` [n]. ValueError where the
    baseline stands still."""
    if not metric.against_none:
        return {metric.name: np.array([ALONE[metric.name](video) for video in _videos(cell)])}
    pairs = list(_pairs(cell))
    if metric.name == "tdiff_fidelity.vs_none":
        table = np.array(pairs)  # [n, 4]
        return {metric.name: fidelity.decibels(table[:, 1]), f"{metric.name}.mae": table[:, 0]}
    mine, theirs = (np.array([pair[i] for pair in pairs]) for i in (2, 3))
    if still := int(np.sum(theirs == 0)):
        raise ValueError(
            f"{still} of {len(theirs)} un-accelerated videos do not move at all, so nothing can be "
            "set over them"
        )
    return {metric.name: mine / theirs}


def _videos(cell: Sampled) -> Iterator[Video]:
    for chunk in cell.samples.chunks():
        yield from chunk


def _pairs(cell: Sampled) -> Iterator[tuple[float, float, float, float]]:
    assert cell.baseline is not None
    for a, b in zip(cell.samples.chunks(), cell.baseline.chunks(), strict=True):
        yield from (compare_motion(x, y) for x, y in zip(a, b, strict=True))


def _wide(frame: NDArray[np.uint8]) -> NDArray[np.int16]:
    # differences of bytes, and their doubles, fit; uint8 would wrap round
    return frame.astype(np.int16)


def frame_mad(video: Video) -> float:
    """1 - mean |f_t+1 - f_t| / 255: the flicker formula of VBench, without its filter for static
    videos."""
    return (
        1
        - float(np.mean([np.abs(_wide(b) - a).mean() for a, b in itertools.pairwise(video)])) / 255
    )


def second_diff(video: Video) -> float:
    """mean |f_t-1 - 2 f_t + f_t+1| / 510: 1 for frames that alternate between black and white."""
    triples = zip(video, video[1:], video[2:], strict=False)
    return float(np.mean([np.abs(_wide(a) - 2 * _wide(b) + c).mean() for a, b, c in triples])) / 510


def linear_interp_smooth(video: Video) -> float:
    """1 - mean |f_t - (f_t-1 + f_t+1) / 2| / 255 over odd t that have both neighbours."""
    triples = zip(video[0:-2:2], video[1:-1:2], video[2::2], strict=True)
    return 1 - float(np.mean([np.abs(2 * _wide(b) - a - c).mean() for a, b, c in triples])) / 510


def block_motion(video: Video) -> float:
    """Mean length of the displacement of 8x8 blocks of luma from frame to frame, in percent of the
    picture's shorter side.

    Full search within four pixels by the sum of absolute differences; of equals the shortest
    displacement, so that flat ground stands still. Larger pictures are averaged down by whole
    factors first.
    """
    luma = video.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # [T, H, W]
    factor = max(1, min(luma.shape[1:]) // SMALL)
    height, width = (side // (factor * BLOCK) * BLOCK for side in luma.shape[1:])
    small = luma[:, : height * factor, : width * factor]
    small = small.reshape(len(luma), height, factor, width, factor).mean((2, 4)).round()
    reach = range(-REACH, REACH + 1)
    steps = sorted(
        ((y, x) for y in reach for x in reach), key=lambda step: (step[0] ** 2 + step[1] ** 2, step)
    )
    lengths = np.array([np.hypot(*step) for step in steps])
    displacements = []
    for before, after in itertools.pairwise(small):
        padded = np.pad(before, REACH, mode="edge")
        costs = []
        for y, x in steps:
            # what lay there goes (y, x)
            moved = padded[REACH - y : REACH - y + height, REACH - x : REACH - x + width]
            costs.append(
                np.abs(after - moved)
                .reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
                .sum((1, 3))
            )
        displacements.append(lengths[np.argmin(costs, 0)].mean())
    shorter: int = min(height, width)
    return 100 * float(np.mean(displacements)) / shorter


def hist_consistency(video: Video) -> float:
    """Mean over t >= 1 of (cos(h_t, h_t-1) + cos(h_t, h_0)) / 2: VBench's formula of consistency,
    on histograms."""
    h = np.stack([histogram(frame) for frame in video])
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    return float(np.mean((np.sum(h[1:] * h[:-1], 1) + h[1:] @ h[0]) / 2))


def histogram(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[4 x 8]: shares of pixels by value, for each channel; shares of gradient by direction, all
    zero on flat ground."""
    colour = [
        np.bincount((frame[..., c] // (256 // BINS)).ravel(), minlength=BINS) for c in range(3)
    ]
    down, right = np.gradient(frame.astype(np.float64).mean(-1))
    direction = ((np.arctan2(down, right) + np.pi) * BINS / (2 * np.pi)).astype(int) % BINS
    strength = np.bincount(direction.ravel(), weights=np.hypot(down, right).ravel(), minlength=BINS)
    parts = [*colour, strength]
    return np.concatenate([part / max(part.sum(), 1) for part in parts])


def compare_motion(mine: Video, theirs: Video) -> tuple[float, float, float, float]:
    """Mean absolute and mean squared difference of the two videos' frame-difference maps, and each
    one's own mean absolute frame difference; pixels in 0..1.
    """
    values = []
    for t in range(len(mine) - 1):
        a, b = (_wide(video[t + 1]) - video[t] for video in (mine, theirs))  # -255..255
        apart = a.astype(np.int32) - b
        values.append(
            (
                np.abs(apart).mean() / 255,
                (apart**2).mean() / 255**2,
                np.abs(a).mean() / 255,
                np.abs(b).mean() / 255,
            )
        )
    absolute, square, own, other = np.mean(values, 0).tolist()
    return absolute, square, own, other


ALONE: dict[str, Callable[[Video], float]] = {
    "vstyle.frame_mad": frame_mad,
    "vstyle.second_diff": second_diff,
    "vstyle.linear_interp_smooth": linear_interp_smooth,
    "vstyle.block_motion": block_motion,
    "vstyle.hist_consistency": hist_consistency,
}
"""What is said of a video by itself, each a number of one video."""
