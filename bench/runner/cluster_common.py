"""What the rounds and the shards of one command share on a cluster: its nodes, what a model is asked
for, how often something was lost, and whether the command ends. No torch."""

from __future__ import annotations

import threading
from typing import Any

from ditbench.runner.cluster import Lost, Node
from ditbench.runner.members import Members
from ditbench.runner.remote import Place
from ditbench.runner.units import Unit
from ditbench.runner.work import Work

POLL_S = 0.5
"""Seconds after which is looked whether the command is to end."""
DEATHS = 2
"""How often a shard, or a round, may end its process before it has failed."""
LOSSES = 3
"""How often the node may be lost that is at it."""


class Cancelled(Exception):
    """The command ends."""


class Common:
    """Of one command; threads share it."""

    def __init__(self, cluster: Any, work: Work, place: Place) -> None:
        self.cluster, self.work, self.place = cluster, work, place
        self.members = Members(cluster, work, place)
        self.begun = False
        """Whether any shard, or new round, was begun: a command that is late still begins one."""
        self.changed = threading.Condition()
        """Of the nodes and what they are at."""
        self.cancelled = threading.Event()
        self.errors: list[BaseException] = []
        """Of threads."""
        self.requests: dict[str, Any] = {}
        """By model, what it is asked for, as tasks are given it."""
        self._deaths: dict[tuple[str, int, bool, int], int] = {}
        self._losses: dict[tuple[str, int, bool, int], int] = {}
        for name in dict.fromkeys(u.cell.model.name for u in (*work.rounds, *work.shards)):
            path = work.folder.requests(name)
            self.requests[name] = cluster.put(
                {path.relative_to(work.folder.path).as_posix(): path.read_bytes()}
            )

    def late(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.work.late() and self.begun

    def lose(self, node: Node, why: str) -> None:
        """A node is gone."""
        with self.changed:
            self.members.lose(node, why)

    def blame(self, unit: Unit, loss: Lost) -> str:
        """Why a round or a shard has failed, where it lost its process or node too often; else ""."""
        counts, most = (self._losses, LOSSES) if loss.node else (self._deaths, DEATHS)
        counts[unit.name] = counts.get(unit.name, 0) + 1
        return f"{loss}, {most} times" if counts[unit.name] >= most else ""
