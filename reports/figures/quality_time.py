"""Quality against time, a figure per model: one panel per quality metric, error bars both ways. PNG
and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from ditbench.analysis.primary import primary_of
from ditbench.analysis.rows import Row
from ditbench.metrics.table import metrics
from ditbench.reports.figures.scatter import Plate, Point, plate
from ditbench.reports.figures.style import INK, PALE, QUIET, in_style
from ditbench.reports.sections.format import number
from ditbench.reports.sections.frontier import compared, dominated, frontier, level, placed
from ditbench.reports.sections.section import Section, file_name

Line = NDArray[Any]
"""Positions [k, 2] in a panel's units."""

SMALL_PRINT = (
    "Bars: 95 % intervals, cut off at the edge. Dashed: none. Line: the frontier; in the grey behind "
    "it something is both faster and better, as measured (how sure that is: the tables). Seconds: "
    "those of none over the paired speed-up."
)
CUT = 1.5
"""How many times beyond the least and the largest value intervals of times are drawn: of one or two
rounds they can reach into the thousands."""


def draw_figures(section: Section, folder: Path) -> dict[str, list[Path]]:
    """Draw every model that has times and a quality; returns the PNG and SVG written, by model."""
    files = {}
    with in_style():
        for model, rows in section.models.items():
            names = primary_of(rows).names
            panels = [m for m in names if any(placed(row, m) for row in rows) and compared(rows, m)]
            if panels:
                words = [SMALL_PRINT]
                distance = primary_of(rows).distance
                if distance.name in panels:
                    words.append(
                        f"{distance.label}: that of none and the difference to it, which is without "
                        "bias in n."
                    )
                words += [_left_out(rows, m) for m in names if not compared(rows, m)]
                files[model] = _figure(section, model, panels, folder, " ".join(words))
    return files


def _left_out(rows: Sequence[Row], metric: str) -> str:
    """Why there is no panel of a metric in which no stack has a difference to `none`."""
    entries = [row["quality"].get(metric) for row in rows if not row["baseline"]]
    reason = next((e["delta_reason"] or e["reason"] for e in entries if e), "")
    return f"No panel of {metrics()[metric].label}: {reason or 'it was not scored'}."


def _figure(
    section: Section, model: str, panels: Sequence[str], folder: Path, words: str
) -> list[Path]:
    rows = [row for row in section.models[model] if any(placed(row, metric) for metric in panels)]
    notable = [
        row
        for row in rows
        if row["baseline"] or any(row in frontier(rows, metric) for metric in panels)
    ]
    drawn = plate(
        section,
        model,
        rows,
        len(panels),
        words,
        notable,
        "none and what is on a frontier",
    )
    scale_time(drawn.axes, rows)
    frontiers = [
        _panel(axis, drawn, rows, metric) for axis, metric in zip(drawn.axes, panels, strict=True)
    ]
    time_axis(drawn.axes)
    for axis, metric, staircase in zip(drawn.axes, panels, frontiers, strict=True):
        levels = [level(r, metric) for r in rows if r["baseline"] and placed(r, metric)]
        drawn.name(
            axis,
            _points(rows, metric),
            staircase,
            *([(x, y) for x in axis.get_xlim()] for y in levels),
        )
    return drawn.save(
        f"{model}: quality against time", folder, f"{file_name(model)}-quality-against-time"
    )


def _panel(axis: Axes, drawn: Plate, rows: Sequence[Row], metric: str) -> Line:
    """Everything but the labels, which need final limits; returns the frontier."""
    name = f"{metrics()[metric].label} ({metric})"
    better = f"{metrics()[metric].better} is better"
    drawn.mark(axis, _points(rows, metric))
    for row in rows:
        if row["baseline"] and placed(row, metric):
            height = level(row, metric)
            axis.axhline(
                height, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.5, zorder=1
            )
    axis.set_ylabel(name)
    axis.margins(y=0.16)
    axis.set_title(better, loc="right", fontsize=8.5, fontweight="normal", color=QUIET, pad=3)
    return _shade(axis, rows, metric, better)


def _shade(axis: Axes, rows: Sequence[Row], metric: str, better: str) -> Line:
    """The frontier as a staircase, and behind it, out to the panel's edges, what some stack beats
    in time and in quality."""
    x, y = dominated(rows, metric)
    if not len(x):
        return np.empty((0, 2))
    axis.autoscale_view()
    left, right = axis.get_xlim()
    low, high = axis.get_ylim()
    edge = low if better == "higher is better" else high
    x, y = np.append(x, right), np.append(y, y[-1])
    axis.fill_between(x, y, edge, color=PALE, alpha=0.45, linewidth=0, zorder=0)
    staircase = np.stack([np.append(x[:1], x), np.append(edge, y)], axis=1)
    axis.plot(*staircase.T, color=QUIET, linewidth=0.9, zorder=2)
    axis.set_xlim(left, right)
    axis.set_ylim(low, high)
    return staircase


def _points(rows: Sequence[Row], metric: str) -> list[Point | None]:
    return [_point(row, metric) for row in rows]


def _point(row: Row, metric: str) -> Point | None:
    seconds, entry = row["timing"]["call_s"], row["quality"][metric]
    if seconds is None or not placed(row, metric):
        return None
    # The estimate whose interval is drawn: the value's, or where it has none (Fréchet) that of the
    # difference to none.
    value, delta = entry["value"], entry["delta"]
    bar = delta if delta and (value is None or value["low"] is None) else value
    return (seconds["value"], level(row, metric), *reach(seconds), *reach(bar))


def reach(estimate: Mapping[str, Any] | None) -> tuple[float, float]:
    """How far an interval goes below and above its value."""
    if estimate is None or estimate["low"] is None or estimate["high"] is None:
        return 0.0, 0.0
    return max(0.0, estimate["value"] - estimate["low"]), max(
        0.0, estimate["high"] - estimate["value"]
    )


def scale_time(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    """Make the panels' axis of seconds logarithmic where they differ much, and end it where the
    intervals do, or `CUT` times beyond the values; before anything is drawn, for limits depend on
    it."""
    if logarithmic := far_apart(rows):
        axes[-1].set_xscale("log")
    calls = [call for row in rows if (call := row["timing"]["call_s"])]
    values = [call["value"] for call in calls]
    below, above = zip(*map(reach, calls), strict=True)
    start = max(np.subtract(values, below).min(), min(values) / CUT)
    end = min(np.add(values, above).max(), max(values) * CUT)
    if logarithmic:
        axes[-1].set_xlim(start / (end / start) ** 0.08, end * (end / start) ** 0.08)
    else:
        axes[-1].set_xlim(max(0.0, start - 0.08 * (end - start)), end + 0.08 * (end - start))


def far_apart(rows: Sequence[Row]) -> bool:
    """Whether times differ so much that their axis is logarithmic."""
    seconds = [call["value"] for row in rows if (call := row["timing"]["call_s"])]
    return bool(max(seconds) > 4 * min(seconds))


def time_axis(axes: Sequence[Axes]) -> None:
    """Label the lowest panel's axis of seconds."""
    last = axes[-1]
    if last.get_xscale() == "log":
        start, end = last.get_xlim()
        last.xaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if end > 10 * start else (1, 1.5, 2, 3, 5, 7))
        )
        last.xaxis.set_minor_locator(NullLocator())
        last.xaxis.set_major_formatter(lambda s, _: f"{s:g}" if s >= 1e-3 else number(s))
        last.set_xlabel("seconds per sample, whole call (log scale)")
    else:
        last.set_xlabel("seconds per sample, whole call")
