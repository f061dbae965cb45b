"""Let the tests import ditbench from a bare checkout, exactly as `run_bench.py` does.

One thread a process: the tests' matrices are small, runs fork a process a cell, and pytest-xdist
runs files side by side.
"""

import gc
import os
import sys
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import run_bench  # noqa: F401

SLOW = (
    "full_size::*[wan-2.1-1.3b]", "full_size::*[flux-1-dev]", "full_size::*[pixart-alpha-1024]",
    "full_preparation::test_full_size_models_are_prepared_*[pixart-alpha-256]",
    "full_preparation::test_full_size_models_are_prepared_*[sd3-medium]",
    "full_preparation::test_full_size_models_are_prepared_*[wan-2.1-1.3b]",
    "full_preparation::test_random_weights_are_the_same_in_every_process",
    "costs::test_a_batch_that_was_not_simulated_*[toca]", "costs::test_what_comes_along_*[fora]", "costs::test_what_comes_along_*[fp8]",
    "shards::test_prompts_encoded_once_*[wan-tiny]", "shards::test_a_shard_that_takes_too_long_*",
    "damage::test_no_field_of_a_record_*[2]", "page::test_the_page_of_a_published_run_*",
    "imports::*[half installed]", "imports::*[another torch]",
    "learning::test_a_row_is_as_sensitive_*[flux]", "learning::test_a_row_is_as_sensitive_*[wan]",
    "simulations::test_intervals_cover_and_verdicts_keep_their_levels[sets]",
    "flops::test_tocas_rows_on_pixart_follow_from_a_count",
    "flops::test_the_rivals_*[toca(ratio=0.4, quirk=False)-1.7693]",
    "environments::test_a_real_cell_added_*", "lock::test_a_killed_command_*[False]",
    "processes::test_cells_that_share_*[six]",
    "simulation::test_no_method_makes_the_host_wait_*[wan-2.1-1.3b]",
    "simulation::test_estimate_has_a_row_*[wan-2.1-1.3b]",
)  # fmt: skip
"""Tests of the slow suite beside those that are marked where they stand, as FILE::NAME: what takes
long and is tried in the ordinary suite on another model, stack or size."""


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


def pytest_xdist_auto_num_workers():
    """One more than there are cores: tests that wait for processes leave theirs idle."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2) + 1


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
