"""Which cells of a run stand for which rows of the printed tables: rules 1 and 2 of
`ditbench.analysis.printed_order`. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ditbench.analysis.control_cells import scored_cells
from ditbench.analysis.printed_tables import PrintedRow, PrintedTable, printed_tables
from ditbench.analysis.rows import Record
from ditbench.analysis.trainings import without_training
from ditbench.method.registry import find, names
from ditbench.models.architecture import describe
from ditbench.models.family import families
from ditbench.models.sampling import Sampling
from ditbench.models.table import models
from ditbench.records.scores import Scores

NEAR = 1.5
"""Factor by which our cell's speed-up may differ from the printed one."""
ALIKE = 1.25
"""Factor by which the speed-ups of two methods that are compared may differ."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How our model samples."""

    steps: int | None
    guidance: float | None
    size: str
    tokens: int | None


Matched = list[tuple[PrintedRow, Record, float]]
"""Printed row, our cell, and its speed-up by FLOPs."""


def candidates(
    records: Sequence[Record], scores: Mapping[str, Scores]
) -> list[tuple[str, PrintedTable, Record, Matched, list[tuple[int, int]]]]:
    """(model, table, baseline, matched rows, pairs of them at alike compute) for each printed table of
    a model's family that has such pairs; from the records alone."""
    made = []
    known = _Usual()
    for model, none, cells in scored_cells(records, scores):
        if not (whole := (none.get("flops") or {}).get("flops")):
            continue
        alone: dict[str, list[tuple[Record, float]]] = {}
        for r in cells:
            spent = (r.get("flops") or {}).get("flops")
            if spent and (name := _method_of(r, known)):
                alone.setdefault(name, []).append((r, whole / spent))
        for table in printed_tables():
            if table.family != none["family"]:
                continue
            matched: Matched = []
            for row in table.rows:
                cell, speedup = min(
                    alone.get(row.method, ()), key=lambda c: _apart(c[1], row.speedup),
                    default=(None, 0.0),
                )  # fmt: skip
                if cell is not None and _apart(speedup, row.speedup) <= math.log(NEAR):
                    matched.append((row, cell, speedup))
            pairs = [
                (i, j) for i, j in combinations(range(len(matched)), 2)
                if matched[i][0].method != matched[j][0].method
                and _apart(matched[i][0].speedup, matched[j][0].speedup) <= math.log(ALIKE)
                and _apart(matched[i][2], matched[j][2]) <= math.log(ALIKE)
            ]  # fmt: skip
            if pairs:
                made.append((model, table, none, matched, pairs))
    return made


def _apart(a: float, b: float) -> float:
    return abs(math.log(a / b))


class _Usual:
    """Methods of the printed tables at default knobs, each looked up once."""

    def __init__(self) -> None:
        self.wanted = {row.method for table in printed_tables() for row in table.rows}
        self.made: dict[str, Any] = {}

    def of(self, name: str) -> Any:
        """None for a method that no table has, or that is not installed."""
        if name in self.wanted and name not in self.made:
            self.made[name] = find(name)() if name in names() else None
        return self.made.get(name)


def _method_of(record: Record, known: _Usual) -> str:
    """The one method of a cell, where it is that method at some setting and no variant of it; or
    ""."""
    if len(record["methods"]) != 1 or without_training(record["stack"]) != record["stack"]:
        return ""
    (method,) = record["methods"]
    name = str(method["name"])
    if method.get("label") or (usual := known.of(name)) is None:
        return ""
    for knob, value in method["knobs"].items():
        if isinstance(value, list):  # what JSON makes of a tuple
            value = tuple(value)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not number and value != getattr(usual, knob, value):
            return ""
    return name


def setting_of(none: Record) -> Setting:
    """The setting of a model, from the record of its baseline."""
    sampling = none["sampling"] or {}
    frames = int(sampling.get("frames") or 1)
    size = "x".join(str(sampling[side]) for side in ("width", "height") if side in sampling)
    return Setting(
        steps=sampling.get("steps"), guidance=sampling.get("guidance"),
        size=f"{size}x{frames}" if frames > 1 else size, tokens=_tokens(none["model"], sampling),
    )  # fmt: skip


def _tokens(model: str, sampling: Mapping[str, Any]) -> int | None:
    """Image tokens; None where the model is not known here."""
    row = models().get(model)
    if row is None or row.family not in families():
        return None
    asked = {
        name: sampling[name] for name in Sampling.__dataclass_fields__ if sampling.get(name) is not None
    }  # fmt: skip
    try:
        return math.prod(families()[row.family].grid(model, describe(row), Sampling(**asked)))
    except (TypeError, ValueError, KeyError, OSError):
        return None
