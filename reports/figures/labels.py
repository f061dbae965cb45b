"""Places point labels where they cover neither points, error bars nor each other, with a thin line
back where they stand off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from ditbench.reports.figures.letters import SPACING, extent
from ditbench.reports.figures.style import INK, PAPER

Array = NDArray[Any]

RADII = (7.0, 12.0, 18.0, 26.0, 36.0, 48.0, 62.0, 78.0, 96.0, 120.0)
"""Distances tried, points."""
DIRECTIONS = 24
CLEAR = 9.0
"""From this distance on a line leads back to the point."""
NEARER = 1.5
"""How many times farther than its own point others must be from a label without such a line."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float


def place_labels(
    axes: Any, points: Sequence[tuple[float, float]], texts: Sequence[str],
    obstacles: Sequence[Box], size: float, lines: Array, colours: Sequence[str] = (),
) -> list[Box | None]:  # fmt: skip
    """Write `texts` beside `points` (data coordinates), clear of `obstacles` and of the segments
    `lines` [m, x0 y0 x1 y1] (both pixels); returns where they lie, None where there was no place
    that is clear of the other labels.

    Greedy, the most crowded points first; each label takes the cheapest of 240 places. In a crowd
    labels stand apart, each with a line back in its point's colour. Call once limits and sizes are
    final.
    """
    figure = axes.figure
    pixel, frame = figure.dpi / 72, axes.get_window_extent()
    inside = np.array([[frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 2]])
    at = np.asarray(axes.transData.transform(np.asarray(points, float).reshape(-1, 2)))
    fixed = np.array([[o.left, o.bottom, o.right, o.top] for o in obstacles]).reshape(-1, 4)
    boxes, leaders, lines = np.empty((0, 4)), np.empty((0, 4)), np.reshape(lines, (-1, 4))
    back = axes.transData.inverted()
    placed: list[Box | None] = [None] * len(at)
    colours, led = colours or [INK] * len(at), []
    crowd = np.sum(np.hypot(*(at[:, None] - at[None]).transpose(2, 0, 1)) < 60 * pixel, axis=1)
    for i in sorted(range(len(at)), key=lambda i: (-crowd[i], i)):
        wide, high = extent(texts[i], size)
        # neighbouring numbers must not read as one
        needed = ((wide + 4) * pixel, (high + 1) * pixel)
        others = np.delete(at, i, 0)
        box, distance = _cheapest(
            at[i], needed, boxes, fixed, others, leaders, lines, inside, pixel
        )
        if _overlap(box[None], boxes).any():
            continue
        boxes, placed[i] = np.concatenate([boxes, box[None]]), Box(*box.tolist())
        near = np.clip(at[i], box[:2], box[2:])
        if distance >= CLEAR:
            leaders = np.concatenate([leaders, np.concatenate([at[i], near])[None]])
            led.append(colours[i])
        written = axes.text(
            *back.transform((box[:2] + box[2:]) / 2), texts[i], fontsize=size, color=colours[i],
            ha="center", va="center", linespacing=SPACING, zorder=6,
        )  # fmt: skip
        if _overlap(box[None], np.concatenate([boxes[:-1], fixed])).any():
            written.set_bbox({"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.6})
    drawn = [back.transform(leader.reshape(2, 2)) for leader in leaders]
    axes.add_collection(
        LineCollection(drawn, colors=led, linewidths=0.6, alpha=0.8, zorder=4), autolim=False
    )
    return placed


def _cheapest(
    at: Array,
    needed: tuple[float, float],
    labels: Array,
    obstacles: Array,
    others: Array,
    leaders: Array,
    lines: Array,
    inside: Array,
    pixel: float,
) -> tuple[Array, float]:
    """The best box [4] for a label and its distance from the point in points (1/72 inch): clear of
    other `labels` [j, 4] above all, of `obstacles` [k, 4], of `lines` [m, 4] and of the `leaders`
    of other labels, and nearer to its own point than to `others` [p, 2] unless a line leads back.
    """
    angle = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    radius = np.repeat(RADII, DIRECTIONS)  # [c] candidates
    way = np.tile(np.stack([np.cos(angle), np.sin(angle)], 1), (len(RADII), 1))  # [c, 2]
    half = np.asarray(needed) / 2
    centre = at + radius[:, None] * pixel * way + way * half
    boxes = np.concatenate([centre - half, centre + half], 1)  # [c, 4]
    area = 4 * half.prod()
    taken = np.concatenate([labels, obstacles])
    shared = _overlap(boxes, taken)
    cost = (
        6 * shared.sum(1)
        + 450 * pixel * (shared > 0).sum(1)
        + 40 * (area - _overlap(boxes, inside).sum(1))
    )
    cost += 1500 * pixel * (shared[:, : len(labels)] > 0).sum(1)
    own = np.concatenate([np.broadcast_to(at, centre.shape), centre], 1)
    if len(others):
        near = np.clip(others[None], boxes[:, None, :2], boxes[:, None, 2:])
        away = np.hypot(*(near - others[None]).transpose(2, 0, 1)).min(1)
        cost += 400 * pixel * ((radius < CLEAR) & (away < NEARER * radius * pixel))
    cost += 12 * pixel * (radius + 3 * np.abs(way[:, 1]) + 2 * (way[:, 0] < 0))
    # What lines cost is dear to find and never negative: only places that could still be the
    # cheapest are examined.
    examined = np.zeros(len(cost), bool)
    ceiling = np.partition(cost, DIRECTIONS)[DIRECTIONS]
    while (new := ~examined & (cost <= ceiling)).any():
        examined |= new
        around = np.concatenate([leaders, lines])
        cost[new] += 800 * pixel * _crosses(around[None], boxes[new, None]).sum(1)
        cost[new] += 300 * pixel * _meet(own[new], leaders).sum(1) * (radius[new] >= CLEAR)
        cost[new] += (
            120 * pixel * _crosses(own[new, None], taken[None]).sum(1) * (radius[new] >= CLEAR)
        )
        ceiling = cost[examined].min()
    cost[~examined] = np.inf
    best = int(np.argmin(np.round(cost, 6)))
    return boxes[best], float(radius[best])


def _overlap(a: Array, b: Array) -> Array:
    """[c, k]: area that boxes a [c, 4] and b [k, 4] have in common."""
    wide, high = (
        np.minimum(a[:, None, i + 2], b[:, i + 2]) - np.maximum(a[:, None, i], b[:, i])
        for i in (0, 1)
    )
    area: Array = np.maximum(wide, 0) * np.maximum(high, 0)
    return area


def _meet(a: Array, b: Array) -> Array:
    """[c, k]: whether segments a [c, x0 y0 x1 y1] and b [k, x0 y0 x1 y1] cross."""

    def side(ends: Array, points: Array) -> Array:
        along = ends[..., 2:] - ends[..., :2]
        to = points - ends[..., :2]
        turn: Array = np.sign(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])
        return turn

    a, b = a[:, None], b[None]
    apart = side(a, b[..., :2]) * side(a, b[..., 2:]) < 0
    met: Array = apart & (side(b, a[..., :2]) * side(b, a[..., 2:]) < 0)
    return met


def _crosses(lines: Array, boxes: Array) -> Array:
    """Whether segments [..., x0 y0 x1 y1] pass through boxes [..., left bottom right top] (Liang
    and Barsky 1984)."""
    start, delta = lines[..., :2], lines[..., 2:] - lines[..., :2]
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (boxes[..., :2] - start) / delta, (boxes[..., 2:] - start) / delta
    near, far = (
        np.nan_to_num(np.minimum(a, b), nan=-np.inf),
        np.nan_to_num(np.maximum(a, b), nan=np.inf),
    )
    crossed: Array = np.maximum(near.max(-1), 0) < np.minimum(far.min(-1), 1)
    return crossed
