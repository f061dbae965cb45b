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
from typing import Any

from ditbench import IN_CHECKOUT, ROOT
from ditbench.models.requests import fingerprint
from ditbench.records.files import read_json, write_json
from ditbench.records.record import MEASURED, SCHEMA
from ditbench.runner.plan import Cell
from ditbench.runner.progress import Step
from ditbench.runner.resume import open_folder, take_up
from ditbench.runner.worker import ROUND, SAMPLES, read_requests, run_round

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
        at = folder / "cells" / cell.key
        take_up(
            cell, at, fingerprint(read_requests(folder / "requests" / f"{cell.model.name}.json"))
        )
        if not (at / "record.json").exists() and cell.refusal:
            write_json(
                at / "record.json",
                _record(cell, [{"status": "refused", "reason": cell.refusal, "seconds": 0.0}]),
            )
        elif not (at / "record.json").exists():
            _put_together(cell, folder)  # all its rounds may be there
    units = _units(cells, folder)
    context = _forkserver() if units else None
    rates = _Rates(units)
    for i, (cell, round_) in enumerate(units):
        if (folder / "cells" / cell.key / "record.json").exists():
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
    return folder


def _forkserver() -> Any:
    """A context whose processes are forked from one that has imported everything already.

    In a bare checkout that process finds the package through `run_bench`, as we did; it is told
    where by PYTHONPATH, since the forkserver is handed no import path of ours.
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


def _units(cells: Sequence[Cell], folder: Path) -> list[tuple[Cell, int]]:
    """What is still to do: per model, round after round, shuffled inside a round the same way every
    time."""
    spec, found = cells[0].spec, []
    for name in dict.fromkeys(cell.model.name for cell in cells):
        for round_ in range(spec.rounds):
            order = [c for c in cells if c.model.name == name]
            random.Random(f"{spec.seed}/{name}/{round_}").shuffle(order)
            for cell in order:
                at = folder / "cells" / cell.key
                if not (at / "record.json").exists() and not (at / ROUND.format(round_)).exists():
                    found.append((cell, round_))
    return found


def _run_unit(context: Any, cell: Cell, round_: int, folder: Path) -> None:
    at = folder / "cells" / cell.key
    requests = folder / "requests" / f"{cell.model.name}.json"
    told = (cell.spec, cell.model.name, str(cell.stack), round_, at, requests, cell.depends)
    process = context.Process(target=run_round, args=told, daemon=True)
    process.start()
    try:
        process.join(CELL_TIMEOUT_S)
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    if not (at / ROUND.format(round_)).exists():
        code = process.exitcode or 0
        reason = (
            f"its process was killed by {_signal(-code)}"
            if code < 0
            else f"its process ended with exit code {code} and no word"
        )
        write_json(
            at / ROUND.format(round_),
            {"status": "failed", "reason": reason, "round": round_, "seconds": 0.0},
        )


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return name + (" (out of memory, most often)" if name == "SIGKILL" else "")


def _put_together(cell: Cell, folder: Path) -> str:
    """Write the record when the cell has all its rounds, or as soon as one of them went wrong; its
    status, "" while rounds are missing."""
    at = folder / "cells" / cell.key
    rounds = [read_json(path) for path in sorted(at.glob("round-*.json"))]
    wrong = [r for r in rounds if r["status"] not in MEASURED]
    if not wrong and len(rounds) < cell.spec.rounds:
        return ""
    record = _record(cell, wrong[:1] or rounds)
    write_json(at / "record.json", record)
    if wrong:
        (at / SAMPLES).unlink(missing_ok=True)
    return str(record["status"])


def _record(cell: Cell, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    first = min(rounds, key=lambda r: r.get("round", 0))
    settings = cell.spec.settings() | {
        "num_samples": cell.num_samples,
        "batch_size": cell.batch_size,
    }
    settings |= {
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
        "run": settings,
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
