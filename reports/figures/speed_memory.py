"""What the arithmetic promised against what the clock gave, where the memory went, and where the time:
a figure of each per model. PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ditbench.analysis.rows import Row
from ditbench.profiling.operations import KINDS
from ditbench.records.record import SHOWN
from ditbench.reports.figures.bars import draw_bars
from ditbench.reports.figures.frame import small_print, tick_factors
from ditbench.reports.figures.quality_time import reach
from ditbench.reports.figures.scatter import Point, plate
from ditbench.reports.figures.style import INK, QUIET, in_style
from ditbench.reports.sections.format import number, size
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
            if profiled := [row for row in rows if row["status"] == SHOWN and row["operations"]]:
                files.setdefault(model, []).extend(_operations(section, model, profiled, folder))
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
    """A bar for each stack."""
    foot = small_print(
        section.caption(model),
        "Peak while sampling. On the CPU it is the process's resident memory, Python and "
        "libraries included. The rest is activations.",
    )
    return draw_bars(
        rows, np.array([_parts(row) for row in rows]) / 1e6, PARTS,
        [size(row["memory"]["peak_bytes"]) for row in rows], foot=foot,
        title=f"{model}: peak memory", unit="MB", folder=folder,
        stem=f"{file_name(model)}-memory",
    )  # fmt: skip


OPERATIONS = (
    "One call, profiled by itself and timed by nothing else. On the CPU the own time of each "
    "operation, on a GPU that of its kernels. Host: what remains of the loop, Python and dispatch, "
    "views, and on a GPU the gaps without a kernel; the profiler adds to it."
)
OF_TIME = (
    ("matrix products", INK, ""), ("attention", "#0072b2", ""), ("convolutions", "#8c3a7a", ""),
    ("norms and elementwise", "#e69f00", ""), ("copies and gathers", "#009e73", ""),
    ("host", "#d9d9d9", "//"),
)  # fmt: skip
"""What the kinds of `ditbench.profiling.operations.KINDS` are called, in their order."""


def _operations(section: Section, model: str, rows: Sequence[Row], folder: Path) -> list[Path]:
    """A bar for each stack that was profiled: milliseconds of the loop by kind of operation."""
    spent = [row["operations"] for row in rows]
    parts = np.array([[1e3 * s[f"{key}_s"] / s["samples"] for key in KINDS] for s in spent])
    return draw_bars(
        rows, parts, OF_TIME, [f"{number(float(each))} ms" for each in parts.sum(1)],
        foot=small_print(section.caption(model), OPERATIONS),
        title=f"{model}: where the time of the loop goes", unit="ms per sample", folder=folder,
        stem=f"{file_name(model)}-operations",
    )  # fmt: skip


def _parts(row: Row) -> list[float]:
    """Bytes of the peak: weights, what else was there before sampling, what methods keep, the rest
    (activations)."""
    memory = row["memory"]
    weights, cache = float(memory.get("weights_bytes") or 0), float(memory.get("cache_bytes") or 0)
    before = max(0.0, float(memory.get("before_bytes") or 0) - weights)
    return [weights, before, cache, max(0.0, memory["peak_bytes"] - weights - before - cache)]
