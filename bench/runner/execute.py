"""Run the cells of a plan in rounds, each in one fresh process, until every cell has its record.
Killed anywhere, it can go on.

The unit of work is one round of one cell. Its process writes `round-N.json` whole or not at all;
when a cell has all its rounds they are put together as `record.json`. Within a round the order of
cells is shuffled, and the baseline is in every round, and in every command that times anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ditbench.models.requests import fingerprint
from ditbench.records.files import write_json
from ditbench.records.lock import writing_to
from ditbench.records.record import MEASURED, read_round
from ditbench.records.run_folder import RunFolder
from ditbench.runner.assembling import extended, record_of
from ditbench.runner.plan import Cell
from ditbench.runner.processes import context_for, groups, run_group
from ditbench.runner.progress import Step
from ditbench.runner.resume import open_folder, take_up
from ditbench.runner.units import Rates, Unit, units_to_do
from ditbench.runner.worker import read_requests

Tell = Callable[[Step], None]


def execute(cells: Sequence[Cell], command: str, tell: Tell = lambda step: None) -> Path:
    """Run what is missing of `cells`, or as much of it as can be begun before the spec's
    `stop_after`, and return the run folder.

    Raises ValueError when the folder holds a run with other settings or of another schema version,
    and when another command writes to it. A cell that fails is a record.
    """
    with writing_to(cells[0].spec.folder):
        return _run(cells, open_folder(cells, command), tell)


def _run(cells: Sequence[Cell], folder: RunFolder, tell: Tell) -> Path:
    spec = cells[0].spec
    for cell in cells:
        record = folder.record(cell.key)
        requests = fingerprint(read_requests(folder.requests(cell.model.name)))
        for sentence in take_up(cell, folder, requests):
            tell(Step(cell.label, 0, 0, None, sentence))
        if not record.exists() and cell.refusal:
            refused = {"status": "refused", "reason": cell.refusal, "seconds": 0.0}
            write_json(record, record_of(cell, [refused]))
        elif not record.exists():
            _put_together(cell, folder)  # all its rounds may be there
    units = units_to_do(cells, folder)
    session = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    rates = Rates(units)
    began, stopping = time.monotonic(), False
    latest: Unit | None = None
    advanced = False  # or every command would time the baseline again and stop
    context, done = context_for(spec.device) if units else None, 0
    for group in groups(units, spec.process_of_device):
        queue = [unit for unit in group if unit.again or not folder.record(unit.cell.key).exists()]
        done += len(group) - len(queue)  # an earlier round of the others failed
        running: Generator[tuple[Unit, dict[str, Any], float]] | None = None
        while queue:
            late = 0 < spec.stop_after <= time.monotonic() - began
            advanced = advanced or bool(latest and not queue[0].same_round(latest))
            if latest and advanced and late and not stopping:
                stopping, queue = True, [unit for unit in queue if unit.completes(latest)]
                if running:
                    running.close()
                running = None
                continue
            if stopping and latest and not queue[0].completes(latest):
                break
            running = running or run_group(context, spec, queue, session, folder)
            part = f"round {queue[0].round + 1}/{spec.rounds}"
            part += ", timed again" if queue[0].again else ""
            label = f"{queue[0].cell.label}  {part}"
            tell(Step(label, done, len(units), rates.remaining(done)))
            unit, result, seconds = next(running)
            latest, queue, done = unit, queue[1:], done + 1
            advanced = advanced or not unit.again
            rates.saw(unit, seconds)
            cell, left = unit.cell, rates.remaining(done)
            if unit.again and result["status"] not in MEASURED:
                line = f"{cell.label}: timed again, {result['status']}: {result['reason']}"
                tell(Step(cell.label, done, len(units), left, line))
            elif (status := _put_together(cell, folder)) and not unit.again:
                tell(Step(cell.label, done, len(units), left, f"{cell.label}: {status}"))
        if running:
            running.close()
    tell(Step("", len(units), len(units), 0.0))
    return folder.path


def _put_together(cell: Cell, folder: RunFolder) -> str:
    """Write the record when the cell has all its rounds, or as soon as one of them went wrong; its
    status, "" while rounds are missing."""
    rounds = [read_round(path) for path in folder.rounds(cell.key)]
    wrong = [r for r in rounds if r["status"] not in MEASURED]
    again = [read_round(path) for path in folder.timed_again(cell.key)]
    if not wrong and len(rounds) < cell.spec.rounds:
        if folder.record(cell.key).exists():
            write_json(folder.record(cell.key), extended(folder, cell.key, again))
        return ""
    record = record_of(cell, wrong[:1] or [*rounds, *(r for r in again if r["status"] in MEASURED)])
    write_json(folder.record(cell.key), record)
    if wrong:
        folder.samples(cell.key).unlink(missing_ok=True)
    return str(record["status"])
