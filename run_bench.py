"""Run the benchmark from a checkout, installed or not."""

import sys
from importlib import util
from pathlib import Path

root = Path(__file__).resolve().parent


def _is_root(entry: str) -> bool:
    try:
        return Path(entry or ".").resolve() == root
    except OSError:  # the working directory is gone
        return False


# Our datasets/ folder must not pass for Hugging Face's package of that name.
sys.path[:] = [entry for entry in sys.path if not _is_root(entry)]
spec = util.spec_from_file_location("ditbench", root / "bench" / "__init__.py")
assert spec is not None and spec.loader is not None
if "ditbench" not in sys.modules:
    sys.modules["ditbench"] = util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["ditbench"])

if __name__ == "__main__":
    try:
        from ditbench.cli import main
    except KeyboardInterrupt:  # before there is anything to end
        raise SystemExit(130) from None
    raise SystemExit(main())
