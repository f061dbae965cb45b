"""Does it stack? Interactions of methods run alone and together, each with an interval, and a
verdict by a printed rule. No torch.

For methods A, B (and C), from the cells none, A, B, A+B of one run, on the same requests and noise:

    speed interaction     gamma = S(A+B) / (S(A) S(B)), S the speed-up over none; 1 when speed-ups
        multiply
    quality interaction   Q(A+B) - Q(A) - Q(B) + Q(none); nothing when what each costs adds up

and for three S(A+B+C) / (S(A) S(B) S(C)) and Q(A+B+C) - Q(A) - Q(B) - Q(C) + 2 Q(none).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from ditbench.analysis.controls import (
    ALIGNMENT,
    BELOW,
    MARGIN,
    RULE,
    VERDICTS,
    Evidence,
    by_flops,
    by_time,
    judge,
    reliable,
    samples_needed,
    speed_over,
    student_controls,
    teacher_controls,
)
from ditbench.analysis.quality import given, reference_of
from ditbench.analysis.rows import Record
from ditbench.method.artifact import below_of
from ditbench.method.stack import Stack
from ditbench.metrics.shapes_features import FEATURE
from ditbench.records.record import SHOWN
from ditbench.records.scores import Scores
from ditbench.statistics import estimates as statistics
from ditbench.statistics import times
from ditbench.statistics.estimates import Estimate
from ditbench.statistics.frechet import Reference, read_frechet, read_jackknifed, settle, too_few
from ditbench.statistics.influence import Reading

__all__ = [
    "ALIGNMENT",
    "MARGIN",
    "RULE",
    "VERDICTS",
    "factorial",
    "interactions",
    "judged",
    "shorter_students",
    "together",
]

SHARES = (0.5, 0.35, 0.25, 0.2, 0.15, 0.1)
"""Of the steps, that controls take."""
COLUMNS = (
    "model", "stack", "reading", "verdict", "reason", "basis", "gamma_flops", "gamma_clock",
    "alignment", "frechet", "control",
    "over_control", "student_control", "over_student_control", "samples_needed",
)  # fmt: skip
"""Of the rows of `interactions`, those that a table shows."""


def subsets(parts: Sequence[Stack]) -> list[tuple[Stack, ...]]:
    """All combinations of two and more."""
    return [c for size in range(2, len(parts) + 1) for c in combinations(parts, size)]


def joined(parts: Sequence[Stack]) -> Stack:
    """One stack of them all; ValueError when a method appears twice."""
    return Stack.of(*(m for part in parts for m in part.methods))


def readings(parts: Sequence[Stack]) -> dict[str, Stack]:
    """The stack of them all, and where one of them was prepared for what is below it, the same with
    that tuned alone: "frozen"."""
    together = joined(parts)
    prepared = [m for m in together.methods if hasattr(m, "tuned") and m.recipe() is not None]
    above = {m.name for m in prepared if below_of(together, m).methods}
    frozen = Stack.of(
        *(replace(m, tuned="alone") if m.name in above else m for m in together.methods)
    )
    return {"tuned": together} | ({"frozen": frozen} if frozen != together else {})


def factorial(parts: Sequence[Stack]) -> list[str]:
    """The stacks to run besides the baseline: each alone, every combination in both readings, and
    fewer steps to compare with.

    ValueError when there are not two or three, or when they cannot be used together.
    """
    if not 2 <= len(parts) <= 3:
        raise ValueError(
            f"two or three methods are needed to see whether they stack, not {len(parts)}"
        )
    if problems := joined(parts).problems():
        raise ValueError(f"{joined(parts)}: {problems[0]}")
    together = [stack for c in subsets(parts) for stack in readings(c).values()]
    controls = [f"fewer_steps(share={share})" for share in SHARES]
    return list(dict.fromkeys([*map(str, parts), *map(str, together), *controls]))


def shorter_students(parts: Sequence[Stack]) -> list[str]:
    """The trained methods among `parts` that take few steps, in half as many, a quarter and so on:
    controls where they are trained."""
    found = []
    for part in parts:
        for m in part.methods:
            if len(part.methods) == 1 and "num-steps" in m.traits.claims and m.recipe() is not None:
                steps = m.recipe().get("steps", 1)
                while (steps := steps // 2) >= 1:
                    found.append(str(Stack.of(replace(m, steps=steps))))
    return found


def describe(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `interactions` as a table: estimates as words."""
    return [{name: _words(row[name]) for name in COLUMNS if name in row} for row in rows]


def document(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `interactions` as plain JSON, at full precision."""
    plain = [{k: v for k, v in row.items() if k != "evidence"} for row in rows]
    return [
        {k: v.as_dict() if isinstance(v, Estimate) else v for k, v in row.items()} for row in plain
    ]


def _words(value: Any) -> Any:
    if not isinstance(value, Estimate):
        return value
    reach = "" if value.low is None else f" [{value.low:.3f}, {value.high:.3f}]"
    return f"{value.value:.3f}{reach}"


def interactions(
    records: Sequence[Record], scores: Mapping[str, Scores], parts: Sequence[Stack],
    references: Mapping[str, Reference] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row per model and combination of `parts`: stack, gamma_flops, gamma_clock, alignment and
    frechet interaction (estimates), the controls (at equal time, at equal FLOPs, a student of fewer
    steps) and what the stack has over each, the basis of the verdict, verdict with reason and
    adjusted p-values, and samples_needed where it is unresolved. A cell that is missing or was not
    measured gives a row with the reason as verdict.
    """
    rows, distances = [], _Distances(scores, references)
    for model in dict.fromkeys(r["model"] for r in records):
        cells = {r["stack"]: r for r in records if r["model"] == model}
        for c in subsets(parts):
            for reading, stack in readings(c).items():
                row = {"model": model, "stack": str(stack), "reading": reading}
                rows.append(row | _row(list(map(str, c)), str(stack), cells, scores, distances))
    return judged(rows)


def together(
    records: Sequence[Record],
    scores: Mapping[str, Scores],
    references: Mapping[str, Reference] | None = None,
) -> list[dict[str, Any]]:
    """The rows of `interactions` for every stack of several methods that were each run alone too,
    and its `parts`: their stacks.

    Found from the records alone, so that no method need be installed. A method counts as run alone
    however it was tuned in the stack.
    """
    rows, distances = [], _Distances(scores, references)
    for model in dict.fromkeys(r["model"] for r in records):
        cells = {r["stack"]: r for r in records if r["model"] == model}
        alone: dict[str, str] = {}
        for text, r in cells.items():
            if len(r["methods"]) == 1:
                alone.setdefault(_identity(r["methods"][0]), text)
        for text, r in cells.items():
            parts = [alone[name] for m in r["methods"] if (name := _identity(m)) in alone]
            if len(parts) > 1 and len(parts) == len(r["methods"]):
                frozen = any(m["knobs"].get("tuned") == "alone" for m in r["methods"])
                row = {
                    "model": model,
                    "stack": text,
                    "reading": "frozen" if frozen else "tuned",
                    "parts": parts,
                }
                rows.append(row | _row(parts, text, cells, scores, distances))
    return judged(rows)


class _Distances:
    """Fréchet interactions of cells, each cell's distance read once."""

    def __init__(
        self, scores: Mapping[str, Scores], references: Mapping[str, Reference] | None
    ) -> None:
        self.scores, self.references = scores, references
        self._readings: dict[str, tuple[Reading, Reading]] = {}

    def contrast(self, cells: Sequence[Record], signs: Sequence[int]) -> Estimate | None:
        """None where there is none: the distance's own column has the reason."""
        world, n = cells[0]["world"], len(self.scores[cells[0]["key"]].arrays[FEATURE])
        try:
            reference = (
                reference_of(world) if self.references is None else given(self.references, world)
            )
            d = len(reference.mean)
            if too_few(n, d):
                return None
            whole, jackknifed = zip(
                *(self._read(cell["key"], reference) for cell in cells), strict=True
            )
            return settle(whole, jackknifed, signs, n, d)
        except ValueError:
            return None

    def _read(self, key: str, reference: Reference) -> tuple[Reading, Reading]:
        if key not in self._readings:
            features, group = self.scores[key].arrays[FEATURE], self.scores[key].arrays["group"]
            self._readings[key] = (
                read_frechet(features, reference, group),
                read_jackknifed(features, reference, group),
            )
        return self._readings[key]


def judged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their verdicts, which are adjusted over all of them."""
    measured = [i for i, row in enumerate(rows) if "evidence" in row]
    found = [dict(row) for row in rows]
    for i, verdict in zip(measured, judge([rows[i]["evidence"] for i in measured]), strict=True):
        found[i] |= verdict
        found[i]["samples_needed"] = (
            samples_needed(rows[i]["alignment"]) if BELOW in verdict["reason"] else None
        )
    return found


def _identity(method: Mapping[str, Any]) -> str:
    """A described method without what it was tuned for."""
    return json.dumps(
        [method["name"], {k: v for k, v in method["knobs"].items() if k != "tuned"}], sort_keys=True
    )


def _row(
    parts: Sequence[str], stack: str, cells: Mapping[str, Record],
    scores: Mapping[str, Scores],
    distances: _Distances,
) -> dict[str, Any]:  # fmt: skip
    names = ["none", *parts, stack]
    row: dict[str, Any] = {}
    for name in names:
        status = cells[name]["status"] if name in cells else "missing"
        if status != SHOWN:
            reason = f": {cells[name]['reason']}" if name in cells else ""
            return row | {"verdict": f"{name} is {status}{reason}"}
    none, *alone, together = (cells[name] for name in names)
    flops = [(r["flops"] or {}).get("flops") for r in (none, *alone, together)]
    if all(flops):
        first, *middle, last = (float(f) for f in flops if f)
        row["gamma_flops"] = float(first / last / np.prod([first / f for f in middle]))
    signs = [1 - len(alone), *[1] * len(alone), -1]
    gamma = times.time_contrast([r["timing"] for r in (none, *alone, together)], signs)
    row["gamma_clock"] = gamma.estimate if gamma else None
    mine = [scores.get(r["key"]) for r in (none, *alone, together)]
    if not all(s is not None and ALIGNMENT in s.arrays for s in mine):
        return row | {"verdict": "not scored"}
    values = [s.arrays[ALIGNMENT] for s in mine if s is not None]
    group = mine[0].arrays["group"]  # type: ignore[union-attr]
    # thirds add up to zero again
    each = np.round(values[-1] - sum(values[1:-1]) + (len(alone) - 1) * values[0], 9)
    interaction = statistics.mean(each, group, bounds=(-len(alone), len(alone)))
    row["alignment"] = interaction
    if all(FEATURE in s.arrays for s in mine if s is not None):
        row["frechet"] = distances.contrast([none, *alone, together], [-sign for sign in signs])
    timed = reliable([none, *alone, together])
    row["basis"] = "time" if timed else "FLOPs"
    teacher, students = teacher_controls(cells), student_controls(cells, together)
    equal_time = by_time(together, teacher, scores) if timed else []
    equal_flops = by_flops(together, teacher, scores)
    shorter = (by_time if timed else by_flops)(together, students, scores)
    for name, controls in (
        ("control", equal_time),
        ("flops_control", equal_flops),
        ("student_control", shorter),
    ):
        chief = next((c for c in controls if c.sure), None)
        row |= {name: chief and chief.stack, f"over_{name}": chief and chief.over}
    row["controls"] = [c.stack for c in (*(equal_time if timed else equal_flops), *shorter)]
    row["evidence"] = Evidence(
        interaction=interaction, controls=[equal_time if timed else equal_flops, shorter],
        speed=speed_over([none, *alone], together, timed),
    )  # fmt: skip
    return row
