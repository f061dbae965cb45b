"""Quality against time, a figure per model: one panel per quality metric, error bars both ways. PNG and SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from ditbench.reports.frontier import dominated, eligible
from ditbench.reports.labels import Box, place_labels
from ditbench.reports.sections import SHOWN, Row, Section, file_name
from ditbench.reports.style import DPI, INK, PALE, PAPER, QUIET, RC, Look, look
from ditbench.reports.wording import number, share

NAMED = 16
"""Up to this many points carry their stacks' names; more carry numbers, with a key."""
KEY_LINE = 0.132
"""Inches a line of the key takes."""
LONG = 26
"""Characters from which a stack's name is broken at its plus signs."""
METRICS = {
    "align.shapes_v1": ("alignment (align.shapes_v1)", "higher is better"),
    "fd.shapes_v1": ("Fréchet distance (fd.shapes_v1)", "lower is better"),
}


def draw_figures(section: Section, folder: Path) -> dict[str, list[Path]]:
    """Draw every model that has times and a quality; returns the PNG and SVG written, by model."""
    found = {}
    with matplotlib.rc_context(matplotlib.rcParamsDefault | RC):
        for model, rows in section.models.items():
            panels = [metric for metric in METRICS if any(eligible(row, metric) for row in rows)]
            if not panels:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            found[model] = _figure(section, model, panels, folder, f"{file_name(model)}-quality-against-time")
    return found


def _figure(section: Section, model: str, panels: Sequence[str], folder: Path, stem: str) -> list[Path]:
    rows = [row for row in section.models[model] if any(eligible(row, metric) for metric in panels)]
    named = len(rows) <= NAMED
    labels = [_broken(row["stack"]) if named else str(i + 1) for i, row in enumerate(rows)]
    looks = [look(section.records[row["key"]]["methods"]) for row in rows]
    key_inches = 0.0 if named else KEY_LINE * ((len(rows) + 1) // 2) + 0.15
    words = _foot(section, model, rows)
    foot, head = 0.62 + 0.125 * len(words) + key_inches, 0.76
    height = 3.1 * len(panels) + foot + head
    figure = Figure(figsize=(8, height), dpi=DPI)
    FigureCanvasAgg(figure)
    grid = {"left": 0.095, "right": 0.975, "bottom": foot / height, "top": 1 - head / height, "hspace": 0.12}
    axes = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw=grid)[:, 0])
    for axis, metric in zip(axes, panels, strict=True):
        _panel(axis, rows, looks, metric)
    _time_axis(axes, rows)
    for axis, metric in zip(axes, panels, strict=True):
        _label(axis, rows, labels, metric)
    _words(figure, model, rows, looks, words, named)
    paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    figure.savefig(paths[0], metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def _panel(axis: Axes, rows: Sequence[Row], looks: Sequence[Look], metric: str) -> None:
    name, better = METRICS[metric]
    for kind in dict.fromkeys(looks):
        part = [row for row, own in zip(rows, looks, strict=True) if own == kind and eligible(row, metric)]
        if not part:
            continue
        points = np.array([_point(row, metric) for row in part])  # [n, 6]
        axis.errorbar(
            points[:, 0], points[:, 1], xerr=points[:, 2:4].T, yerr=points[:, 4:].T, fmt="none", ecolor=kind.colour, elinewidth=0.9,
            capsize=2, alpha=0.75, zorder=3,
        )  # fmt: skip
        suspect = part[0]["suspect"]
        axis.plot(
            points[:, 0], points[:, 1], marker=kind.marker, color=kind.colour, zorder=5, linestyle="none",
            markersize=11 if kind.marker == "*" else 7, markeredgecolor=kind.colour if suspect else PAPER,
            markeredgewidth=1.2 if suspect else 0.7, markerfacecolor=PAPER if suspect else kind.colour,
        )  # fmt: skip
    for row in rows:
        if row["baseline"] and eligible(row, metric):
            axis.axhline(
                row["quality"][metric]["value"]["value"],
                color=INK,
                linewidth=0.8,
                linestyle=(0, (4, 3)),
                alpha=0.5,
                zorder=1,
            )
    axis.set_ylabel(name)
    axis.margins(x=0.08, y=0.16)
    _shade(axis, rows, metric, better)
    axis.set_title(better, loc="right", fontsize=8.5, fontweight="normal", color=QUIET, pad=3)


def _shade(axis: Axes, rows: Sequence[Row], metric: str, better: str) -> None:
    """The frontier as a staircase, and behind it, out to the panel's edges, what some stack beats in time and in quality."""
    x, y = dominated(rows, metric)
    if not len(x):
        return
    axis.autoscale_view()
    left, right = axis.get_xlim()
    low, high = axis.get_ylim()
    edge = low if better == "higher is better" else high
    x, y = np.append(x, right), np.append(y, y[-1])
    axis.fill_between(x, y, edge, color=PALE, alpha=0.45, linewidth=0, zorder=0)
    axis.plot(np.append(x[:1], x), np.append(edge, y), color=QUIET, linewidth=0.9, zorder=2)
    axis.set_xlim(left, right)
    axis.set_ylim(low, high)


def _bar(entry: dict[str, Any]) -> dict[str, Any]:
    """The estimate whose interval is drawn: the value's, or where it has none (Fréchet) that of the difference to none."""
    own: dict[str, Any] = entry["value"] if entry["value"]["low"] is not None else entry["delta"] or entry["value"]
    return own


def _point(row: Row, metric: str) -> tuple[float, ...]:
    """x, y, and the lengths of the error bars left, right, below and above, 0 where there is no interval."""
    x, entry = row["timing"]["call_s"], row["quality"][metric]
    y: float = entry["value"]["value"]
    return (x["value"], y, *_reach(x), *_reach(_bar(entry)))


def _reach(estimate: dict[str, Any]) -> tuple[float, float]:
    if estimate["low"] is None or estimate["high"] is None:
        return 0.0, 0.0
    return max(0.0, estimate["value"] - estimate["low"]), max(0.0, estimate["high"] - estimate["value"])


def _time_axis(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    seconds = [row["timing"]["call_s"]["value"] for row in rows]
    last = axes[-1]
    if max(seconds) > 4 * min(seconds):
        last.set_xscale("log")
        last.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        last.xaxis.set_minor_locator(NullLocator())
        last.xaxis.set_major_formatter(lambda s, _: f"{s:g}" if s >= 1e-3 else number(s))
        last.set_xlabel("seconds per sample, whole call (log scale)")
    else:
        last.set_xlim(left=max(0.0, last.get_xlim()[0]))
        last.set_xlabel("seconds per sample, whole call")


def _label(axis: Axes, rows: Sequence[Row], labels: Sequence[str], metric: str) -> None:
    points, texts, obstacles = [], [], []
    pixel = axis.figure.dpi / 72
    for row, label in zip(rows, labels, strict=True):
        if not eligible(row, metric):
            continue
        x, y, left, right, below, above = _point(row, metric)
        points.append((x, y))
        texts.append(label)
        at_x, at_y = axis.transData.transform((x, y))
        ends = [(x - left, y), (x + right, y), (x, y - below), (x, y + above)]
        (west, _), (east, _), (_, south), (_, north) = axis.transData.transform(ends)
        obstacles += [
            Box(at_x - 5 * pixel, at_y - 5 * pixel, at_x + 5 * pixel, at_y + 5 * pixel),
            Box(west - pixel, at_y - pixel, east + pixel, at_y + pixel),
            Box(at_x - pixel, south - pixel, at_x + pixel, north + pixel),
        ]
        if row["baseline"]:
            (start, _), (end, _) = axis.transAxes.transform([(0, 0), (1, 0)])
            obstacles.append(Box(start, at_y - pixel, end, at_y + pixel))
    place_labels(axis, points, texts, obstacles, size=7.5)


def _words(
    figure: Figure, model: str, rows: Sequence[Row], looks: Sequence[Look], foot: Sequence[str], named: bool
) -> None:  # fmt: skip
    """Title, legend of kinds, key of numbers, and the small print."""
    height = figure.get_figheight()
    figure.text(0.095, 1 - 0.13 / height, f"{model}: quality against time", fontsize=11.5, fontweight="bold", va="top")
    marks = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=k.marker,
            color=k.colour,
            markersize=9 if k.marker == "*" else 6,
            label=k.label,
        )
        for k in dict.fromkeys(looks)
    ]
    corner = (0.085, 1 - 0.32 / height)
    figure.legend(
        handles=marks, loc="upper left", bbox_to_anchor=corner, ncols=len(marks), fontsize=8, handletextpad=0.2, columnspacing=1.0,
        borderaxespad=0,
    )  # fmt: skip
    figure.text(0.095, 0.08 / height, "\n".join(foot), fontsize=6.8, color=QUIET, va="bottom", linespacing=1.25)
    half = 0 if named else (len(rows) + 1) // 2
    for column in range(2 if half else 0):
        part = [f"{i + 1:>2}  {row['stack']}" for i, row in enumerate(rows)][column * half : (column + 1) * half]
        top = (0.08 + 0.125 * len(foot) + 0.1 + KEY_LINE * half) / height
        figure.text(0.095 + 0.45 * column, top, "\n".join(part), fontsize=7, va="top", linespacing=1.3)


def _foot(section: Section, model: str, rows: Sequence[Row]) -> list[str]:
    """Lines of small print: circumstances, what bars and hollow markers mean, what is not drawn."""
    told = textwrap.wrap(section.caption(model), 142)
    bars = "Bars: 95 % intervals; for the Fréchet distance that of the difference to none. Dashed: none."
    line = "Line: the frontier; in the grey behind it something is both faster and better, as measured (how sure that is: the tables)."
    told += textwrap.wrap(f"{bars} {line}", 142)
    if any(row["suspect"] for row in rows):
        told.append(
            f"Hollow: suspect, none's slowest round took over {share(rows[0]['drift_bound'])} longer than its fastest."
        )
    away = [f"{row['stack']} ({row['status']})" for row in section.models[model] if row["status"] != SHOWN]
    return told + (textwrap.wrap("Not drawn: " + ", ".join(away), 142, max_lines=3, placeholder=" …") if away else [])


def _broken(stack: str) -> str:
    """A long stack's name over several lines, a method or two on each."""
    if len(stack) <= LONG:
        return stack
    lines = [""]
    for i, part in enumerate(stack.split("+")):
        piece = part if i == 0 else "+" + part
        if lines[-1] and len(lines[-1]) + len(piece) > LONG:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)
