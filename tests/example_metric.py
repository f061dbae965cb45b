"""A complete metric from outside: how much of the pictures is as bright as can be."""

import sys
from typing import Any

import numpy as np

from ditbench.metrics import Metric, register_metric


def refuse(cell: Any, metric: Metric) -> str:
    """Every cell has pixels."""
    return ""


def fingerprint(cell: Any, metric: Metric) -> str:
    """Values depend on the samples and on what is computed here: raise it with every change."""
    return "1"


def extract(cell: Any, metric: Metric) -> dict[str, Any]:
    """One value for each sample, over its pixels and frames; chunks are uint8 [n, ..., 3]."""
    clipped = [chunk >= 250 for chunk in cell.samples.chunks()]
    shares = [chunk.reshape(len(chunk), -1).mean(1) for chunk in clipped]
    return {metric.name: np.concatenate(shares)}


register_metric(
    Metric(
        name="clipped.share",
        family="clipped",
        better="neither",
        unit="",
        bounds=(0.0, 1.0),
        doc="Share of pixel values of 250 and more.",
        needs="",
        table="more",
    ),
    sys.modules[__name__],
)
