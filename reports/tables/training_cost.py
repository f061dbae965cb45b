"""What was trained, calibrated or distilled for a run's stacks: what each artefact cost, beside
what the stack that uses it bought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ditbench.reports.sections.format import DASH, decimals, number, spoken, times
from ditbench.reports.sections.rows import ReportRow, labelled, status
from ditbench.reports.sections.section import Section
from ditbench.reports.tables.sheet import (
    KEY,
    Block,
    Sheet,
    circumstances,
    frame,
    spread,
    without_empty,
)

TRAINING = (
    "A line for each artefact that a stack uses. seconds: wall time of making it, on the machine "
    "where it was made; iterations and "
    "samples: of its training; for records that do not name what they used, of what this machine "
    "holds for them. What it bought: "
    "speed-ups of the whole stack over none and its changes against none, not the artefact's share "
    "in them. Intervals are 95 %."
)


def training_sheet(section: Section) -> Sheet:
    """A block for each model some stack of which uses an artefact."""
    blocks = []
    for model in section.models:
        lines = [
            _words(row, method, cost)
            for row, method, cost in section.trained
            if row["model"] == model
        ]
        if lines:
            blocks.append(
                Block(model=model, caption=section.caption(model), lines=without_empty(lines))
            )
    return Sheet(
        name="training",
        title="What training bought",
        run=section.name,
        convention=TRAINING,
        blocks=blocks,
    )


def training_frame(section: Section) -> pd.DataFrame:
    """The same lines at full precision."""
    lines = []
    for row, method, cost in section.trained:
        line = {name: row[name] for name in ("run", "model", "stack", "status", "reason")} | {
            "method": method
        }
        line |= {"artifact": cost["key"], "prepared_under": cost["below"]}
        line |= {name: cost[name] for name in ("seconds", "iterations", "samples")}
        line |= {"speedup_flops": row["speedup_flops"]} | spread(
            "speedup_call", row["speedup_call"], counted=True
        )
        for metric, entry in row["quality"].items():
            if entry["primary"]:
                line |= spread(f"{metric}_delta", entry["delta"], counted=True) | {
                    f"{metric}_verdict": entry["verdict"]
                }
        lines.append(line | circumstances(row, section.environments(row)))
    return frame(lines)


def _words(row: ReportRow, method: str, cost: Mapping[str, Any]) -> dict[str, str]:
    line = {
        "stack": labelled(row), "status": status(row), "learned for": method,
        "artefact": cost["key"],
        "seconds": number(cost["seconds"]), "iterations": _whole(cost["iterations"]),
        "samples": _whole(cost["samples"]),
        "speedup_flops": times(row["speedup_flops"]),
        "speedup_call": spoken(row["speedup_call"], 2),
    }  # fmt: skip
    for metric, entry in row["quality"].items():
        if entry["primary"]:
            line[f"{metric} minus none"] = spoken(entry["delta"], decimals(metric), signed=True)
            line[f"{metric} verdict"] = entry["verdict"] or DASH
    return line | {"n": str(row["num_samples"]), KEY: row["key"]}


def _whole(number: int | None) -> str:
    return DASH if number is None else str(number)
