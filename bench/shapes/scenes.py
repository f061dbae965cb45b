"""Shapes: a procedural world of captioned scenes with exact ground truth, unlimited in size.

A scene has one or two objects (shape, colour, size), each in its own quadrant, on a textured
background; in the video world one object also moves. Everything a caption does not say (where
exactly in the quadrant, rotation, colour cast, phase of the texture, light) is drawn at random, so
a caption has many pictures.

Shapes legend: n scenes, Q = 4 quadrants, T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SIZES = ("small", "large")
POSITIONS = ("top-left", "top-right", "bottom-left", "bottom-right")
BACKGROUNDS = ("grey", "navy", "brown", "teal")
TEXTURES = ("plain", "striped", "checked", "dotted")
MOTIONS = ("left", "right", "up", "down")

COLOUR_RGB = torch.tensor(
    [[0.86, 0.14, 0.14], [0.16, 0.68, 0.22], [0.20, 0.36, 0.96], [0.96, 0.86, 0.16], [0.64, 0.24, 0.80], [0.97, 0.97, 0.97]]
)  # fmt: skip
BACKGROUND_RGB = torch.tensor(
    [[0.50, 0.50, 0.50], [0.11, 0.14, 0.36], [0.42, 0.27, 0.17], [0.08, 0.42, 0.42]]
)
DIRECTIONS = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])  # motion as (dx, dy)


@dataclass(frozen=True)
class World:
    """One family of scenes: what may occur in it and how it is pictured."""

    name: str
    resolution: int
    """Side of the square picture, pixels."""
    num_frames: int
    max_objects: int


WORLDS = {
    "class": World("class", 64, 1, 1),
    "scene": World("scene", 64, 1, 2),
    "video": World("video", 48, 5, 1),
}
CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
"""Class names of the `class` world; the label is `shape * len(COLOURS) + colour`."""


@dataclass(frozen=True)
class Scenes:
    """Ground truth of n scenes, a row each; object attributes by quadrant."""

    shape: Tensor
    """[n, Q] int64: index into SHAPES, -1 where the quadrant is empty."""
    colour: Tensor
    """[n, Q] int64, -1 where empty."""
    size: Tensor
    """[n, Q] int64, -1 where empty."""
    background: Tensor
    """[n] int64."""
    texture: Tensor
    """[n] int64."""
    motion: Tensor
    """[n] int64, -1 in still worlds."""

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, rows: slice | Tensor) -> Scenes:
        return Scenes(*(getattr(self, f.name)[rows] for f in fields(self)))

    @property
    def labels(self) -> Tensor:
        """[n] int64: class of the first object, for the `class` world."""
        quadrant = (self.shape >= 0).int().argmax(1, keepdim=True)
        return (
            self.shape.gather(1, quadrant) * len(COLOURS) + self.colour.gather(1, quadrant)
        ).squeeze(1)

    def truths(self) -> Iterator[dict[str, Any]]:
        """Each scene as plain JSON: what a record keeps as the ground truth of a request."""
        for i in range(len(self)):
            yield {f.name: getattr(self, f.name)[i].tolist() for f in fields(self)}

    @classmethod
    def of(cls, truths: list[dict[str, Any]]) -> Scenes:
        """Scenes from what `truths` gave."""
        return cls(*(torch.tensor([t[f.name] for t in truths]) for f in fields(cls)))


def draw(world: str, n: int, *, split: str, seed: int) -> Scenes:
    """n scenes of a world; `split` (of `SPLITS`) and `seed` choose the stream, which no other split
    or seed shares."""
    w, g = WORLDS[world], generator(split, seed, 0)

    def pick(names: tuple[str, ...], *shape: int) -> Tensor:
        return torch.randint(len(names), shape, generator=g)

    num = 1 + (torch.rand(n, generator=g) * w.max_objects).long()
    # the objects sit in the `num` quadrants ranked first
    rank = torch.rand(n, 4, generator=g).argsort(1).argsort(1)
    there = rank < num[:, None]
    empty = torch.tensor(-1)
    return Scenes(
        shape=torch.where(there, pick(SHAPES, n, 4), empty),
        colour=torch.where(there, pick(COLOURS, n, 4), empty),
        size=torch.where(there, pick(SIZES, n, 4), empty),
        background=pick(BACKGROUNDS, n),
        texture=pick(TEXTURES, n),
        motion=pick(MOTIONS, n) if w.num_frames > 1 else empty.expand(n),
    )


def captions(scenes: Scenes) -> list[str]:
    """One sentence a scene, objects in reading order: `a large red circle top-left on striped
    grey`."""
    texts = []
    for t in scenes.truths():
        objects = [
            f"a {SIZES[t['size'][q]]} {COLOURS[t['colour'][q]]} {SHAPES[t['shape'][q]]} "
            f"{POSITIONS[q]}"
            for q in range(4)
            if t["shape"][q] >= 0
        ]
        motion = f" moving {MOTIONS[t['motion']]}" if t["motion"] >= 0 else ""
        texts.append(
            " and ".join(objects)
            + motion
            + f" on {TEXTURES[t['texture']]} {BACKGROUNDS[t['background']]}"
        )
    return texts


HELD_OUT_ONE_IN = 5
"""One caption in so many is held out."""


def held_out(scenes: Scenes) -> Tensor:
    """[n] bool: whether a scene's caption is one of the fifth that is asked in evaluation only and
    never when a method is trained.

    It follows from what the caption says and from nothing else: the attributes as one number in
    mixed radix (no two captions have the same), scrambled by SplitMix64's finaliser (Steele et al.
    2014), modulo five. The class world has 24 classes and holds none out.
    """
    objects = ((scenes.shape, SHAPES), (scenes.colour, COLOURS), (scenes.size, SIZES))
    digits = [(attribute[:, q], len(names)) for q in range(4) for attribute, names in objects]
    digits += [
        (scenes.background, len(BACKGROUNDS)),
        (scenes.texture, len(TEXTURES)),
        (scenes.motion, len(MOTIONS)),
    ]
    code = np.zeros(len(scenes), np.uint64)
    for digit, num in digits:
        code = code * np.uint64(num + 1) + (digit.numpy() + 1).astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        code = (code ^ (code >> np.uint64(shift))) * np.uint64(factor)
    return torch.from_numpy((code ^ (code >> np.uint64(31))) % np.uint64(HELD_OUT_ONE_IN) == 0)


WORDS = (
    *("a", "and", "on", "moving"),
    *(*SIZES, *COLOURS, *SHAPES, *POSITIONS, *MOTIONS, *TEXTURES, *BACKGROUNDS),
)
"""Every word a caption can hold: the vocabulary of the tiny models' tokenizers."""


RENDERED_AT_ONCE = 1 << 20
"""Pixels whose colours are worked out together, so that a temporary (12 MiB) is taken from the heap:
those beyond 32 MiB are mapped afresh each time, which costs more than the arithmetic."""


def render(
    scenes: Scenes, world: str, *, split: str, seed: int,
    resolution: int | None = None, num_frames: int | None = None,
) -> Tensor:  # fmt: skip
    """Pictures of scenes: [n, 3, H, W], or [n, 3, T, H, W] for a video world, float32 in 0..1.

    The same `split` and `seed` draw the same nuisances (placement, rotation, colour cast, texture
    phase, light). `resolution`: pixels a side, `num_frames`: of a video, first to last the same
    way whatever their number; None: the world's own. ValueError for a number of frames that the
    world does not have.
    """
    w, n, g = WORLDS[world], len(scenes), generator(split, seed, 1)
    r, count = resolution or w.resolution, num_frames or w.num_frames
    if (count > 1) != (w.num_frames > 1):
        raise ValueError(f"num_frames: {count} frames are none of the world {world}")

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(*shape, generator=g) * (high - low) + low

    cast_bg, cast_fg = uniform(n, 3, low=-0.04, high=0.04), uniform(n, 4, 3, low=-0.05, high=0.05)
    phase, angle = uniform(n, 2, high=2 * math.pi), uniform(n, high=math.pi)
    period, light = uniform(n, low=0.22, high=0.30) * r, uniform(n, high=2 * math.pi)
    place, radius = (
        uniform(n, 4, 2, low=-0.03, high=0.03) * r,
        uniform(n, 4, low=-0.012, high=0.012) * r,
    )
    turn, travel = uniform(n, 4, low=-0.1, high=0.1), uniform(n, low=0.18, high=0.22) * r
    drawn = (cast_bg, cast_fg, phase, angle, period, light, place, radius, turn, travel)
    at_once = max(1, RENDERED_AT_ONCE // (r * r))
    if n <= at_once:
        return _painted(scenes, r, count, *drawn)
    pictures = torch.empty(n, 3, *([count] if count > 1 else []), r, r)
    for start in range(0, n, at_once):
        rows = slice(start, start + at_once)
        pictures[rows] = _painted(scenes[rows], r, count, *(value[rows] for value in drawn))
    return pictures


def _painted(
    scenes: Scenes, r: int, num_frames: int,
    cast_bg: Tensor, cast_fg: Tensor, phase: Tensor, angle: Tensor, period: Tensor, light: Tensor,
    place: Tensor, radius: Tensor, turn: Tensor, travel: Tensor,
) -> Tensor:  # fmt: skip
    """Pictures of scenes, r pixels a side, with what `render` drew of each."""
    axis = torch.arange(r) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")  # [H, W]
    backdrop = (
        _backdrop(scenes, x / r, y / r, period / r, phase, angle, light) + cast_bg[:, :, None, None]
    )
    frames = []
    for frame in range(num_frames):
        picture = backdrop
        along = frame / max(num_frames - 1, 1) - 0.5
        shift = (
            DIRECTIONS[scenes.motion.clamp(min=0)] * (travel * along)[:, None]
            if num_frames > 1
            else torch.zeros(len(scenes), 2)
        )
        for q in range(4):
            centre = (
                torch.tensor([0.25 + 0.5 * (q % 2), 0.25 + 0.5 * (q // 2)]) * r
                + place[:, q]
                + shift
            )[:, :, None, None]
            size = (torch.tensor([0.14, 0.21])[scenes.size[:, q].clamp(min=0)] * r + radius[:, q])[
                :, None, None
            ]
            cos, sin = turn[:, q].cos()[:, None, None], turn[:, q].sin()[:, None, None]
            dx, dy = x - centre[:, 0], y - centre[:, 1]
            inside = torch.sigmoid(
                -2.5 * _distance(scenes.shape[:, q], cos * dx - sin * dy, sin * dx + cos * dy, size)
            )
            alpha = (inside * (scenes.shape[:, q] >= 0)[:, None, None])[:, None]  # [n, 1, H, W]
            paint = (COLOUR_RGB[scenes.colour[:, q].clamp(min=0)] + cast_fg[:, q])[:, :, None, None]
            picture = alpha * paint + (1 - alpha) * picture
        frames.append(picture.clamp(0, 1))
    return torch.stack(frames, 2) if num_frames > 1 else frames[0]


def _backdrop(
    scenes: Scenes,
    x: Tensor,
    y: Tensor,
    period: Tensor,
    phase: Tensor,
    angle: Tensor,
    light: Tensor,
) -> Tensor:
    """Textured background, [n, 3, H, W]; x and y in 0..1."""
    k = (2 * math.pi / period)[:, None, None]
    u = (
        k * (angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y)
        + phase[:, 0, None, None]
    )
    v = (
        k * (-angle.sin()[:, None, None] * x + angle.cos()[:, None, None] * y)
        + phase[:, 1, None, None]
    )
    stripes = torch.tanh(2.5 * u.sin())
    checks = torch.tanh(4 * u.sin() * v.sin())
    dots = 2 * torch.sigmoid(5 * (u.cos() + v.cos() - 0.9)) - 0.5
    pattern = torch.stack([torch.zeros_like(u), stripes, checks, dots], 1)[
        torch.arange(len(scenes)), scenes.texture
    ]
    slope = 0.12 * (light.cos()[:, None, None] * (x - 0.5) + light.sin()[:, None, None] * (y - 0.5))
    return BACKGROUND_RGB[scenes.background][:, :, None, None] + (0.09 * pattern + slope)[:, None]


def _distance(shape: Tensor, dx: Tensor, dy: Tensor, r: Tensor) -> Tensor:
    """Signed distance in pixels, about, to the outline of each scene's shape; negative inside. [n,
    H, W]."""
    ax, ay = dx.abs(), dy.abs()
    circle = (dx**2 + dy**2).sqrt() - r
    square = torch.maximum(ax, ay) - 0.86 * r
    triangle = torch.maximum(dy - 0.72 * r, 0.87 * ax - 0.5 * dy - 0.58 * r)
    cross = torch.minimum(
        torch.maximum(ax - 0.36 * r, ay - r), torch.maximum(ay - 0.36 * r, ax - r)
    )
    return torch.stack([circle, square, triangle, cross], 1)[
        torch.arange(len(shape)), shape.clamp(min=0)
    ]


@dataclass(frozen=True)
class Split:
    """Whose scenes are drawn from which numbers: seed s and stream 0 (content) or 1 (nuisances)
    from `first` + 16 s + stream."""

    first: int
    seeds: int
    """Seeds are 0 to `seeds` - 1."""


REFERENCE_FROM = 50_000_000
SPLITS = {
    "train": Split(0, 1 << 27),
    "test": Split(1 << 31, REFERENCE_FROM),
    "reference": Split((1 << 31) + 16 * REFERENCE_FROM, 1 << 20),
    "evaluation": Split(2, 1 << 28),
    "preparation": Split(4, 1 << 28),
    "check": Split(6, 1 << 28),
}
"""What the embedded world is trained on; what it is tested on; the reference sets of the Fréchet
distance; what models are asked in a run; what methods are prepared with; what the second judge is
trained on. All numbers are below 2**32, because torch's CPU generator keeps no more, and no number
belongs to two splits, seeds or streams."""


def generator(split: str, seed: int, stream: int) -> torch.Generator:
    """A generator of its own for each (split, seed, stream); ValueError for an unknown split or a
    seed it does not have."""
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; there are {', '.join(SPLITS)}")
    if not 0 <= seed < SPLITS[split].seeds:
        raise ValueError(
            f"seed {seed} of the split {split} is not between 0 and {SPLITS[split].seeds - 1}"
        )
    if stream not in (0, 1):
        raise ValueError(f"stream {stream} is neither 0 nor 1")
    return torch.Generator().manual_seed(SPLITS[split].first + 16 * seed + stream)
