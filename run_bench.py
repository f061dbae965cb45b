"""Run the benchmark from a checkout, installed or not."""

import sys
from importlib import util
from pathlib import Path

root = Path(__file__).resolve().parent
# Our datasets/ folder must not pass for Hugging Face's package of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != root]
spec = util.spec_from_file_location("ditbench", root / "bench" / "__init__.py")
assert spec is not None and spec.loader is not None
if "ditbench" not in sys.modules:
    sys.modules["ditbench"] = util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["ditbench"])

if __name__ == "__main__":
    from ditbench.cli import main

    raise SystemExit(main())
