"""How far a sample is from the un-accelerated one of the same noise, by the judge's layers: what
schedules are learned by.

The construction is LPIPS's, the network is not, so the name is not (see
`ditbench.shapes.perceptual`). It says how far a sample moved, not whether it got worse. n
samples.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from ditbench.metrics import fidelity
from ditbench.metrics.samples import Sampled, to_pixels
from ditbench.metrics.table import Metric

VERSION = "perceptual layers 1 3 4 6 1"


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has no perceptual distance, or ""."""
    return fidelity.refuse(cell, metric) or cell.unjudged


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """Names everything the values depend on besides the samples: the baseline's samples and the
    judge's weights."""
    judge = cell.judge_path.read_bytes() if not cell.unjudged else b""
    return hashlib.sha256(
        (VERSION + fidelity.fingerprint(cell, metric)).encode() + judge
    ).hexdigest()


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray[np.float64]]:
    """`perceptual.shapes_v1` [n]."""
    import torch

    from ditbench.shapes.perceptual import Perceptual

    assert cell.baseline is not None
    distance = Perceptual(cell.judge())
    with torch.inference_mode():
        distances = [
            distance(to_pixels(a), to_pixels(b)).double().numpy()
            for a, b in zip(cell.samples.chunks(), cell.baseline.chunks(), strict=True)
        ]
    return {metric.name: np.concatenate(distances)}
