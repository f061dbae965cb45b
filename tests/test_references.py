"""Reference sets made of folders of pictures and of npz files."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from small_extractors import write_extractors

from ditbench.cli.commands import main
from ditbench.extractors.build_reference import build
from ditbench.extractors.images import CHUNK, Pictures, files, open_picture
from ditbench.extractors.references import read, write
from ditbench.extractors.shelf import Shelf
from ditbench.extractors.table import FOLDER, extractors
from ditbench.statistics.frechet import Reference
from ditbench.statistics.moments import Moments


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extractors")
    return Shelf(write_extractors(folder, ("dinov2_l14", "tf2015")), folder)


def pixels(n, size=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def write_pictures(folder, pictures, start=0):
    folder.mkdir(exist_ok=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{start + i}.png")
    return folder


def test_pictures_come_in_natural_order_whatever_the_file_system_says(tmp_path):
    shots = pixels(12)
    write_pictures(tmp_path / "a", shots)
    assert [p.name for p in files(tmp_path / "a")] == [f"{i}.png" for i in range(12)]
    np.testing.assert_array_equal(np.concatenate(list(Pictures(tmp_path / "a").chunks())), shots)


def test_chunks_hold_one_size_and_no_more_than_a_chunk(tmp_path):
    write_pictures(tmp_path / "a", pixels(CHUNK + 2, 8))
    write_pictures(tmp_path / "a", pixels(3, 10), start=CHUNK + 2)
    assert [c.shape[:2] for c in Pictures(tmp_path / "a").chunks()] == [(CHUNK, 8), (2, 8), (3, 10)]


def test_grey_and_transparent_pictures_are_read_and_deep_ones_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(tmp_path / "grey.png")
    assert (open_picture(tmp_path / "grey.png") == 7).all() and open_picture(
        tmp_path / "grey.png"
    ).shape == (4, 4, 3)
    Image.fromarray(np.full((4, 4, 4), 9, np.uint8)).save(tmp_path / "clear.png")
    assert (open_picture(tmp_path / "clear.png") == 9).all()
    Image.fromarray(np.full((4, 4), 700, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png has more than eight bits a channel \(I;16\)"):
        open_picture(tmp_path / "deep.png")


def test_damaged_files_are_named_in_one_sentence_and_nothing_is_written(tmp_path, shelf):
    folder = write_pictures(tmp_path / "a", pixels(10))
    for i in range(7):
        path = folder / f"{i}.png"
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError) as said:
        build(folder, "dinov2_l14", tmp_path / "r.safetensors", shelf)
    assert "7 of 10 pictures in" in str(said.value) and "0.png is damaged" in str(said.value)
    assert str(said.value).endswith("and 2 more") and "\n" not in str(said.value)
    assert not list(tmp_path.glob("*r.*"))


def test_moments_and_rows_are_those_of_all_features_in_order_and_the_manifest_says_what_of(
    tmp_path, shelf
):
    shots = pixels(CHUNK + 5)
    folder = write_pictures(tmp_path / "a", shots)
    told = []
    made = build(folder, "dinov2_l14", tmp_path / "r.safetensors", shelf, told.append)
    features = shelf.network("dinov2_l14").features(shots)["cls"]
    held = read(tmp_path / "r.safetensors", shelf.table["dinov2_l14"], "cls")
    np.testing.assert_allclose(held.features, features, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(held.mean, features.astype(float).mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        held.root @ held.root.T, np.cov(features.astype(float), rowvar=False), atol=1e-6
    )
    assert held.n == made["n"] == CHUNK + 5 and told[-1] == {"done": CHUNK + 5, "of": CHUNK + 5}
    manifest = json.loads((tmp_path / "r.json").read_text())
    assert manifest["weights_sha256"] == dict(shelf.table["dinov2_l14"].files)
    assert (
        manifest["pictures_sha256"]["3.png"]
        == hashlib.sha256((folder / "3.png").read_bytes()).hexdigest()
    )
    assert len(manifest["pictures_sha256"]) == CHUNK + 5


def test_an_npz_streams_its_pictures_and_its_published_moments_win(tmp_path, shelf):
    shots, rng = pixels(CHUNK + 3), np.random.default_rng(1)
    moments = {}
    for mean, covariance, d in (("mu", "sigma", 2048), ("mu_s", "sigma_s", 2023)):
        x = rng.standard_normal((40, d)) * 0.1
        moments |= {mean: x.mean(0), covariance: np.cov(x, rowvar=False)}
    np.savez_compressed(tmp_path / "batch.npz", arr_0=shots)
    np.testing.assert_array_equal(
        np.concatenate(list(Pictures(tmp_path / "batch.npz").chunks())), shots
    )
    np.savez(tmp_path / "adm.npz", arr_0=shots[:3], **moments)
    made = build(tmp_path / "adm.npz", "tf2015", tmp_path / "r.safetensors", shelf)
    assert made["moments"] == {
        "pool": "as published",
        "classes": "of the pictures",
        "spatial": "as published",
    }
    row = shelf.table["tf2015"]
    for path in (tmp_path / "r.safetensors", tmp_path / "adm.npz"):
        held = read(path, row, "spatial")
        np.testing.assert_allclose(held.mean, moments["mu_s"])
        np.testing.assert_allclose(held.root @ held.root.T, moments["sigma_s"], atol=1e-9)
    assert read(tmp_path / "r.safetensors", row, "pool").features.shape == (3, 2048)


def test_an_npz_is_a_reference_of_inceptions_features_alone(tmp_path):
    np.savez(tmp_path / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ValueError, match="cannot be one of dinov2_l14"):
        read(tmp_path / "adm.npz", extractors()["dinov2_l14"], "cls")
    with pytest.raises(ValueError, match="has no array 'mu_s"):
        read(tmp_path / "adm.npz", extractors()["tf2015"], "spatial")
    with pytest.raises(ValueError, match="has no classes of tf2015"):
        read(tmp_path / "adm.npz", extractors()["tf2015"], "classes")


def test_a_file_of_another_extractor_is_refused(tmp_path):
    held = Reference.of(Moments.of(np.random.default_rng(0).standard_normal((9, 3))))
    write(tmp_path / "r.safetensors", extractors()["tf2015"], {"pool": held}, {})
    assert read(tmp_path / "r.safetensors", extractors()["tf2015"], "pool").features is None
    with pytest.raises(
        ValueError, match=r"was made by tf2015 \(key [0-9a-f]{8}\), not by dinov2_l14"
    ):
        read(tmp_path / "r.safetensors", extractors()["dinov2_l14"], "cls")
    with pytest.raises(ValueError, match="has no spatial of tf2015"):
        read(tmp_path / "r.safetensors", extractors()["tf2015"], "spatial")


@pytest.mark.parametrize(
    ("contents", "complaint"),
    [({"arr_1": 0}, "it has no arr_0"), ({"arr_0": np.zeros((2, 4, 4, 3))}, "holds float64 pictures of shape"), (None, "is damaged")],
)  # fmt: skip
def test_other_archives_are_named(tmp_path, contents, complaint):
    path = tmp_path / "a.npz"
    if contents is None:
        path.write_bytes(b"PK half")
    else:
        np.savez(path, **contents)
    with pytest.raises(ValueError, match=complaint):
        Pictures(path)


def test_the_command_says_in_one_sentence_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv(FOLDER, str(tmp_path))
    folder = write_pictures(tmp_path / "a", pixels(2))
    for arguments, complaint in (
        (
            ["--extractor", "tf2015", "--out", str(tmp_path / "r.safetensors")],
            "tf2015 lacks weights-inception-2015-12-05",
        ),
        (
            ["--extractor", "tf2016", "--out", str(tmp_path / "r.safetensors")],
            "no extractor 'tf2016'",
        ),
        (
            ["--extractor", "tf2015", "--out", str(tmp_path / "r.npz")],
            "does not end in .safetensors",
        ),
    ):
        assert main(["reference", "build", str(folder), *arguments]) == 2
        err = capsys.readouterr().err
        assert complaint in err and err.count("\n") == 1
