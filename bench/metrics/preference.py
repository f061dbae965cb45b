"""What people would prefer, by networks trained on people's choices, each in an environment of its
own: ImageReward, HPSv2.1, HPSv3.

A score of each picture and its prompt. A published name needs the published weights: a file whose
sha256 is not on record is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from ditbench.extractors.pinned_files import Published, located
from ditbench.metrics.external.client import Environment, ask, numbers
from ditbench.metrics.samples import Sampled
from ditbench.metrics.table import Metric

VERSION = "preference 1"


@dataclass(frozen=True)
class Judge:
    """A package and its files."""

    environment: Environment
    files: Sequence[Published]


def _judge(name: str, package: str, version: str, files: dict[str, str]) -> Judge:
    """No sha256 of these files is on record yet."""
    return Judge(
        Environment(name=name, package=package, version=version),
        [
            Published(extractor=name, name=file, sha256="", where=where)
            for file, where in files.items()
        ],
    )


JUDGES = {
    "imagereward.v1_0": _judge("imagereward", "image-reward", "1.5", {
        "ImageReward.pt": "https://huggingface.co/THUDM/ImageReward",
        "med_config.json": "https://huggingface.co/THUDM/ImageReward",
    }),
    "hpsv2.v2_1": _judge("hpsv2", "hpsv2", "1.2.0", {"HPS_v2.1_compressed.pt": "https://huggingface.co/xswu/HPSv2"}),
    "hpsv3.v1_0": _judge("hpsv3", "hpsv3", "1.0.0", {"HPSv3.safetensors": "https://huggingface.co/MizzenAI/HPSv3"}),
}  # fmt: skip


def refuse(cell: Sampled, metric: Metric) -> str:
    """Why a cell has no such score, or ""."""
    return cell.unpaired or missing(metric)


def missing(metric: Metric) -> str:
    """Which file or environment is not there, whatever the cell; "" when all are."""
    try:
        JUDGES[metric.name].environment.examine()
        _files(metric)
    except ValueError as error:
        return str(error)
    return ""


def fingerprint(cell: Sampled, metric: Metric) -> str:
    """Names everything the values depend on besides the samples: the package's version, the files
    and the prompts."""
    judge = JUDGES[metric.name]
    parts = [judge.environment.version, [file.sha256 for file in judge.files], cell.prompts]
    return hashlib.sha256(f"{VERSION} {parts}".encode()).hexdigest()


def extract(cell: Sampled, metric: Metric) -> dict[str, NDArray[np.float64]]:
    """The metric [n]."""
    assert cell.prompts is not None
    environment = JUDGES[metric.name].environment
    with TemporaryDirectory(prefix="ditbench-") as made:
        job = {
            "task": environment.name,
            "samples": str(cell.samples.as_file(Path(made))),
            "prompts": cell.prompts,
            "files": _files(metric),
            "folder": made,
        }
        values = numbers(environment, ask(environment, job, Path(made)), len(cell.prompts))
    return {metric.name: np.array(values)}


def _files(metric: Metric) -> dict[str, str]:
    return {file.name: str(located(file)) for file in JUDGES[metric.name].files}
