"""Processes that make the shards of a run, several at a time: on the CPU after everything is timed,
on further GPUs meanwhile. No torch.

A process has one cell, whose shards it shares with others by leases. One that ends in the middle of
a shard costs that shard, which is begun again, once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from typing import Any

from ditbench.records.children import end_with_parent
from ditbench.records.files import write_json
from ditbench.records.record import MEASURED, read_round, read_shard
from ditbench.records.run_folder import RunFolder
from ditbench.runner.generating import BEGINS, MADE, OVER, ShardJob, make_shards
from ditbench.runner.plan import Cell
from ditbench.runner.processes import ENDING_S, ending_of
from ditbench.runner.spec import Spec
from ditbench.runner.tally import Tally
from ditbench.runner.units import Unit

POLL_S = 0.5
"""Seconds after which is looked whether a shard is late, or the run is to end."""
DEATHS = 2
"""How often a process may end in the middle of a shard before the shard has failed."""
GIVE_UP = 3
"""Failed shards of a cell after which none of its others is begun."""


@dataclass
class Worker:
    """A process that makes shards of one cell."""

    process: Any
    connection: Any
    cell: Cell
    device: str
    shard: int = 0
    """What it is at; 0 between two."""
    since: float = 0.0
    over: bool = False
    """Whether it found nothing more to take, or was told to end."""


@dataclass
class Workers:
    """Those of one command."""

    context: Any
    spec: Spec
    session: str
    folder: RunFolder
    tally: Tally
    late: Callable[[], bool]
    """Whether nothing more is to be begun, by the time the run may take."""
    finish: Callable[[Cell], str]
    """Puts a cell together whose parts are there; its status, "" while some are missing."""
    begun: bool = False
    """Whether any shard, or new round, was begun: a command that is late still begins one."""
    _free: list[str] = field(default_factory=list)
    _active: list[Worker] = field(default_factory=list)
    _waiting: dict[str, dict[int, Unit]] = field(default_factory=dict)
    """By cell and number, the shards that are not over."""
    _deaths: dict[tuple[str, int], int] = field(default_factory=dict)
    _failed: dict[str, int] = field(default_factory=dict)
    _later: dict[str, float] = field(default_factory=dict)
    """When to look again for shards of a cell that other processes seem to make."""
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _timed: threading.Event = field(default_factory=threading.Event)
    """Set when nothing more is timed."""

    @contextmanager
    def beside(self, shards: Sequence[Unit]) -> Iterator[None]:
        """Make shards: on further GPUs while the block times what it times, then on all devices."""
        for unit in shards:
            self._waiting.setdefault(unit.cell.key, {})[unit.shard] = unit
        errors: list[BaseException] = []

        def work() -> None:
            try:
                self._work()
            except BaseException as error:
                errors.append(error)

        self._free += self.spec.devices[1:]
        # a process ends with the thread that started it: this one lasts until all have ended
        thread = threading.Thread(target=work, name="shards")
        beside_timing = bool(shards) and bool(self._free)
        if beside_timing:
            thread.start()
        try:
            yield
            self._free += [self.spec.device] * self.spec.workers
            self._timed.set()
            if beside_timing:
                thread.join()
            elif shards:
                self._work()
        finally:
            self._cancelled.set()
            if thread.ident:
                thread.join()
        if errors:
            raise errors[0]

    def _work(self) -> None:
        try:
            while not self._cancelled.is_set():
                timed = self._timed.is_set()  # before looking for what it makes ready
                while self._free and (cell := self._next_cell()):
                    self._start(cell, self._free.pop(0))
                if not self._active and timed and not self._some_later():
                    return
                self._listen()
        finally:
            for worker in self._active:
                worker.process.kill()
                worker.process.join()

    def _some_later(self) -> bool:
        return not self.late() and any(key in self._later for key in self._waiting)

    def _next_cell(self) -> Cell | None:
        """The first cell that has shards for one more process."""
        if self.late() and self.begun:
            return None
        for key, units in list(self._waiting.items()):
            if self.folder.record(key).exists() and key not in self._failed:
                self._drop(key)  # a round of it failed
                continue
            at_it = sum(worker.cell.key == key for worker in self._active)
            if at_it < len(units) and self._later.get(key, 0.0) <= time.monotonic():
                cell = next(iter(units.values())).cell
                if self._measured(cell):
                    return cell
        return None

    def _measured(self, cell: Cell) -> bool:
        """Whether the first round of a cell went well: by it the batch is known."""
        first = self.folder.round(cell.key, 0)
        return first.exists() and read_round(first)["status"] in MEASURED

    def _start(self, cell: Cell, device: str) -> None:
        first = read_round(self.folder.round(cell.key, 0))
        job = ShardJob(
            model=cell.model.name, stack=str(cell.stack), key=cell.key, depends=cell.depends,
            shards=tuple(self._waiting[cell.key]), batch=int(first.get("batch", 0)),
        )  # fmt: skip
        ours, theirs = self.context.Pipe()
        spec = replace(cell.spec, device=device, devices=(), workers=1)
        process = self.context.Process(
            target=_make, args=(spec, job, self.session, self.folder, theirs), daemon=True
        )
        process.start()
        theirs.close()
        self._active.append(Worker(process, ours, cell, device))

    def _listen(self) -> None:
        """Hear what processes say until one has said something, or for a moment."""
        if not self._active:
            self._cancelled.wait(POLL_S)
            return
        wait([entry for w in self._active for entry in (w.connection, w.process.sentinel)], POLL_S)
        for worker in list(self._active):
            ended = not worker.process.is_alive()  # before what it said is read to the end
            try:
                while worker.connection.poll():
                    self._hear(worker, *worker.connection.recv())
            except (EOFError, OSError):
                ended = True
            late = worker.shard and time.monotonic() - worker.since > self.spec.time_limit
            if late:
                worker.process.kill()
            if ended or late:
                self._gone(worker, bool(late))

    def _hear(self, worker: Worker, word: str, number: int) -> None:
        if word == BEGINS:
            units = self._waiting.get(worker.cell.key, {})
            go = number in units and (not self.late() or not self.begun)
            self.begun = self.begun or go
            worker.over = not go
            worker.shard, worker.since = number if go else 0, time.monotonic()
            if go:
                self.tally.say(_label(worker.cell, units[number]))
            worker.connection.send(go)
        elif word == MADE:
            self._over(worker.cell, number, time.monotonic() - worker.since)
            worker.shard = 0
        elif word == OVER:
            worker.over = True

    def _gone(self, worker: Worker, late: bool) -> None:
        """A process has ended; what it was at fails where it was late, or was not the first."""
        worker.process.join(ENDING_S)
        self._active.remove(worker)
        self._free.append(worker.device)
        key, number = worker.cell.key, worker.shard
        for other in list(self._waiting.get(key, ())):  # it may not have come to say so
            if other != number and self.folder.shard_document(key, other).exists():
                self._over(worker.cell, other, None)
        beside = [other.shard for other in self._active if other.cell.key == key]
        if worker.over or (not number and not worker.process.exitcode):
            if key in self._waiting and not beside:
                self._later[key] = time.monotonic() + POLL_S
            return
        if not number:  # it died before it had begun one, so that it would have begun the first
            number = next((n for n in self._waiting.get(key, ()) if n not in beside), 0)
        if not number:
            return
        document = self.folder.shard_document(key, number)
        seconds = time.monotonic() - worker.since if worker.shard else None
        if not document.exists():
            self._deaths[key, number] = self._deaths.get((key, number), 0) + 1
            if not late and self._deaths[key, number] < DEATHS:
                return
            reason = (
                f"it took longer than its time limit of {self.spec.time_limit} s (--time-limit)"
                if late
                else f"{ending_of(worker.process)}, {DEATHS} times"
            )
            reason = f"shard {number}: {reason}"
            write_json(document, {"status": "failed", "reason": reason, "seconds": seconds or 0.0})
        self._over(worker.cell, number, seconds)

    def _over(self, cell: Cell, number: int, seconds: float | None) -> None:
        """A shard is made, or has failed."""
        units = self._waiting.get(cell.key, {})
        if number not in units:
            return
        self.tally.over(units.pop(number), seconds)
        self._later.pop(cell.key, None)
        document = self.folder.shard_document(cell.key, number)
        if failed := read_shard(document)["status"] not in MEASURED:
            self._failed[cell.key] = self._failed.get(cell.key, 0) + 1
        if not units or self._failed.get(cell.key, 0) >= GIVE_UP:
            self._drop(cell.key)
        first_failure = failed and self._failed[cell.key] == 1
        status = self.finish(cell)
        if status and (first_failure or not self._failed.get(cell.key)):
            self.tally.say(cell.label, f"{cell.label}: {status}")

    def _drop(self, key: str) -> None:
        """Nothing more is begun of a cell."""
        for unit in self._waiting.pop(key).values():
            self.tally.over(unit)


def _make(spec: Spec, job: ShardJob, session: str, folder: RunFolder, connection: Any) -> None:
    """What a process does that makes shards."""
    end_with_parent()
    make_shards(spec, job, session, folder, connection)


def _label(cell: Cell, unit: Unit) -> str:
    from ditbench.runner.shards import num_shards

    return f"{cell.label}  shard {unit.shard + 1}/{num_shards(cell)}"
