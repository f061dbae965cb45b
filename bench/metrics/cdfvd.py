"""How far a set of videos is from the un-accelerated set, by I3D's logits as the package cd-fvd
makes them: `fd.cdfvd_i3d.vs_none`.

The package extracts, in an environment of its own; the distance is
`ditbench.statistics.frechet.frechet`, for cd-fvd's divides covariances by n, draws videos again
until it has 2,048, and needs a scipy of old. FVD is a distance to real videos, so this is not
called so. n videos.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from ditbench.extractors.pinned_files import Published, located
from ditbench.metrics.external.client import Environment, ask
from ditbench.metrics.samples import Sampled
from ditbench.metrics.table import Metric
from ditbench.statistics.frechet import Reference, frechet
from ditbench.statistics.moments import Moments

VERSION = "cdfvd i3d 1"
ENVIRONMENT = Environment(name="cdfvd", package="cd-fvd", version="0.1.1")
WEIGHTS = Published(
    extractor="cdfvd_i3d",
    name="i3d_pretrained_400.pt",
    sha256="",
    where="https://github.com/songweige/TATS/raw/main/tats/fvd/i3d_pretrained_400.pt",
)
FEATURE = "feature.cdfvd_i3d"
SHORTEST = 9
"""Frames I3D needs."""


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has no such features, or ""."""
    if len(cell.samples.shape) == 4:
        return "these are pictures, not videos"
    if cell.samples.num_frames < SHORTEST:
        return f"I3D needs videos of at least {SHORTEST} frames, got {cell.samples.num_frames}"
    return missing(metric)


def missing(metric: Metric) -> str:
    """Which file or environment is not there, whatever the cell; "" when all are."""
    try:
        ENVIRONMENT.examine()
        located(WEIGHTS)
    except ValueError as error:
        return str(error)
    return ""


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """Names everything the features depend on besides the samples: package and weights."""
    return hashlib.sha256(f"{VERSION} {ENVIRONMENT.version} {WEIGHTS.sha256}".encode()).hexdigest()


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray[np.float32]]:
    """`feature.cdfvd_i3d` [n, 400]."""
    with TemporaryDirectory(prefix="ditbench-") as made:
        job = {
            "task": "cdfvd",
            "samples": str(cell.samples.as_file(Path(made))),
            "files": {WEIGHTS.name: str(located(WEIGHTS))},
            "folder": made,
        }
        answer = ask(ENVIRONMENT, job, Path(made))
        try:
            features = np.load(Path(made) / str(answer.get("features")), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"cd-fvd left no features that can be read ({error})") from error
    if features.ndim != 2 or len(features) != len(cell.samples):
        raise ValueError(
            f"cd-fvd was given {len(cell.samples)} videos and left features of shape "
            f"{list(features.shape)}"
        )
    return {FEATURE: features.astype(np.float32)}


def distance(mine: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Squared Fréchet distance of two sets of features [n, d]; ValueError with fewer than two
    videos."""
    return frechet(mine, Reference.of(Moments.of(theirs)))
