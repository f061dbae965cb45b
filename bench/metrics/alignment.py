"""Alignment: does the sample show what was asked for? `align.shapes_v1`, read by the judge."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from ditbench.metrics import Metric
from ditbench.metrics.samples import Sampled

VERSION = "judge attributes 1"


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has no alignment score, or ""."""
    return cell.unjudged or ("" if cell.truths else "the requests carry no ground truth")


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """Names everything the values depend on besides the samples: the judge, and the version of this reading."""
    weights = cell.judge_path.read_bytes() if cell.judge_path.is_file() else b""
    return hashlib.sha256(VERSION.encode() + repr(cell.truths).encode() + weights).hexdigest()


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray[np.float64]]:
    """`align.shapes_v1` [n] in 0..1, the mean over attributes, and each attribute as `align.shapes_v1.<attribute>`
    [n].
    """
    from ditbench.shapes import Scenes
    from ditbench.zoo.judge import agreement

    assert cell.truths is not None
    found = {name: a.numpy() for name, a in agreement(cell.judged[1], Scenes.of(cell.truths), cell.world).items()}
    parts = {f"align.shapes_v1.{name}": a for name, a in found.items()}
    return {"align.shapes_v1": np.mean(list(found.values()), axis=0)} | parts
