"""LPIPS on the real architecture with random weights; the published backbone is the only thing that
is missing."""

import hashlib
import os

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from ditbench.extractors.networks import lpips as network
from ditbench.extractors.networks.tensors import read_tensors
from ditbench.extractors.pinned_files import Published, located
from ditbench.extractors.table import FOLDER
from ditbench.metrics import lpips
from ditbench.metrics.samples import Sampled, Samples, to_pixels
from ditbench.metrics.table import metrics

METRIC = metrics()["lpips.alex_v0_1"]


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def backbone_at(path):
    """Random weights under the names of torchvision's file, classifier included."""
    generator = torch.Generator().manual_seed(0)
    told = {
        f"features.{name}": torch.randn(value.shape, generator=generator) * 0.05
        for name, value in network.trunk().state_dict().items()
    }
    torch.save(told | {"classifier.1.weight": torch.zeros(4, 4)}, path)
    return path


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder with a backbone of random weights, pinned as this test's record."""
    folder = tmp_path / "extractors"
    folder.mkdir()
    path = backbone_at(folder / network.BACKBONE.name)
    pin = Published(
        extractor="alex_v0_1",
        name=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        where="here",
    )
    monkeypatch.setattr(network, "BACKBONE", pin)
    monkeypatch.setattr(lpips, "BACKBONE", pin)
    monkeypatch.setenv(FOLDER, str(folder))
    return folder


def pair(path, a, b):
    save_file({"samples": a}, path / "a")
    save_file({"samples": b}, path / "b")
    return Sampled(
        world="",
        weights="bundled",
        samples=Samples(path / "a"),
        truths=None,
        baseline=Samples(path / "b"),
    )


def heads():
    return read_tensors(located(network.HEADS, network.heads_path()))


def test_the_trunk_is_alexnets():
    shapes, hidden = [], torch.zeros(1, 3, 224, 224)
    for i, layer in enumerate(network.trunk()):
        hidden = layer(hidden)
        if i in network.TAPS:
            shapes.append(tuple(hidden.shape[1:]))
    assert shapes == [(64, 55, 55), (192, 27, 27), (384, 13, 13), (256, 13, 13), (256, 13, 13)]
    # torchvision's AlexNet without its classifier
    assert sum(p.numel() for p in network.trunk().parameters()) == 2_469_696


def test_heads_that_torchmetrics_carries_are_the_published_ones_and_are_read_without_unpickling():
    path = located(network.HEADS, network.heads_path())
    expected = torch.load(path, weights_only=True, map_location="cpu")
    found = heads()
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.numpy())
        assert (value >= 0).all()


def test_a_run_on_random_weights_is_what_torchmetrics_makes_of_the_same_weights(
    shelf, tmp_path, monkeypatch
):
    a, b = noise(0, 3, 64, 80, 3), noise(1, 3, 64, 80, 3)
    b[1] = a[1]
    cell = pair(tmp_path, a, b)
    assert lpips.refuse(cell, METRIC) == ""
    found = lpips.extract(cell, METRIC)["lpips.alex_v0_1"]

    features = network.trunk()
    told = read_tensors(shelf / network.BACKBONE.name)
    features.load_state_dict(
        {n.removeprefix("features."): v for n, v in told.items() if n.startswith("features.")}
    )
    monkeypatch.setattr(
        torchmetrics_lpips, "_get_tv_model_features", lambda net, pretrained: features
    )
    oracle = torchmetrics_lpips._LPIPS(net="alex")
    expected = oracle(to_pixels(a), to_pixels(b), normalize=True).flatten()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-9)
    assert found[1] == 0 and found[0] > 0


def test_a_video_is_the_mean_of_its_frames(shelf, tmp_path):
    a, b = noise(0, 2, 3, 32, 32, 3), noise(1, 2, 3, 32, 32, 3)
    found = lpips.extract(pair(tmp_path, a, b), METRIC)["lpips.alex_v0_1"]
    net = network.distance(read_tensors(located(network.BACKBONE)), heads())
    np.testing.assert_allclose(
        found, [lpips.per_sample(net, x, y).mean() for x, y in zip(a, b, strict=True)], rtol=1e-5
    )


def test_no_file_and_a_wrong_file_are_null_with_what_is_missing_and_where_it_is_published(
    tmp_path, monkeypatch
):
    cell = pair(tmp_path, noise(0, 1, 32, 32, 3), noise(1, 1, 32, 32, 3))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(FOLDER, raising=False)
    reason = lpips.refuse(cell, METRIC)
    assert (
        "alexnet-owt-7be5be79.pth is missing (sha256 7be5be79" in reason
        and "download.pytorch.org/models" in reason
    )
    hub = tmp_path / "torch/hub/checkpoints"
    hub.mkdir(parents=True)
    backbone_at(hub / network.BACKBONE.name)
    assert "is not the published alexnet-owt-7be5be79.pth: its sha256 is" in lpips.refuse(
        cell, METRIC
    )
    os.replace(hub / network.BACKBONE.name, tmp_path / "moved")
    (tmp_path / "alex_v0_1").mkdir()
    os.replace(tmp_path / "moved", tmp_path / "alex_v0_1" / network.BACKBONE.name)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert f"{tmp_path}/alex_v0_1/" in lpips.refuse(cell, METRIC)


def test_a_file_whose_hash_nobody_wrote_down_is_taken_for_nothing(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"is taken for nothing: the sha256 of the published x\.bin"
    ):
        located(Published(extractor="x", name="x.bin", sha256="", where="there"), tmp_path)


def test_small_pictures_and_other_weights_are_refused(shelf, tmp_path):
    cell = pair(tmp_path, noise(0, 1, 30, 64, 3), noise(1, 1, 30, 64, 3))
    assert lpips.refuse(cell, METRIC) == "LPIPS needs pictures of at least 31 pixels a side"
    with pytest.raises(ValueError, match="no weights of LPIPS with AlexNet"):
        network.distance({"features.0.weight": torch.zeros(1, 1)}, heads())
