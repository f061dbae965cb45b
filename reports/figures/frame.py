"""What stands around the panels of a figure: title, legend and small print, sized in inches."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ditbench.reports.figures.both import Both
from ditbench.reports.figures.style import DPI, QUIET

WIDTH = 8.0
"""Inches of a figure with panels below each other."""
LETTERS = 142
"""Characters of small print on such a width."""
FOOT_LINE = 0.125
"""Inches a line of it takes."""
BELOW = 0.62
"""Inches under the lowest panel for its axis, before the small print."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A figure with panels below each other."""

    figure: Figure
    axes: list[Axes]
    foot: Sequence[str]
    margin: float
    """Where title and small print begin, as a share of the width."""

    def save(
        self, title: str, marks: Sequence[Any], columns: int, folder: Path, stem: str, **legend: Any
    ) -> list[Path]:
        """Write title, legend and small print, then PNG and SVG."""
        inscribe(self.figure, title, self.foot, self.margin)
        height = self.figure.get_figheight()
        self.figure.legend(
            handles=marks, loc="upper left", ncols=columns, fontsize=8, borderaxespad=0,
            bbox_to_anchor=(self.margin - 0.01, 1 - 0.32 / height), **legend,
        )  # fmt: skip
        return finish(self.figure, folder, stem)


def frame(
    panels: int, inches: float, foot: Sequence[str], *, head: float, key: float = 0.0,
    left: float = 0.095, margin: float = 0.095, gap: float = 0.12,
) -> Frame:  # fmt: skip
    """A figure with `panels` of so many inches, `head` inches above them and `key` below, between
    the lowest panel's axis and the small print."""
    below = BELOW + FOOT_LINE * len(foot) + key
    height = inches * panels + below + head
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    FigureCanvasAgg(figure)
    edges = {"left": left, "right": 0.975, "bottom": below / height, "top": 1 - head / height}
    grid = edges | {"hspace": gap}
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False, gridspec_kw=grid)[:, 0]
    return Frame(figure=figure, axes=list(axes), foot=foot, margin=margin)


def small_print(*paragraphs: str, letters: int = LETTERS) -> list[str]:
    """Paragraphs as lines of small print."""
    return [line for words in paragraphs for line in textwrap.wrap(words, letters)]


def inscribe(figure: Figure, title: str, foot: Sequence[str], margin: float) -> None:
    """Write a title at the top and small print at the bottom."""
    height = figure.get_figheight()
    figure.text(margin, 1 - 0.13 / height, title, fontsize=11.5, fontweight="bold", va="top")
    figure.text(
        margin, 0.08 / height, "\n".join(foot), fontsize=6.8, color=QUIET, va="bottom",
        linespacing=1.25,
    )  # fmt: skip


def tick_factors(axis: Axis) -> None:
    """Give a logarithmic axis of speed-ups its ticks: 1x, 1.5x, 2x."""
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda factor, _: f"{factor:g}x")


def finish(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write a figure as PNG and SVG, without anything that differs from one writing to the next."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = Both(figure)
    return [drawn.write_png(folder / f"{stem}.png"), drawn.write_svg(folder / f"{stem}.svg")]
