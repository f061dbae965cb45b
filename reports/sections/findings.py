"""What is said of a model's rows together: whether the second judge agrees, and how far trainings
of one recipe differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ditbench.analysis.judges import Agreement, agreement
from ditbench.analysis.knee import Knee, knee
from ditbench.analysis.primary import primary_of
from ditbench.analysis.printed_order import COUNTERPART
from ditbench.analysis.printed_order import FIDELITY as BY_DISTANCE
from ditbench.analysis.printed_order import Agreement as OrderAgreement
from ditbench.analysis.rows import Interval, Row
from ditbench.analysis.trainings import over_trainings, recipes
from ditbench.metrics.table import Metric, metrics
from ditbench.records.record import SHOWN
from ditbench.reports.sections.format import count, fixed, spoken
from ditbench.reports.sections.section import Section
from ditbench.statistics.estimates import Estimate

INTERACTIONS = ("alignment", "frechet")
"""Interactions of the primary score and of the primary distance, as
`ditbench.analysis.interaction` names them: what is given over trainings of stacks whose methods
were run alone too."""
TWIN = "align.shapes_check_v1"
"""The primary score by the second judge."""
FIDELITY = "perceptual.shapes_v1"


def _metrics(rows: Sequence[Row]) -> list[Metric]:
    """What is given over trainings: the primary metrics of a model, the score by the second judge,
    and the distance to the un-accelerated samples."""
    score, distance = primary_of(rows).names
    table = metrics()
    return [table[name] for name in (score, TWIN, distance, FIDELITY)]


def _interactions(rows: Sequence[Row]) -> dict[str, tuple[str, Metric]]:
    """By their words the keys of the interactions, and of which metric they are."""
    primary = primary_of(rows)
    return {
        f"{metric.label.removesuffix(' distance')} interaction": (key, metric)
        for key, metric in zip(INTERACTIONS, (primary.score, primary.distance), strict=True)
    }


def findings(section: Section, model: str) -> list[str]:
    """Sentences about a model's rows together, for the page, the tables and the terminal; none
    where there is nothing to say."""
    of_judges = judges(section, model)
    sentences = [_of_judges(of_judges)] if of_judges else []
    if (of_steps := knee(section.models[model], section.records)) is not None:
        sentences.append(_of_steps(of_steps))
    for printed in section.printed:
        family = next((t.table.family for t in printed.tables if t.model == model), None)
        if family is not None:
            of = printed.families[family]
            sentences.append(
                f"beside printed tables of its family: {said(of[COUNTERPART])}; by the perceptual "
                f"distance {said(of[BY_DISTANCE])}"
            )
    trained = trainings(section, model)
    sentences += [
        _of_recipe(recipe, section.models[model])
        for recipe in trained
        if len(recipe["trainings"]) > 1
    ]
    return sentences + trained_once(trained)


def said(agreement: OrderAgreement) -> str:
    """How far the order of methods is the printed one, in words."""
    words = f"{agreement.agree} of {count(agreement.pairs, 'pair')} in the printed order"
    if agreement.tau is None:
        return words
    reach = f" {reach_of(agreement)}".rstrip()
    return f"{words}, tau {fixed(agreement.tau, 2)}{reach}, p = {fixed(agreement.p, 2)}"


def reach_of(agreement: OrderAgreement) -> str:
    """`[low, high]` of a tau, or "" without an interval."""
    if agreement.low is None:
        return ""
    return f"[{fixed(agreement.low, 2)}, {fixed(agreement.high, 2)}]"


def trained_once(trained: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sentence about what `trainings` says was trained once; none where nothing was."""
    alone = [recipe["stack"] for recipe in trained if len(recipe["trainings"]) == 1]
    if not alone:
        return []
    caveat = "how far another training of the same recipe would differ is in no interval of theirs"
    return [f"one training: {', '.join(alone)}; {caveat}"]


def judges(section: Section, model: str) -> dict[str, Any] | None:
    """How the second judge compares with the first, as plain JSON; None where it has not looked at
    a stack and its baseline."""
    judged = [(row, row["second_judge"]) for row in section.models[model]]
    changes = [(row, change) for row, change in judged if change is not None]
    if not changes:
        return None
    learned = {row["key"] for row, _, _ in section.trained}
    verdicts = agreement([row for row, _ in changes])
    return {
        "verdicts": {
            name: [list(pair) for pair in pairs] for name, pairs in vars(verdicts).items()
        },
        "alignment_minus_first": {row["stack"]: change for row, change in changes},
        "mean_prepared": _mean([change for row, change in changes if row["key"] in learned]),
        "mean_others": _mean([change for row, change in changes if row["key"] not in learned]),
    }


def trainings(section: Section, model: str) -> list[dict[str, Any]]:
    """A recipe for each prepared stack of a model, as plain JSON: its trainings, and over two and
    more of them the spread by metric."""
    rows = [row for row in section.models[model] if row["status"] == SHOWN]
    interactions = {row["stack"]: row for row in section.stacking if row["model"] == model}
    prepared: dict[str, list[str]] = {}
    for row, method, _ in section.trained:
        prepared.setdefault(row["key"], []).append(method)
    over_recipes = []
    for recipe in recipes(rows, prepared):
        if recipe.rows:
            each = [recipe.rows[number] for number in sorted(recipe.rows)]
            together = [interactions.get(row["stack"], {}) for row in each]
            estimates = {m.name: [_estimate(row, m) for row in each] for m in _metrics(rows)}
            estimates |= {
                words: [of_stack.get(key) for of_stack in together]
                for words, (key, _) in _interactions(rows).items()
            }
            spreads = {
                name: _spread(given)
                for name, given in estimates.items()
                if len(each) > 1 and _complete(given)
            }
            over_recipes.append(
                {"stack": recipe.stack, "trainings": sorted(recipe.rows), "metrics": spreads}
            )
    return over_recipes


def _estimate(row: Row, metric: Metric) -> Estimate | None:
    if (entry := row["quality"].get(metric.name)) is None:
        return None
    estimate = entry["value"] if metric.against_none else entry["delta"]
    return None if estimate is None else Estimate(**estimate)


def _complete(each: Sequence[Estimate | None]) -> bool:
    return all(estimate is not None and estimate.se is not None for estimate in each)


def _spread(each: Sequence[Any]) -> dict[str, Any]:
    spread = over_trainings(each)
    return {"recipe": spread.recipe.as_dict(), "sd": spread.sd}


def _mean(changes: Sequence[Interval]) -> float | None:
    return float(np.mean([change["value"] for change in changes])) if changes else None


def _of_steps(at: Knee) -> str:
    table = metrics()
    if at.below is None:
        return (
            f"knee: {count(at.steps, 'step')} of {at.own} keep the quality of none, the fewest "
            "that were run; it may lie lower"
        )
    lost = ", ".join(
        f"{table[name].label} {word or 'without verdict'}" for name, word in at.lost.items()
    )
    fewest = (
        f"{count(at.steps, 'step')} of {at.own} are the fewest run that keep the quality of none"
        if at.steps < at.own
        else f"no smaller number of steps that was run keeps the quality of none's {at.own}"
    )
    text = f"knee: {fewest}; with {at.below}: {lost}"
    if at.worse is None or at.worse == at.below:
        return text
    labels = " and ".join(table[name].label for name in at.worse_by)
    return f"{text}; it is above {at.worse}, where {labels} {'is' if len(at.worse_by) == 1 else 'are'} worse"


def _of_judges(comparison: Mapping[str, Any]) -> str:
    kinds = Agreement(**comparison["verdicts"])
    changes = comparison["alignment_minus_first"]
    worst = max(changes, key=lambda stack: abs(changes[stack]["value"]))
    parts = ["second judge, through which nothing is trained: "]
    if kinds.num:
        parts[0] += (
            f"of {count(kinds.num, 'verdict')} better or worse by the first judge it confirms "
            f"{len(kinds.confirmed)} (its own interval agrees), leaves "
            f"{len(kinds.same_sign) + len(kinds.other_sign)} open "
            f"({len(kinds.same_sign)} with the same sign), and contradicts {len(kinds.contradicted)}"
        )
    else:
        parts[0] += "there is no verdict better or worse that it could confirm"
    if kinds.contradicted:
        parts[0] += (
            " (" + ", ".join(f"{stack}: {metric}" for stack, metric in kinds.contradicted) + ")"
        )
    means = [
        f"{fixed(comparison[name], 3, signed=True)} on average for {whose}"
        for name, whose in (
            ("mean_prepared", "stacks that were prepared"),
            ("mean_others", "the others"),
        )
        if comparison[name] is not None
    ]
    parts.append(f"its change of alignment minus the first judge's: {', '.join(means)}")
    parts.append(f"largest for {worst}: {spoken(changes[worst], 3, signed=True)}")
    return "; ".join(parts)


def _of_recipe(recipe: Mapping[str, Any], rows: Sequence[Row]) -> str:
    parts, table, interactions = [], metrics(), _interactions(rows)
    for name, spread in recipe["metrics"].items():
        if name in interactions:
            words, signed, places = name, True, interactions[name][1].decimals
        else:
            metric = table[name]
            signed, places = not metric.against_none, metric.decimals
            words = f"{metric.label} {'to none' if metric.against_none else 'minus none'}"
        low, high = spread["recipe"]["low"], spread["recipe"]["high"]
        verdict = "" if not signed else ", inconclusive" if low <= 0 <= high else ", not 0"
        parts.append(
            f"{words} {spoken(spread['recipe'], places, signed=signed)}{verdict} "
            f"(standard deviation between trainings {fixed(spread['sd'], places)})"
        )
    numbers = ", ".join(map(str, recipe["trainings"]))
    return (
        f"{recipe['stack']} over {len(recipe['trainings'])} trainings ({numbers}), intervals over "
        "trainings and requests: " + ("; ".join(parts) or "no numbers with errors")
    )
