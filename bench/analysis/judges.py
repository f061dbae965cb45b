"""Does the judge that nothing was trained through agree with the one that schedules and students
were learned by? No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ditbench.analysis.rows import Row
from ditbench.records.scores import Scores
from ditbench.statistics import estimates as statistics
from ditbench.statistics.estimates import Estimate
from ditbench.statistics.hypothesis import ALPHA

FIRST, SECOND = "shapes_v1", "shapes_check_v1"
JUDGED = ("align", "fd")
"""Metrics that both judges have."""


def disagreement(scores: Scores | None, against: Scores | None) -> Estimate | None:
    """The second judge's change of alignment minus the first's, paired by request, for a cell set
    `against` its baseline.

    Below zero: the first judge flatters. None where a judge has not looked at both.
    """
    if scores is None or against is None:
        return None
    names = [f"align.{judge}" for judge in (FIRST, SECOND)]
    if any(name not in s.arrays for name in names for s in (scores, against)):
        return None
    first, second = ([s.arrays[name] for s in (scores, against)] for name in names)
    return statistics.delta(
        second[0] - first[0], second[1] - first[1], scores.arrays["group"], bounds=(-1.0, 1.0),
        blocks=scores.blocks,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What the second judge says of the first one's verdicts "better" and "worse"; each verdict a
    (stack, metric)."""

    confirmed: list[tuple[str, str]]
    """Same direction, by its own interval (unadjusted)."""
    same_sign: list[tuple[str, str]]
    """Same direction, and its interval holds 0."""
    contradicted: list[tuple[str, str]]
    """Other direction, by its own interval."""
    other_sign: list[tuple[str, str]]
    """Other direction, and its interval holds 0."""

    @property
    def num(self) -> int:
        """Verdicts in all."""
        return sum(map(len, (self.confirmed, self.same_sign, self.contradicted, self.other_sign)))


def agreement(rows: Sequence[Row]) -> Agreement:
    """Of the rows of one model, as `ditbench.analysis.summarise` gives them."""
    verdicts = Agreement(confirmed=[], same_sign=[], contradicted=[], other_sign=[])
    for row in rows:
        for metric in JUDGED:
            first, second = (row["quality"].get(f"{metric}.{judge}") for judge in (FIRST, SECOND))
            if (
                not first
                or not second
                or first["verdict"] not in ("better", "worse")
                or not first["delta"]
                or not second["delta"]
            ):
                continue
            same = (first["delta"]["value"] > 0) == (second["delta"]["value"] > 0)
            certain = second["p"] is not None and second["p"] <= ALPHA
            kinds = (
                (verdicts.confirmed, verdicts.same_sign)
                if same
                else (verdicts.contradicted, verdicts.other_sign)
            )
            kinds[0 if certain else 1].append((row["stack"], metric))
    return verdicts
