"""What figures with a point for each stack share: room for the small print, markers with error
bars, names that do not collide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ditbench.analysis.rows import Row
from ditbench.records.record import SHOWN
from ditbench.reports.figures.both import Both
from ditbench.reports.figures.labels import Box, place_labels
from ditbench.reports.figures.style import DPI, PAPER, QUIET, Look, look
from ditbench.reports.sections.format import share
from ditbench.reports.sections.section import Section

NAMED = 16
"""Up to this many points carry their stacks' names; more carry the numbers of their lines in the
table, with a key."""
KEY_LINE = 0.132
"""Inches a line of the key takes."""
LONG = 26
"""Characters from which a stack's name is broken at its plus signs."""
HEAD = 0.76
"""Inches for title and legend."""

Point = tuple[float, float, float, float, float, float]
"""x, y, and the lengths of the error bars left, right, below and above, 0 where there is no
interval."""


@dataclass(frozen=True, kw_only=True)
class Plate:
    """A figure with panels one above the other, for some of a model's rows."""

    figure: Figure
    axes: list[Axes]
    rows: Sequence[Mapping[str, Any]]
    labels: list[str]
    """What each row's point is called."""
    looks: list[Look]
    foot: list[str]

    def mark(self, axis: Axes, points: Sequence[Point | None]) -> None:
        """A marker with error bars for every row that has a point; hollow where its times are
        suspect."""
        for kind in dict.fromkeys(self.looks):
            part = [
                (p, r)
                for p, r, own in zip(points, self.rows, self.looks, strict=True)
                if own == kind and p is not None
            ]
            if not part:
                continue
            at = np.array([p for p, _ in part])  # [n, 6]
            axis.errorbar(
                at[:, 0], at[:, 1], xerr=at[:, 2:4].T, yerr=at[:, 4:].T, fmt="none",
                ecolor=kind.colour, elinewidth=0.9,
                capsize=2, alpha=0.75, zorder=3,
            )  # fmt: skip
            suspect = part[0][1]["suspect"]
            axis.plot(
                at[:, 0], at[:, 1], marker=kind.marker, color=kind.colour, zorder=5,
                linestyle="none",
                markersize=11 if kind.marker == "*" else 7,
                markeredgecolor=kind.colour if suspect else PAPER,
                markeredgewidth=1.2 if suspect else 0.7,
                markerfacecolor=PAPER if suspect else kind.colour,
            )  # fmt: skip

    def name(self, axis: Axes, points: Sequence[Point | None], *lines: Any) -> None:
        """Each point's label beside it, off the markers, the error bars and `lines`, each drawn
        through its positions [k, 2]."""
        pixel = axis.figure.dpi / 72
        there = [(p, label) for p, label in zip(points, self.labels, strict=True) if p is not None]
        obstacles = []
        for (x, y, left, right, below, above), _ in there:
            at_x, at_y = axis.transData.transform((x, y))
            ends = [(x - left, y), (x + right, y), (x, y - below), (x, y + above)]
            (west, _), (east, _), (_, south), (_, north) = axis.transData.transform(ends)
            obstacles += [
                Box(at_x - 5 * pixel, at_y - 5 * pixel, at_x + 5 * pixel, at_y + 5 * pixel),
                Box(west - pixel, at_y - pixel, east + pixel, at_y + pixel),
                Box(at_x - pixel, south - pixel, at_x + pixel, north + pixel),
            ]
        corners = [axis.transData.transform(line) for line in lines]
        segments = [np.concatenate([c[:-1], c[1:]], axis=1) for c in corners]
        around = np.concatenate([np.empty((0, 4)), *segments])
        place_labels(
            axis,
            [p[:2] for p, _ in there],
            [label for _, label in there],
            obstacles,
            size=7.5,
            lines=around,
        )

    def save(self, title: str, folder: Path, stem: str) -> list[Path]:
        """Write title, legend of kinds, key of numbers and the small print, then PNG and SVG."""
        figure, height = self.figure, self.figure.get_figheight()
        figure.text(0.095, 1 - 0.13 / height, title, fontsize=11.5, fontweight="bold", va="top")
        marks = legend_marks(self.looks)
        figure.legend(
            handles=marks, loc="upper left", bbox_to_anchor=(0.085, 1 - 0.32 / height),
            ncols=len(marks), fontsize=8,
            handletextpad=0.2, columnspacing=1.0, borderaxespad=0,
        )  # fmt: skip
        figure.text(
            0.095,
            0.08 / height,
            "\n".join(self.foot),
            fontsize=6.8,
            color=QUIET,
            va="bottom",
            linespacing=1.25,
        )
        half = 0 if len(self.rows) <= NAMED else (len(self.rows) + 1) // 2
        for column in range(2 if half else 0):
            part = [
                f"{label:>2}  {row['stack']}"
                for label, row in zip(self.labels, self.rows, strict=True)
            ]
            part = part[column * half : (column + 1) * half]
            top = (0.08 + 0.125 * len(self.foot) + 0.1 + KEY_LINE * half) / height
            figure.text(
                0.095 + 0.45 * column, top, "\n".join(part), fontsize=7, va="top", linespacing=1.3
            )
        return finish(figure, folder, stem)


def legend_marks(looks: Iterable[Look]) -> list[Line2D]:
    """A marker with its label for each kind, in order of appearance."""
    return [
        Line2D([], [], linestyle="none", marker=k.marker, color=k.colour, markersize=9 if k.marker == "*" else 6, label=k.label)
        for k in dict.fromkeys(looks)
    ]  # fmt: skip


def finish(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write a figure as PNG and SVG, without anything that differs from one writing to the next."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = Both(figure)
    return [drawn.write_png(folder / f"{stem}.png"), drawn.write_svg(folder / f"{stem}.svg")]


def plate(
    section: Section, model: str, rows: Sequence[Row], panels: int, words: str, inches: float = 3.1
) -> Plate:
    """An empty figure for `rows` of a model, `panels` of so many inches high; `words` join the
    small print."""
    named = len(rows) <= NAMED
    foot = [*textwrap.wrap(section.caption(model), 142), *textwrap.wrap(words, 142)]
    if any(row["suspect"] for row in rows):
        bound = share(rows[0]["drift_bound"])
        foot.append(
            f"Hollow: suspect, none's slowest round took over {bound} longer than its fastest."
        )
    away = [
        f"{row['stack']} ({row['status']})"
        for row in section.models[model]
        if row["status"] != SHOWN
    ]
    if away:
        foot += textwrap.wrap("Not drawn: " + ", ".join(away), 142, max_lines=3, placeholder=" …")
    key = 0.0 if named else KEY_LINE * ((len(rows) + 1) // 2) + 0.15
    below = 0.62 + 0.125 * len(foot) + key
    height = inches * panels + below + HEAD
    figure = Figure(figsize=(8, height), dpi=DPI)
    FigureCanvasAgg(figure)
    grid = {
        "left": 0.095,
        "right": 0.975,
        "bottom": below / height,
        "top": 1 - HEAD / height,
        "hspace": 0.12,
    }
    axes = list(figure.subplots(panels, 1, sharex=True, squeeze=False, gridspec_kw=grid)[:, 0])
    labels = [broken(row["stack"]) for row in rows] if named else numbers(section, model, rows)
    looks = [look(section.records[row["key"]]["methods"]) for row in rows]
    return Plate(figure=figure, axes=axes, rows=rows, labels=labels, looks=looks, foot=foot)


def numbers(section: Section, model: str, rows: Sequence[Row]) -> list[str]:
    """What `rows` are called where there are too many for names: their lines of the model's table,
    in every figure the same."""
    keys = [row["key"] for row in section.models[model]]
    return [str(keys.index(row["key"]) + 1) for row in rows]


def broken(stack: str) -> str:
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
