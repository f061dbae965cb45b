"""What a method gives between whole numbers of sampler steps: quality over steps and the method's
dial, at equal FLOPs and at equal time. No torch.

Two numbers of steps of one model cost c(k) < c(k + 1). To serve a share w of the requests with k + 1
steps and the rest with k costs exactly (1 - w) c(k) + w c(k + 1), and its expected score is the same
mixture of the two scores. A method at k' steps whose cost lies between has bought something where
its score is beyond that of the mixture of the same cost: `gain`, paired on every request.
"""

from __future__ import annotations

import ast
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.analysis.control_cells import is_control, scored_cells
from ditbench.analysis.controls import reliable
from ditbench.analysis.primary import by_model
from ditbench.analysis.rows import Record
from ditbench.analysis.step_sweep import PERCEPTUAL
from ditbench.method.registry import find, names
from ditbench.method.stack import Stack
from ditbench.metrics.table import Metric, metrics
from ditbench.records.scores import Scores
from ditbench.statistics import times
from ditbench.statistics.estimates import Estimate, mean

COSTS = ("flops", "time")
"""What is held equal: FLOPs of a sample, and measured seconds of the call, both as shares of the
un-accelerated model's."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A cell of a surface."""

    stack: str
    steps: int
    dial: float | None
    """None: whole steps, without the method."""
    cost: Mapping[str, float]
    """By what is held equal, of `COSTS`; a share of the un-accelerated model's."""
    quality: Mapping[str, Estimate]
    """By metric: the mean over samples."""
    gain: Mapping[tuple[str, str], Estimate]
    """By (cost, metric): the score beyond that of the mixture of whole steps at the same cost;
    positive is better. None where the cost lies outside of what whole steps cost."""
    best: Mapping[tuple[str, str], bool]
    """By (cost, metric): whether nothing of the surface is both cheaper and better, as measured."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """The cells of one model in which only the number of steps and one method's dial differ."""

    model: str
    of: str
    """The stack that takes the steps, without its number: `none` (fewer steps of the model), or a
    student."""
    method: str
    dial: str
    points: tuple[Point, ...]
    """Whole steps first, then by steps and dial."""
    metrics: tuple[str, ...]
    """The primary score, and the distance to the un-accelerated sample where it was measured."""


def surfaces(records: Sequence[Record], scores: Mapping[str, Scores]) -> list[Surface]:
    """Every surface of a run: at least two numbers of whole steps, and two values of a method's dial
    at two of them or more."""
    made, primary = [], by_model(records, scores)
    for model, none, cells in scored_cells(records, scores):
        whole: dict[str, dict[int, Record]] = {}
        partly: dict[tuple[str, str, str], list[tuple[int, float, Record]]] = {}
        for r in cells:
            taking, rest = _split(r["methods"])
            steps = int(r["sampling"]["steps"])
            if not rest:
                whole.setdefault(taking, {})[steps] = r
            elif len(rest) == 1 and (turned := _dial(rest[0])) is not None:
                name, value, fixed = turned
                partly.setdefault((taking, fixed, name), []).append((steps, value, r))
        for (taking, fixed, name), tried in partly.items():
            along = whole.get(taking, {})
            if (
                len(along) < 2
                or len({k for k, _, _ in tried}) < 2
                or len({v for _, v, _ in tried}) < 2
            ):
                continue
            wanted = [primary[model].score.name, PERCEPTUAL]
            table = _points(none, along, tried, scores, wanted)
            measured = {name for p in table if p.stack != "none" for name in p.quality}
            shown = tuple(name for name in wanted if name in measured)
            if shown:
                made.append(
                    Surface(
                        model=model, of=taking, method=json.loads(fixed)[0], dial=name,
                        points=tuple(table), metrics=shown,
                    )
                )  # fmt: skip
    return made


def _split(methods: Sequence[Mapping[str, Any]]) -> tuple[str, list[Mapping[str, Any]]]:
    """What takes the steps, without their number, and the methods beside it."""
    rest, taking = [], []
    for m in methods:
        name = str(m["name"])
        claims = find(name).traits.claims if name in names() else ()
        if name == "none" or is_control(m) or "num-steps" in claims:
            knobs = {k: v for k, v in m["knobs"].items() if k != "steps"}
            alone = name == "none" or is_control(m)
            taking.append("" if alone else f"{name} {json.dumps(knobs, sort_keys=True)}")
        else:
            rest.append(m)
    return "+".join(filter(None, taking)) or "none", rest


def _dial(method: Mapping[str, Any]) -> tuple[str, float, str] | None:
    """The dial of a record's method, its value, and all that stays the same beside it; None for a
    method without one, or one that is not installed."""
    if method["name"] not in names() or not (dial := find(method["name"]).dial):
        return None
    value = method["knobs"].get(dial[0])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    fixed = {k: v for k, v in method["knobs"].items() if k != dial[0]}
    return dial[0], float(value), json.dumps([method["name"], fixed], sort_keys=True)


def _points(
    none: Record,
    whole: Mapping[int, Record],
    tried: Sequence[tuple[int, float, Record]],
    scores: Mapping[str, Scores],
    wanted: Sequence[str],
) -> list[Point]:
    cells: list[tuple[int, float | None, Record]] = [
        *((k, None, r) for k, r in sorted(whole.items())),
        *sorted(tried, key=lambda cell: cell[:2]),
    ]
    costs = {r["key"]: _costs(none, r) for _, _, r in cells}
    values = {r["key"]: _values(scores[r["key"]], wanted, r is none) for _, _, r in cells}
    table = metrics()
    mixed = {
        (cost, name): _mixture(cost, name, whole.values(), costs, values)
        for cost in COSTS
        for name in wanted
    }
    points = []
    for steps, dial, r in cells:
        mine, scored = values[r["key"]], scores[r["key"]]
        quality = {name: _mean(mine[name], scored) for name in wanted if name in mine}
        gain: dict[tuple[str, str], Estimate] = {}
        for cost in costs[r["key"]] if dial is not None else ():
            for name in quality:
                other = mixed[cost, name](costs[r["key"]][cost], len(mine[name]))
                if other is not None:
                    gain[cost, name] = _mean(_sign(table[name]) * (mine[name] - other), scored)
        points.append((steps, dial, r, quality, gain))
    return [
        Point(
            stack=r["stack"], steps=steps, dial=dial, cost=costs[r["key"]], quality=quality,
            gain=gain,
            best={
                (cost, name): _is_best(r["key"], cost, quality[name].value, name, points, costs)
                for cost in costs[r["key"]]
                for name in quality
            },
        )
        for steps, dial, r, quality, gain in points
    ]  # fmt: skip


def _costs(none: Record, cell: Record) -> dict[str, float]:
    """Shares of the un-accelerated model's FLOPs, and of its seconds where times are reliable."""
    costs = {}
    mine, theirs = cell["flops"].get("flops"), none["flops"].get("flops")
    if mine and theirs:
        costs["flops"] = float(mine) / float(theirs)
    speed = times.speedup(none["timing"], cell["timing"]) if reliable([none, cell]) else None
    if speed is not None and speed.estimate.value > 0:
        costs["time"] = 1 / speed.estimate.value
    return costs


def _values(scores: Scores, wanted: Sequence[str], is_none: bool) -> dict[str, NDArray[np.float64]]:
    """Per-sample scores by metric; the un-accelerated sample is at no distance from itself."""
    values = {
        name: np.asarray(scores.arrays[name], np.float64)
        for name in wanted
        if name in scores.arrays
    }
    if is_none and PERCEPTUAL in wanted:
        values[PERCEPTUAL] = np.zeros(len(scores.arrays["group"]))
    return {name: x for name, x in values.items() if len(x) and np.isfinite(x).all()}


def _mean(values: NDArray[np.float64], scores: Scores) -> Estimate:
    return mean(values, scores.arrays["group"], blocks=scores.blocks)


def _sign(metric: Metric) -> float:
    return 1.0 if metric.better == "higher" else -1.0


def _mixture(cost: str, name: str, whole: Any, costs: Any, values: Any) -> Any:
    """(share, n) -> per-sample scores [n] of the mixture of whole steps at that share of the cost;
    None where the share lies outside of theirs, or the cells beside it were not scored alike."""
    known = sorted(
        (costs[r["key"]][cost], r["key"])
        for r in whole
        if cost in costs[r["key"]] and name in values[r["key"]]
    )

    def at(share: float, n: int) -> NDArray[np.float64] | None:
        for (low, below), (high, above) in itertools.pairwise(known):
            a, b = values[below][name], values[above][name]
            if low <= share <= high and low < high and len(a) == len(b) == n:
                weight = (share - low) / (high - low)
                mixed: NDArray[np.float64] = (1 - weight) * a + weight * b
                return mixed
        return None

    return at


def _is_best(key: str, cost: str, value: float, name: str, points: Any, costs: Any) -> bool:
    sign = _sign(metrics()[name])
    return not any(
        r["key"] != key
        and cost in costs[r["key"]]
        and name in quality
        and costs[r["key"]][cost] <= costs[key][cost]
        and sign * quality[name].value >= sign * value
        and (costs[r["key"]][cost], quality[name].value) != (costs[key][cost], value)
        for _, _, r, quality, _ in points
    )


def grid(parts: Sequence[Stack], settings: Sequence[str]) -> list[str]:
    """The stacks of a surface: one method at every number of steps, the other at every value of its
    dial, and both together. `settings`: `steps=2,4,8` and `DIAL=V,V,...`.

    ValueError where the two are not a method that takes the steps and one with a dial, a setting
    names something else or is given twice, and for too few values to compare.
    """
    methods = [part.methods[0] for part in parts if len(part.methods) == 1]
    takes = [m.traits.role == "control" or "num-steps" in m.traits.claims for m in methods]
    if len(parts) != 2 or sorted(takes) != [False, True]:
        raise ValueError(
            "--surface takes two methods: one that takes the steps (fewer_steps, distill) and one "
            "with a dial"
        )
    taking, other = methods[takes.index(True)], methods[takes.index(False)]
    if not other.dial:
        raise ValueError(f"--surface: {other.name} has no dial")
    values: dict[str, list[float]] = {}
    for text in settings:
        name, _, listed = text.partition("=")
        if name not in ("steps", other.dial[0]):
            raise ValueError(
                f"--surface: {name!r} is neither steps nor {other.dial[0]}, the dial of {other.name}"
            )
        if name in values:
            raise ValueError(f"--surface: values of {name} are given twice")
        try:
            values[name] = [ast.literal_eval(word.strip()) for word in listed.split(",")]
        except (ValueError, SyntaxError):
            raise ValueError(f"--surface: {text!r} is no list of numbers, as {name}=2,4") from None
    if missing := [name for name in ("steps", other.dial[0]) if name not in values]:
        raise ValueError(f"--surface: values of {' and '.join(missing)} are missing")
    # the un-accelerated model is a number of whole steps beside fewer of its own
    least = {"steps": 1 if taking.traits.role == "control" else 2, other.dial[0]: 2}
    if few := next((name for name, n in least.items() if len({*values[name]}) < n), ""):
        raise ValueError(f"--surface: it takes two values of {few} to have one")
    whole = [replace(taking, steps=k) for k in values["steps"]]
    turned = [replace(other, **{other.dial[0]: v}) for v in values[other.dial[0]]]
    both = [Stack.of(a, b) for a in whole for b in turned]
    if problems := both[0].problems():
        raise ValueError(f"{both[0]}: {problems[0]}")
    return list(dict.fromkeys(map(str, [*map(Stack.of, whole), *map(Stack.of, turned), *both])))
