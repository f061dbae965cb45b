"""A model's knee: the fewest steps at which it still has its quality. Above it a method that skips
work competes with steps that nobody needs. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ditbench.analysis.control_cells import is_control
from ditbench.analysis.primary import primary_of
from ditbench.analysis.rows import Record, Row
from ditbench.records.record import SHOWN

KEPT = ("equivalent", "better")
"""Verdicts with which a quality is kept."""
WORSE = "worse"
FEWEST = 2
"""Numbers of steps below the model's own from which there is something to say."""


@dataclass(frozen=True, kw_only=True)
class Knee:
    """Where a model loses its quality, of the numbers of steps that were run."""

    steps: int
    """The fewest with which every primary metric, with these steps and with every larger number that
    was run, is equivalent to the un-accelerated model's or better; that model's own where none is."""
    own: int
    """Steps of the un-accelerated model."""
    below: int | None
    """The next smaller number that was run; None where there is none: the knee may lie lower."""
    lost: Mapping[str, str]
    """The verdicts at `below` that are neither, by metric."""
    worse: int | None = None
    """The most steps, below `steps`, with which a primary metric is worse; None where it is with none:
    the knee lies above them."""
    worse_by: tuple[str, ...] = ()
    """The metrics that are worse there."""


def knee(rows: Sequence[Row], records: Mapping[str, Record]) -> Knee | None:
    """The knee of the model that the rows are of; None where it was run at too few numbers of steps,
    or without verdicts on its primary metrics. `records` by cell key."""
    names = primary_of(rows).names
    shown = [row for row in rows if row["status"] == SHOWN and not row["label"]]
    none = next((row for row in shown if row["baseline"]), None)
    if none is None:
        return None
    own = int(records[none["key"]]["sampling"]["steps"])
    fewer: dict[int, Mapping[str, str]] = {}
    for row in shown:
        record = records[row["key"]]
        methods, steps = record["methods"], int(record["sampling"]["steps"])
        if methods and not row["baseline"] and all(map(is_control, methods)) and steps < own:
            fewer[steps] = {
                name: entry["verdict"] for name in names if (entry := row["quality"].get(name))
            }
    judged = {k: words for k, words in fewer.items() if any(words.values())}
    if len(judged) < FEWEST:
        return None
    fewest = own
    for steps in sorted(judged, reverse=True):
        if lost := {name: word for name, word in judged[steps].items() if word not in KEPT}:
            worse = {
                k: tuple(name for name, word in words.items() if word == WORSE)
                for k, words in judged.items()
                if k <= steps and WORSE in words.values()
            }
            most = max(worse, default=None)
            return Knee(
                steps=fewest, own=own, below=steps, lost=lost,
                worse=most, worse_by=() if most is None else worse[most],
            )  # fmt: skip
        fewest = steps
    return Knee(steps=fewest, own=own, below=None, lost={})
