"""ditbench: which ways of accelerating a diffusion transformer are worth using, alone and
together."""

from pathlib import Path

__version__ = "0.1.0"

PACKAGE = Path(__file__).resolve().parent
ZOO = PACKAGE / "zoo"
"""Folder of the tiny models, the judges of the shapes world and the shipped artefacts."""
ROOT = PACKAGE.parent
"""Folder that holds the package: the checkout, unless it is installed."""
IN_CHECKOUT = (ROOT / "run_bench.py").is_file()

# In a bare checkout `methods/` and `reports/` lie beside `bench/`, not inside it: look for them
# there too.
if IN_CHECKOUT:
    __path__.append(str(ROOT))
