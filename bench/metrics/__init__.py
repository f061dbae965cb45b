"""Quality metrics: their table, what extracts them, and the scoring of a run.

The table is imported when a name of it is asked for: `--help` needs the margins alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditbench.metrics.table import Metric, metrics, register_metric, select

__all__ = ["Metric", "metrics", "register_metric", "select"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("ditbench.metrics.table"), name)
