"""ditbench: which ways of accelerating a diffusion transformer are worth using, alone and together."""

from pathlib import Path

__version__ = "0.1.0"

# In a bare checkout `methods/` and `reports/` lie beside `bench/`, not inside it: look for them there too.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "run_bench.py").is_file():
    __path__.append(str(_checkout))
