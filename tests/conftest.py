"""Let the tests import ditbench from a bare checkout, exactly as `run_bench.py` does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import run_bench  # noqa: F401
