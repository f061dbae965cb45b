"""What methods still give when fewer steps are taken. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ditbench.analysis.control_cells import is_control
from ditbench.analysis.primary import by_model
from ditbench.analysis.rows import Record
from ditbench.records.record import SHOWN
from ditbench.records.scores import Scores
from ditbench.statistics import estimates as statistics
from ditbench.statistics import times
from ditbench.statistics.estimates import Estimate

PERCEPTUAL = "perceptual.shapes_v1"


def over_steps(records: Sequence[Record], scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """What methods still give when fewer steps are taken, of those that a model was run with at
    several numbers of steps.

    A row for each of their cells, compared with the cell with as many steps and without the method.
    Keys: model, `method` (the stack without its controls), stack, steps, and `speedup`,
    `alignment` and `perceptual`: estimates or None; the latter two are changes of the primary score
    and of the distance to the un-accelerated sample.
    """
    gains, primary = [], by_model(records, scores)
    for model in dict.fromkeys(r["model"] for r in records):
        cells = {r["stack"]: r for r in records if r["model"] == model and r["status"] == SHOWN}
        pairs: dict[str, list[tuple[Record, Record]]] = {}
        for text, r in cells.items():
            controls = {m["name"] for m in r["methods"] if is_control(m)}
            fewer = [part for part in text.split("+") if part.partition("(")[0] in controls]
            method = "+".join(part for part in text.split("+") if part not in fewer)
            under = cells.get(fewer[0] if fewer else "none")
            if text != "none" and method and under is not None:
                pairs.setdefault(method, []).append((r, under))
        for method, cells_of in pairs.items():
            if len({r["sampling"]["steps"] for r, _ in cells_of}) > 1:
                score = primary[model].score.name
                gains += [_gain(model, method, r, under, scores, score) for r, under in cells_of]
    return gains


def _gain(
    model: str,
    method: str,
    cell: Record,
    under: Record,
    scores: Mapping[str, Scores],
    score: str,
) -> dict[str, Any]:
    speed = times.speedup(under["timing"], cell["timing"])
    pair = [scores.get(r["key"]) for r in (cell, under)]
    changes = {
        name: _change(metric, pair, under["stack"])
        for name, metric in (("alignment", score), ("perceptual", PERCEPTUAL))
    }
    row = {
        "model": model,
        "method": method,
        "stack": cell["stack"],
        "steps": cell["sampling"]["steps"],
    }
    return row | {"speedup": speed.estimate if speed else None} | changes


def _change(metric: str, pair: Sequence[Scores | None], under: str) -> Estimate | None:
    """The paired difference of a metric between two cells; from the un-accelerated model to itself
    there is no distance."""
    mine, theirs = pair
    if mine is None or theirs is None or metric not in mine.arrays:
        return None
    others = theirs.arrays.get(
        metric,
        np.zeros(len(mine.arrays[metric])) if metric == PERCEPTUAL and under == "none" else None,
    )
    return (
        None
        if others is None
        else statistics.delta(mine.arrays[metric], others, mine.arrays["group"], blocks=mine.blocks)
    )
