"""The second judge's metrics, `align.shapes_check_v1` and `fd.shapes_check_v1`: scoring only, by a
network nothing is trained through.

Methods are prepared through the first judge's layers, so that what it says of them may flatter;
whether the second one agrees stands in every report (`ditbench.analysis.judges`). n samples.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from numpy.typing import NDArray

from ditbench.metrics import alignment
from ditbench.metrics import shapes_features as frechet
from ditbench.metrics.samples import Sampled
from ditbench.metrics.table import Metric
from ditbench.statistics.frechet import Reference

VERSION = "second judge 1"
ALIGNMENT, FEATURE = "align.shapes_check_v1", "feature.shapes_check_v1"


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why the second judge has nothing to say of a cell, or ""."""
    if metric.name == ALIGNMENT and not cell.unchecked and not cell.truths:
        return "the requests carry no ground truth"
    return cell.unchecked


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """Names everything the values depend on besides the samples: the weights, and what was asked
    for where it matters."""
    weights = b"" if cell.unchecked else cell.check_path.read_bytes()
    truths = repr(cell.truths) if metric.name == ALIGNMENT else ""
    return hashlib.sha256(f"{VERSION} {truths}".encode() + weights).hexdigest()


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray]:
    """`align.shapes_check_v1` [n] and its attributes, or `feature.shapes_check_v1` [n, 64]."""
    features, seen = cell.checked
    if metric.name == ALIGNMENT:
        assert cell.truths is not None
        return alignment.scores(ALIGNMENT, seen, cell.truths, cell.world)
    return {FEATURE: features}


def reference(world: str, path: Path | None = None) -> Reference:
    """Reference of a world (features [2048, 64]); ValueError says when the file is missing or
    damaged."""
    return frechet.reference(world, path or frechet.reference_path(world, "shapes_check_v1"))
