"""What a command has to do: one round of one cell each, and which of them are timed again because
their baseline was timed by another command; one shard of the samples of one cell each. No torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ditbench.records.record import MEASURED, read_record, read_round
from ditbench.records.run_folder import RunFolder
from ditbench.runner.plan import Cell
from ditbench.runner.shards import is_divided, missing_shards, shard_range
from ditbench.runner.worker import Job


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One round of one cell, measured in one process, or one shard of its samples."""

    cell: Cell
    round: int
    again: bool = False
    """Whether only its time is wanted, beside cells that were not there the first time."""
    shard: int = 0
    """Where it is above 0, that shard is made and nothing is timed."""

    @cached_property
    def name(self) -> tuple[str, int, bool, int]:
        """What no other unit of the command has."""
        return self.cell.key, self.round, self.again, self.shard

    @property
    def job(self) -> Job:
        """What its process is told."""
        cell = self.cell
        return Job(
            model=cell.model.name, stack=str(cell.stack), round=self.round, again=self.again,
            key=cell.key, depends=cell.depends,
        )  # fmt: skip

    def completes(self, latest: Unit) -> bool:
        """Whether the times of the round of `latest` mean little without this one: it is the
        baseline of that round, or is timed again."""
        return self.same_round(latest) and (self.again or not self.cell.stack.methods)

    def same_round(self, other: Unit) -> bool:
        """Whether both are of one model and round."""
        return (self.cell.model.name, self.round) == (other.cell.model.name, other.round)

    @property
    def calls(self) -> float:
        """Pipeline calls it makes: one warms up, the first round times all batches (of the first
        shard) and counts FLOPs on one; shards are not warmed up for."""
        if self.round or self.again:
            return 2.0
        batches = -(-len(shard_range(self.cell, self.shard)) // self.cell.batch_size)
        return batches + (0.0 if self.shard else 2.5)


def units_to_do(cells: Sequence[Cell], folder: RunFolder) -> list[Unit]:
    """What is still to do: per model, round after round, shuffled inside a round the same way every
    time.

    Times are compared inside one command: the machine may do other work, or be another one, by the
    next. Where a round of the baseline was timed by an earlier command than what is missing of that
    round, it is timed again; so is each cell of a round whose baseline is missing from all commands
    that timed it (a run killed in the middle of a round).
    """
    spec, units = cells[0].spec, []
    for name in dict.fromkeys(cell.model.name for cell in cells):
        for round_ in range(spec.rounds):
            order = [c for c in cells if c.model.name == name]
            random.Random(f"{spec.seed}/{name}/{round_}").shuffle(order)
            missing = [
                c
                for c in order
                if not folder.record(c.key).exists() and not folder.round(c.key, round_).exists()
            ]
            again = _to_time_again(order, missing, round_, folder)
            units += [
                Unit(cell=c, round=round_, again=c in again)
                for c in order
                if c in missing or c in again
            ]
    return units


def _to_time_again(
    cells: Sequence[Cell], missing: Sequence[Cell], round_: int, folder: RunFolder
) -> list[Cell]:
    baseline = next((c for c in cells if not c.stack.methods), None)
    if baseline is None:
        return []
    base = _sessions(baseline, round_, folder)
    if not base and baseline not in missing:
        return []  # it failed, or no round of it is left in its record
    unpaired = [
        c
        for c in cells
        if (own := _sessions(c, round_, folder)) and not own & base and c is not baseline
    ]
    if not missing and not unpaired:
        return []
    return unpaired if baseline in missing else [baseline, *unpaired]


def _sessions(cell: Cell, round_: int, folder: RunFolder) -> set[str]:
    """The commands that timed a round of a cell: by the round's files, or by the record where the
    files are gone; none where the round is missing or failed."""
    first, record = folder.round(cell.key, round_), folder.record(cell.key)
    documents: list[Any] = [read_round(path) for path in folder.timed_again(cell.key, round_)]
    if first.exists():
        documents.insert(0, read_round(first))
    elif record.exists():
        documents.insert(0, read_record(record))
    if not (first.exists() or record.exists()) or documents[0]["status"] not in MEASURED:
        return set()
    timing = [entry for document in documents for entry in document.get("timing", [])]
    return {entry.get("session", "") for entry in timing if entry["round"] == round_}


def shards_to_do(cells: Sequence[Cell], folder: RunFolder) -> list[Unit]:
    """The shards that are still to be made, cell after cell."""
    return [
        Unit(cell=cell, round=0, shard=number)
        for cell in cells
        if not cell.refusal and not folder.record(cell.key).exists() and is_divided(cell, folder)
        for number in missing_shards(cell, folder)
    ]
