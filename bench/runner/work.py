"""What a command has to do, as the engine is given it that carries it out. No torch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ditbench.records.run_folder import RunFolder
from ditbench.runner.plan import Cell
from ditbench.runner.spec import Spec
from ditbench.runner.tally import Tally
from ditbench.runner.units import Unit

Measure = Callable[[Sequence[Unit]], Generator[tuple[dict[str, Any], float]]]
"""Measures units of one process in order; yields of each what was written for it, and seconds."""
TimeRounds = Callable[["Work", Sequence[Unit], Measure], bool]
"""Has rounds measured in their order, as many as can be begun before it is late; whether any of them
is new."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a command has to do, and how it says what has been done."""

    cells: Sequence[Cell]
    rounds: Sequence[Unit]
    shards: Sequence[Unit]
    session: str
    """The command, by its start."""
    folder: RunFolder
    tally: Tally
    late: Callable[[], bool]
    """Whether nothing more is to be begun, by the time the command may take."""
    finish: Callable[[Cell], str]
    """Puts a cell together whose parts are there; its status, "" while some are missing."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """Peak bytes of cells by key, as `estimate` has them; of full-size models."""

    @property
    def spec(self) -> Spec:
        """The settings of the command."""
        return self.cells[0].spec


class Engine(Protocol):
    """One way of carrying out work."""

    def run(self, work: Work, time_rounds: TimeRounds) -> None:
        """Measure the rounds and make the shards, until all is over or it is late."""
