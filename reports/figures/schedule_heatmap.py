"""Schedules as heat maps: which share of its tokens each sub-layer computed at each step, a panel
per scheduled stack. PNG and SVG.

T steps, L sub-layers; sub-layers are grouped by kind and ordered by depth.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ditbench.records.record import SCHEDULE, SHOWN
from ditbench.reports.figures.frame import finish
from ditbench.reports.figures.style import DPI, INK, PAPER, QUIET, in_style
from ditbench.reports.sections.section import Section, file_name

WIDE, MOST = 3, 12
"""Panels side by side, and panels at most: the first in table order."""
KIND_LETTER = 0.06
"""Inches of a letter in a kind's name beside a panel."""


def draw_heatmaps(section: Section, folder: Path) -> dict[str, list[Path]]:
    """Draw every model that has scheduled stacks; returns the PNG and SVG written, by model."""
    files = {}
    with in_style({"axes.grid": False}):
        for model, rows in section.models.items():
            schedules = [
                (row["stack"], section.records[row["key"]].get(SCHEDULE))
                for row in rows
                if row["status"] == SHOWN
            ]
            scheduled = [(stack, schedule) for stack, schedule in schedules if schedule]
            if scheduled:
                of = (
                    f"; the first {MOST} of {len(scheduled)} stacks"
                    if len(scheduled) > MOST
                    else ""
                )
                files[model] = _draw(model, scheduled[:MOST], of, folder)
    return files


def grouped(schedule: dict[str, Any]) -> tuple[np.ndarray[Any, Any], list[tuple[str, int, int]]]:
    """Shares [L,T] with sub-layers by kind and depth, and where each kind begins and ends: (kind,
    first, end)."""
    kinds = [name.partition(".")[2] for name in schedule["sublayers"]]
    order = sorted(range(len(kinds)), key=lambda i: (kinds.index(kinds[i]), i))
    spans, start = [], 0
    for kind in dict.fromkeys(kinds):
        spans.append((kind, start, start + kinds.count(kind)))
        start = spans[-1][2]
    return np.array(schedule["keep"], float).T[order], spans


def paint(axis: Any, schedule: dict[str, Any], left: bool = True, below: bool = True) -> Any:
    """One schedule on an axis: rows by kind and depth, columns are steps; returns the image for a
    colour bar.

    Kinds are written `left` of it and steps `below`; panels inside a table of panels need
    neither.
    """
    colours = matplotlib.colormaps["viridis"]
    scale = BoundaryNorm([-0.001, 0.001, 0.2, 0.4, 0.6, 0.8, 0.999, 1.001], colours.N)
    shares, spans = grouped(schedule)
    image = axis.imshow(shares, aspect="auto", interpolation="nearest", cmap=colours, norm=scale)
    for kind, first, end in spans:
        axis.axhline(end - 0.5, color=PAPER, linewidth=1.5)
        if left:
            middle, at = (first + end - 1) / 2, axis.get_yaxis_transform()
            axis.text(
                -0.02, middle, kind, transform=at, ha="right", va="center", fontsize=7, color=INK
            )
    axis.yaxis.set_visible(False)
    axis.xaxis.set_visible(below)
    axis.grid(False)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.set_xlabel("step", fontsize=7.5, color=QUIET)
    return image


def _draw(model: str, shown: list[tuple[str, dict[str, Any]]], of: str, folder: Path) -> list[Path]:
    wide, high = min(WIDE, len(shown)), -(-len(shown) // WIDE)
    width, height = 2.0 + 3.0 * wide, 0.85 + 2.6 * high
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    kinds = {name.partition(".")[2] for _, schedule in shown for name in schedule["sublayers"]}
    edges = {
        "left": (0.5 + KIND_LETTER * max(map(len, kinds))) / width,
        "right": 1 - 0.95 / width,
        "bottom": 0.45 / height,
        "top": 1 - 0.75 / height,
    }
    panels = figure.subplots(
        high, wide, squeeze=False, gridspec_kw=edges | {"wspace": 0.28, "hspace": 0.4}
    )
    image: Any = None
    steps = [len(schedule["keep"]) for _, schedule in shown]
    for i, (axis, entry) in enumerate(
        zip(panels.flat, [*shown, *[None] * (wide * high - len(shown))], strict=True)
    ):
        if entry is None:
            axis.axis("off")
            continue
        stack, schedule = entry
        # the panel under it counts its steps
        alike = i + wide < len(shown) and steps[i + wide] == steps[i]
        image = paint(axis, schedule, left=i % wide == 0, below=not alike)
        axis.set_title(_short(stack), fontsize=8, loc="left", linespacing=1.1)
    beside = figure.add_axes(
        (
            1 - 0.8 / width,
            edges["bottom"],
            0.14 / width,
            min(2.0 / height, edges["top"] - edges["bottom"]),
        )
    )
    bar = figure.colorbar(image, cax=beside, ticks=[0, 0.3, 0.5, 0.7, 1], spacing="uniform")
    bar.ax.set_yticklabels(["0: reused", "¼", "½", "¾", "1: all"], fontsize=7)
    bar.ax.set_title("share of tokens", fontsize=7, fontweight="normal", loc="left", color=QUIET)
    figure.text(
        0.1 / width, 0.5, "sub-layer, by kind and depth (shallow blocks above)", fontsize=7.5,
        color=QUIET, rotation="vertical", va="center",
    )  # fmt: skip
    title = f"{model}: share of tokens computed, by step and sub-layer{of}"
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.1 / width, ha="left")
    return finish(figure, folder, f"{file_name(model)}-schedules")


def _short(stack: str) -> str:
    """A stack's name in at most two lines over its panel."""
    return "\n".join(
        textwrap.wrap(stack.replace("+", "+ "), 40, max_lines=2, placeholder=" \u2026")
    ).replace("+ ", "+")
