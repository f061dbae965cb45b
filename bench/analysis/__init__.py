"""Records and scores to rows with intervals and verdicts. No torch."""

from ditbench.analysis.summary import summarise

__all__ = ["summarise"]
