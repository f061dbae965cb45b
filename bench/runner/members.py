"""The nodes of a cluster that a command uses: what each is like, which make the same samples as the
others, what room they have, and a log of what they did. No torch."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ditbench.records.record import read_round
from ditbench.runner import remote
from ditbench.runner.cluster import Lost, Node
from ditbench.runner.remote import Place, Probe
from ditbench.runner.work import Work

LOOK_S = 10.0
"""Seconds from one look at the nodes of the cluster to the next."""
ANSWER_S = 300.0
"""Seconds a node may take to say what it is like: it imports torch, perhaps over a network."""
PATIENCE_S = 120.0
"""Seconds without any node after which the command ends."""
MATTERING = (
    "torch", "diffusers", "transformers", "torchao", "numpy", "safetensors", "accelerate",
)  # fmt: skip
"""Packages of which another version may make other samples."""

Kind = tuple[str, str]
"""Processor, or GPU where samples are made on one, and the version of torch: what decides the last
bit of a sample."""


def kind_of(made_in: Mapping[str, Any]) -> Kind:
    """The kind of a node, or of the one that made a round, by its environment."""
    on_gpu = made_in.get("device", "cpu") != "cpu"
    name = made_in.get("device" if on_gpu else "processor")
    return str(name), str(made_in.get("packages", {}).get("torch"))


def unlike(driver: Probe, node: Probe) -> str:
    """Why a node would not make the samples that the command has planned, "" where it would."""
    if node.device_missing:
        return node.device_missing
    mine, its = (p.environment.get("packages", {}) for p in (driver, node))
    differing = [
        f"{name} {its.get(name)}, not {mine.get(name)}"
        for name in MATTERING
        if _public(its.get(name)) != _public(mine.get(name))
    ]
    if differing:
        return f"it has {', '.join(differing)}"
    if node.sources != driver.sources:
        return "its ditbench has other sources"
    return ""


def _public(version: str | None) -> str:
    """Without the build: of torch that of a node differs from that of a driver without a GPU."""
    return str(version).partition("+")[0]


def most_common(kinds: list[Kind]) -> Kind:
    """Of equally many the first by name."""
    counts = Counter(kinds)
    return min(counts, key=lambda kind: (-counts[kind], kind))


class Members:
    """The nodes of one command."""

    def __init__(self, cluster: Any, work: Work, place: Place) -> None:
        self.cluster, self.work, self.place = cluster, work, place
        self.usable: dict[str, Node] = {}
        """By id, those that work is given to."""
        self.reserved: set[str] = set()
        """Those that have no task but one that times."""
        self.free: dict[str, dict[str, float]] = {}
        """By id, what is left of a usable node beside its tasks."""
        self._seen: set[str] = set()
        self._probes: dict[Any, tuple[Node, float]] = {}
        self._answers: list[tuple[Node, Probe]] = []
        """Of nodes that are like the driver, before it is decided of which kind samples are."""
        self._kind = self._earlier_kind()
        self._driver = remote.probe(place, "cpu")
        self._next_look, self._none_since = 0.0, time.monotonic()
        self._log = work.folder.ray_log

    def look(self, wait: bool = False) -> None:
        """Take in the nodes that are there by now; `wait`: until each has said what it is like.
        OSError where there has been none that can be used for too long, or none at all is left."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._look()
        self._hear(0.0)
        while wait and self._probes:
            self._hear(1.0)
        if not self._probes and self._answers:
            self._decide()
        if self.usable:
            self._none_since = now
        elif not self._probes and (wait or now - self._none_since > PATIENCE_S):
            raise OSError(
                "the Ray cluster has no node that can be used; the same command goes on from here"
            )

    def _look(self) -> None:
        spec, alive = self.work.spec, self.cluster.nodes()
        for node_id in self.usable.keys() - {node.id for node in alive}:
            self.lose(self.usable[node_id], "it has left the cluster")
        on_gpu = spec.device != "cpu"
        for node in alive:
            if node.id in self._seen or not node.cpus or (on_gpu and not node.gpus):
                continue  # that of the head has no CPUs, as a rule
            self._seen.add(node.id)
            if node.cpus < spec.threads:
                self._refuse(node, f"it has {node.cpus:g} CPUs, fewer than --threads")
                continue
            task = self.cluster.submit(
                node,
                remote.probe,
                self.place,
                spec.device,
                cpus=0.0,
                gpus=float(on_gpu),
                memory=0.0,
            )
            self._probes[task] = (node, time.monotonic() + ANSWER_S)

    def _hear(self, seconds: float) -> None:
        """Take the answers of nodes that say what they are like."""
        done = self.cluster.wait(list(self._probes), seconds) if self._probes else []
        for task in done:
            node, _ = self._probes.pop(task)
            try:
                answer = self.cluster.result(task)
            except Lost as loss:
                self._refuse(node, f"it could not say what it is like ({loss})")
                continue
            if why := unlike(self._driver, answer):
                self._refuse(node, why)
            else:
                self._answers.append((node, answer))
        for task, (node, until) in list(self._probes.items()):
            if time.monotonic() > until:
                del self._probes[task]
                self._refuse(node, f"it has not said what it is like in {ANSWER_S:.0f} s")

    def _decide(self) -> None:
        """Use the nodes of one kind: that of earlier rounds, else the most common."""
        kinds = [kind_of(answer.environment) for _, answer in self._answers]
        self._kind = self._kind or most_common(kinds)
        for (node, answer), kind in zip(self._answers, kinds, strict=True):
            if kind != self._kind:
                ours, its = (f"{name} with torch {torch}" for name, torch in (self._kind, kind))
                self._refuse(node, f"it is a {its}, and samples of this run are made on {ours}")
                continue
            self.usable[node.id] = node
            self.free[node.id] = {"cpus": node.cpus, "gpus": node.gpus, "memory": node.memory}
            self.note("joined", node, shared=answer.shared, cores=answer.environment.get("cores"))
        self._answers = []

    def _earlier_kind(self) -> Kind | None:
        """The kind of the node, or machine, that the first rounds of the run were made on."""
        for cell in self.work.cells:
            first = self.work.folder.round(cell.key, 0)
            if first.exists() and (made_in := read_round(first).get("environment")):
                return kind_of(made_in)
        return None

    def _refuse(self, node: Node, why: str) -> None:
        self.note("refused", node, why=why)
        self.work.tally.say("", f"node {node.name} is not used: {why}")

    def lose(self, node: Node, why: str) -> None:
        """A node is gone."""
        if self.usable.pop(node.id, None):
            self.free.pop(node.id, None)
            self.note("left", node, why=why)
            self.work.tally.say("", f"node {node.name} is lost: {why}")

    def reserve(self) -> Node | None:
        """The node that has the fewest tasks, which gets no other from now on; None where all are
        reserved."""
        rest = [node for node in self.usable.values() if node.id not in self.reserved]
        if not rest:
            return None
        node = max(rest, key=lambda node: self.free[node.id]["cpus"] / node.cpus)
        self.reserved.add(node.id)
        return node

    def room(self, need: Mapping[str, float]) -> Node | None:
        """The node with the most CPUs to spare among those that have room for a task."""
        fitting = [
            node
            for node in self.usable.values()
            if node.id not in self.reserved and self._fits(need, node)
        ]
        return max(fitting, key=lambda node: self.free[node.id]["cpus"], default=None)

    def _fits(self, need: Mapping[str, float], node: Node) -> bool:
        """Whether a task fits beside others; what needs more memory than there is runs alone."""
        free = self.free[node.id]
        wanted = {**need, "memory": min(need["memory"], node.memory)}
        return all(free[name] >= wanted[name] for name in wanted)

    def take(self, need: Mapping[str, float], node: Node, sign: int = 1) -> None:
        """Count what a task takes of a node, or gives back (`sign` -1)."""
        free = self.free.get(node.id, {})
        for name in free:
            free[name] -= sign * (min(need[name], node.memory) if name == "memory" else need[name])

    def busy(self, node: Node) -> bool:
        """Whether a node has tasks that take CPUs of it."""
        return self.free[node.id]["cpus"] < node.cpus

    def note(self, event: str, node: Node, cell: str = "", shard: int = 0, **facts: Any) -> None:
        """Add a line to the log of the run folder: nodes that joined, left or were refused, shards
        begun, finished or lost."""
        line = {"time": datetime.now(UTC).isoformat(), "event": event, "node": node.name, **facts}
        if cell:
            line |= {"cell": cell, "shard": shard}
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
