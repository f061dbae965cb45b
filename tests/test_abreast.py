"""Jobs side by side: their order, what they raise, and one core."""

import os
import sys
from functools import partial

import pytest

from ditbench.reports.sections import parallel as module
from ditbench.reports.sections.parallel import abreast


def squared(number):
    return number * number, os.getpid()


def fails():
    raise ValueError("the third drawing has no rows")


@pytest.mark.parametrize("cores", [1, 3])
def test_results_come_in_the_order_of_the_jobs_on_one_core_and_on_several(cores, monkeypatch):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    found = abreast([partial(squared, i) for i in range(7)])
    assert [value for value, _ in found] == [i * i for i in range(7)]
    here = {pid for _, pid in found} == {os.getpid()}
    assert here == (cores == 1 or sys.platform != "linux")
    assert abreast([]) == []


@pytest.mark.parametrize("cores", [1, 3])
def test_what_a_job_raises_is_raised(cores, monkeypatch):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    with pytest.raises(ValueError, match="third drawing"):
        abreast([partial(squared, 1), partial(squared, 2), fails])
