"""Rounds on a cluster: those of a model one after another on one node, which has no other task of
ours meanwhile, so that its times stay paired. No torch.

Where the node is lost, what is missing is measured on another, beside the baseline again, as by a
later command.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ditbench.records.files import write_json
from ditbench.records.record import read_round
from ditbench.records.run_folder import RunFolder
from ditbench.runner import remote
from ditbench.runner.cluster import Lost, Node
from ditbench.runner.cluster_common import POLL_S, Cancelled, Common
from ditbench.runner.units import Unit, units_to_do
from ditbench.runner.work import TimeRounds


class Rounds:
    """Those of one command."""

    def __init__(self, common: Common, time_rounds: TimeRounds) -> None:
        self.common, self.work, self.members = common, common.work, common.members
        self.time_rounds = time_rounds

    def time_model(self, name: str) -> None:
        """Have the rounds of a model measured on one node; on another where it is lost."""
        work, units = self.work, [u for u in self.work.rounds if u.cell.model.name == name]
        try:
            while node := self._reserve():
                try:
                    if not self.common.late():
                        measure = partial(self._measure, node, work.session)
                        self.common.begun |= self.time_rounds(work, units, measure)
                    return
                except Lost:
                    # as by a later command: what is missing, and the baseline beside it again
                    session = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
                    cells = [cell for cell in work.cells if cell.model.name == name]
                    work, units = replace(work, session=session), units_to_do(cells, work.folder)
                    names = {unit.name for unit in work.tally.units}
                    new = [unit for unit in units if unit.name not in names]
                    work.tally.units = [*work.tally.units, *new]
                finally:
                    self._release(node)
        except Cancelled:
            pass
        except BaseException as error:
            self.common.errors.append(error)

    def _reserve(self) -> Node | None:
        """A node that has no other task of ours, and gets none; None where the command ends."""
        node: Node | None = None
        with self.common.changed:
            while not self.common.cancelled.is_set():
                if node and node.id not in self.members.usable:
                    self.members.reserved.discard(node.id)
                    node = None
                node = node or self.members.reserve()
                if node and not self.members.busy(node):
                    return node
                self.common.changed.wait(POLL_S)
            if node:
                self.members.reserved.discard(node.id)
        return None

    def _release(self, node: Node) -> None:
        with self.common.changed:
            self.members.reserved.discard(node.id)
            self.common.changed.notify_all()

    def _measure(
        self, node: Node, session: str, units: Sequence[Unit]
    ) -> Generator[tuple[dict[str, Any], float]]:
        """Measure units on a node, in one process where they share it."""
        waiting, folder = list(units), self.work.folder
        on_gpu = self.work.spec.device != "cpu"
        while waiting:
            firsts = [folder.round(unit.cell.key, 0) for unit in waiting]
            files = {
                path.relative_to(folder.path).as_posix(): path.read_bytes()
                for path in firsts
                if path.exists()
            }
            task = self.common.cluster.submit(
                node, remote.measure, self.common.place, waiting[0].cell.spec,
                [unit.job for unit in waiting], session,
                self.common.requests[waiting[0].cell.model.name], files,
                cpus=node.cpus, gpus=float(on_gpu), memory=0.0,
            )  # fmt: skip
            try:
                outcomes = self._result(task)
            except Lost as loss:
                if loss.node:
                    self.common.lose(node, str(loss))
                if reason := self.common.blame(waiting[0], loss):
                    yield self._fail_round(waiting.pop(0), reason, session), 0.0
                if loss.node:
                    raise
                continue
            for outcome in outcomes:
                remote.deliver(outcome.files, folder)
            for outcome in outcomes:
                yield read_round(_document(folder, waiting.pop(0), session)), outcome.seconds

    def _fail_round(self, unit: Unit, reason: str, session: str) -> dict[str, Any]:
        path = _document(self.work.folder, unit, session)
        failed = {"status": "failed", "reason": reason, "round": unit.round, "seconds": 0.0}
        write_json(path, failed)
        return failed

    def _result(self, task: Any) -> Any:
        """What a task returns, once it has ended; `Cancelled` where the command ends before."""
        while not self.common.cluster.wait([task], POLL_S):
            if self.common.cancelled.is_set():
                raise Cancelled
        return self.common.cluster.result(task)


def _document(folder: RunFolder, unit: Unit, session: str) -> Path:
    return folder.round(unit.cell.key, unit.round, session if unit.again else "")
