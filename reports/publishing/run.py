"""A published run's table and figure for the README, from its own CSVs (`tables/speed.csv`,
`tables/quality.csv`) alone. No torch."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ditbench.analysis.primary import primary_metrics
from ditbench.method.registry import find
from ditbench.method.stack import Stack
from ditbench.records.record import SHOWN
from ditbench.reports.figures.quality_time import reach
from ditbench.reports.figures.scatter import Plate, Point, finish, legend_marks
from ditbench.reports.figures.style import DPI, QUIET, Look, in_style, look
from ditbench.reports.sections.format import DASH, fixed, times

ALIGNMENT, FRECHET = primary_metrics().names
MARKS = {"better": " ▲", "worse": " ▼", "equivalent": " ="}
"""After a change that has one of these verdicts."""
PANEL = 2.75
"""Inches of a row of panels."""
KEY_COLUMNS = 3
CUT = 1.6
"""How many times beyond the slowest and the fastest stack intervals are drawn: of few rounds they
can reach into the hundreds."""

Line = Mapping[str, str]


def read(folder: Path) -> tuple[list[Line], dict[tuple[str, str, str], Line]]:
    """The lines of a published run's speed table, and those of its quality table by model, stack
    and metric."""
    with (folder / "tables" / "speed.csv").open(newline="") as f:
        speed: list[Line] = list(csv.DictReader(f))
    with (folder / "tables" / "quality.csv").open(newline="") as f:
        quality: dict[tuple[str, str, str], Line] = {
            (q["model"], q["stack"], q["metric"]): q for q in csv.DictReader(f) if not q["part"]
        }
    return speed, quality


def run_table(folder: Path) -> str:
    """Markdown, a row per stack and a column per model."""
    speed, quality = read(folder)
    models = list(dict.fromkeys(s["model"] for s in speed))
    cells = {(s["stack"], s["model"]): _cell(s, quality) for s in speed if s["stack"] != "none"}
    lines = ["| stack | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    for stack in dict.fromkeys(stack for stack, _ in cells):
        lines.append(
            f"| {stack} | " + " | ".join(cells.get((stack, model), DASH) for model in models) + " |"
        )
    return "\n".join(lines) + "\n"


def _cell(line: Line, quality: Mapping[tuple[str, str, str], Line]) -> str:
    if line["status"] != SHOWN:
        return line["status"]
    call = times(_float(line["speedup_call"]))
    told = f"{times(_float(line['speedup_flops']))}, {f'({call})' if line['suspect'] == 'True' else call}"
    for metric, places in ((ALIGNMENT, 3), (FRECHET, 0)):
        entry = quality.get((line["model"], line["stack"], metric), {})
        told += f"; {fixed(_float(entry.get('delta')), places, signed=True)}{MARKS.get(entry.get('verdict', ''), '')}"
    return told


def run_figure(folder: Path, into: Path, stem: str) -> list[Path]:
    """Write the figure of a published run as PNG and SVG: a panel per model, Fréchet distance
    against the speed-up of the whole call."""
    speed, quality = read(folder)
    shown = [
        s
        for s in speed
        if s["status"] == SHOWN and _float(s["speedup_call"]) and _frechet(s, quality)
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
            _panel(axis, model, [s for s in shown if s["model"] == model], quality, stacks)
        for axis in axes[len(models) :]:
            axis.set_axis_off()
        for axis in axes[max(0, len(models) - 2) : len(models)]:
            axis.set_xlabel("speed-up of the whole call (log scale)")
        kinds = dict.fromkeys(_look(s) for s in shown)
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
        told = "Bars: 95 % intervals, cut off at the edge; of the Fréchet distance, of its difference to none's. Hollow: times are suspect."
        figure.text(0.03, 0.05 / height, told, fontsize=6.8, va="bottom", color=QUIET)
        return finish(figure, into, stem)


def _panel(
    axis: Axes,
    model: str,
    lines: Sequence[Line],
    quality: Mapping[tuple[str, str, str], Line],
    stacks: Sequence[str],
) -> None:
    """Points with error bars and the numbers of their stacks; hollow where times are suspect."""
    numbers = [str(stacks.index(line["stack"]) + 1) for line in lines]
    rows = [{"suspect": line["suspect"] == "True"} for line in lines]
    drawn = Plate(
        figure=axis.figure,  # type: ignore[arg-type]  # no figure here is part of another
        axes=[axis],
        rows=rows,
        labels=numbers,
        looks=[_look(line) for line in lines],
        foot=[],
    )
    points = [_point(line, quality) for line in lines]
    axis.set_xscale("log")
    axis.set_yscale("log")
    drawn.mark(axis, points)
    axis.margins(x=0.08, y=0.12)
    axis.autoscale_view()
    axis.set_xlim(min(x for x, *_ in points) / CUT, max(x for x, *_ in points) * CUT)
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_locator(LogLocator(subs=(1, 2, 5)))
        one.set_minor_locator(NullLocator())
        one.set_major_formatter(lambda told, _: f"{told:g}")
    drawn.name(axis, points)
    axis.set_title(model, fontsize=9.5, loc="left", pad=3)
    words = "Fréchet distance (fd.shapes_v1), lower is better"
    axis.set_title(words, fontsize=7.5, fontweight="normal", color=QUIET, loc="right", pad=3)


def _point(line: Line, quality: Mapping[tuple[str, str, str], Line]) -> Point:
    """Speed-up of the call and Fréchet distance, with the reach of their intervals; the distance's
    is that of its difference to none's."""
    entry = quality[line["model"], line["stack"], FRECHET]
    x, x_low, x_high = (_float(line[f"speedup_call{end}"]) for end in ("", "_low", "_high"))
    y, delta, low, high = (
        _float(entry[name]) for name in ("value", "delta", "delta_low", "delta_high")
    )
    assert x is not None and y is not None  # rows without are not shown
    below, above = reach({"value": delta, "low": low, "high": high})
    return (x, y, *reach({"value": x, "low": x_low, "high": x_high}), min(below, 0.9 * y), above)


def _frechet(line: Line, quality: Mapping[tuple[str, str, str], Line]) -> float | None:
    return _float(quality.get((line["model"], line["stack"], FRECHET), {}).get("value"))


def _look(line: Line) -> Look:
    """As all figures have it: by the family of the one method, or as a combination."""
    names = [m.name for m in Stack.parse(line["stack"]).methods]
    return look([{"name": name, "family": find(name).traits.family} for name in names])


def _float(text: str | None) -> float | None:
    return float(text) if text else None
