"""Where caching stops paying: cells against the curve of fewer steps, and what a method still gives
at fewer steps. PNG and SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ditbench.analysis.controls import is_control
from ditbench.analysis.primary import primary_of
from ditbench.analysis.rows import Row
from ditbench.metrics.table import metrics
from ditbench.reports.figures.quality_time import far_apart, reach, scale_time, time_axis
from ditbench.reports.figures.scatter import NAMED, Point, finish, numbers, plate
from ditbench.reports.figures.style import DPI, INK, PALE, QUIET, in_style
from ditbench.reports.sections.frontier import placed
from ditbench.reports.sections.section import Section, file_name

FIDELITY = "perceptual.shapes_v1"
"""Drawn below the primary metrics: how far samples are from the un-accelerated ones."""
SAVING = {"cache", "sparsity"}
"""Families of the methods that skip work within steps, and so must beat taking fewer of them."""
GAINS = {
    "speedup": ("speed-up of the call\nby the method", 1.0),
    "alignment": ("change of alignment\nby the method", 0.0),
    "perceptual": ("change of perceptual\ndistance by the method", 0.0),
}
"""By key of `over_steps` a panel's label, and the level at which the method does nothing."""
POINTS = (
    "Each point: the method with so many steps against as many steps without it. Dashed: it does "
    "nothing. Bars: 95 % intervals, cut off "
    "at the edge."
)
LINES = (
    ("o", "-"),
    ("^", "--"),
    ("D", ":"),
    ("v", "-."),
    ("P", "-"),
    ("X", "--"),
    ("h", ":"),
    ("<", "-."),
)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#8c3a7a")


def draw_crossovers(section: Section, folder: Path) -> dict[str, list[Path]]:
    """Draw every model that was run with fewer steps and with what has to beat them; returns the
    PNG and SVG written, by model."""
    files: dict[str, list[Path]] = {}
    with in_style():
        for model, rows in section.models.items():
            kinds = {
                row["key"]: {m.get("family", "") for m in section.records[row["key"]]["methods"]}
                for row in rows
            }
            panels = [
                metric
                for metric in (*primary_of(rows).names, FIDELITY)
                if any(_point(row, metric) and not row["baseline"] for row in rows)
            ]
            drawn = [row for row in rows if any(_point(row, metric) for metric in panels)]
            curve = [
                row
                for row in drawn
                if row["baseline"] or all(map(is_control, section.records[row["key"]]["methods"]))
            ]
            others = [row for row in drawn if kinds[row["key"]] and kinds[row["key"]] <= SAVING]
            if len(curve) > 1 and curve[0]["baseline"] and others:
                files[model] = _curves(section, model, curve, others, panels, folder)
            if gains := [row for row in section.over_steps if row["model"] == model]:
                files.setdefault(model, []).extend(_gains(section, model, gains, folder))
    return files


def _point(row: Row, metric: str) -> Point | None:
    """Seconds and what the panel shows of a row that was timed beside the baseline; the baseline
    itself lies at nothing lost."""
    entry = row["quality"].get(metric)
    seconds = row["timing"]["call_s"]
    if entry is None or seconds is None:
        return None
    if row["baseline"]:
        return (seconds["value"], 0.0, *reach(seconds), 0.0, 0.0)
    estimate = entry["value"] if metrics()[metric].against_none else entry["delta"]
    if estimate is None or not placed(row, metric):
        return None
    return (seconds["value"], estimate["value"], *reach(seconds), *reach(estimate))


def _curves(
    section: Section,
    model: str,
    curve: Sequence[Row],
    others: Sequence[Row],
    panels: Sequence[str],
    folder: Path,
) -> list[Path]:
    rows = [row for row in section.models[model] if row in curve or row in others]
    labels = [row["stack"] for row in rows] if len(rows) <= NAMED else numbers(section, model, rows)
    words = "Line: the un-accelerated model with fewer steps; in the grey a cell is worse than as many steps as fit into its time. "
    for metric in panels:
        ahead = [row in others and _beats(row, curve, metric, far_apart(rows)) for row in rows]
        better = ", ".join(label for label, there in zip(labels, ahead, strict=True) if there)
        words += f"Better than that by {metric}, as measured: {better or 'nothing'}. "
    drawn = plate(section, model, rows, len(panels), f"{words}Bars: 95 % intervals.", inches=2.4)
    scale_time(drawn.axes, rows)
    for axis, metric in zip(drawn.axes, panels, strict=True):
        drawn.mark(axis, [_point(row, metric) for row in rows])
        axis.set_ylabel(_label(metric))
        axis.margins(x=0.08, y=0.14)
        _shade(axis, *_line(curve, metric), lower=_lower(rows, metric))
        better = "lower is better" if _lower(rows, metric) else "higher is better"
        axis.set_title(better, loc="right", fontsize=8.5, fontweight="normal", color=QUIET, pad=3)
    time_axis(drawn.axes)
    for axis, metric in zip(drawn.axes, panels, strict=True):
        drawn.name(
            axis, [_point(row, metric) for row in rows], np.stack(_line(curve, metric), axis=1)
        )
    return drawn.save(
        f"{model}: does it beat fewer steps?", folder, f"{file_name(model)}-crossover"
    )


def _label(metric: str) -> str:
    words = "to none" if metrics()[metric].against_none else "minus none"
    return f"{metrics()[metric].label} {words}"


def _lower(rows: Sequence[Row], metric: str) -> bool:
    return bool(rows[0]["quality"][metric]["better"] == "lower")


def _line(curve: Sequence[Row], metric: str) -> tuple[Any, Any]:
    """Seconds [k], ascending, and what the panel shows at them."""
    at = sorted(point[:2] for row in curve if (point := _point(row, metric)))
    x, y = np.array(at).T
    return x, y


def _beats(row: Row, curve: Sequence[Row], metric: str, logarithmic: bool) -> bool:
    """Whether a cell lies on the better side of the straight lines between the curve's points;
    beyond its ends nothing is said.

    Lines are straight along the axis they are drawn on.
    """
    point = _point(row, metric)
    if point is None:
        return False
    x, y = _line(curve, metric)
    ahead = point[1] - (
        np.interp(np.log(point[0]), np.log(x), y) if logarithmic else np.interp(point[0], x, y)
    )
    return bool(x[0] <= point[0] <= x[-1] and (ahead < 0 if _lower([row], metric) else ahead > 0))


def _shade(axis: Axes, x: Any, y: Any, lower: bool) -> None:
    axis.autoscale_view()
    low, high = axis.get_ylim()
    axis.fill_between(x, y, high if lower else low, color=PALE, alpha=0.45, linewidth=0, zorder=0)
    axis.plot(x, y, color=INK, linewidth=1.0, zorder=2)
    axis.set_ylim(low, high)


def _gains(
    section: Section, model: str, rows: Sequence[dict[str, Any]], folder: Path
) -> list[Path]:
    """A line for each method over the number of steps, a panel for what it gives and one for each
    thing it costs."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    panels = [name for name in GAINS if any(row[name] is not None for row in rows)]
    foot = textwrap.wrap(section.caption(model), 142) + [POINTS]
    suspect = any(row["suspect"] for row in section.models[model])
    foot += ["Suspect times: none's rounds differ by more than they may."] if suspect else []
    head = 0.5 + 0.16 * -(-len(methods) // 3)
    below = 0.62 + 0.125 * len(foot)
    height = head + 2.2 * len(panels) + below
    figure = Figure(figsize=(8, height), dpi=DPI)
    FigureCanvasAgg(figure)
    grid = {
        "left": 0.115,
        "right": 0.975,
        "bottom": below / height,
        "top": 1 - head / height,
        "hspace": 0.14,
    }
    axes = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw=grid)[:, 0])
    for axis, name in zip(axes, panels, strict=True):
        axis.set_ylabel(GAINS[name][0])
        axis.axhline(
            GAINS[name][1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.5, zorder=1
        )
        for i, method in enumerate(methods):
            mine = sorted(
                (row["steps"], row[name])
                for row in rows
                if row["method"] == method and row[name] is not None
            )
            marker, style = LINES[i % len(LINES)]
            beside = 0.1 * (i - (len(methods) - 1) / 2)
            bars = np.array([reach(estimate.as_dict()) for _, estimate in mine]).reshape(-1, 2).T
            axis.errorbar(
                [steps + beside for steps, _ in mine], [estimate.value for _, estimate in mine], yerr=bars,
                marker=marker, linestyle=style,
                capsize=2, color=COLOURS[i % len(COLOURS)], linewidth=1.2, elinewidth=0.9,
                label=method,
            )  # fmt: skip
        if name == "speedup":
            _times_axis(axis, [row[name].value for row in rows if row[name] is not None])
    axes[-1].set_xlabel("steps")
    axes[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    figure.text(
        0.115,
        1 - 0.13 / height,
        f"{model}: what a method gives at fewer steps",
        fontsize=11.5,
        fontweight="bold",
        va="top",
    )
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="upper left",
        bbox_to_anchor=(0.105, 1 - 0.32 / height), ncols=3, fontsize=8,
        borderaxespad=0,
    )  # fmt: skip
    figure.text(
        0.115,
        0.08 / height,
        "\n".join(foot),
        fontsize=6.8,
        color=QUIET,
        va="bottom",
        linespacing=1.25,
    )
    return finish(figure, folder, f"{file_name(model)}-over-steps")


def _times_axis(axis: Axes, factors: Sequence[float]) -> None:
    """Speed-ups on a logarithmic scale around the values: the interval of two rounds can reach into
    the thousands."""
    axis.set_yscale("log")
    axis.set_ylim(min(1.0, *factors) / 1.6, max(1.0, *factors) * 1.6)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda factor, _: f"{factor:g}x")
