"""The judge's features and those of held-out renders: what `fd`, `mmd`, `precision` and `recall` of
`shapes_v1` are made of.

The statistics themselves are in `ditbench.metrics.set_statistics`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

import ditbench
from ditbench.metrics.samples import Sampled
from ditbench.metrics.table import Metric
from ditbench.statistics.frechet import Reference

VERSION = "judge embedding 1"
FEATURE = "feature.shapes_v1"


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has no features, or ""."""
    return str(cell.unjudged)


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """Names everything the features depend on besides the samples."""
    weights = cell.judge_path.read_bytes() if cell.judge_path.is_file() else b""
    return hashlib.sha256(VERSION.encode() + weights).hexdigest()


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray[np.float32]]:
    """`feature.shapes_v1` [n, 64]."""
    return {FEATURE: cell.judged[0]}


def reference_path(world: str, judge: str = "shapes_v1") -> Path:
    """Where the reference features of a world by a judge lie, whether they are there or not."""
    name = f"{judge}-{world}.safetensors"
    places = [Path(root) / "datasets" / name for root in ditbench.__path__]
    return next((place for place in places if place.is_file()), places[-1])


def reference(world: str, path: Path | None = None) -> Reference:
    """Reference of a world (features [2048, 64]); ValueError says when the file is missing or
    damaged."""
    path = path or reference_path(world)
    try:
        return Reference.through(load_file(path)["feature"])
    except FileNotFoundError:
        raise ValueError(
            f"the reference features are missing ({path.name}; `python -m "
            "ditbench.metrics.shapes_reference` makes them)"
        ) from None
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
