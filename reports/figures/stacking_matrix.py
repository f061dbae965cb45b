"""Does it stack, as a matrix: methods by methods, in each cell the verdict, both interactions with
their intervals. PNG and SVG."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ditbench.analysis.interaction import rules
from ditbench.analysis.primary import primary_of
from ditbench.analysis.rows import Interval, Row
from ditbench.models.sampling import noun_for
from ditbench.records.record import SHOWN
from ditbench.reports.figures.frame import FOOT_LINE, finish, inscribe, small_print
from ditbench.reports.figures.style import DPI, INK, PALE, PAPER, QUIET, in_style
from ditbench.reports.sections.format import count, fixed, interval, times, value
from ditbench.reports.sections.section import Section, file_name
from ditbench.reports.tables.stacking import CONTROLS
from ditbench.statistics.estimates import Estimate

MARKS = {
    "stacks": ("\u2713", "#cfe9dd"), "clashes": ("\u2717", "#f8d3bd"),
    "beaten": ("\u25bc", "#e2d2e8"), "slower": ("\u2212", "#f3e6c8"),
    "inconclusive": ("?", "#efefef"),
}  # fmt: skip
"""Sign and colour of each verdict; the word stands beside the sign."""
UNSURE = "\u2248"
"""Before what rests on suspect times."""
WIDE, HIGH, LABEL, LINE = 1.25, 0.98, 1.65, 0.13
"""Inches: a cell's width for each reading and its height, the column of row labels, a line of a
label."""
LETTERS = 21
"""Characters on a line of a cell."""
METHODS = 16
"""Methods that are drawn: 16 in two readings are 40 inches wide."""
GROUPS = 12
"""Combinations of three and more that are drawn: the first in table order."""

WORDS = (
    "\u03b3: speed-up of the stack / product of those of its methods alone, on the clock and in "
    "FLOPs; 1: they multiply. Quality: "
    "the stack's change of alignment beyond the sum of its methods'; 0: they add up. On the "
    "diagonal each alone: speed-up of the "
    "call and change of alignment. [95 % intervals]. Tuned: what was learned for a method was "
    "learned in the stack; frozen: alone."
)


def draw_matrices(section: Section, folder: Path) -> dict[str, list[Path]]:
    """Draw every model of which stacks were run together with their methods alone, but of random
    weights, which have no verdicts; returns the PNG and SVG written, by model."""
    files = {}
    with in_style():
        for model, rows in section.models.items():
            interactions = [row for row in section.stacking if row["model"] == model]
            if interactions and any(row["weights"] != "random" for row in rows):
                files[model] = _draw(
                    section, model, {row["stack"]: row for row in rows}, interactions, folder
                )
    return files


def _draw(
    section: Section,
    model: str,
    rows: Mapping[str, Row],
    interactions: Sequence[Mapping[str, Any]],
    folder: Path,
) -> list[Path]:
    pairs = [t for t in interactions if len(t["parts"]) == 2]
    groups = list(dict.fromkeys(tuple(t["parts"]) for t in interactions if len(t["parts"]) > 2))
    names = [stack for stack in rows if any(stack in t["parts"] for t in pairs)]
    left_out = ""
    if len(names) > METHODS:
        partners = Counter(part for t in pairs for part in t["parts"])
        most = sorted(names, key=lambda name: -partners[name])[:METHODS]
        left_out = f"Of {len(names)} methods the {METHODS} in most pairs are drawn. "
        names = [name for name in names if name in most]
        pairs = [t for t in pairs if set(t["parts"]) <= set(names)]
    both = {tuple(t["parts"]) for t in pairs if t["reading"] == "frozen"}
    readings = [1 + any(name == _later(parts, names) for parts in both) for name in names]
    starts = [LABEL + WIDE * sum(readings[:i]) for i in range(len(names) + 1)]
    width = max(8.0, starts[-1] + 0.15)
    letters = int(142 * width / 8)
    foot = small_print(
        section.caption(model), WORDS, " ".join(rules(interactions)), letters=letters
    )
    suspect = any(rows[t["stack"]]["suspect"] for t in interactions)
    foot += [f"{UNSURE}: the times are suspect (see the notes)."] if suspect else []
    foot += [f"{left_out}All are in the table."] if left_out else []
    if len(groups) > GROUPS:
        foot.append(
            f"Of {count(len(groups), 'combination')} of three and more the first {GROUPS} are "
            "drawn."
        )
        groups = groups[:GROUPS]
    head = 0.48 + LINE * max((len(_lines(name, 20)) for name in names), default=0)
    height = (
        head
        + HIGH * (len(names) + len(groups))
        + (0.3 if groups else 0)
        + 0.25
        + FOOT_LINE * len(foot)
    )
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)  # inches from the top
    for i, name in enumerate(names):
        y = head + HIGH * i
        _label(axis, name, LABEL - 0.1, y + HIGH / 2, "right")
        _label(axis, name, (starts[i] + starts[i + 1]) / 2, head - 0.06, "center")
        _alone(axis, rows[name], starts[i], y, starts[i + 1] - starts[i])
    for t in pairs:
        later = names.index(_later(t["parts"], names))
        earlier = next(i for i, name in enumerate(names) if name in t["parts"])
        several = tuple(t["parts"]) in both
        beside, wide = (
            WIDE * (t["reading"] == "frozen"),
            WIDE if several else starts[later + 1] - starts[later],
        )
        _cell(
            axis,
            t,
            rows[t["stack"]],
            (starts[later] + beside, head + HIGH * earlier),
            wide,
            several,
        )
    y = head + HIGH * len(names) + 0.3
    if groups:
        axis.text(
            0.12, y - 0.08, "Three and more together", fontsize=8.5, fontweight="bold", va="bottom"
        )
    for parts in groups:
        mine = [t for t in interactions if tuple(t["parts"]) == parts]
        _label(axis, "+".join(parts), LABEL - 0.1, y + HIGH / 2, "right")
        for i, t in enumerate(mine):
            _cell(axis, t, rows[t["stack"]], (LABEL + WIDE * i, y), WIDE, len(mine) > 1)
        y += HIGH
    inscribe(figure, f"{model}: do they stack?", foot, 0.12 / width)
    return finish(figure, folder, f"{file_name(model)}-stacking")


def _later(parts: Sequence[str], names: Sequence[str]) -> str:
    """Of a pair the one further down the table: its column."""
    return max(parts, key=list(names).index)


def _lines(stack: str, letters: int) -> list[str]:
    """A stack's name in at most four lines, broken before brackets and after plus signs."""
    wrapped = textwrap.wrap(
        stack.replace("(", " (").replace("+", "+ "), letters, max_lines=4, placeholder=" \u2026"
    )
    return [line.replace(" (", "(").replace("+ ", "+") for line in wrapped]


def _label(axis: Axes, stack: str, x: float, y: float, side: str) -> None:
    """The name of a row, its middle at `y`, or of a column, above `y`."""
    over = side == "center"
    axis.text(
        x, y, "\n".join(_lines(stack, 20 if over else 24)), fontsize=7.5, fontweight="bold",
        ha=side,
        va="bottom" if over else "center", linespacing=1.15,
    )  # fmt: skip


def _alone(axis: Axes, row: Row, x: float, y: float, wide: float) -> None:
    """What a method does alone, on the diagonal."""
    axis.add_patch(Rectangle((x, y), wide, HIGH, facecolor=PAPER, edgecolor=PALE, linewidth=0.7))
    if row["status"] != SHOWN:
        return _write(axis, "alone", [row["status"]], x, y)
    score = primary_of([row]).score
    entry = row["quality"].get(score.name)
    delta = entry["delta"] if entry else None
    speed = row["speedup_call"]
    lines = [
        f"{UNSURE * row['suspect']}{times(speed['value'] if speed else None)}",
        interval(speed, 2),
    ]
    lines += [
        f"{score.label} {value(delta, score.decimals, signed=True)}",
        interval(delta, score.decimals, signed=True),
    ]
    return _write(axis, "alone", lines, x, y)


def _cell(
    axis: Axes,
    interaction: Mapping[str, Any],
    row: Row,
    at: tuple[float, float],
    wide: float,
    several: bool,
) -> None:
    """One combination in one reading, its upper left corner `at`."""
    verdict, (x, y) = interaction["verdict"], at
    mark, colour = MARKS.get(verdict, ("", PAPER))
    measured = "gamma_clock" in interaction
    axis.add_patch(
        Rectangle(
            at, wide, HIGH, facecolor=colour, edgecolor=QUIET if measured else PALE, linewidth=0.7
        )
    )
    if several:
        axis.text(
            x + wide - 0.05,
            y + 0.075,
            interaction["reading"],
            fontsize=6.8,
            style="italic",
            ha="right",
            va="top",
        )
    if not measured:
        reason = verdict.removeprefix(f"{interaction['stack']} is ")
        return _write(
            axis,
            "not run",
            textwrap.wrap(reason, LETTERS, max_lines=6, placeholder=" \u2026"),
            x,
            y,
        )
    clock, quality = (_plain(interaction.get(name)) for name in ("gamma_clock", "alignment"))
    lines = [f"\u03b3 clock {UNSURE * row['suspect']}{value(clock, 2)}", interval(clock, 2)]
    lines += [f"\u03b3 FLOPs {fixed(interaction.get('gamma_flops'), 2)}"]
    lines += [f"quality {value(quality, 3, signed=True)}", interval(quality, 3, signed=True)]
    over = [
        interaction[f"over_{name}"].value
        for name in CONTROLS
        if interaction.get(f"over_{name}") is not None
    ]
    if verdict == "beaten" and over:
        lines.append(f"control ahead by {fixed(-min(over), 3)}")
    if interaction.get("samples_needed"):
        noun = noun_for(interaction["frames"])
        lines.append(f"{interaction['samples_needed']} {noun} needed")
    return _write(axis, f"{mark} {verdict}".strip(), lines, x, y)


def _plain(estimate: Estimate | None) -> Interval | None:
    return None if estimate is None else estimate.as_dict()


def _write(axis: Axes, head: str, lines: Sequence[str], x: float, y: float) -> None:
    axis.text(x + 0.06, y + 0.07, head, fontsize=7.5, fontweight="bold", va="top", color=INK)
    body = "\n".join(line for line in lines if line)
    axis.text(x + 0.06, y + 0.23, body, fontsize=6.8, va="top", linespacing=1.2, color=INK)
