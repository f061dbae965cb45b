"""Does it stack? Interactions of methods run alone and together, each with an interval, and a
verdict by a printed rule. No torch.

For methods A, B (and C), from the cells none, A, B, A+B of one run, on the same requests and noise:

    speed interaction     gamma = S(A+B) / (S(A) S(B)), S the speed-up over none; 1 when speed-ups
        multiply
    quality interaction   Q(A+B) - Q(A) - Q(B) + Q(none); nothing when what each costs adds up

and for three S(A+B+C) / (S(A) S(B) S(C)) and Q(A+B+C) - Q(A) - Q(B) - Q(C) + 2 Q(none).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from ditbench.analysis.alone import identity
from ditbench.analysis.control_cells import ALIKE, left_out, student_controls, teacher_controls
from ditbench.analysis.controls import (
    BELOW,
    VERDICTS,
    Evidence,
    by_flops,
    by_time,
    goodness,
    judge,
    reliable,
    rule,
    samples_needed,
    speed_over,
    sum_range,
)
from ditbench.analysis.judges import FIRST, SECOND
from ditbench.analysis.primary import Primary, by_model, primary_metrics
from ditbench.analysis.rows import Record
from ditbench.extractors.references import ReferenceSets
from ditbench.method.dial import turned
from ditbench.method.needs import below_of
from ditbench.method.registry import find, names
from ditbench.method.stack import Stack
from ditbench.metrics.set_statistics import STATISTICS, Sets, sets_of
from ditbench.metrics.table import Metric, metrics
from ditbench.models.sampling import PER_VIDEO
from ditbench.records.record import SHOWN
from ditbench.records.scores import Scores
from ditbench.statistics import estimates as statistics
from ditbench.statistics import times
from ditbench.statistics.estimates import Estimate
from ditbench.statistics.frechet import Reference, settle, too_few

__all__ = [
    "VERDICTS",
    "factorial",
    "interactions",
    "judged",
    "replays",
    "rules",
    "shorter_students",
    "together",
]

SHARES = (0.5, 0.35, 0.25, 0.2, 0.15, 0.1)
"""Of the un-accelerated compute, that controls take."""


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

    ValueError when there are not two or three, when one of them is `none`, or when they cannot be
    used together.
    """
    if not all(part.methods for part in parts):
        raise ValueError(
            "none is the un-accelerated model, which is run beside every stack: name two or three "
            "methods"
        )
    if not 2 <= len(parts) <= 3:
        raise ValueError(
            f"two or three methods are needed to see whether they stack, not {len(parts)}"
        )
    if problems := joined(parts).problems():
        raise ValueError(f"{joined(parts)}: {problems[0]}")
    together = [stack for c in subsets(parts) for stack in readings(c).values()]
    return list(dict.fromkeys(map(str, [*parts, *together, *control_stacks()])))


def control_stacks() -> list[Stack]:
    """Every method whose role is control, at the values of its dial that `SHARES` gives: shares of
    the upper end of its range."""
    known = [find(name) for name in names()]
    return [
        Stack.of(turned(cls(), max(cls.dial[1], share * cls.dial[2])))
        for cls in known
        if cls.traits.role == "control" and cls.dial
        for share in SHARES
    ]


def shorter_students(parts: Sequence[Stack]) -> list[str]:
    """The trained methods among `parts` that take few steps, in half as many, a quarter and so on:
    controls where they are trained."""
    shorter = []
    for part in parts:
        for m in part.methods:
            if len(part.methods) == 1 and "num-steps" in m.traits.claims and m.recipe() is not None:
                steps = m.recipe().get("steps", 1)
                while (steps := steps // 2) >= 1:
                    shorter.append(str(Stack.of(replace(m, steps=steps))))
    return shorter


def replays(parts: Sequence[Stack]) -> list[str]:
    """What a method among `parts` that decides anew for every prompt is to be compared with: its most
    frequent schedule for all prompts (the method of role "fixed-schedule"), alone and together with
    the others."""
    fixed = [Stack.of(*map(_replayed, part.methods)) for part in parts]
    if list(map(str, fixed)) == list(map(str, parts)):
        return []
    changed = [f for f, part in zip(fixed, parts, strict=True) if str(f) != str(part)]
    whole = [joined(fixed)] if not joined(fixed).problems() else []
    return list(dict.fromkeys(map(str, [*changed, *whole])))


def _replayed(method: Any) -> Any:
    """The method as a fixed schedule, where it decides anew for every prompt and can be one."""
    decides = method.traits.decides_per_batch and "block-schedule" in method.traits.claims
    if not decides or method.label:  # a row with a label is no method to be judged
        return method
    fixed = next(cls for name in names() if (cls := find(name)).traits.role == "fixed-schedule")
    return fixed(of=str(Stack.of(method)))


def rules(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the verdicts on these rows follow, for each primary score among them."""
    scores = dict.fromkeys(row["metric"] for row in rows if "metric" in row)
    return [rule(metrics()[name]) for name in scores] or [rule(primary_metrics().score)]


def interactions(
    records: Sequence[Record], scores: Mapping[str, Scores],
    parts: Sequence[Stack] | Mapping[str, Sequence[Stack]],
    references: Mapping[str, Reference] | None = None,
    sets_of_run: ReferenceSets | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row per model and combination of `parts` (of all models, or by model): stack, gamma_flops, gamma_clock, the
    interactions of the primary score (`alignment`, of the `metric` that the row names) and distance
    (`frechet`, of its `distance`) (estimates), that of the score by the second judge where it has looked
    (`second_judge`), the controls (at equal time, at equal FLOPs, a student of fewer
    steps) and what the stack has over each, the basis of the verdict, verdict with reason and
    adjusted p-values, the controls it was reached without (`controls_left_out`), and where it is inconclusive
    samples_needed (videos, of a video model) and num_samples_needed (what --num-samples would be). A cell that is missing or was not
    measured gives a row with the reason as verdict.
    """
    rows, sets = [], sets_of(references, sets_of_run)
    primary = by_model(records, scores)
    for model in dict.fromkeys(r["model"] for r in records):
        cells = {r["stack"]: r for r in records if r["model"] == model}
        for c in subsets(parts[model] if isinstance(parts, Mapping) else parts):
            for reading, stack in readings(c).items():
                row = {"model": model, "stack": str(stack), "reading": reading}
                rows.append(
                    row | _row(list(map(str, c)), str(stack), cells, scores, sets, primary[model])
                )
    return judged(rows)


def together(
    records: Sequence[Record],
    scores: Mapping[str, Scores],
    references: Mapping[str, Reference] | None = None,
    sets_of_run: ReferenceSets | None = None,
) -> list[dict[str, Any]]:
    """The rows of `interactions` for every stack of several methods that were each run alone too,
    and its `parts`: their stacks.

    Found from the records alone, so that no method need be installed. A method counts as run alone
    however it was tuned in the stack.
    """
    rows, sets = [], sets_of(references, sets_of_run)
    primary = by_model(records, scores)
    for model in dict.fromkeys(r["model"] for r in records):
        cells = {r["stack"]: r for r in records if r["model"] == model}
        alone: dict[str, str] = {}
        for text, r in cells.items():
            if len(r["methods"]) == 1:
                alone.setdefault(identity(r["methods"][0]), text)
        for text, r in cells.items():
            parts = [alone[name] for m in r["methods"] if (name := identity(m)) in alone]
            if len(parts) > 1 and len(parts) == len(r["methods"]):
                frozen = any(m["knobs"].get("tuned") == "alone" for m in r["methods"])
                row = {
                    "model": model,
                    "stack": text,
                    "reading": "frozen" if frozen else "tuned",
                    "parts": parts,
                }
                rows.append(row | _row(parts, text, cells, scores, sets, primary[model]))
    return judged(rows)


def _mean_interaction(metric: Metric, scores: Sequence[Scores]) -> Estimate:
    """Of a metric by sample: `scores` of none, of each part and of them together."""
    first, *alone, together = (goodness(metric, s) for s in scores)
    # thirds add up to zero again
    each = np.round(together - sum(alone) + (len(alone) - 1) * first, 9)
    return statistics.mean(
        each, scores[0].arrays["group"], bounds=sum_range(metric, len(alone)),
        blocks=scores[0].blocks,
    )  # fmt: skip


def _distance(
    metric: Metric,
    cells: Sequence[Record],
    signs: Sequence[int],
    scores: Mapping[str, Scores],
    sets: Sets,
) -> Estimate | None:
    """The interaction of a Fréchet distance; None where there is none: the distance's own column
    has the reason."""
    if not STATISTICS[metric.statistic].check:
        return None
    mine = [scores[cell["key"]] for cell in cells]
    n, d = sets.shape(metric, mine[0])
    try:
        if too_few(n, d):
            return None
        whole, jackknifed = (
            [sets.read(metric, cell, s, check) for cell, s in zip(cells, mine, strict=True)]
            for check in (False, True)
        )
        return settle(whole, jackknifed, signs, n, d)
    except ValueError:
        return None


def judged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their verdicts, which are adjusted over all of them."""
    measured = [i for i, row in enumerate(rows) if "evidence" in row]
    with_verdicts = [dict(row) for row in rows]
    for i, verdict in zip(measured, judge([rows[i]["evidence"] for i in measured]), strict=True):
        with_verdicts[i] |= verdict
        needed = (
            samples_needed(rows[i]["alignment"], rows[i]["evidence"].margin, len(measured))
            if BELOW in verdict["reason"]
            else None
        )
        counts_as = PER_VIDEO if rows[i].get("frames", 1) > 1 else 1
        with_verdicts[i] |= {
            "samples_needed": needed,
            "num_samples_needed": None if needed is None else needed * counts_as,
        }
    return with_verdicts


def _frames(cells: Mapping[str, Record]) -> int:
    """Frames of a sample of the model."""
    return max(((r.get("sampling") or {}).get("frames", 1) for r in cells.values()), default=1)


def _row(
    parts: Sequence[str], stack: str, cells: Mapping[str, Record],
    scores: Mapping[str, Scores],
    sets: Sets, primary: Primary,
) -> dict[str, Any]:  # fmt: skip
    of_row = ["none", *parts, stack]
    row: dict[str, Any] = {"frames": _frames(cells)}
    for name in of_row:
        status = cells[name]["status"] if name in cells else "missing"
        if status != SHOWN:
            reason = f": {cells[name]['reason']}" if name in cells else ""
            return row | {"verdict": f"{name} is {status}{reason}"}
    none, *alone, together = (cells[name] for name in of_row)
    for cell in (*alone, together):
        if unlike := [name for name in ALIKE if cell["run"].get(name) != none["run"].get(name)]:
            return row | {"verdict": f"{cell['stack']} and none differ in {unlike[0]}"}
    flops = [(r["flops"] or {}).get("flops") for r in (none, *alone, together)]
    if all(flops):
        first, *middle, last = (float(f) for f in flops if f)
        row["gamma_flops"] = float(first / last / np.prod([first / f for f in middle]))
    signs = [1 - len(alone), *[1] * len(alone), -1]
    gamma = times.time_contrast([r["timing"] for r in (none, *alone, together)], signs)
    row["gamma_clock"] = gamma.estimate if gamma else None
    mine = [scores.get(r["key"]) for r in (none, *alone, together)]
    metric = primary.score
    if not all(s is not None and metric.name in s.arrays for s in mine):
        return row | {"verdict": "not scored"}
    scored = [s for s in mine if s is not None]
    if len({len(s.arrays[metric.name]) for s in scored}) > 1:
        return row | {"verdict": "not scored on the same samples"}
    row |= {"metric": metric.name, "distance": primary.distance.name}
    row["alignment"] = interaction = _mean_interaction(metric, scored)
    second = metrics().get(metric.name.replace(FIRST, SECOND)) if FIRST in metric.name else None
    if second and all(second.name in s.arrays for s in scored):
        row["second_judge"] = _mean_interaction(second, scored)
    if all(s.shape_of(primary.distance.features) for s in mine if s is not None):
        cells_of = [none, *alone, together]
        row["frechet"] = _distance(
            primary.distance, cells_of, [-sign for sign in signs], scores, sets
        )
    timed = reliable([none, *alone, together])
    row["basis"] = "time" if timed else "FLOPs"
    teacher, students = teacher_controls(cells), student_controls(cells, together)
    equal_time = by_time(together, teacher, scores, metric) if timed else []
    equal_flops = by_flops(together, teacher, scores, metric)
    shorter = (by_time if timed else by_flops)(together, students, scores, metric)
    for name, controls in (
        ("control", equal_time),
        ("flops_control", equal_flops),
        ("student_control", shorter),
    ):
        chief = next((c for c in controls if c.sure), None)
        row |= {name: chief and chief.stack, f"over_{name}": chief and chief.over}
    row["controls"] = [c.stack for c in (*(equal_time if timed else equal_flops), *shorter)]
    row["controls_left_out"] = left_out(together, [*teacher, *students], scores, metric)
    row["evidence"] = Evidence(
        interaction=interaction, margin=metric.least, controls=[equal_time if timed else equal_flops, shorter],
        speed=speed_over([none, *alone], together, timed),
    )  # fmt: skip
    return row
