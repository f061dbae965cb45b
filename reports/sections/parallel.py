"""Drawing side by side: in processes forked from the one that has read the runs, so that nothing is
read or sent twice."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import Any, TypeVar

from ditbench.records.children import begin, starting

T = TypeVar("T")

_jobs: Sequence[Callable[[], Any]] = ()
"""What forked processes find here; set while they are made."""


def abreast(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """What the jobs return, in their order; what one raises is raised here.

    On Linux in as many processes as this one may use cores; elsewhere, where forking is not safe,
    and on one core one after the other. What a job returns must be picklable, not the job.
    """
    global _jobs
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if min(cores, len(jobs)) < 2:
        return [job() for job in jobs]
    _jobs = jobs
    others = set(active_children())
    try:
        pool = _pool(min(cores, len(jobs)))
        if pool is None:
            return [job() for job in jobs]
        with pool:
            try:
                with starting():  # all are forked here
                    results = [pool.submit(_do, number) for number in range(len(jobs))]
                return [result.result() for result in results]
            except BrokenProcessPool as error:
                raise OSError(
                    "a process that draws was killed (out of memory, most often)"
                ) from error
            except KeyboardInterrupt:
                for child in set(active_children()) - others:
                    child.kill()
                raise
    finally:
        _jobs = ()


def _pool(workers: int) -> ProcessPoolExecutor | None:
    """Processes that end with this one; None where the system has no semaphores for them."""
    try:
        return ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=begin)
    except OSError:
        return None


def _do(number: int) -> Any:
    return _jobs[number]()
