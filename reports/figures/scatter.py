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
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ditbench.analysis.rows import Row
from ditbench.records.record import SHOWN
from ditbench.reports.figures.frame import FOOT_LINE, LETTERS, Frame, frame, small_print
from ditbench.reports.figures.frame import finish as finish
from ditbench.reports.figures.labels import Box, place_labels
from ditbench.reports.figures.style import BASELINE, PAPER, QUIET, Look, look
from ditbench.reports.sections.format import share
from ditbench.reports.sections.section import Section

NAMED = 16
"""Up to this many points carry their stacks' names; more carry the numbers of their lines in the
table, with a key."""
NUMBERED = 60
"""Up to this many points carry numbers; of more only those that a figure is about."""
KEY_LINE = 0.132
"""Inches a line of the key takes."""
LONG = 26
"""Characters from which a stack's name is broken at its plus signs."""
HEAD = 0.76
"""Inches for title and legend."""

SUSPECT = Look("suspect times", QUIET, "o")
"""How the legend shows that a marker is hollow."""

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
        many = (len(self.rows) > NAMED) + (len(self.rows) > NUMBERED)
        side, edge, faint = ((7.0, 0.7, 0.75), (6.0, 0.5, 0.5), (4.5, 0.3, 0.3))[many]
        kinds = [(kind, row["suspect"]) for kind, row in zip(self.looks, self.rows, strict=True)]
        for kind, suspect in dict.fromkeys(kinds):
            part = [
                point
                for point, own in zip(points, kinds, strict=True)
                if own == (kind, suspect) and point is not None
            ]
            if not part:
                continue
            at = np.array(part)  # [n, 6]
            axis.errorbar(
                at[:, 0], at[:, 1], xerr=at[:, 2:4].T, yerr=at[:, 4:].T, fmt="none",
                ecolor=kind.colour, elinewidth=0.9,
                capsize=2, alpha=faint, zorder=3,
            )  # fmt: skip
            axis.plot(
                at[:, 0], at[:, 1], marker=kind.marker, color=kind.colour, zorder=5 + (kind is BASELINE),
                linestyle="none",
                markersize=1.5 * side if kind.marker == "*" else side,
                markeredgecolor=kind.colour if suspect else PAPER,
                markeredgewidth=1.2 if suspect else edge,
                markerfacecolor=PAPER if suspect else kind.colour,
            )  # fmt: skip

    def name(self, axis: Axes, points: Sequence[Point | None], *lines: Any) -> None:
        """Each point's label beside it, off the markers, the error bars and `lines`, each drawn
        through its positions [k, 2]."""
        pixel = axis.figure.dpi / 72
        there = [
            (p, label, kind.colour)
            for p, label, kind in zip(points, self.labels, self.looks, strict=True)
            if p is not None and label
        ]
        obstacles = []
        for x, y, left, right, below, above in (p for p in points if p is not None):
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
            [p[:2] for p, _, _ in there],
            [label for _, label, _ in there],
            obstacles,
            size=7.5,
            lines=around,
            colours=[colour for *_, colour in there],
        )

    def save(self, title: str, folder: Path, stem: str) -> list[Path]:
        """Write title, legend of kinds, key of numbers and the small print, then PNG and SVG."""
        height = self.figure.get_figheight()
        listed = [(label, row) for label, row in zip(self.labels, self.rows, strict=True) if label]
        half = 0 if len(self.rows) <= NAMED else (len(listed) + 1) // 2
        top = (0.08 + FOOT_LINE * len(self.foot) + 0.1 + KEY_LINE * half) / height
        for column in range(2 if half else 0):
            part = listed[column * half : (column + 1) * half]
            # a figure space is as wide as a digit
            lines = [f"{label:\u2007>3}  {row['stack']}" for label, row in part]
            self.figure.text(
                0.095 + 0.45 * column, top, "\n".join(lines), fontsize=7, va="top", linespacing=1.3
            )
        around = Frame(figure=self.figure, axes=self.axes, foot=self.foot, margin=0.095)
        marks = legend_marks(self.looks, any(row["suspect"] for row in self.rows))
        return around.save(
            title, marks, len(marks), folder, stem, handletextpad=0.2, columnspacing=1.0
        )


def legend_marks(looks: Iterable[Look], suspect: bool = False) -> list[Line2D]:
    """A marker with its label for each kind, in order of appearance, and one for `suspect` times
    where there are any."""
    kinds = [(kind, kind.colour) for kind in dict.fromkeys(looks)]
    kinds += [(SUSPECT, PAPER)] * suspect
    return [
        Line2D(
            [], [], linestyle="none", marker=kind.marker, color=kind.colour, markerfacecolor=face,
            markersize=9 if kind.marker == "*" else 6, label=kind.label,
        )
        for kind, face in kinds
    ]  # fmt: skip


def plate(
    section: Section,
    model: str,
    rows: Sequence[Row],
    panels: int,
    words: str,
    notable: Sequence[Row],
    notable_for: str,
    inches: float = 3.1,
) -> Plate:
    """An empty figure for `rows` of a model, `panels` of so many inches high; `words` join the
    small print. Of more than `NUMBERED` rows only the first of the `notable` are labelled, and the
    small print says what they are notable for."""
    named = len(rows) <= NAMED
    shown = {row["key"] for row in rows}
    if len(rows) > NUMBERED:
        shown = {row["key"] for row in notable[:NUMBERED]}
        words += f" Numbered, where there is room: {notable_for}; all {len(rows)} are in the table."
    foot = small_print(section.caption(model), words)
    if any(row["suspect"] for row in rows):
        bound = share(rows[0]["drift_bound"])
        foot += textwrap.wrap(
            "Hollow: suspect times: of one round only, or the baseline's slowest round took over "
            f"{bound} longer than its fastest, or a GPU was slowed down or shared.",
            LETTERS,
        )
    away = [
        f"{row['stack']} ({row['status']})"
        for row in section.models[model]
        if row["status"] != SHOWN
    ]
    if away:
        foot += textwrap.wrap(
            "Not drawn: " + ", ".join(away), LETTERS, max_lines=3, placeholder=" …"
        )
    key = 0.0 if named else KEY_LINE * ((len(shown) + 1) // 2) + 0.15
    around = frame(panels, inches, foot, head=HEAD, key=key)
    names = [broken(row["stack"]) for row in rows] if named else numbers(section, model, rows)
    labels = [name if row["key"] in shown else "" for name, row in zip(names, rows, strict=True)]
    looks = [look(section.records[row["key"]]["methods"]) for row in rows]
    return Plate(
        figure=around.figure, axes=around.axes, rows=rows, labels=labels, looks=looks, foot=foot
    )


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
