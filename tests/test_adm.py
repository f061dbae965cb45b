"""The golden fixture: ADM's samples against ADM's reference batch, where the two files and the
Inception weights are there.

Published numbers: guided-diffusion's evaluations/README. Tolerances of the first two: this suite's
specification.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ditbench.extractors.images import Pictures
from ditbench.extractors.references import read
from ditbench.extractors.shelf import Shelf
from ditbench.extractors.table import extractors
from ditbench.models.prompts import FOLDER, manifest
from ditbench.statistics.frechet import frechet
from ditbench.statistics.moments import Moments

PUBLISHED = {
    "fid": 3.9425573799,
    "sfid": 6.1404337,
    "is": 215.8370,
    "precision": 0.8265,
    "recall": 0.5309,
}


def missing():
    """Why the fixture cannot run here, or ""."""
    if reason := Shelf().refuse("tf2015"):
        return reason
    for name in ("imagenet256-adm", "imagenet256-admg-upsampled"):
        if not (Path(os.environ.get(FOLDER, ".")) / manifest()[name]["file"]).is_file():
            return f"{manifest()[name]['file']} is not in the folder that {FOLDER} names ({manifest()[name]['source']})"
    return ""


def features(network, path, progress=0):
    parts = [network.features(chunk) for chunk in Pictures(path).chunks()]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_adms_published_numbers_are_met():
    if reason := missing():
        pytest.skip(reason)
    reference, samples = (
        Path(os.environ[FOLDER]) / manifest()[name]["file"]
        for name in ("imagenet256-adm", "imagenet256-admg-upsampled")
    )
    network = Shelf().network("tf2015")
    mine, theirs = features(network, samples), features(network, reference)
    held = {name: read(reference, extractors()["tf2015"], name) for name in ("pool", "spatial")}
    assert frechet(Moments.of(mine["pool"]), held["pool"]) == pytest.approx(
        PUBLISHED["fid"], abs=0.01
    )
    assert frechet(Moments.of(mine["spatial"]), held["spatial"]) == pytest.approx(
        PUBLISHED["sfid"], abs=0.02
    )
    assert inception_score(mine["classes"]) == pytest.approx(PUBLISHED["is"], abs=0.5)
    precision, recall = precision_and_recall(mine["pool"], theirs["pool"])
    assert precision == pytest.approx(PUBLISHED["precision"], abs=0.002)
    assert recall == pytest.approx(PUBLISHED["recall"], abs=0.002)


def inception_score(classes, split=5000):
    scores = []
    for start in range(0, len(classes), split):
        p = classes[start : start + split].astype(np.float64).clip(1e-30)
        scores.append(np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(0))), axis=1))))
    return float(np.mean(scores))


def precision_and_recall(samples, reference, k=3):
    """Kynkäänniemi et al. 2019: who lies in a ball to the k-th neighbour of somebody of the other
    set."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, r = (torch.from_numpy(a).to(device) for a in (samples, reference))

    def radii(points):
        return torch.cat(
            [
                torch.cdist(block, points).kthvalue(k + 1, dim=1).values
                for block in points.split(1000)
            ]
        )

    def share(points, centres):
        reach = radii(centres)
        return float(
            torch.cat(
                [(torch.cdist(block, centres) <= reach).any(1) for block in points.split(1000)]
            )
            .float()
            .mean()
        )

    return share(x, r), share(r, x)


def test_the_slow_versions_know_what_is_known():
    rng = np.random.default_rng(0)
    assert inception_score(np.eye(5)[rng.permutation(5)]) == pytest.approx(5)
    assert inception_score(np.full((8, 5), 0.2)) == pytest.approx(1)
    x = rng.standard_normal((200, 4)).astype(np.float32)
    assert precision_and_recall(x, x) == (1, 1)
    assert precision_and_recall(x + 100, x) == (0, 0)
