"""What a method gives between whole numbers of steps: a line for each cell of a surface, in words
and at full precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ditbench.analysis.surfaces import COSTS, Point, Surface
from ditbench.reports.sections.format import DASH, decimals, fixed, spoken
from ditbench.reports.sections.section import Section
from ditbench.reports.tables.sheet import Block, Sheet, circumstances, frame, spread, without_empty
from ditbench.statistics.estimates import Estimate

SURFACE = (
    "A line for each cell in which only the number of steps and one method's dial differ. FLOPs and "
    "time: shares of none's, of one sample and of the call. Gain: the score beyond that of whole "
    "steps at the same cost, where requests are divided between the two numbers of steps around it; "
    "positive is better, and an interval that holds 0 says nothing. Best: nothing here is both "
    "cheaper and better, as measured. Intervals are 95 %."
)
HELD = {"flops": "FLOPs", "time": "time"}
"""By cost, what is held equal."""


def surface_sheet(section: Section) -> Sheet:
    """A block for each surface of a model."""
    blocks = [
        Block(
            model=surface.model,
            caption=f"{heading(surface)}; {section.caption(surface.model)}",
            lines=without_empty([_words(surface, point) for point in surface.points]),
        )
        for surface in section.surfaces
        if surface.model in section.models
    ]
    return Sheet(
        name="surface", title="Between whole steps", run=section.name, convention=SURFACE,
        blocks=blocks,
    )  # fmt: skip


def heading(surface: Surface) -> str:
    """The method, its dial, and whose steps they are."""
    return f"{surface.method}, {surface.dial} over the steps of {surface.of.partition(' ')[0]}"


def surface_frame(section: Section) -> pd.DataFrame:
    """The same lines at full precision."""
    lines = []
    rows = {(row["model"], row["stack"]): row for row in section.rows}
    for surface in section.surfaces:
        for point in surface.points:
            line: dict[str, Any] = {
                "run": section.name, "model": surface.model, "of": surface.of,
                "method": surface.method, "dial": surface.dial, "stack": point.stack,
                "steps": point.steps, "value": point.dial,
            }  # fmt: skip
            line |= {f"{cost}_share": point.cost.get(cost) for cost in COSTS}
            for metric in surface.metrics:
                line |= _spread(metric, point.quality.get(metric))
                for cost in COSTS:
                    line |= _spread(
                        f"{metric}_gain_at_equal_{cost}", point.gain.get((cost, metric))
                    )
                    line[f"{metric}_best_by_{cost}"] = point.best.get((cost, metric))
            row = rows[surface.model, point.stack]
            lines.append(line | circumstances(row, section.environments(row)))
    return frame(lines)


def _spread(name: str, estimate: Estimate | None) -> dict[str, Any]:
    return spread(name, None if estimate is None else estimate.as_dict(), counted=True)


def _words(surface: Surface, point: Point) -> dict[str, str]:
    value = DASH if point.dial is None else f"{point.dial:g}"
    line = {"stack": point.stack, "steps": str(point.steps), surface.dial: value}
    line |= {HELD[cost]: fixed(point.cost.get(cost), 3) for cost in COSTS}
    for metric in surface.metrics:
        line[metric] = _said(point.quality.get(metric), metric)
        for cost in COSTS:
            line[f"{metric}: gain at equal {HELD[cost]}"] = _said(
                point.gain.get((cost, metric)), metric, signed=True
            )
        line[f"{metric}: best by"] = _best(point, metric, COSTS)
    return line


def _said(estimate: Estimate | None, metric: str, signed: bool = False) -> str:
    as_dict = None if estimate is None else estimate.as_dict()
    return spoken(as_dict, decimals(metric), signed=signed)


def _best(point: Point, metric: str, costs: Sequence[str]) -> str:
    return ", ".join(HELD[cost] for cost in costs if point.best.get((cost, metric))) or DASH
