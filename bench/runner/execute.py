"""Run the cells of a plan in rounds, each in one fresh process, until every cell has its record.
Killed anywhere, it can go on.

The unit of work is one round of one cell. Its process writes `round-N.json` whole or not at all;
when a cell has all its rounds they are put together as `record.json`. Within a round the order of
cells is shuffled, and the baseline is in every round.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from ditbench import IN_CHECKOUT, ROOT
from ditbench.models.requests import fingerprint
from ditbench.records.files import read_json, write_json
from ditbench.records.record import MEASURED, SCHEMA, Done, Record
from ditbench.records.run_folder import RunFolder
from ditbench.runner.plan import Cell
from ditbench.runner.progress import Step
from ditbench.runner.resume import open_folder, take_up
from ditbench.runner.worker import read_requests, run_round

CELL_TIMEOUT_S = 6 * 3600.0
Tell = Callable[[Step], None]


def execute(cells: Sequence[Cell], command: str, tell: Tell = lambda step: None) -> Path:
    """Run what is missing of `cells` and return the run folder.

    Raises ValueError when the folder holds a run with other settings or of another schema version.
    A cell that fails is a record.
    """
    spec = cells[0].spec
    folder = open_folder(cells, command)
    for cell in cells:
        record = folder.record(cell.key)
        take_up(cell, folder, fingerprint(read_requests(folder.requests(cell.model.name))))
        if not record.exists() and cell.refusal:
            refused = {"status": "refused", "reason": cell.refusal, "seconds": 0.0}
            write_json(record, _record(cell, [refused]))
        elif not record.exists():
            _put_together(cell, folder)  # all its rounds may be there
    units = _units(cells, folder)
    context = _forkserver() if units else None
    rates = _Rates(units)
    for i, (cell, round_) in enumerate(units):
        if folder.record(cell.key).exists():
            continue  # an earlier round of it failed
        tell(
            Step(
                f"{cell.label}  round {round_ + 1}/{spec.rounds}", i, len(units), rates.remaining(i)
            )
        )
        began = time.monotonic()
        _run_unit(context, cell, round_, folder)
        rates.saw(cell, round_, time.monotonic() - began)
        if status := _put_together(cell, folder):
            left = rates.remaining(i + 1)
            tell(Step(cell.label, i + 1, len(units), left, f"{cell.label}: {status}"))
    tell(Step("", len(units), len(units), 0.0))
    return folder.path


def _forkserver() -> Any:
    """A context whose processes are forked from one that has imported everything already.

    In a bare checkout that process finds the package through `run_bench`, as we did; PYTHONPATH
    says where, since the forkserver inherits no import path of ours.
    """
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [*(["run_bench"] if IN_CHECKOUT else []), "ditbench.runner.preload"]
    )
    before = os.environ.get("PYTHONPATH")
    if IN_CHECKOUT:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        if IN_CHECKOUT:
            del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


def _units(cells: Sequence[Cell], folder: RunFolder) -> list[tuple[Cell, int]]:
    """What is still to do: per model, round after round, shuffled inside a round the same way every
    time."""
    spec, units = cells[0].spec, []
    for name in dict.fromkeys(cell.model.name for cell in cells):
        for round_ in range(spec.rounds):
            order = [c for c in cells if c.model.name == name]
            random.Random(f"{spec.seed}/{name}/{round_}").shuffle(order)
            for cell in order:
                if (
                    not folder.record(cell.key).exists()
                    and not folder.round(cell.key, round_).exists()
                ):
                    units.append((cell, round_))
    return units


def _run_unit(context: Any, cell: Cell, round_: int, folder: RunFolder) -> None:
    path = folder.round(cell.key, round_)
    arguments = (
        cell.spec, cell.model.name, str(cell.stack), round_, folder, cell.key, cell.depends,
    )  # fmt: skip
    process = context.Process(target=run_round, args=arguments, daemon=True)
    process.start()
    try:
        process.join(CELL_TIMEOUT_S)
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    if not path.exists():
        code = process.exitcode or 0
        reason = (
            f"its process was killed by {_signal(-code)}"
            if code < 0
            else f"its process ended with exit code {code} and no word"
        )
        write_json(
            path,
            {"status": "failed", "reason": reason, "round": round_, "seconds": 0.0},
        )


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return name + (" (out of memory, most often)" if name == "SIGKILL" else "")


def _put_together(cell: Cell, folder: RunFolder) -> str:
    """Write the record when the cell has all its rounds, or as soon as one of them went wrong; its
    status, "" while rounds are missing."""
    rounds = [read_json(path) for path in folder.rounds(cell.key)]
    wrong = [r for r in rounds if r["status"] not in MEASURED]
    if not wrong and len(rounds) < cell.spec.rounds:
        return ""
    record = _record(cell, wrong[:1] or rounds)
    write_json(folder.record(cell.key), record)
    if wrong:
        folder.samples(cell.key).unlink(missing_ok=True)
    return str(record["status"])


def _record(cell: Cell, rounds: list[dict[str, Any]]) -> Record:
    first = min(rounds, key=lambda r: r.get("round", 0))
    done = cell.spec.settings() | {
        "num_samples": cell.num_samples,
        "batch_size": cell.batch_size,
    }
    done |= {
        "requests_sha256": first.get("requests_sha256", ""),
        "model_sha256": first.get("model_sha256", ""),
    }
    return {
        "schema": SCHEMA,
        "key": cell.key,
        "model": cell.model.name,
        "family": cell.model.family,
        "world": cell.model.world,
        "stack": str(cell.stack),
        "methods": cell.stack.describe(),
        "status": first["status"],
        "reason": first["reason"],
        "traceback": first.get("traceback", ""),
        "settings": cell.spec.requested(),
        "samples": cell.num_samples,
        "batch": cell.batch_size,
        "run": cast(Done, done),
        "depends_on": cell.depends,
        "sampling": first.get("sampling", {}),
        "environment": first.get("environment", {}),
        "load_s": first.get("load_s"),
        "first_call_s": first.get("first_call_s"),
        "timing": [entry for r in rounds for entry in r.get("timing", [])],
        "memory": first.get("memory", {}),
        "flops": first.get("flops", {}),
        "counters": first.get("counters", {}),
        "notes": first.get("notes", {}),
        "schedule": first.get("schedule"),
        "prompts_cut": first.get("prompts_cut", {}),
        "artifacts": first.get("artifacts", {}),
        "seconds": sum(r["seconds"] for r in rounds),
    }


class _Rates:
    """Seconds a unit takes, learned while running: per (batch, step) of each model, first rounds
    have all batches."""

    def __init__(self, units: list[tuple[Cell, int]]) -> None:
        self.units = units
        self.seen: dict[str, list[float]] = {}

    def size(self, cell: Cell, round_: int) -> float:
        calls = (
            1
            + (-(-cell.num_samples // cell.batch_size) if round_ == 0 else 1)
            + (1.5 if round_ == 0 else 0)
        )
        return calls * cell.sampling.steps

    def saw(self, cell: Cell, round_: int, seconds: float) -> None:
        self.seen.setdefault(cell.model.name, []).append(seconds / self.size(cell, round_))

    def remaining(self, start: int) -> float | None:
        """Seconds the units from `start` on will take."""
        if not self.seen:
            return None
        mean = {name: sum(v) / len(v) for name, v in self.seen.items()}
        overall = sum(mean.values()) / len(mean)
        return sum(mean.get(c.model.name, overall) * self.size(c, r) for c, r in self.units[start:])
