"""What the arithmetic promised against what the clock gave, and where the memory went: a figure of
each per model. PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch

from ditbench.analysis.rows import Row
from ditbench.records.record import SHOWN
from ditbench.reports.figures.frame import frame, small_print, tick_factors
from ditbench.reports.figures.pages import pages
from ditbench.reports.figures.quality_time import reach
from ditbench.reports.figures.scatter import Point, plate
from ditbench.reports.figures.style import INK, PAPER, QUIET, in_style
from ditbench.reports.sections.format import size
from ditbench.reports.sections.section import Section, file_name

REALISED = (
    "The denoising loop. Line: saved arithmetic became saved time. Below it time was lost to what "
    "FLOPs do not count; above it the stack "
    "saved something besides arithmetic. Bars: 95 % intervals, cut off at the edge."
)
CUT = 2.0
"""How many times beyond the least and the largest value intervals are drawn: of two rounds they can
reach into the thousands."""
PARTS = (
    ("weights", INK, ""), ("there before sampling", "#d9d9d9", "//"),
    ("kept by methods", "#0072b2", ""), ("rest", "#e69f00", ""),
)  # fmt: skip
"""Parts of the peak, with colours and hatches."""
BAR = 0.24
"""Inches for a bar."""
BARS = 60
"""Stacks on a page of bars."""


def draw_charts(section: Section, folder: Path) -> dict[str, list[Path]]:
    """Draw the charts of every model that has what they show; returns the files written, by
    model."""
    files: dict[str, list[Path]] = {}
    with in_style():
        for model, rows in section.models.items():
            timed = [row for row in rows if _promise(row) is not None]
            if any(not row["baseline"] for row in timed):
                files.setdefault(model, []).extend(_realised(section, model, timed, folder))
            measured = [
                row for row in rows if row["status"] == SHOWN and row["memory"].get("peak_bytes")
            ]
            if measured:
                files.setdefault(model, []).extend(_memory(section, model, measured, folder))
    return files


def _promise(row: Row) -> Point | None:
    """FLOPs of none over FLOPs of this, and the measured speed-up of the loop."""
    if row["status"] != SHOWN or not row["speedup_flops"] or row["speedup_denoise"] is None:
        return None
    if row["baseline"]:
        return (1.0, 1.0, 0, 0, 0, 0)
    return (
        row["speedup_flops"],
        row["speedup_denoise"]["value"],
        0,
        0,
        *reach(row["speedup_denoise"]),
    )


def _realised(section: Section, model: str, rows: Sequence[Row], folder: Path) -> list[Path]:
    points = [_promise(row) for row in rows]
    realised = [point[1] / point[0] if point else 1.0 for point in points]
    order = [rows[i] for i in np.argsort(realised)]
    extremes = [row for pair in zip(order, reversed(order), strict=True) for row in pair]
    drawn = plate(
        section, model, rows, 1, REALISED, [row for row in rows if row["baseline"]] + extremes[:24],
        "those farthest from the line, both ways", inches=4.4,
    )  # fmt: skip
    (axis,) = drawn.axes
    drawn.mark(axis, points)
    positions = np.array([p for p in points if p is not None])
    least, most = min(positions[:, :2].min(), 1.0), max(positions[:, :2].max(), 1.0)
    low = max(min(least, (positions[:, 1] - positions[:, 4]).min()), least / CUT) / 1.15
    high = min(max(most, (positions[:, 1] + positions[:, 5]).max()), most * CUT) * 1.15
    axis.plot([low, high], [low, high], color=QUIET, linewidth=0.9, zorder=1)
    axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    for side in (axis.xaxis, axis.yaxis):
        tick_factors(side)
    axis.set_xlabel("promised: FLOPs of none / FLOPs of this (log scale)")
    axis.set_ylabel("measured: time of none / time of this")
    drawn.name(axis, points, [(low, low), (high, high)])
    return drawn.save(
        f"{model}: promised and measured speed-up",
        folder,
        f"{file_name(model)}-promised-and-measured",
    )


def _memory(section: Section, model: str, rows: Sequence[Row], folder: Path) -> list[Path]:
    """A bar for each stack, `BARS` on a page, all to one scale."""
    foot = small_print(
        section.caption(model),
        "Peak while sampling. On the CPU it is the process's resident memory, Python and "
        "libraries included. The rest is activations.",
    )
    longest = 9 + max(len(_short(row["stack"])) for row in rows)
    left = min(0.46, 0.02 + 0.0086 * longest)
    most = max(row["memory"]["peak_bytes"] for row in rows) / 1e6
    patches = [
        Patch(facecolor=colour, hatch=hatch, edgecolor=PAPER, label=label)
        for label, colour, hatch in PARTS
    ]
    written: list[Path] = []
    for ending, page, words in pages(rows, BARS):
        drawn = frame(1, BAR * len(page), foot, head=0.62, left=left, margin=0.02)
        _bars(drawn.axes[0], page)
        drawn.axes[0].set_xlim(0, 1.03 * most)
        title = f"{model}: peak memory{f', stacks {words}' * bool(words)}"
        stem = f"{file_name(model)}-memory{ending}"
        written += drawn.save(title, patches, 4, folder, stem, handlelength=1.2)
    return written


def _bars(axis: Axes, rows: Sequence[Row]) -> None:
    places = np.arange(len(rows))[::-1]
    parts = np.array([_parts(row) for row in rows]) / 1e6  # [n, 4]
    ends = np.cumsum(parts, 1)
    low, high = places - 0.34, places + 0.34
    for i, (_, colour, hatch) in enumerate(PARTS):
        start, end = ends[:, i] - parts[:, i], ends[:, i]
        corners = ((start, low), (start, high), (end, high), (end, low))
        bars = np.stack([np.stack(corner, 1) for corner in corners], 1)
        axis.add_collection(
            PolyCollection(
                list(bars), facecolor=colour, hatch=hatch, edgecolor=PAPER, linewidth=0.4
            )
        )
    # plain text: ticks cost four times as much to draw
    for place, row in zip(places, rows, strict=True):
        axis.text(
            -0.012, place, f"{_short(row['stack'])}   {size(row['memory']['peak_bytes'])}",
            transform=axis.get_yaxis_transform(), ha="right", va="center", fontsize=7.5,
        )  # fmt: skip
    axis.set_yticks([])
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_xlabel("MB")


def _parts(row: Row) -> list[float]:
    """Bytes of the peak: weights, what else was there before sampling, what methods keep, the rest
    (activations)."""
    memory = row["memory"]
    weights, cache = float(memory.get("weights_bytes") or 0), float(memory.get("cache_bytes") or 0)
    before = max(0.0, float(memory.get("before_bytes") or 0) - weights)
    return [weights, before, cache, max(0.0, memory["peak_bytes"] - weights - before - cache)]


def _short(stack: str) -> str:
    return stack if len(stack) <= 44 else stack[:43] + "…"
