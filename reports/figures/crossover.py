"""Where caching stops paying: cells against the curve of fewer steps, and what a method still gives
at fewer steps. PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ditbench.analysis.control_cells import is_control
from ditbench.analysis.primary import primary_of
from ditbench.analysis.rows import Row
from ditbench.metrics.table import metrics
from ditbench.reports.figures.frame import frame, small_print, tick_factors
from ditbench.reports.figures.pages import pages
from ditbench.reports.figures.quality_time import far_apart, reach, scale_time, time_axis
from ditbench.reports.figures.scatter import NAMED, Point, numbers, plate
from ditbench.reports.figures.style import INK, PALE, QUIET, in_style
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
LISTED = 8
"""Stacks that the small print names of those left out."""
LINED = 12
"""Methods on a page of lines over steps."""
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
                left_out = [
                    row["stack"]
                    for row in drawn
                    if row not in curve and row not in others and not row["label"]
                ]
                files[model] = _curves(
                    section, model, curve, others, panels, folder, _left_out(left_out)
                )
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
    left_out: str,
) -> list[Path]:
    rows = [row for row in section.models[model] if row in curve or row in others]
    named = [row["stack"] for row in rows] if len(rows) <= NAMED else numbers(section, model, rows)
    name_of = {row["key"]: name for row, name in zip(rows, named, strict=True)}
    words = (
        "Line: the un-accelerated model with fewer steps; in the grey a cell is worse than as many "
        "steps as fit into its time. "
    )
    notable = list(curve)
    for metric in panels:
        ahead = [row for row in others if _beats(row, curve, metric, far_apart(rows))]
        better = ", ".join(name_of[row["key"]] for row in rows if row in ahead)
        words += f"Better than that by {metric}, as measured: {better or 'nothing'}. "
        notable += [row for row in ahead if row not in notable]
    words += f"{left_out}Bars: 95 % intervals, cut off at the edge."
    drawn = plate(
        section, model, rows, len(panels), words, notable, "the line and what is better than it",
        inches=2.4,
    )  # fmt: skip
    scale_time(drawn.axes, rows)
    for axis, metric in zip(drawn.axes, panels, strict=True):
        drawn.mark(axis, [_point(row, metric) for row in rows])
        axis.set_ylabel(_label(metric))
        axis.margins(y=0.14)
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


def _left_out(stacks: Sequence[str]) -> str:
    """Which stacks the figure does not show, and why; "" where it shows all."""
    if not stacks:
        return ""
    more = f" and {len(stacks) - LISTED} more" if len(stacks) > LISTED else ""
    return (
        f"Left out, for they do other than skip work within steps: "
        f"{', '.join(stacks[:LISTED])}{more}. "
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
    thing it costs; `LINED` methods on a page."""
    panels = [name for name in GAINS if any(row[name] is not None for row in rows)]
    suspect = any(row["suspect"] for row in section.models[model])
    foot = small_print(
        section.caption(model),
        POINTS + " Suspect times: see the notes." * suspect,
    )
    written: list[Path] = []
    for ending, methods, words in pages(list(dict.fromkeys(row["method"] for row in rows)), LINED):
        head = 0.5 + 0.16 * -(-len(methods) // 3)
        drawn = frame(len(panels), 2.2, foot, head=head, left=0.115, margin=0.115, gap=0.14)
        for axis, name in zip(drawn.axes, panels, strict=True):
            _panel(axis, name, rows, methods)
        drawn.axes[-1].set_xlabel("steps")
        drawn.axes[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
        title = f"{model}: what a method gives at fewer steps"
        marks = drawn.axes[0].get_legend_handles_labels()[0]
        stem = f"{file_name(model)}-over-steps{ending}"
        written += drawn.save(
            f"{title}, methods {words}" if words else title, marks, 3, folder, stem
        )
    return written


def _panel(axis: Axes, name: str, rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> None:
    label, nothing = GAINS[name]
    axis.set_ylabel(label)
    axis.axhline(nothing, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.5, zorder=1)
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
            [steps + beside for steps, _ in mine], [estimate.value for _, estimate in mine],
            yerr=bars, marker=marker, linestyle=style, capsize=2, color=COLOURS[i % len(COLOURS)],
            linewidth=1.2, elinewidth=0.9, label=method,
        )  # fmt: skip
    if name == "speedup":
        # the interval of two rounds can reach into the thousands: limits are around the values
        factors = [row[name].value for row in rows if row[name] is not None]
        axis.set_yscale("log")
        axis.set_ylim(min(1.0, *factors) / 1.6, max(1.0, *factors) * 1.6)
        tick_factors(axis.yaxis)
