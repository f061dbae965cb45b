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
