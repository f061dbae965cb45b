"""How much of a command's work is done, and how long the rest will take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from ditbench.runner.progress import Step
from ditbench.runner.units import Unit


class Tally:
    """Units that are over, and the time left by the seconds that others took: per pipeline call and
    step of each model, learned while running. Threads may share one."""

    def __init__(self, units: Sequence[Unit], tell: Callable[[Step], None], abreast: int) -> None:
        """`abreast`: how many shards are made at the same time."""
        self.units, self.abreast = units, abreast
        self._tell, self._lock = tell, threading.RLock()
        self._over: set[tuple[str, int, bool, int]] = set()
        self._seen: dict[str, list[float]] = {}

    def say(self, label: str, finished: str = "") -> None:
        """Tell what is about to run, or what has just ended and how."""
        with self._lock:
            done = len(self._over)
            self._tell(Step(label, done, len(self.units), self.remaining(), finished))

    def over(self, unit: Unit, seconds: float | None = None) -> None:
        """A unit is over, and took so long; None where it was not run."""
        with self._lock:
            self._over.add(unit.name)
            if seconds is not None:
                rates = self._seen.setdefault(unit.cell.model.name, [])
                rates.append(seconds / _size(unit))

    def remaining(self) -> float | None:
        """Seconds that the rest will take; None before any was seen."""
        if not self._seen:
            return None
        mean = {name: sum(rates) / len(rates) for name, rates in self._seen.items()}
        overall = sum(mean.values()) / len(mean)
        return sum(
            mean.get(unit.cell.model.name, overall)
            * _size(unit)
            / (self.abreast if unit.shard else 1)
            for unit in self.units
            if unit.name not in self._over
        )


def _size(unit: Unit) -> float:
    return unit.calls * unit.cell.sampling.steps
