"""Alignment: does the sample show what was asked for? `align.shapes_v1`, read by the judge."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ditbench.metrics.samples import Sampled
from ditbench.metrics.table import Metric

if TYPE_CHECKING:
    from ditbench.shapes.scenes import Scenes

VERSION = "judge attributes 1"


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has no alignment score, or ""."""
    return cell.unjudged or ("" if cell.truths else "the requests carry no ground truth")


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """Names everything the values depend on besides the samples: the judge, and the version of this
    reading."""
    weights = cell.judge_path.read_bytes() if cell.judge_path.is_file() else b""
    return hashlib.sha256(VERSION.encode() + repr(cell.truths).encode() + weights).hexdigest()


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray[np.float64]]:
    """`align.shapes_v1` [n] in 0..1, the mean over attributes, and each attribute as
    `align.shapes_v1.<attribute>` [n].
    """
    assert cell.truths is not None
    return scores("align.shapes_v1", cell.judged[1], cell.truths, cell.world)


def scores(
    name: str, seen: Scenes, truths: list[dict[str, Any]], world: str
) -> dict[str, NDArray[np.float64]]:
    """Arrays of the metric `name`: what a judge has `seen` against what was asked for, [n] each."""
    from ditbench.shapes.judge import agreement
    from ditbench.shapes.scenes import Scenes

    by_attribute = {
        a: right.numpy() for a, right in agreement(seen, Scenes.of(truths), world).items()
    }
    parts = {f"{name}.{attribute}": right for attribute, right in by_attribute.items()}
    return {name: np.mean(list(by_attribute.values()), axis=0)} | parts
