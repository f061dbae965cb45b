"""Fidelity to the un-accelerated model: PSNR, SSIM and MS-SSIM of each sample to the baseline's
from the same noise.

They say how far a sample moved, not whether it got worse. Videos: per frame, then the mean. n
samples, T frames.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.metrics.samples import Sampled, to_pixels
from ditbench.metrics.table import Metric

VERSION = "float64 mse 1; ssim gaussian 11 sigma 1.5 rgb valid 2"
CAP_DB = 100.0
"""PSNR of identical pictures."""
WINDOW = 11
LARGE = {"ssim.vs_none": WINDOW, "ms_ssim.vs_none": WINDOW * 2**4}
"""Pixels a side that a similarity needs: the window, which MS-SSIM slides over a picture halved
four times."""


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has no fidelity, or ""."""
    if cell.baseline is None:
        return str(cell.no_baseline)
    if cell.baseline.shape != cell.samples.shape:
        mine, theirs = list(cell.samples.shape), list(cell.baseline.shape)
        return f"samples of shape {mine} cannot be held against the baseline's {theirs}"
    if metric.name in LARGE:
        if min(cell.samples.shape[-3:-1]) < LARGE[metric.name]:
            kind = (
                "multi-scale structural similarity"
                if metric.name == "ms_ssim.vs_none"
                else "structural similarity"
            )
            return f"{kind} needs pictures of at least {LARGE[metric.name]} pixels a side"
        if metric.name == "ssim.vs_none":
            return ""
        try:
            import torchmetrics.functional.image  # noqa: F401  (a torchvision built for another torch breaks this import)
        except (ImportError, RuntimeError) as error:
            return f"torchmetrics cannot be imported ({str(error).splitlines()[0]})"
    return ""


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """Names everything the values depend on besides the samples: the baseline's samples."""
    if cell.baseline is None:
        return hashlib.sha256((VERSION + cell.no_baseline).encode()).hexdigest()
    return hashlib.sha256((VERSION + cell.baseline.sha256).encode()).hexdigest()


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray[np.float64]]:
    """`ssim.vs_none` or `ms_ssim.vs_none` [n], or `psnr.vs_none` [n] in dB with the `mse.vs_none`
    [n] under it (pixels in 0..1)."""
    assert cell.baseline is not None
    pairs = zip(cell.samples.chunks(), cell.baseline.chunks(), strict=True)
    if metric.name in LARGE:
        scales = metric.name == "ms_ssim.vs_none"
        return {metric.name: np.concatenate([similarity(a, b, scales) for a, b in pairs])}
    errors = np.concatenate([frame_errors(a, b) for a, b in pairs])  # [n, T]
    return {metric.name: decibels(errors).mean(1), "mse.vs_none": errors.mean(1)}


def frame_errors(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean squared error of each frame, [n, T], pixels in 0..1; subtracts in float64, for uint8
    would wrap round."""
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise TypeError(f"samples are uint8, got {a.dtype} and {b.dtype}")
    square = ((a.astype(np.float64) - b.astype(np.float64)) / 255) ** 2
    means: NDArray[np.float64] = square.mean(axis=(-3, -2, -1))
    return means.reshape(len(a), -1)


def decibels(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """PSNR of mean squared errors for pixels in 0..1, at most CAP_DB."""
    psnr: NDArray[np.float64] = -10 * np.log10(np.maximum(errors, 10 ** (-CAP_DB / 10)))
    return psnr


def pooled(errors: NDArray[np.float64]) -> float:
    """PSNR of the mean of all `errors` [n], in dB: what one gets who pools before taking the
    logarithm. Never above the mean PSNR."""
    return float(decibels(errors.mean(keepdims=True))[0])


def doubtful(psnr: float | None, ssim: float | None) -> str:
    """A warning where PSNR and SSIM contradict each other as they do when 8-bit differences wrapped
    round, or "".

    (a - b)^2 in uint8 lifts unrelated pictures to 27.9 dB, and no SSIM of theirs is high; faint
    noise on flat pictures looks alike.
    """
    if psnr is None or ssim is None or psnr <= 27 or ssim >= 0.75:
        return ""
    return (
        f"PSNR {psnr:.1f} dB beside SSIM {ssim:.2f}: look at the samples; above 27 dB with SSIM "
        "below 0.75 is faint noise on flat "
        "pictures, or 8-bit differences that wrapped round"
    )


def similarity(
    a: NDArray[np.uint8], b: NDArray[np.uint8], scales: bool = False
) -> NDArray[np.float64]:
    """SSIM (Wang et al. 2004) of each sample [n], mean over frames and over the windows that lie
    wholly in the picture.

    As Wang's code and scikit-image's Gaussian SSIM have it. torchmetrics' mean counts windows over
    borders filled by reflection too, which moves a sample by up to 0.03 at 64 pixels.

    With `scales` MS-SSIM (Wang et al. 2003): five scales, the paper's exponents, negative terms
    counted as 0.
    """
    n, size = len(a), a.shape[-3:]
    first, second = (to_pixels(x.reshape(-1, *size)) for x in (a, b))  # [n*T, 3, H, W]
    per_frame: Any
    if scales:
        from torchmetrics.functional import image

        per_frame = image.multiscale_structural_similarity_index_measure(
            first, second, normalize="relu", sigma=1.5, kernel_size=WINDOW, reduction="none",
            data_range=1.0,
        )  # fmt: skip
    else:
        per_frame = _windows(first, second).mean((1, 2, 3))
    per_sample: NDArray[np.float64] = per_frame.double().numpy().reshape(n, -1).mean(1)
    return per_sample


def _windows(first: Any, second: Any) -> Any:
    """SSIM of each window that lies wholly in the picture, [n, 3, H - 10, W - 10] of pixels
    [n, 3, H, W] in 0..1: Wang et al. 2004, equation 13, with their Gaussian window and constants."""
    import torch
    from torch.nn.functional import conv2d

    places = torch.arange(WINDOW, dtype=first.dtype) - WINDOW // 2
    weights = torch.exp(-(places**2) / (2 * 1.5**2))
    weights = (weights / weights.sum()).expand(3, 1, 1, WINDOW)

    def mean(x: Any) -> Any:  # along rows, then along columns
        return conv2d(conv2d(x, weights, groups=3), weights.transpose(2, 3), groups=3)

    mean_a, mean_b = mean(first), mean(second)
    variance_a = (mean(first * first) - mean_a**2).clamp(min=0)
    variance_b = (mean(second * second) - mean_b**2).clamp(min=0)
    covariance = mean(first * second) - mean_a * mean_b
    alike = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
    most = (mean_a**2 + mean_b**2 + 0.01**2) * (variance_a + variance_b + 0.03**2)
    return alike / most
