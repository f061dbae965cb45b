"""Estimates, distances and tests: numbers only. numpy and scipy."""

from ditbench.statistics.estimates import Estimate, delta, mean
from ditbench.statistics.times import Speedup, speedup

__all__ = ["Estimate", "Speedup", "delta", "mean", "speedup"]
