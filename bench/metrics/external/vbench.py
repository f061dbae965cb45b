"""VBench (Huang et al. 2024) by its official package: the job of one dimension, its result file,
and how dimensions are added up.

The package's own sums differ between one and several GPUs and count a missing dimension as 0, so
only what it says of each video is taken; means and totals are made here with its constants. n
videos.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from ditbench.metrics.external.client import Environment, ask
from ditbench.statistics.estimates import Estimate, student

ENVIRONMENT = Environment(name="vbench", package="vbench", version="0.1.5")
FPS = 16
"""Frames per second of every video model here (Wan2.1)."""
LONGEST_S = 5.0
"""From this length on VBench's authors want VBench-Long."""


@dataclass(frozen=True)
class Dimension:
    """One of the sixteen, with the package's constants."""

    low: float
    high: float
    """What the normalisation takes to 0 and 1; nothing is clipped."""
    quality: bool
    """Part of the quality score; else of the semantic one."""
    weight: float = 1.0


DIMENSIONS = {
    "subject_consistency": Dimension(0.1462, 1.0, True),
    "background_consistency": Dimension(0.2615, 1.0, True),
    "temporal_flickering": Dimension(0.6293, 1.0, True),
    "motion_smoothness": Dimension(0.706, 0.9975, True),
    "dynamic_degree": Dimension(0.0, 1.0, True, 0.5),
    "aesthetic_quality": Dimension(0.0, 1.0, True),
    "imaging_quality": Dimension(0.0, 1.0, True),
    "object_class": Dimension(0.0, 1.0, False),
    "multiple_objects": Dimension(0.0, 1.0, False),
    "human_action": Dimension(0.0, 1.0, False),
    "color": Dimension(0.0, 1.0, False),
    "spatial_relationship": Dimension(0.0, 1.0, False),
    "scene": Dimension(0.0, 0.8222, False),
    "appearance_style": Dimension(0.0009, 0.2855, False),
    "temporal_style": Dimension(0.0, 0.364, False),
    "overall_consistency": Dimension(0.0, 0.364, False),
}
PERCENT = ("imaging_quality",)
"""Dimensions whose videos the package scores in percent, and whose mean it divides by 100."""
SUMS = ("quality", "semantic", "total")
SHARES = {"quality": (1.0, 0.0), "semantic": (0.0, 1.0), "total": (0.8, 0.2)}
"""How much the quality and the semantic score count in each sum: total = (4 quality + semantic) /
5."""

Scored = Mapping[str, tuple[NDArray[np.float64], NDArray[np.int64]]]
"""Dimension -> values of its videos, and the numbers of their prompts, [k] each."""


def measure(
    dimension: str, samples: Path, prompts: list[str]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of the samples that belong to a dimension [k], and its value for each; ValueError says
    why there is none.

    Where every prompt is in VBench's list, those of the dimension; else, for the six dimensions
    that allow it, all.
    """
    with TemporaryDirectory(prefix="ditbench-vbench-") as made:
        folder = Path(made)
        job = {
            "task": "vbench",
            "dimension": dimension,
            "samples": str(samples),
            "prompts": prompts,
            "fps": FPS,
            "folder": made,
        }
        answer = ask(ENVIRONMENT, job, folder)
        return read_results(folder / str(answer.get("results")), dimension, len(prompts))


def read_results(
    path: Path, dimension: str, num: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows and values of a `*_eval_results.json`; a video's row is the name of its folder.
    ValueError when it is another kind of file."""
    try:
        lines = json.loads(path.read_text(encoding="utf-8"))[dimension][1]
        values = {
            int(Path(video["video_path"]).parent.name): float(video["video_results"])
            for video in lines
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"VBench left no result of {dimension} that can be read ({type(error).__name__}: "
            f"{error})"
        ) from error
    rows = np.array(sorted(values), np.int64)
    if len(rows) == 0 or len(values) != len(lines) or rows[0] < 0 or rows[-1] >= num:
        raise ValueError(f"VBench scored other videos of {dimension} than it was given")
    return rows, np.array([values[row] for row in rows.tolist()]) / (
        100 if dimension in PERCENT else 1
    )


def coefficients(what: str) -> tuple[dict[str, float], float]:
    """A sum as a linear function of dimensions' means: a factor for each, and what is added."""
    factors, added = {}, 0.0
    for quality, share in zip((True, False), SHARES[what], strict=True):
        part = {name: d for name, d in DIMENSIONS.items() if d.quality == quality}
        whole = sum(d.weight for d in part.values())
        for name, d in part.items():
            if share:
                factors[name] = share * d.weight / whole / (d.high - d.low)
                added -= factors[name] * d.low
    return factors, added


def combine(scored: Scored, what: str, difference: bool = False) -> Estimate:
    """`quality`, `semantic` or `total` with its 95 % interval; ValueError names dimensions that are
    missing.

    A sum is linear in the dimensions' means, so each prompt's part in all of them adds up to its
    influence, and the interval is Student's t on those. With `difference` the values are paired
    differences, and the sum's constant falls away.
    """
    factors, added = coefficients(what)
    if missing := [name for name in factors if name not in scored]:
        raise ValueError(
            f"VBench's {what} needs all of its {len(factors)} dimensions; missing: "
            f"{', '.join(missing)}"
        )
    names = np.unique(np.concatenate([scored[name][1] for name in factors]))
    influence, value = np.zeros(len(names)), 0.0 if difference else added
    for name, factor in factors.items():
        values, group = scored[name]
        value += factor * float(values.mean())
        np.add.at(
            influence,
            np.searchsorted(names, group),
            factor * (values - values.mean()) / len(values),
        )
    num = len(names)
    if num < 2:
        return Estimate(value=value, low=None, high=None, n=num, se=None)
    se = float(np.sqrt(num / (num - 1) * np.sum(influence**2)))
    low, high = student(value, se, num - 1)
    return Estimate(value=value, low=low, high=high, n=num, se=se)
