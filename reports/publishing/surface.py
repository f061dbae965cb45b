"""What a method gives between whole numbers of steps, as a table for people. No torch."""

from __future__ import annotations

from ditbench.analysis.surfaces import Point
from ditbench.reports.publishing.grid import grid
from ditbench.reports.sections.format import DASH, fixed
from ditbench.reports.sections.section import Section
from ditbench.statistics.estimates import Estimate

BETTER, WORSE = " ▲", " ▼"
"""After a gain whose interval lies beyond zero."""


def surface_table(section: Section) -> str:
    """Markdown of a run's surfaces, a row per stack and a column per model: the share of the
    un-accelerated model's FLOPs, then for each metric the score of whole steps, or the gain beyond
    whole steps at the same FLOPs (positive is better). ValueError for a run without a surface."""
    cells: dict[tuple[str, str], str] = {}
    for surface in section.surfaces:
        for point in surface.points:
            if point.stack != "none":
                cells[f"`{point.stack}`", surface.model] = _cell(point, surface.metrics)
    if not cells:
        raise ValueError("the run has no surface")
    return grid("stack", (name for name, _ in cells), cells)


def _cell(point: Point, metrics: tuple[str, ...]) -> str:
    shown = [fixed(point.cost.get("flops"), 3)]
    for name in metrics:
        if point.dial is None:
            shown.append(fixed(point.quality[name].value, 3))
        else:
            shown.append(_gain(point.gain.get(("flops", name))))
    return "; ".join(shown)


def _gain(gain: Estimate | None) -> str:
    if gain is None:
        return DASH
    mark = ""
    if gain.low is not None and gain.high is not None:
        mark = BETTER if gain.low > 0 else WORSE if gain.high < 0 else ""
    return fixed(gain.value, 3, signed=True) + mark
