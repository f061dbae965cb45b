"""Cosine of picture and prompt by CLIP, per sample: `clip100.openai_vit_l14`. n samples, d numbers
an embedding.

100 cos, never clamped and never scaled otherwise; published "CLIP scores" differ in model, scale
and clamping, so the name says which.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ditbench.metrics import features
from ditbench.metrics.samples import Sampled
from ditbench.metrics.table import Metric


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has no cosine, or ""."""
    return "" if cell.prompts is not None else "the requests carry no prompts"


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """That of the features: of pictures and prompts."""
    return features.fingerprint(cell, metric)


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray[np.float64]]:
    """The metric [n] in -100..100, and its part `cut` [n]: whether the prompt was longer than CLIP
    reads."""
    at = f"feature.{metric.extractor}"
    if f"{at}.text" not in cell.features:
        raise ValueError(
            features.refuse(cell, metric)
            or f"there are no features of {metric.extractor} of these prompts"
        )
    # [n, d], length one
    image, text = (cell.features[f"{at}.{name}"].astype(np.float64) for name in ("image", "text"))
    return {
        metric.name: 100 * np.sum(image * text, axis=1),
        f"{metric.name}.cut": cell.features[f"{at}.cut"].astype(np.float64),
    }
