"""VBench's dimensions and sums, by the official package in an environment of its own
(`ditbench.metrics.external.vbench`). n videos.

A dimension is measured on those videos whose prompts belong to it: `vbench.color` has k values,
`vbench.color@rows` their rows. The sums are nowhere stored; `ditbench.analysis.summary` makes them,
of all their dimensions or not at all.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from ditbench.metrics.external.vbench import ENVIRONMENT, FPS, LONGEST_S, SUMS, Scored, measure
from ditbench.metrics.samples import Sampled
from ditbench.metrics.table import Metric
from ditbench.records.scores import Scores

VERSION = "vbench 1"


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has none of it, or ""."""
    if len(cell.samples.shape) == 4:
        return "these are pictures, not videos"
    seconds = cell.samples.num_frames / FPS
    if seconds >= LONGEST_S:
        return f"a video of {seconds:.2f} s ({cell.samples.num_frames} frames) needs VBench-Long: VBench is for less than 5 s"
    if cell.prompts is None:
        return "the requests carry no prompts"
    # the sums are made of dimensions that may have been scored elsewhere
    return "" if metric.name.partition(".")[2] in SUMS else missing(metric)


def missing(metric: Metric) -> str:
    """Which file or environment is not there, whatever the cell; "" when all are."""
    try:
        ENVIRONMENT.examine()
    except ValueError as error:
        return str(error)
    return ""


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """Names everything the values depend on besides the samples: the package's version and the
    prompts."""
    return hashlib.sha256(f"{VERSION} {ENVIRONMENT.version} {cell.prompts}".encode()).hexdigest()


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
    """`vbench.<dimension>` [k] and `vbench.<dimension>@rows` [k]; nothing for a sum."""
    dimension = metric.name.partition(".")[2]
    if dimension in SUMS:
        return {}
    assert cell.prompts is not None
    with TemporaryDirectory(prefix="ditbench-") as made:
        rows, values = measure(dimension, cell.samples.as_file(Path(made)), cell.prompts)
    return {metric.name: values, f"{metric.name}@rows": rows}


def scored(scores: Scores) -> Scored:
    """What the scores file of a cell has of every dimension."""
    arrays = {}
    for name in scores.arrays:
        if name.startswith("vbench.") and name.endswith("@rows"):
            metric, rows = name.removesuffix("@rows"), scores.arrays[name]
            arrays[metric.partition(".")[2]] = scores.arrays[metric], scores.group[rows]
    return arrays


def apart(mine: Scores, theirs: Scores) -> Scored:
    """Paired differences of every dimension that both have, on the videos that both have."""
    videos = {}
    for name in [
        name
        for name in mine.arrays
        if name.startswith("vbench.") and name.endswith("@rows") and name in theirs.arrays
    ]:
        metric = name.removesuffix("@rows")
        rows, i, j = np.intersect1d(mine.arrays[name], theirs.arrays[name], return_indices=True)
        if len(rows):
            values = mine.arrays[metric][i] - theirs.arrays[metric][j]
            videos[metric.partition(".")[2]] = values, mine.group[rows]
    return videos
