"""A published run's table and figure for the README. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ditbench.analysis.primary import primary_metrics
from ditbench.records.record import SHOWN
from ditbench.reports.figures.quality_time import reach
from ditbench.reports.figures.scatter import Plate, Point, finish, legend_marks
from ditbench.reports.figures.style import DPI, QUIET, in_style, look
from ditbench.reports.publishing.grid import grid
from ditbench.reports.sections.format import times, value
from ditbench.reports.sections.rows import ReportRow
from ditbench.reports.sections.section import Section

ALIGNMENT, FRECHET = primary_metrics().names
MARKS = {"better": " ▲", "worse": " ▼", "equivalent": " ="}
"""After a change that has one of these verdicts."""
PANEL = 2.75
"""Inches of a row of panels."""
KEY_COLUMNS = 3
CUT = 1.6
"""How many times beyond the slowest and the fastest stack intervals are drawn: of few rounds they
can reach into the hundreds."""


def run_table(section: Section) -> str:
    """Markdown, a row per stack and a column per model."""
    rows = [row for row in section.rows if not row["baseline"]]
    cells = {(row["stack"], row["model"]): _cell(row) for row in rows}
    return grid("stack", (stack for stack, _ in cells), cells)


def _cell(row: ReportRow) -> str:
    if row["status"] != SHOWN:
        return row["status"]
    call = times(row["speedup_call"]["value"] if row["speedup_call"] else None)
    text = f"{times(row['speedup_flops'])}, {f'({call})' if row['suspect'] else call}"
    for metric, places in ((ALIGNMENT, 3), (FRECHET, 0)):
        entry = row["quality"][metric]
        text += f"; {value(entry['delta'], places, signed=True)}{MARKS.get(entry['verdict'], '')}"
    return text


def run_figure(section: Section, into: Path, stem: str) -> list[Path]:
    """Write the figure of a published run as PNG and SVG: a panel per model, Fréchet distance
    against the speed-up of the whole call."""
    shown = [
        row
        for row in section.rows
        if row["status"] == SHOWN
        and row["speedup_call"]
        and row["quality"][FRECHET]["level"] is not None
    ]
    models = list(dict.fromkeys(s["model"] for s in shown))
    stacks = list(dict.fromkeys(s["stack"] for s in shown))
    per_column = -(-len(stacks) // KEY_COLUMNS)
    height = PANEL * -(-len(models) // 2) + 0.75 + 0.135 * per_column
    with in_style():
        figure = Figure(figsize=(8.6, height), dpi=DPI)
        FigureCanvasAgg(figure)
        edges = {
            "left": 0.075,
            "right": 0.985,
            "top": 1 - 0.5 / height,
            "bottom": (0.62 + 0.135 * per_column) / height,
        }
        axes = figure.subplots(
            -(-len(models) // 2),
            2,
            squeeze=False,
            gridspec_kw=edges | {"wspace": 0.17, "hspace": 0.24},
        ).ravel()
        for axis, model in zip(axes, models, strict=False):
            _panel(axis, section, [row for row in shown if row["model"] == model], stacks)
        for axis in axes[len(models) :]:
            axis.set_axis_off()
        for axis in axes[max(0, len(models) - 2) : len(models)]:
            axis.set_xlabel("speed-up of the whole call (log scale)")
        kinds = dict.fromkeys(look(section.records[row["key"]]["methods"]) for row in shown)
        marks = legend_marks(kinds)
        figure.legend(
            handles=marks, loc="upper left", bbox_to_anchor=(0.06, 1 - 0.06 / height),
            ncols=len(marks), fontsize=8,
            handletextpad=0.2, columnspacing=1.0,
        )  # fmt: skip
        for column in range(KEY_COLUMNS):
            part = [f"{i:>2}  {stack}" for i, stack in enumerate(stacks, 1)][
                column * per_column : (column + 1) * per_column
            ]
            top = (0.16 + 0.135 * per_column) / height
            figure.text(
                0.03 + 0.325 * column,
                top,
                "\n".join(part),
                fontsize=6.8,
                va="top",
                linespacing=1.3,
                color=QUIET,
            )
        words = (
            "Bars: 95 % intervals, cut off at the edge; of the Fréchet distance, of its difference "
            "to none's. Hollow: times are suspect."
        )
        figure.text(0.03, 0.05 / height, words, fontsize=6.8, va="bottom", color=QUIET)
        return finish(figure, into, stem)


def _panel(
    axis: Axes,
    section: Section,
    rows: Sequence[ReportRow],
    stacks: Sequence[str],
) -> None:
    """Points with error bars and the numbers of their stacks; hollow where times are suspect."""
    numbers = [str(stacks.index(row["stack"]) + 1) for row in rows]
    drawn = Plate(
        figure=axis.figure,  # type: ignore[arg-type]  # no figure here is part of another
        axes=[axis],
        rows=rows,
        labels=numbers,
        looks=[look(section.records[row["key"]]["methods"]) for row in rows],
        foot=[],
    )
    points = [_point(row) for row in rows]
    axis.set_xscale("log")
    axis.set_yscale("log")
    drawn.mark(axis, points)
    axis.margins(x=0.08, y=0.12)
    axis.autoscale_view()
    axis.set_xlim(min(x for x, *_ in points) / CUT, max(x for x, *_ in points) * CUT)
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_locator(LogLocator(subs=(1, 2, 5)))
        one.set_minor_locator(NullLocator())
        one.set_major_formatter(lambda at, _: f"{at:g}")
    drawn.name(axis, points)
    axis.set_title(rows[0]["model"], fontsize=9.5, loc="left", pad=3)
    words = "Fréchet distance (fd.shapes_v1), lower is better"
    axis.set_title(words, fontsize=7.5, fontweight="normal", color=QUIET, loc="right", pad=3)


def _point(row: ReportRow) -> Point:
    """Speed-up of the call and Fréchet distance, with the reach of their intervals; the distance's
    is that of its difference to none's."""
    entry, speedup = row["quality"][FRECHET], row["speedup_call"]
    x, y = speedup["value"] if speedup else None, entry["level"]
    assert x is not None and y is not None  # rows without are not shown
    below, above = reach(entry["delta"])
    return (x, y, *reach(speedup), min(below, 0.9 * y), above)
