"""Shards on a cluster: each a task on a node that has room for it, so that no more results wait than
tasks run; the command writes one after another. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ditbench.records.files import write_json
from ditbench.records.record import MEASURED, read_round, read_shard
from ditbench.runner import remote
from ditbench.runner.cluster import Lost, Node
from ditbench.runner.cluster_common import POLL_S, Common
from ditbench.runner.generating import ShardJob
from ditbench.runner.plan import Cell
from ditbench.runner.shards import num_shards
from ditbench.runner.units import Unit

GIVE_UP = 3
"""Failed shards of a cell after which none of its others is begun."""
LEAST = 1e9
"""Bytes that a process takes whose peak nobody has measured or estimated."""


@dataclass(frozen=True)
class Making:
    """A shard that a node makes now."""

    unit: Unit
    node: Node
    need: dict[str, float]
    """What it takes of the node: CPUs, GPUs, bytes."""


class Shards:
    """Those of one command."""

    def __init__(self, common: Common) -> None:
        self.common, self.work, self.members = common, common.work, common.members
        self._waiting: dict[str, dict[int, Unit]] = {}
        """By cell and number, the shards that are not over."""
        self._making: dict[Any, Making] = {}
        """By task."""
        self._at_it: set[tuple[str, int, bool, int]] = set()
        """The shards that are made now."""
        self._failed: dict[str, int] = {}
        """By cell, how many have failed."""
        self._firsts: dict[str, dict[str, Any]] = {}
        for unit in self.work.shards:
            self._waiting.setdefault(unit.cell.key, {})[unit.shard] = unit

    def left(self) -> bool:
        """Whether shards are made, or wait and can be begun, now or when a node has room."""
        if self._making:
            return True
        if self.common.late():
            return False
        return any(self._first(key) for key in self._waiting)

    def _first(self, key: str) -> dict[str, Any]:
        """The first round of a cell, by which its batch and memory are known; empty before it went
        well."""
        if key not in self._firsts:
            path = self.work.folder.round(key, 0)
            first = read_round(path) if path.exists() else {"status": ""}
            if first["status"] not in MEASURED:
                return {}
            self._firsts[key] = first
        return self._firsts[key]

    def place(self) -> None:
        """Begin shards wherever there is room."""
        for key, units in list(self._waiting.items()):
            if self.work.folder.record(key).exists() and key not in self._failed:
                self._drop(key)  # a round of it failed
                continue
            if not (first := self._first(key)):
                continue
            need = self._need(next(iter(units.values())).cell, first)
            for unit in units.values():
                if self.common.late():
                    return
                if unit.name in self._at_it:
                    continue
                with self.common.changed:
                    node = self.members.room(need)
                    if node is None:
                        break
                    self._begin(unit, node, need, int(first.get("batch", 0)))
        self.work.tally.abreast = max(1, len(self._making))

    def _need(self, cell: Cell, first: dict[str, Any]) -> dict[str, float]:
        """What a shard of a cell takes of a node, as Ray counts it."""
        spec, peak = cell.spec, first.get("memory", {}).get("peak_bytes") or 0.0
        on_gpu = spec.device != "cpu"  # where its memory is the GPU's, which it has alone
        memory = 0.0 if on_gpu else max(peak, self.work.memory.get(cell.key, 0.0), LEAST)
        return {"cpus": max(1.0, spec.threads), "gpus": float(on_gpu), "memory": memory}

    def _begin(self, unit: Unit, node: Node, need: dict[str, float], batch: int) -> None:
        cell = unit.cell
        job = ShardJob(
            model=cell.model.name, stack=str(cell.stack), key=cell.key, depends=cell.depends,
            shards=(unit.shard,), batch=batch,
        )  # fmt: skip
        task = self.common.cluster.submit(
            node, remote.make_shard, self.common.place, cell.spec, job, self.work.session,
            self.common.requests[cell.model.name],
            cpus=need["cpus"], gpus=need["gpus"], memory=min(need["memory"], node.memory),
        )  # fmt: skip
        self._making[task] = Making(unit, node, need)
        self._at_it.add(unit.name)
        self.members.take(need, node)
        self.common.begun = True
        self.members.note("begun", node, cell.key, unit.shard)
        self.work.tally.say(f"{cell.label}  shard {unit.shard + 1}/{num_shards(cell)}")

    def listen(self) -> None:
        """Take what tasks have left until one has ended, or for a moment."""
        if not self._making:
            self.common.cancelled.wait(POLL_S)
            return
        for task in self.common.cluster.wait(list(self._making), POLL_S):
            making = self._making[task]
            try:
                outcome = self.common.cluster.result(task)
                if outcome.late:
                    limit = self.work.spec.time_limit
                    reason = f"it took longer than its time limit of {limit} s (--time-limit)"
                    self._fail(making.unit, reason, outcome.seconds)
                    self._over(making, outcome.seconds)
                elif outcome.ended:
                    raise Lost(outcome.ended, node=False)
                else:
                    remote.deliver(outcome.files, self.work.folder)
                    self._over(making, outcome.seconds)
            except Lost as loss:
                self.members.note("lost", making.node, making.unit.cell.key, making.unit.shard)
                if loss.node:
                    self.common.lose(making.node, str(loss))
                unit = making.unit
                if self.work.folder.shard_document(unit.cell.key, unit.shard).exists():
                    self._over(making, None)  # the node wrote it, and was lost with the answer
                elif reason := self.common.blame(unit, loss):
                    self._fail(unit, reason, 0.0)
                    self._over(making, None)
            with self.common.changed:
                del self._making[task]
                self._at_it.discard(making.unit.name)
                self.members.take(making.need, making.node, sign=-1)
                self.common.changed.notify_all()

    def _fail(self, unit: Unit, reason: str, seconds: float) -> None:
        document = {"status": "failed", "reason": f"shard {unit.shard}: {reason}"}
        path = self.work.folder.shard_document(unit.cell.key, unit.shard)
        write_json(path, document | {"seconds": seconds})

    def _over(self, making: Making, seconds: float | None) -> None:
        """A shard is made, or has failed."""
        unit, cell = making.unit, making.unit.cell
        units = self._waiting.get(cell.key, {})
        self.members.note("finished", making.node, cell.key, unit.shard)
        if unit.shard not in units:
            return
        self.work.tally.over(units.pop(unit.shard), seconds)
        document = self.work.folder.shard_document(cell.key, unit.shard)
        if failed := read_shard(document)["status"] not in MEASURED:
            self._failed[cell.key] = self._failed.get(cell.key, 0) + 1
        if not units or self._failed.get(cell.key, 0) >= GIVE_UP:
            self._drop(cell.key)
        first_failure = failed and self._failed[cell.key] == 1
        if units and not failed:
            return  # to put it together reads the documents of all its shards
        status = self.work.finish(cell)
        if status and (first_failure or not self._failed.get(cell.key)):
            self.work.tally.say(cell.label, f"{cell.label}: {status}")

    def _drop(self, key: str) -> None:
        """Nothing more is begun of a cell."""
        for unit in self._waiting.pop(key).values():
            self.work.tally.over(unit)
