"""The engine of many machines: rounds and shards as tasks on the nodes of a Ray cluster. No torch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ditbench.runner import remote
from ditbench.runner.cluster import Cluster
from ditbench.runner.cluster_common import Common
from ditbench.runner.cluster_rounds import Rounds
from ditbench.runner.cluster_shards import Shards
from ditbench.runner.work import TimeRounds, Work


class RayEngine:
    """Tasks on the nodes of a Ray cluster."""

    def __init__(self, connect: Callable[[str], Any] = Cluster) -> None:
        """`connect`: gives a `Cluster` by its address."""
        self.connect = connect

    def run(self, work: Work, time_rounds: TimeRounds) -> None:
        """Rounds of each model on a node of its own, shards on the others, until all is over or it is
        late. OSError where there is no cluster, or no node that can be used."""
        if not work.rounds and not work.shards:
            return
        cluster = self.connect(work.spec.address)
        place = remote.here(work.folder, work.session)
        try:
            _carry_out(Common(cluster, work, place), time_rounds)
        finally:
            cluster.close()
            place.token.unlink(missing_ok=True)


def _carry_out(common: Common, time_rounds: TimeRounds) -> None:
    common.members.look(wait=True)
    rounds, shards = Rounds(common, time_rounds), Shards(common)
    threads = [
        threading.Thread(target=rounds.time_model, args=(name,), name=f"rounds of {name}")
        for name in dict.fromkeys(unit.cell.model.name for unit in common.work.rounds)
    ]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads) or shards.left():
            if common.errors:
                break
            with common.changed:
                common.members.look()
            shards.place()
            shards.listen()
    finally:
        common.cancelled.set()
        with common.changed:
            common.changed.notify_all()
        for thread in threads:
            thread.join()
    if common.errors:
        raise common.errors[0]
