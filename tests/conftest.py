"""Let the tests import ditbench from a bare checkout, exactly as `run_bench.py` does.

One thread a process: the tests' matrices are small, runs fork a process a cell, and pytest-xdist
runs files side by side.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import run_bench  # noqa: F401

LONG = (
    "zoo", "full_size", "execute", "simulation", "learning", "distill", "protocol",
    "method_contract", "page", "flops", "reports", "methods", "alike", "simulations", "looking",
    "merging", "imports",
)  # fmt: skip
"""Files that take longest, first: with files side by side, one of them left for the end would run
alone. pytest-xdist keeps this order with --no-loadscope-reorder; by itself it goes by the number of
tests, and the longest files have few."""


def pytest_collection_modifyitems(items):
    order = {f"test_{name}.py": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
