"""The processes that measure: one for each unit, or one for all units of a model and round, which
loads the model once. What a process does not say before it ends, or in time, is written down for
it. No torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from itertools import groupby
from multiprocessing.connection import wait
from typing import Any

from ditbench import IN_CHECKOUT, ROOT
from ditbench.records.children import begin, starting
from ditbench.records.files import write_json
from ditbench.records.record import read_round
from ditbench.records.run_folder import RunFolder
from ditbench.records.text import one_line
from ditbench.runner.spec import Spec
from ditbench.runner.units import Unit
from ditbench.runner.worker import Job, run_units

ENDING_S = 10.0
"""Seconds a process may take to end after its last result, which is kept whatever it does."""

LONGEST_TEMPORARY = 70
"""Bytes of the name of the folder for temporary files: that of a socket has 103 at most on all
systems, and `/pymp-xxxxxxxx/listener-xxxxxxxx` takes 32."""


def context_for(device: str) -> Any:
    """How processes are started. On a GPU each is a fresh interpreter (spawn), for what is imported
    initialises CUDA, and a process forked from such a one cannot use it. On the CPU they are forked
    from one that has imported everything already.
    """
    if device.startswith("cuda"):
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [*(["run_bench"] if IN_CHECKOUT else []), "ditbench.runner.preload"]
    )
    # In a bare checkout that process finds the package through `run_bench`, as we did; PYTHONPATH
    # says where, since the forkserver inherits no import path of ours.
    before = os.environ.get("PYTHONPATH")
    if IN_CHECKOUT:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        with starting(tracked=True):
            _check_temporary()
            forkserver.ensure_running()
    finally:
        if IN_CHECKOUT:
            del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


def _check_temporary() -> None:
    """ValueError where the folder for temporary files has so long a name that no socket, by which
    processes are asked for, can be made there."""
    folder = tempfile.gettempdir()
    if os.name == "posix" and len(os.fsencode(folder)) > LONGEST_TEMPORARY:
        raise ValueError(
            f"TMPDIR is {one_line(folder, 60)}, {len(os.fsencode(folder))} bytes long, and a socket has "
            f"to have a place there: set it to a folder of at most {LONGEST_TEMPORARY} bytes"
        )


def groups(units: Sequence[Unit], process: str) -> list[list[Unit]]:
    """Which units share a process: none (`cell`), or those of a model and round (`round`) but for
    stacks that a pipeline does not come back from; those run alone."""
    if process == "cell":
        return [[unit] for unit in units]
    in_groups = []
    for _, part in groupby(units, key=lambda unit: (unit.cell.model.name, unit.round)):
        of_round = list(part)
        alone = [u for u in of_round if not all(m.traits.reversible for m in u.cell.stack.methods)]
        if shared := [unit for unit in of_round if unit not in alone]:
            in_groups.append(shared)
        in_groups += [[unit] for unit in alone]
    return in_groups


def run_group(
    context: Any, spec: Spec, jobs: Sequence[Job], session: str, folder: RunFolder
) -> Generator[tuple[dict[str, Any], float]]:
    """Run jobs in one process, in order: of each what was written for it, and the seconds it took.

    A process that ends, or that takes longer than the time limit for a job, fails that job alone;
    the rest goes on in a new one.
    """
    waiting = list(jobs)
    while waiting:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_measure, args=(spec, list(waiting), session, folder, sender), daemon=True
        )
        with starting(tracked=True), _forkserver_lives():
            process.start()
        sender.close()
        state = "on"
        try:
            while waiting and state == "on":
                began = time.monotonic()
                job = waiting.pop(0)
                state = _state(receiver, process, spec.time_limit)
                if state != "on":
                    process.join(0 if state == "late" else ENDING_S)
                path = folder.round(job.key, job.round, session if job.again else "")
                if not path.exists():
                    reason = (
                        f"it took longer than its time limit of {spec.time_limit} s (--time-limit)"
                        if state == "late"
                        else ending_of(process)
                    )
                    write_json(
                        path,
                        {"status": "failed", "reason": reason, "round": job.round, "seconds": 0.0},
                    )
                yield read_round(path), time.monotonic() - began
        finally:
            if process.is_alive():  # late, no longer wanted, or hanging after its last result
                process.kill()
            process.join()
            receiver.close()


@contextlib.contextmanager
def _forkserver_lives() -> Iterator[None]:
    """An OSError that says what has happened where the process that all others are forked from is
    gone."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise OSError(
            "the process that starts those that measure was killed (out of memory, most often); the "
            "same command goes on from here"
        ) from error


def _measure(spec: Spec, jobs: Sequence[Job], session: str, folder: RunFolder, sender: Any) -> None:
    """What a process does that measures."""
    begin()
    run_units(spec, jobs, session, folder, sender)


def _state(receiver: Any, process: Any, limit: float) -> str:
    """What becomes of a process that works on a unit: it goes `on` with the next, this was its
    `last`, it is `dead`, or `late`."""
    ready = wait([receiver, process.sentinel], limit)
    if not ready:
        return "late"
    try:
        return (
            "on" if receiver.poll() and receiver.recv() else "last" if receiver in ready else "dead"
        )
    except EOFError:
        return "dead"


def ending_of(process: Any) -> str:
    """How a process ended that wrote nothing."""
    process.join(ENDING_S)
    code = process.exitcode or 0
    if code >= 0:
        return f"its process ended with exit code {code} and no word"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"its process was killed by {name}" + (
        " (out of memory, most often)" if name == "SIGKILL" else ""
    )
