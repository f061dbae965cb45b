"""A printed table's order of methods beside the run's, joined method by method: by the counterpart of
the printed metric, and by the distance to the un-accelerated sample. PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ditbench.analysis.printed_order import BY, COUNTERPART, Agreement, Entry, TableOrder
from ditbench.metrics.table import metrics
from ditbench.reports.figures.frame import FOOT_LINE, finish, inscribe, small_print
from ditbench.reports.figures.style import DPI, QUIET, in_style
from ditbench.reports.sections.format import decimals, fixed, times
from ditbench.reports.sections.section import Section, file_name

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#8c3a7a", "#b8860b", "#4d4d4d", "#56b4e9", "#a0522d")
WIDTH, HEAD, BELOW = 10.6, 0.32, 0.12
"""Inches: of the figure; above the panels and below them."""
TITLE, LINE = 0.62, 0.24
"""Inches of a panel's title, and of each method in it."""
LETTERS, LONGEST = 190, 24
"""Characters of small print on a line, and of a stack's name."""
WORDS = (
    "Left in each panel the order that a table prints, best on top; right that of this run; a line "
    "joins a method with itself. Lines that cross are methods in another order, which counts where their "
    "compute is alike (factors are speed-ups: of FLOPs, of time where a table prints that alone). Left "
    "column: by the counterpart of the printed metric; right column: by the distance to the "
    "un-accelerated sample. Positions are ranks, not distances."
)


def draw_printed(section: Section, folder: Path) -> dict[str, list[Path]]:
    """Draw the tables of every model; returns the PNG and SVG written, by model."""
    files: dict[str, list[Path]] = {}
    with in_style({"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        for model in section.models:
            tables = [t for printed in section.printed for t in printed.tables if t.model == model]
            if tables:
                files[model] = _draw(section, model, tables, folder)
    return files


def _draw(section: Section, model: str, tables: Sequence[TableOrder], folder: Path) -> list[Path]:
    foot = small_print(section.caption(model), WORDS, letters=LETTERS)
    heights = [TITLE + LINE * len(t.entries) for t in tables]
    below = BELOW + FOOT_LINE * (len(foot) + 1)
    height = HEAD + below + sum(heights)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    FigureCanvasAgg(figure)
    top = height - HEAD
    for t, high in zip(tables, heights, strict=True):
        for column, by in enumerate(BY):
            left = 0.02 + 0.5 * column
            box = (left, (top - high) / height, 0.46, (high - TITLE) / height)
            _slope(figure.add_axes(box), t, by)
        top -= high
    inscribe(figure, f"{model} beside printed tables", foot, 0.02)
    return finish(figure, folder, f"{file_name(model)}-printed-order")


def _slope(axis: Axes, of: TableOrder, by: str) -> None:
    """One table by one of our metrics."""
    metric, entries = of.metrics[by], of.entries
    sign = -1 if metrics()[metric].better == "higher" else 1
    ours = sorted(entries, key=lambda entry: sign * entry.values[by])
    for rank, entry in enumerate(entries):
        colour = COLOURS[rank % len(COLOURS)]
        at = (rank, ours.index(entry))
        axis.plot((0, 1), at, color=colour, linewidth=1.4, marker="o", markersize=4, zorder=3)
        printed, stack = _names(entry, metric, by)
        axis.text(-0.05, at[0], printed, ha="right", va="center", fontsize=7.5)
        axis.text(1.05, at[1], stack, ha="left", va="center", fontsize=7.5)
    axis.set_xlim(-2.3, 3.4)
    axis.set_ylim(len(entries) - 0.5, -0.5)
    axis.set_xticks([])
    axis.set_yticks([])
    name = of.table.id if by == COUNTERPART else ""
    axis.text(
        0, 1, f"{name}\n{of.table.metric}", transform=axis.transAxes, fontsize=8.5, va="bottom"
    )
    axis.text(
        0.45, 1, f"{_said(of.agreement[by])}\nhere: {metrics()[metric].label}",
        transform=axis.transAxes, fontsize=8.5, color=QUIET, va="bottom",
    )  # fmt: skip


def _names(entry: Entry, metric: str, by: str) -> tuple[str, str]:
    stack = entry.stack if len(entry.stack) <= LONGEST else entry.stack[: LONGEST - 1] + "…"
    return (
        f"{entry.row.printed}  {times(entry.row.speedup)}  {entry.row.value:g}",
        f"{fixed(entry.values[by], decimals(metric))}  {times(entry.speedup)}  {stack}",
    )


def _said(agreement: Agreement) -> str:
    words = f"{agreement.agree} of {agreement.pairs} pairs"
    if agreement.tau is None:
        return words
    return f"{words}, tau {fixed(agreement.tau, 2)}, p = {fixed(agreement.p, 2)}"
