"""Does it stack? Interactions of methods run alone and together, each with an interval, and a verdict by a printed rule. No torch.

For methods A, B (and C), from the cells none, A, B, A+B of one run, on the same requests and noise:

    speed interaction     gamma = S(A+B) / (S(A) S(B)), S the speed-up over none; 1 when speed-ups multiply
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

from ditbench import statistics
from ditbench.artifact import below_of
from ditbench.distances import Reference, frechet_contrast
from ditbench.metrics.frechet import FEATURE
from ditbench.metrics.stored import Scores
from ditbench.quality import reference_of
from ditbench.record import SHOWN
from ditbench.stack import Stack
from ditbench.statistics import Estimate

ALIGNMENT = "align.shapes_v1"
PERCEPTUAL = "perceptual.shapes_v1"
MARGIN = 0.02
"""Alignment that may be lost beyond the sum of what the methods lose alone, and still be said to stack."""
SHARES = (0.5, 0.35, 0.25, 0.2, 0.15, 0.1)
"""Of the steps, that controls take."""
NOT_SLOWER = 1.02
"""A control within 2 % of a stack's time counts as no slower."""

VERDICTS = ("stacks", "clashes", "beaten", "unresolved")
RULE = (
    f"stacks: the alignment interaction is above -{MARGIN} and the stack beats its equal-time control or is not told from it, both by 95 % "
    f"intervals; clashes: the interaction is below zero; beaten: the control is better; unresolved: otherwise. Equal-time control: the "
    f"un-accelerated model with the most steps that is no slower (within {NOT_SLOWER - 1:.0%}) than the stack; "
    f"where there is none, a stack is not held against it."
)


def subsets(parts: Sequence[Stack]) -> list[tuple[Stack, ...]]:
    """All combinations of two and more."""
    return [c for size in range(2, len(parts) + 1) for c in combinations(parts, size)]


def joined(parts: Sequence[Stack]) -> Stack:
    """One stack of them all; ValueError when a method appears twice."""
    return Stack.of(*(m for part in parts for m in part.methods))


def readings(parts: Sequence[Stack]) -> dict[str, Stack]:
    """The stack of them all, and where one of them was prepared for what is below it, the same with that tuned alone: "frozen"."""
    together = joined(parts)
    prepared = [m for m in together.methods if hasattr(m, "tuned") and m.recipe() is not None]
    above = {m.name for m in prepared if below_of(together, m).methods}
    frozen = Stack.of(*(replace(m, tuned="alone") if m.name in above else m for m in together.methods))
    return {"tuned": together} | ({"frozen": frozen} if frozen != together else {})


def factorial(parts: Sequence[Stack]) -> list[str]:
    """The stacks to run besides the baseline: each alone, every combination in both readings, and fewer steps to compare with.

    ValueError when there are not two or three, or when they cannot be used together.
    """
    if not 2 <= len(parts) <= 3:
        raise ValueError(f"two or three methods are needed to see whether they stack, not {len(parts)}")
    if problems := joined(parts).problems():
        raise ValueError(f"{joined(parts)}: {problems[0]}")
    together = [stack for c in subsets(parts) for stack in readings(c).values()]
    controls = [f"fewer_steps(share={share})" for share in SHARES]
    return list(dict.fromkeys([*map(str, parts), *map(str, together), *controls]))


def describe(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `interactions` as a table: estimates as words."""
    return [{name: _words(value) for name, value in row.items()} for row in rows]


def document(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `interactions` as plain JSON, at full precision."""
    return [{k: v.as_dict() if isinstance(v, Estimate) else v for k, v in row.items()} for row in rows]


def _words(value: Any) -> Any:
    if not isinstance(value, Estimate):
        return value
    reach = "" if value.low is None else f" [{value.low:.3f}, {value.high:.3f}]"
    return f"{value.value:.3f}{reach}"


def interactions(
    records: Sequence[Mapping[str, Any]], scores: Mapping[str, Scores], parts: Sequence[Stack],
    references: Mapping[str, Reference] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row per model and combination of `parts`: stack, gamma_flops, gamma_clock, alignment and frechet interaction (estimates), the
    control and what the stack has over it, verdict, and samples_needed where that is unresolved. A cell that is missing or was not
    measured gives a row with the reason as verdict.
    """
    found = []
    for model in dict.fromkeys(r["model"] for r in records):
        cells = {r["stack"]: r for r in records if r["model"] == model}
        controls = _controls(cells)
        for c in subsets(parts):
            for reading, stack in readings(c).items():
                found.append(
                    {"model": model, "stack": str(stack), "reading": reading}
                    | _row(list(map(str, c)), str(stack), cells, controls, scores, references)
                )
    return found


def together(
    records: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Scores],
    references: Mapping[str, Reference] | None = None,
) -> list[dict[str, Any]]:
    """The rows of `interactions` for every stack of several methods that were each run alone too, and its `parts`: their stacks.

    Found from the records alone, so that no method need be installed. A method counts as run alone however it was tuned in the stack.
    """
    found = []
    for model in dict.fromkeys(r["model"] for r in records):
        cells = {r["stack"]: r for r in records if r["model"] == model}
        controls = _controls(cells)
        alone: dict[str, str] = {}
        for text, r in cells.items():
            if len(r["methods"]) == 1:
                alone.setdefault(_identity(r["methods"][0]), text)
        for text, r in cells.items():
            parts = [alone[name] for m in r["methods"] if (name := _identity(m)) in alone]
            if len(parts) > 1 and len(parts) == len(r["methods"]):
                frozen = any(m["knobs"].get("tuned") == "alone" for m in r["methods"])
                found.append(
                    {"model": model, "stack": text, "reading": "frozen" if frozen else "tuned", "parts": parts}
                    | _row(parts, text, cells, controls, scores, references)
                )
    return found


def over_steps(records: Sequence[Mapping[str, Any]], scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """What methods still give when fewer steps are taken, of those that a model was run with at several numbers of steps.

    A row for each of their cells, set against the cell with as many steps and without the method. Keys: model, `method` (the stack
    without its `fewer_steps`), stack, steps, and `speedup`, `alignment` and `perceptual`: estimates or None; the latter two are changes of
    the alignment and of the distance to the un-accelerated sample.
    """
    found = []
    for model in dict.fromkeys(r["model"] for r in records):
        cells = {r["stack"]: r for r in records if r["model"] == model and r["status"] == SHOWN}
        pairs: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
        for text, r in cells.items():
            fewer = [part for part in text.split("+") if part.startswith("fewer_steps")]
            method = "+".join(part for part in text.split("+") if part not in fewer)
            under = cells.get(fewer[0] if fewer else "none")
            if text != "none" and method and under is not None:
                pairs.setdefault(method, []).append((r, under))
        for method, told in pairs.items():
            if len({r["sampling"]["steps"] for r, _ in told}) > 1:
                found += [_gain(model, method, r, under, scores) for r, under in told]
    return found


def _gain(
    model: str, method: str, cell: Mapping[str, Any], under: Mapping[str, Any], scores: Mapping[str, Scores]
) -> dict[str, Any]:
    speed = statistics.speedup(under["timing"], cell["timing"])
    told = [scores.get(r["key"]) for r in (cell, under)]
    changes = {
        name: _change(metric, told, under["stack"])
        for name, metric in (("alignment", ALIGNMENT), ("perceptual", PERCEPTUAL))
    }
    row = {"model": model, "method": method, "stack": cell["stack"], "steps": cell["sampling"]["steps"]}
    return row | {"speedup": speed.estimate if speed else None} | changes


def _change(metric: str, told: Sequence[Scores | None], under: str) -> Estimate | None:
    """The paired difference of a metric between two cells; from the un-accelerated model to itself there is no distance."""
    mine, theirs = told
    if mine is None or theirs is None or metric not in mine.arrays:
        return None
    others = theirs.arrays.get(
        metric, np.zeros(len(mine.arrays[metric])) if metric == PERCEPTUAL and under == "none" else None
    )
    return None if others is None else statistics.delta(mine.arrays[metric], others, mine.arrays["group"])


def _identity(method: Mapping[str, Any]) -> str:
    """A described method without what it was tuned for."""
    return json.dumps([method["name"], {k: v for k, v in method["knobs"].items() if k != "tuned"}], sort_keys=True)


def _controls(cells: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [r for text, r in cells.items() if text.startswith("fewer_steps") and "+" not in text]


def _row(
    parts: Sequence[str], stack: str, cells: Mapping[str, Mapping[str, Any]], controls: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Scores], references: Mapping[str, Reference] | None,
) -> dict[str, Any]:  # fmt: skip
    names = ["none", *parts, stack]
    row: dict[str, Any] = {}
    for name in names:
        status = cells[name]["status"] if name in cells else "missing"
        if status != SHOWN:
            reason = f": {cells[name]['reason']}" if name in cells else ""
            return row | {"verdict": f"{name} is {status}{reason}"}
    none, *alone, together = (cells[name] for name in names)
    flops = [r["flops"].get("flops") for r in (none, *alone, together)]
    if all(flops):
        row["gamma_flops"] = float(flops[0] / flops[-1] / np.prod([flops[0] / f for f in flops[1:-1]]))
    signs = [1 - len(alone), *[1] * len(alone), -1]
    gamma = statistics.time_contrast([r["timing"] for r in (none, *alone, together)], signs)
    row["gamma_clock"] = gamma.estimate if gamma else None
    mine = [scores.get(r["key"]) for r in (none, *alone, together)]
    if not all(s is not None and ALIGNMENT in s.arrays for s in mine):
        return row | {"verdict": "not scored"}
    values = [s.arrays[ALIGNMENT] for s in mine if s is not None]
    group = mine[0].arrays["group"]  # type: ignore[union-attr]
    each = np.round(values[-1] - sum(values[1:-1]) + (len(alone) - 1) * values[0], 9)  # thirds add up to zero again
    interaction = statistics.mean(each, group, bounds=(-len(alone), len(alone)))
    row["alignment"] = interaction
    if all(FEATURE in s.arrays for s in mine if s is not None):
        tables = [s.arrays[FEATURE] for s in mine if s is not None]
        try:
            reference = reference_of(none["world"]) if references is None else references[none["world"]]
            row["frechet"] = frechet_contrast(tables, [-sign for sign in signs], reference, group)
        except ValueError:  # no reference that fits: the distance's own column has the reason
            row["frechet"] = None
    row |= _control(together, controls, scores, group)
    return row | _verdict(interaction, row.get("over_control"), len(alone))


def _control(together: Any, controls: Sequence[Any], scores: Mapping[str, Scores], group: Any) -> dict[str, Any]:
    """The equal-time control, and the alignment the stack has over it."""
    measured = []
    for control in controls:
        if control["status"] == SHOWN and control["key"] in scores:
            faster = statistics.speedup(together["timing"], control["timing"])  # the stack's time over the control's
            if faster is not None and faster.estimate.value * NOT_SLOWER >= 1:
                measured.append(control)
    if not measured:
        return {"control": None, "over_control": None}
    best = max(measured, key=lambda r: r["sampling"]["steps"])
    a, b = scores[together["key"]].arrays[ALIGNMENT], scores[best["key"]].arrays[ALIGNMENT]
    return {"control": best["stack"], "over_control": statistics.delta(a, b, group)}


def _verdict(interaction: Estimate, over: Estimate | None, methods: int) -> dict[str, Any]:
    low, high = interaction.low, interaction.high
    if over is not None and over.high is not None and over.high < 0:
        return {"verdict": "beaten", "samples_needed": None}
    if high is not None and high < 0:
        return {"verdict": "clashes", "samples_needed": None}
    if low is not None and low > -MARGIN:
        return {"verdict": "stacks", "samples_needed": None}
    needed = None
    if interaction.se:
        # From zero, or from the margin: what is farther away.
        reach = max(-interaction.value, interaction.value + MARGIN)
        needed = int(np.ceil(interaction.n * (statistics.detectable(interaction.se) / reach) ** 2))
    elif interaction.value == 0:  # all alike: so many that what no sample shows cannot weigh as much as the margin
        needed = int(np.ceil(np.log(1 - statistics.LEVEL) / np.log(1 - MARGIN / methods)))
    return {"verdict": "unresolved", "samples_needed": needed}
