"""Fidelity to the un-accelerated model: PSNR and SSIM of each sample to the baseline's from the same noise.

They say how far a sample moved, not whether it got worse. Videos: per frame, then the mean. n samples, T frames.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from ditbench.metrics import Metric
from ditbench.metrics.samples import Sampled, to_pixels

VERSION = "float64 mse 1; ssim gaussian 11 sigma 1.5 rgb 1"
CAP_DB = 100.0
"""PSNR of identical pictures."""
WINDOW = 11


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has no fidelity, or ""."""
    if cell.baseline is None:
        return str(cell.no_baseline)
    if cell.baseline.shape != cell.samples.shape:
        mine, theirs = list(cell.samples.shape), list(cell.baseline.shape)
        return f"samples of shape {mine} cannot be held against the baseline's {theirs}"
    if metric.name == "ssim.vs_none":
        if min(cell.samples.shape[-3:-1]) < WINDOW:
            return f"structural similarity needs pictures of at least {WINDOW} pixels a side"
        try:
            import torchmetrics.functional.image  # noqa: F401  (a torchvision built for another torch breaks this import)
        except (ImportError, RuntimeError) as error:
            return f"torchmetrics cannot be imported ({str(error).splitlines()[0]})"
    return ""


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """Names everything the values depend on besides the samples: the baseline's samples."""
    if cell.baseline is None:
        return hashlib.sha256((VERSION + cell.no_baseline).encode()).hexdigest()
    with cell.baseline.path.open("rb") as f:
        return hashlib.sha256((VERSION + hashlib.file_digest(f, "sha256").hexdigest()).encode()).hexdigest()


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray[np.float64]]:
    """`ssim.vs_none` [n], or `psnr.vs_none` [n] in dB with the `mse.vs_none` [n] under it (pixels in 0..1)."""
    assert cell.baseline is not None
    pairs = zip(cell.samples.chunks(), cell.baseline.chunks(), strict=True)
    if metric.name == "ssim.vs_none":
        return {metric.name: np.concatenate([similarity(a, b) for a, b in pairs])}
    errors = np.concatenate([frame_errors(a, b) for a, b in pairs])  # [n, T]
    return {metric.name: decibels(errors).mean(1), "mse.vs_none": errors.mean(1)}


def frame_errors(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean squared error of each frame, [n, T], pixels in 0..1; subtracts in float64, for uint8 would wrap round."""
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise TypeError(f"samples are uint8, got {a.dtype} and {b.dtype}")
    square = ((a.astype(np.float64) - b.astype(np.float64)) / 255) ** 2
    means: NDArray[np.float64] = square.mean(axis=(-3, -2, -1))
    return means.reshape(len(a), -1)


def decibels(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """PSNR of mean squared errors for pixels in 0..1, at most CAP_DB."""
    found: NDArray[np.float64] = -10 * np.log10(np.maximum(errors, 10 ** (-CAP_DB / 10)))
    return found


def similarity(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """SSIM (Wang et al. 2004) of each sample [n], mean over frames; borders are filled by reflection, as torchmetrics does."""
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    n, size = len(a), a.shape[-3:]
    first, second = (to_pixels(x.reshape(-1, *size)) for x in (a, b))  # [n*T, 3, H, W]
    per_frame = structural_similarity_index_measure(
        first, second, gaussian_kernel=True, sigma=1.5, kernel_size=WINDOW, reduction="none", data_range=1.0
    )
    assert isinstance(per_frame, torch.Tensor)
    found: NDArray[np.float64] = per_frame.double().numpy().reshape(n, -1).mean(1)
    return found
