"""What a method gives between whole numbers of steps, as a table for people. No torch."""

from __future__ import annotations

from ditbench.analysis.surfaces import COSTS, Point
from ditbench.reports.publishing.grid import grid
from ditbench.reports.sections.format import DASH, fixed
from ditbench.reports.sections.section import Section
from ditbench.statistics.estimates import Estimate

BETTER, WORSE = " ▲", " ▼"
"""After a gain whose interval lies beyond zero."""


def surface_table(section: Section, by: str = "flops") -> str:
    """Markdown of a run's surfaces, a row per stack and a column per model: the share of the
    un-accelerated model's FLOPs (or, `by` time, of its seconds), then for each metric the score of
    whole steps, or the gain beyond whole steps at the same cost (positive is better). ValueError for a
    run without a surface, and for another cost."""
    if by not in COSTS:
        raise ValueError(f"{by!r} is no cost of a surface; there are {', '.join(COSTS)}")
    cells: dict[tuple[str, str], str] = {}
    for surface in section.surfaces:
        for point in surface.points:
            if point.stack != "none":
                cells[f"`{point.stack}`", surface.model] = _cell(point, surface.metrics, by)
    if not cells:
        raise ValueError("the run has no surface")
    return grid("stack", (name for name, _ in cells), cells)


def _cell(point: Point, metrics: tuple[str, ...], by: str) -> str:
    shown = [fixed(point.cost.get(by), 3)]
    for name in metrics:
        if point.dial is None:
            shown.append(fixed(point.quality[name].value, 3))
        else:
            shown.append(_gain(point.gain.get((by, name))))
    return "; ".join(shown)


def _gain(gain: Estimate | None) -> str:
    if gain is None:
        return DASH
    mark = ""
    if gain.low is not None and gain.high is not None:
        mark = BETTER if gain.low > 0 else WORSE if gain.high < 0 else ""
    return fixed(gain.value, 3, signed=True) + mark
