"""Drawing side by side: in processes forked from the one that has read the runs, so that nothing is
read or sent twice."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

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
    try:
        with ProcessPoolExecutor(min(cores, len(jobs)), mp_context=get_context("fork")) as pool:
            return list(pool.map(_do, range(len(jobs))))
    finally:
        _jobs = ()


def _do(number: int) -> Any:
    return _jobs[number]()
