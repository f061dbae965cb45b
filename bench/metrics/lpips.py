"""`lpips.alex_v0_1`: LPIPS (Zhang et al. 2018) with AlexNet, of each sample to the baseline's from
the same noise.

Distances of unit-length features after AlexNet's five rectifiers, weighted by the linear heads of
version 0.1, averaged over places and added up. Nothing but the published files goes by this name:
torchvision's AlexNet and the authors' heads, which torchmetrics carries. Videos: per frame, then
the mean. Inputs are scaled to -1..1 and never resized.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ditbench.extractors.networks.lpips import BACKBONE, HEADS, SMALLEST, distance, heads_path
from ditbench.extractors.pinned_files import located
from ditbench.metrics import fidelity
from ditbench.metrics.samples import Sampled, to_pixels
from ditbench.metrics.table import Metric

if TYPE_CHECKING:
    import torch

VERSION = "lpips alex 0.1 1"


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has no LPIPS, or ""."""
    if reason := fidelity.refuse(cell, metric):
        return reason
    if min(cell.samples.shape[-3:-1]) < SMALLEST:
        return f"LPIPS needs pictures of at least {SMALLEST} pixels a side"
    return missing(metric)


def missing(metric: Metric) -> str:
    """Which file or environment is not there, whatever the cell; "" when all are."""
    try:
        located(BACKBONE)
        located(HEADS, heads_path())
    except ValueError as error:
        return str(error)
    return ""


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """Names everything the values depend on besides the samples: the baseline's, for the weights
    can be no others."""
    return hashlib.sha256((VERSION + fidelity.fingerprint(cell, metric)).encode()).hexdigest()


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray[np.float64]]:
    """`lpips.alex_v0_1` [n]."""
    assert cell.baseline is not None
    from ditbench.extractors.networks.tensors import read_tensors

    net = distance(read_tensors(located(BACKBONE)), read_tensors(located(HEADS, heads_path())))
    pairs = zip(cell.samples.chunks(), cell.baseline.chunks(), strict=True)
    return {metric.name: np.concatenate([per_sample(net, a, b) for a, b in pairs])}


def per_sample(
    net: torch.nn.Module, a: NDArray[np.uint8], b: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """[n]: mean over frames of samples [n, H, W, 3] or [n, T, H, W, 3]."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    first, second = (to_pixels(x.reshape(-1, *x.shape[-3:])).to(device) for x in (a, b))
    with torch.inference_mode():
        per_frame: NDArray[np.float64] = net.to(device)(first, second).double().cpu().numpy()
    mean: NDArray[np.float64] = per_frame.reshape(len(a), -1).mean(1)
    return mean
