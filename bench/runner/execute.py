"""Run the cells of a plan in rounds, each in one fresh process, and make what is left of their
samples, until every cell has its record. Killed anywhere, it can go on.

The unit of work is one round of one cell, or one shard of its samples. A round's process writes
`round-N.json` whole or not at all; when a cell has all its rounds and shards they are put together
as `record.json`. Within a round the order of cells is shuffled, and the baseline is in every round,
and in every command that times anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ditbench.models.requests import fingerprint
from ditbench.records.files import write_json
from ditbench.records.lock import writing_to
from ditbench.records.record import MEASURED
from ditbench.records.run_folder import RunFolder
from ditbench.runner.assembling import put_together, record_of
from ditbench.runner.engines import engine_of
from ditbench.runner.plan import Cell
from ditbench.runner.processes import groups
from ditbench.runner.progress import Step
from ditbench.runner.resume import open_folder, take_up
from ditbench.runner.tally import Tally
from ditbench.runner.units import Unit, shards_to_do, units_to_do
from ditbench.runner.work import Engine, Measure, Work
from ditbench.runner.worker import read_requests

Tell = Callable[[Step], None]


def execute(
    cells: Sequence[Cell], command: str, tell: Tell = lambda step: None,
    engine: Engine | None = None, memory: Mapping[str, float] | None = None,
) -> Path:  # fmt: skip
    """Run what is missing of `cells`, or as much of it as can be begun before the spec's
    `stop_after`, and return the run folder. `engine`: in place of the one the spec names; `memory`:
    peak bytes by the key of a cell, where they were estimated.

    Raises ValueError when the folder holds a run with other settings or of another schema version,
    and when another command writes to it. A cell that fails is a record.
    """
    engine = engine or engine_of(cells[0].spec)
    with writing_to(cells[0].spec.folder):
        return _run(cells, open_folder(cells, command), tell, engine, memory or {})


def _run(
    cells: Sequence[Cell],
    folder: RunFolder,
    tell: Tell,
    engine: Engine,
    memory: Mapping[str, float],
) -> Path:
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
            put_together(cell, folder)  # all its parts may be there
    rounds, shards = units_to_do(cells, folder), shards_to_do(cells, folder)
    tally = Tally([*rounds, *shards], tell, abreast=max(spec.workers, len(spec.devices)))
    session, began = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f"), time.monotonic()

    def late() -> bool:
        return 0 < spec.stop_after <= time.monotonic() - began

    work = Work(
        cells=cells, rounds=rounds, shards=shards, session=session, folder=folder, tally=tally,
        late=late, finish=lambda cell: put_together(cell, folder), memory=memory,
    )  # fmt: skip
    engine.run(work, _time)
    tell(Step("", len(tally.units), len(tally.units), 0.0))
    return folder.path


def _time(work: Work, units: Sequence[Unit], measure: Measure) -> bool:
    """Run rounds, or as many as can be begun before it is late; whether any is new."""
    folder, tally = work.folder, work.tally
    stopping = False
    latest: Unit | None = None
    advanced = False  # or every command would time the baseline again and stop
    for group in groups(units, units[0].cell.spec.process_of_device) if units else ():
        spec = group[0].cell.spec
        queue = [unit for unit in group if unit.again or not folder.record(unit.cell.key).exists()]
        for unit in group:
            if unit not in queue:
                tally.over(unit)  # an earlier round of the others failed
        running: Generator[tuple[dict[str, Any], float]] | None = None
        while queue:
            advanced = advanced or bool(latest and not queue[0].same_round(latest))
            if latest and advanced and work.late() and not stopping:
                stopping, queue = True, [unit for unit in queue if unit.completes(latest)]
                if running:
                    running.close()
                running = None
                continue
            if stopping and latest and not queue[0].completes(latest):
                break
            running = running or measure(queue)
            part = f"round {queue[0].round + 1}/{spec.rounds}"
            part += ", timed again" if queue[0].again else ""
            tally.say(f"{queue[0].cell.label}  {part}")
            result, seconds = next(running)
            unit = latest = queue[0]
            queue = queue[1:]
            tally.over(unit, seconds)
            advanced = advanced or not unit.again
            cell = unit.cell
            if unit.again and result["status"] not in MEASURED:
                line = f"{cell.label}: timed again, {result['status']}: {result['reason']}"
                tally.say(cell.label, line)
            elif (status := put_together(cell, folder)) and not unit.again:
                tally.say(cell.label, f"{cell.label}: {status}")
        if running:
            running.close()
    return advanced
