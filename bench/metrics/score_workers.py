"""Cells scored side by side, in processes that are spawned: what extractors import initialises CUDA,
which a forked process cannot use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from ditbench.extractors.references import ReferenceSets
from ditbench.extractors.shelf import Shelf
from ditbench.metrics.samples import Samples
from ditbench.metrics.set_statistics import Sets, sets_of
from ditbench.records.record import Record


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell to be scored."""

    folder: Path
    record: Record
    none: Record | None
    """The record of the model's baseline."""
    opened: dict[str, Samples]
    """Samples of both, by key, where they can be read."""
    metrics: str | list[str] | None
    judge_folder: Path | None


Outcome = tuple[bool, list[str]]
"""Whether anything was written, and a sentence for each damaged file."""
Score = Callable[[Job, Shelf, Sets], Outcome]

_of_process: tuple[Shelf, Sets] | None = None
"""What a worker keeps from cell to cell: networks and references are read once."""


def abreast(
    jobs: Sequence[Job], score: Score, folder: Path, shelf: Shelf | None, workers: int,
    plugins: Sequence[str],
    progress: Callable[[str, int, int], None] | None,
) -> Iterator[tuple[Job, Outcome]]:  # fmt: skip
    """Each job with what came of it, in order; `progress` is told (key, cells done, cells in all)
    before a cell, or, with several workers, before waiting for it. `score` is a function of a
    module, which workers import. ValueError when a worker dies."""
    if min(workers, len(jobs)) < 2:
        shelf = shelf or Shelf()
        sets = _sets(folder, shelf)
        for i, job in enumerate(jobs):
            if progress:
                progress(job.record["key"], i, len(jobs))
            yield job, score(job, shelf, sets)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=get_context("spawn"),
        initializer=_begin,
        initargs=(folder, shelf, tuple(plugins)),
    )
    try:
        outcomes = [pool.submit(_in_worker, score, job) for job in jobs]
        for i, (job, outcome) in enumerate(zip(jobs, outcomes, strict=True)):
            if progress:
                progress(job.record["key"], i, len(jobs))
            yield job, outcome.result()
    except BrokenProcessPool:
        raise ValueError(
            "a process that scored died, perhaps for lack of memory; what it had finished is there, "
            "and the same command with fewer --workers goes on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _sets(folder: Path, shelf: Shelf) -> Sets:
    return sets_of(None, ReferenceSets(folder, shelf.table), cached=False)


def _begin(folder: Path, shelf: Shelf | None, plugins: Sequence[str]) -> None:
    global _of_process
    from ditbench.method.plugins import load_plugins

    load_plugins(plugins)
    shelf = shelf or Shelf()
    _of_process = shelf, _sets(folder, shelf)


def _in_worker(score: Score, job: Job) -> Outcome:
    assert _of_process is not None
    return score(job, *_of_process)
