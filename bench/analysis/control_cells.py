"""Which cells of a model are controls of a combination, and why some of them say nothing. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ditbench.analysis.rows import Record
from ditbench.metrics.table import Metric
from ditbench.records.record import SHOWN
from ditbench.records.scores import Scores

ALIKE = ("requests_sha256", "model_sha256", "num_samples")
"""What cells that are set against each other must share, of a record's `run`."""


def scored_cells(
    records: Sequence[Record], scores: Mapping[str, Scores]
) -> Iterator[tuple[str, Record, list[Record]]]:
    """(model, its un-accelerated cell, all its cells) of what was measured and scored, for each model
    whose un-accelerated cell was."""
    for model in dict.fromkeys(r["model"] for r in records):
        cells = [
            r for r in records
            if r["model"] == model and r["status"] == SHOWN and r["key"] in scores
        ]  # fmt: skip
        none = next((r for r in cells if r["stack"] == "none"), None)
        if none is not None:
            yield model, none, cells


def is_control(method: Mapping[str, Any]) -> bool:
    """Whether a record's method is the un-accelerated model at less compute: of the family of
    controls, and no noise floor."""
    return method.get("family") == "control" and not method.get("label")


def teacher_controls(cells: Mapping[str, Record]) -> list[Record]:
    """The un-accelerated model in all numbers of steps that were to be run: `none`, and stacks of
    controls that are no noise floor."""
    return [r for r in cells.values() if all(map(is_control, r["methods"]))]


def student_controls(cells: Mapping[str, Record], together: Record) -> list[Record]:
    """Cells of one method of a stack that takes fewer steps than the stack and is the same but for
    that."""
    same = [_but_for_steps(m) for m in together["methods"]]
    return [
        r
        for r in cells.values()
        if len(r["methods"]) == 1
        and r["methods"][0]["family"] != "control"
        and _but_for_steps(r["methods"][0]) in same
        and _steps(r) < together["sampling"]["steps"]
    ]


def _steps(record: Record) -> float:
    """Steps of a cell of one method; of one that did not run, those that its knob says; infinite
    where neither is known."""
    knobs = record["methods"][0]["knobs"]
    return float(record["sampling"].get("steps") or knobs.get("steps") or "inf")


def _but_for_steps(method: Mapping[str, Any]) -> tuple[str, Any]:
    return method["name"], {k: v for k, v in method["knobs"].items() if k not in ("steps", "tuned")}


def why_left_out(
    together: Record, candidate: Record, scores: Mapping[str, Scores], metric: Metric
) -> str:
    """Why a control cannot be compared with a stack, in a few words; "" where it can. The stack has
    its scores."""
    if candidate["status"] != SHOWN:
        return str(candidate["status"])
    theirs = scores.get(candidate["key"])
    if theirs is None or metric.name not in theirs.arrays:
        return "not scored"
    if any(candidate["run"].get(name) != together["run"].get(name) for name in ALIKE):
        return "of other requests, weights or sample counts"
    if len(theirs.arrays[metric.name]) != len(scores[together["key"]].arrays[metric.name]):
        return "not scored on the same samples"
    return ""


def left_out(
    together: Record, candidates: Sequence[Record], scores: Mapping[str, Scores], metric: Metric
) -> list[str]:
    """The controls that a verdict was reached without, each as "STACK (why)"; one that had no effect
    is the model itself, and none is missing."""
    reasons = {
        candidate["stack"]: why_left_out(together, candidate, scores, metric)
        for candidate in candidates
        if candidate["status"] != "inert"
    }
    return [f"{stack} ({reason})" for stack, reason in reasons.items() if reason]
