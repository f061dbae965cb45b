"""Quality over the number of steps and a method's dial: at equal FLOPs, at equal time, and as a plane
with lines of equal quality and the path of the best stacks. PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from matplotlib.tri import Triangulation

from ditbench.analysis.surfaces import COSTS, Point, Surface
from ditbench.metrics.table import metrics
from ditbench.reports.figures.frame import FOOT_LINE, finish, inscribe, small_print
from ditbench.reports.figures.quality_time import reach
from ditbench.reports.figures.style import DPI, INK, PALE, QUIET, in_style
from ditbench.reports.sections.section import Section, file_name
from ditbench.reports.tables.surface import heading

AXES = {"flops": "share of none's FLOPs (log scale)", "time": "share of none's time (log scale)"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#8c3a7a", "#b8860b", "#4d4d4d")
WIDTH, HIGH, HEAD, BELOW, GAP = 10.6, 2.5, 0.72, 0.5, 0.42
"""Inches: the figure's width, a panel's height, above, below and between the panels."""
LETTERS = 190
CLOSEST = 0.12
"""How far apart numbers under an axis are at least, as a share of it: the width of one and a gap."""
WORDS = (
    "Black: whole steps, and between them requests that are divided between the two numbers of steps. "
    "Coloured: the method with so many steps, over its dial. What lies on the better side of the "
    "black line is bought by the method between whole steps. Right: lines of equal quality "
    "(solid) and of equal FLOPs (dashed) through the cells (dots), by linear interpolation; ringed and "
    "joined: the path of the best stacks by FLOPs, as measured. Bars: 95 % intervals."
)


def draw_surfaces(section: Section, folder: Path) -> dict[str, list[Path]]:
    """Draw every surface of every model; returns the PNG and SVG written, by model."""
    files: dict[str, list[Path]] = {}
    with in_style():
        for model in section.models:
            mine = [surface for surface in section.surfaces if surface.model == model]
            for number, surface in enumerate(mine, 1):
                ending = f"-{number}" if number > 1 else ""
                files.setdefault(model, []).extend(_draw(section, surface, folder, ending))
    return files


def _draw(section: Section, surface: Surface, folder: Path, ending: str) -> list[Path]:
    foot = small_print(section.caption(surface.model), WORDS, letters=LETTERS)
    rows = len(surface.metrics)
    below = BELOW + FOOT_LINE * len(foot)
    height = HEAD + below + rows * HIGH + (rows - 1) * GAP
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        rows, 3, squeeze=False,
        gridspec_kw={
            "left": 0.065, "right": 0.985, "bottom": below / height, "top": 1 - HEAD / height,
            "hspace": GAP / HIGH, "wspace": 0.27,
        },
    )  # fmt: skip
    for metric, line in zip(surface.metrics, panels, strict=True):
        for cost, axis in zip(COSTS, line, strict=False):
            _over_cost(axis, surface, metric, cost)
        _plane(line[-1], surface, metric)
        better = f"{metrics()[metric].better} is better"
        line[0].set_title(
            better, loc="right", fontsize=8.5, fontweight="normal", color=QUIET, pad=3
        )
    for axis, cost in zip(panels[-1], COSTS, strict=False):
        axis.set_xlabel(AXES[cost])
    panels[-1][-1].set_xlabel("steps")
    inscribe(figure, f"{surface.model}: {heading(surface)}", foot, 0.065)
    marks = panels[0][0].get_legend_handles_labels()
    figure.legend(
        *marks, loc="upper left", ncols=len(marks[0]), fontsize=8, borderaxespad=0,
        bbox_to_anchor=(0.055, 1 - 0.33 / height),
    )  # fmt: skip
    stem = f"{file_name(surface.model)}-surface{ending}"
    return finish(figure, folder, stem)


def _over_cost(axis: Axes, surface: Surface, metric: str, cost: str) -> None:
    """Quality over one cost: the line of whole steps, and one for each number of steps."""
    shown = [p for p in surface.points if cost in p.cost and metric in p.quality]
    whole = [p for p in shown if p.dial is None]
    axis.set_ylabel(metrics()[metric].label)
    if len(whole) < 2:
        words = "no reliable times" if cost == "time" else "FLOPs were not counted"
        axis.text(0.5, 0.5, words, ha="center", va="center", transform=axis.transAxes, color=QUIET)
        axis.set_xticks([])
        axis.set_yticks([])
        return
    ends = sorted((p.cost[cost], p.quality[metric].value) for p in whole)
    shares = np.linspace(ends[0][0], ends[-1][0], 200)  # curved, for the axis is logarithmic
    mixtures = np.interp(shares, *np.array(ends).T)
    axis.plot(shares, mixtures, color=INK, linewidth=1.1, zorder=2)
    _points(axis, whole, metric, cost, INK, "whole steps", "s")
    steps = sorted({p.steps for p in shown if p.dial is not None})
    for i, k in enumerate(steps):
        along = [p for p in shown if p.steps == k and p.dial is not None]
        joined = along + [p for p in whole if p.steps == k]
        colour = COLOURS[i % len(COLOURS)]
        joined.sort(key=lambda p: p.cost[cost])
        axis.plot(
            [p.cost[cost] for p in joined], [p.quality[metric].value for p in joined],
            color=colour, linewidth=0.9, zorder=2,
        )  # fmt: skip
        _points(axis, along, metric, cost, colour, f"{k} step{'s' * (k != 1)}", "o")
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(_apart([p.cost[cost] for p in whole], [p.cost[cost] for p in shown]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.2g}"))


def _apart(values: Sequence[float], extent: Sequence[float]) -> list[float]:
    """The values whose numbers have room on a logarithmic axis over `extent`, the greatest first."""
    room = CLOSEST * float(np.log(max(extent) / min(extent)))
    ticks: list[float] = []
    for value in sorted(values, reverse=True):
        if not ticks or np.log(ticks[-1] / value) >= room:
            ticks.append(value)
    return ticks[::-1]


def _points(
    axis: Axes, points: Sequence[Point], metric: str, cost: str, colour: str, label: str,
    marker: str,
) -> None:  # fmt: skip
    at = sorted(points, key=lambda p: p.cost[cost])
    values = [p.quality[metric] for p in at]
    bars = np.array([reach(v.as_dict()) for v in values]).reshape(-1, 2).T
    axis.errorbar(
        [p.cost[cost] for p in at], [v.value for v in values], yerr=bars, color=colour, label=label,
        marker=marker, markersize=4.5, linestyle="none", elinewidth=0.7, capsize=1.5, zorder=3,
    )  # fmt: skip


def _plane(axis: Axes, surface: Surface, metric: str) -> None:
    """Lines of equal quality and of equal FLOPs over steps and dial, and the path of the best."""
    shown = [p for p in surface.points if metric in p.quality and "flops" in p.cost]
    off = _off(shown)
    x = np.log2([p.steps for p in shown])
    y = np.array([off if p.dial is None else p.dial for p in shown])
    quality = np.array([p.quality[metric].value for p in shown])
    flops = np.log([p.cost["flops"] for p in shown])
    _, first = np.unique(np.stack([x, y]), axis=1, return_index=True)
    if len(np.unique(x)) > 1 and len(np.unique(y)) > 1 and len(first) > 2:
        mesh = Triangulation(x[first], y[first])
        if np.ptp(quality[first]) > 0:
            lines = axis.tricontour(mesh, quality[first], 8, cmap="viridis", linewidths=1.1)
            axis.clabel(lines, fontsize=6.5, fmt=lambda v: f"{v:.3g}")
        axis.tricontour(mesh, flops[first], 6, colors=PALE, linestyles="--", linewidths=0.8)
    axis.plot(x, y, ".", color=QUIET, markersize=4, zorder=3)
    best = sorted(
        ((p.cost["flops"], i) for i, p in enumerate(shown) if p.best.get(("flops", metric)))
    )
    path = [i for _, i in best]
    axis.plot(
        x[path], y[path], color="#d55e00", linewidth=1.0, marker="o", markerfacecolor="none",
        markersize=7, zorder=4,
    )  # fmt: skip
    # or the outermost markers are cut: lines of equal values pin limits to the outermost cells
    axis.use_sticky_edges = False
    axis.set_xticks(np.unique(x))
    axis.set_xticklabels([f"{2**k:.0f}" for k in np.unique(x)])
    axis.set_ylabel(f"{surface.dial} ({off:g}: whole steps)")
    axis.margins(0.08)


def _off(points: Sequence[Point]) -> float:
    """Where whole steps lie on the dial: beyond the end of its values towards which cost grows, as
    far as its values lie apart, but at 1 or 0 where that is the next round value."""
    values = sorted({p.dial for p in points if p.dial is not None})
    by_cost = sorted((p.cost["flops"] / p.steps, p.dial) for p in points if p.dial is not None)
    dearer = by_cost[-1][1] > by_cost[0][1]
    apart = float(np.median(np.diff(values))) if len(values) > 1 else 1.0
    beyond = values[-1] + apart if dearer else values[0] - apart
    for round_value in (1.0, 0.0):
        inside = values[0] <= round_value <= values[-1]
        if not inside and abs(beyond - round_value) <= apart:
            return round_value
    return beyond
