"""Which engine carries out a command: processes of this machine, or tasks of a Ray cluster
(`--engine ray`). No torch, and no Ray unless it is chosen."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from ditbench.runner.plan import Cell
from ditbench.runner.processes import context_for, run_group
from ditbench.runner.spec import Spec
from ditbench.runner.units import Unit
from ditbench.runner.work import Engine, TimeRounds, Work
from ditbench.runner.workers import Workers


class Local:
    """Processes of this machine."""

    def run(self, work: Work, time_rounds: TimeRounds) -> None:
        """Rounds one after another; shards on further GPUs meanwhile, then on all devices."""
        spec, session, folder = work.spec, work.session, work.folder
        context = context_for(spec.device) if work.rounds or work.shards else None

        def measure(units: Sequence[Unit]) -> Generator[tuple[dict[str, Any], float]]:
            jobs = [unit.job for unit in units]
            return run_group(context, units[0].cell.spec, jobs, session, folder)

        workers = Workers(
            context=context, spec=spec, session=session, folder=folder, tally=work.tally,
            late=work.late, finish=work.finish,
        )  # fmt: skip
        with workers.beside(work.shards):
            workers.begun |= time_rounds(work, work.rounds, measure)


def engine_of(spec: Spec) -> Engine:
    """The engine that the settings name; ValueError where it is not installed."""
    check_engine(spec)
    if spec.engine == "local":
        return Local()
    from ditbench.runner.ray_engine import RayEngine

    return RayEngine()


def check_engine(spec: Spec) -> None:
    """ValueError, with the command that installs it, where an engine is not installed."""
    if spec.engine == "ray" and find_spec("ray") is None:
        raise ValueError(
            "engine: Ray is not installed here: pip install -c constraints.txt -e '.[ray]', on "
            "every node"
        )


def devices_elsewhere(cells: Sequence[Cell]) -> list[Cell]:
    """The cells without the refusals that are of this machine's devices alone, where other machines
    run them."""
    spec = cells[0].spec
    if spec.engine == "local" or spec.device == "cpu":
        return list(cells)
    return [replace(cell, refusal="") if cell.wants_device else cell for cell in cells]
