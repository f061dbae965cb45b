"""Let the tests import ditbench from a bare checkout, exactly as `run_bench.py` does.

One thread a process: the tests' matrices are small, runs fork a process a cell, and pytest-xdist
runs files side by side.
"""

import gc
import os
import random
import sys
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import run_bench  # noqa: F401

SLOW = [
    line
    for line in (Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def fnmatch_any(name, patterns):
    """Brackets are no pattern here: they are part of names."""
    return any(fnmatchcase(name, p.replace("[", "[[]")) for p in patterns)


LONG = (
    "zoo", "full_size", "execute", "simulation", "learning", "distill", "protocol",
    "method_contract", "page", "flops", "reports", "methods", "alike", "simulations", "looking",
    "merging", "imports",
)  # fmt: skip
"""Files that take longest, first: with files side by side, one of them left for the end would run
alone. pytest-xdist keeps this order with --no-loadscope-reorder; by itself it goes by the number of
tests, and the longest files have few."""


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers():
    """One more than there are cores: tests that wait for processes leave theirs idle."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2) + 1


def seed():
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.hookimpl(tryfirst=True)  # before fixtures of any scope
def pytest_runtest_setup(item):
    """What a test draws does not go by the tests that ran before it in the same process."""
    seed()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    """Nor by whether it is the first to ask for a fixture of its module, which may draw too."""
    if fixturedef.scope == "function":
        return (yield)
    seed()
    try:
        return (yield)
    finally:
        seed()


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    for item in items:
        if fnmatch_any(f"{item.path.stem.removeprefix('test_')}::{item.name}", SLOW):
            item.add_marker(pytest.mark.slow)
    order = {f"test_{name}.py": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="module")
def undrawn():
    """Reports without their figures, for modules that look at tables and words alone."""
    with no_figures():
        yield


@pytest.fixture
def undrawn_here():
    """The same for one test."""
    with no_figures():
        yield


@contextmanager
def no_figures():
    import ditbench.reports.page.page  # noqa: F401, which has `abreast` of its own for its images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditbench.reports.sections.parallel.abreast", lambda jobs: [{} for _ in jobs])
        yield


def pytest_collection_finish():
    """What is imported by now stays: the collector of garbage need not look through it, which takes
    a quarter of the time of small tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def methods_of_the_module():
    """What a file's tests declare ends with the file: reports, plans and lists look at every method
    there is, and a broken one would be another file's failure."""
    from ditbench.method.plugins import forget
    from ditbench.method.registry import METHODS

    before = set(METHODS)
    yield
    for name in set(METHODS) - before:
        module = METHODS[name].__module__ if name in METHODS else "ditbench."
        if module.startswith("ditbench_plugin_"):
            forget(module)
        elif not module.startswith("ditbench."):
            del METHODS[name]
