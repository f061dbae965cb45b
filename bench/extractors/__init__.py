"""Pinned networks whose features metrics are computed on, and sets of reference features."""

from ditbench.extractors.table import Extractor, extractors, find

__all__ = ["Extractor", "extractors", "find"]
