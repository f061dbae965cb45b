"""Quality metrics: their table, what extracts them, and the scoring of a run."""

from ditbench.metrics.table import Metric, metrics, register_metric, select

__all__ = ["Metric", "metrics", "register_metric", "select"]
