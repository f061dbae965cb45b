"""From samples to FID and its kin through `score`: real architectures, small files pinned as test
records.

The official files are the only difference.
"""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from scipy.linalg import sqrtm
from small_extractors import write_extractors
from test_score import write_cell, write_requests

from ditbench.analysis.summary import summarise
from ditbench.extractors.build_reference import build
from ditbench.extractors.networks import Network
from ditbench.extractors.references import ReferenceSets, tell
from ditbench.extractors.shelf import Shelf
from ditbench.metrics.scoring import score_run
from ditbench.metrics.table import metrics
from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder
from ditbench.records.scores import read_file, read_scores

N = 5
NAMES = [name for name, m in metrics().items() if m.extractor]
LATER = {"mmd_cubic", "mmd_gaussian_biased", "precision", "recall", "inception_score"}
PROMPTS = ["a cat", "a dog", "a red circle " * 12, "a cat", "A cat"]


def pixels(seed, n=N, size=48):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pinned(tmp_path_factory):
    """Folder and table of small extractors."""
    folder = tmp_path_factory.mktemp("extractors")
    return folder, write_extractors(folder)


@pytest.fixture
def shelf(pinned):
    folder, table = pinned
    return Shelf(table, folder)


@pytest.fixture
def run(tmp_path):
    """A run of one text model of no shapes world: none and a stack."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps({"schema": 1, "cells": []}))
    write_requests(folder, "m", [None] * N, PROMPTS)
    write_cell(folder, "m", "none", pixels(0), world="")
    write_cell(folder, "m", "fast", pixels(1), world="")
    return folder


@pytest.fixture(scope="module")
def references(pinned, tmp_path_factory):
    """A folder of pictures, and references made of it by two extractors."""
    folder = tmp_path_factory.mktemp("references")
    (folder / "pictures").mkdir()
    for i, picture in enumerate(pixels(2, 7)):
        Image.fromarray(picture).save(folder / "pictures" / f"{i}.png")
    for name in ("tf2015", "dinov2_l14"):
        build(
            folder / "pictures", name, folder / f"{name}.safetensors", Shelf(pinned[1], pinned[0])
        )
    return folder


def rows_of(run, shelf):
    records = [minimal(r) for r in read_run(run).records]
    rows = summarise(records, read_scores(run), sets_of_run=ReferenceSets(run, shelf.table))
    return {row["stack"]: row["quality"] for row in rows}


def minimal(record):
    return record | {"run": record["run"] | {"num_samples": N}}


def slow_frechet(x, y):
    """In the span of both sets of features, where the distance lives, so that the matrix root is of
    a small matrix."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    basis = np.linalg.svd(np.concatenate([x, y]), full_matrices=False)[2]
    x, y = x @ basis.T, y @ basis.T
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b) - 2 * np.trace(sqrtm(a @ b)).real


def test_features_are_kept_once_per_extractor_and_all_metrics_of_it_are_made_of_them(run, shelf):
    assert score_run(run, shelf=shelf).written == ["m--fast", "m--none"]
    scores = read_scores(run)["m--fast"]
    kept = {
        name: a.shape
        for name, a in scores.arrays.items()
        if name.startswith("feature.") and "@" not in name
    }
    assert kept == {
        "feature.tf2015.pool": (N, 2048), "feature.tf2015.classes": (N, 1008),
        "feature.tf2015.spatial": (N, 2023),
        "feature.dinov2_l14.cls": (N, 16), "feature.openai_l14_336.image": (N, 8),
        "feature.openai_vit_l14.image": (N, 8),
        "feature.openai_vit_l14.text": (N, 8), "feature.openai_vit_l14.cut": (N,),
    }  # fmt: skip
    assert {scores.reasons[name] for name in NAMES} == {""}
    np.testing.assert_allclose(
        scores.arrays["feature.tf2015.pool"],
        shelf.network("tf2015").features(pixels(1))["pool"],
        rtol=1e-5,
    )


def test_clips_cosine_is_per_sample_and_cut_prompts_are_its_part(run, shelf):
    score_run(run, ["clip100.openai_vit_l14"], shelf=shelf)
    arrays = read_scores(run)["m--fast"].arrays
    image = shelf.network("openai_vit_l14").features(pixels(1))["image"]
    text = shelf.network("openai_vit_l14").texts(PROMPTS)[0]["text"]
    by_hand = [100 * float(a @ b) for a, b in zip(image, text, strict=True)]
    np.testing.assert_allclose(arrays["clip100.openai_vit_l14"], by_hand, atol=1e-4)
    entry = rows_of(run, shelf)["fast"]["clip100.openai_vit_l14"]
    assert (
        entry["value"]["value"] == pytest.approx(np.mean(by_hand), abs=1e-4)
        and entry["delta"]["n"] == 4
    )
    assert entry["parts"]["cut"]["value"]["value"] == pytest.approx(1 / N)


def test_frechet_distances_are_to_the_reference_the_run_was_told(run, shelf, references):
    tell(run, [str(references / "dinov2_l14.safetensors")], shelf.table)
    score_run(run, ["fd.dinov2_l14.bicubic224", "fid.tf2015.legacy_tf"], shelf=shelf)
    quality = rows_of(run, shelf)
    x, y = (
        shelf.network("dinov2_l14").features(pixels(*a))["cls"].astype(float)
        for a in ((1,), (2, 7))
    )
    assert quality["fast"]["fd.dinov2_l14.bicubic224"]["value"]["value"] == pytest.approx(
        slow_frechet(x, y), rel=1e-4
    )
    entry = quality["fast"]["fid.tf2015.legacy_tf"]
    assert entry["value"] is None and entry["reason"].startswith(
        "the run was told no reference of tf2015"
    )
    assert entry["extractor"] == shelf.table["tf2015"].key and entry["reference"] == ""
    tell(run, [f"m={references / 'tf2015.safetensors'}"], shelf.table)
    quality = rows_of(run, shelf)
    x, y = (shelf.network("tf2015").features(pixels(*a)) for a in ((1,), (2, 7)))
    for name, feature in (("fid", "pool"), ("sfid", "spatial")):
        found = score_and_entry(run, shelf, f"{name}.tf2015.legacy_tf")
        assert found["value"]["value"] == pytest.approx(
            slow_frechet(x[feature], y[feature]), rel=1e-3
        )
        file = (references / "tf2015.safetensors").read_bytes()
        assert found["reference"] == hashlib.sha256(file).hexdigest()
        assert found["delta"] is None and "times as many samples as their" in found["delta_reason"]


def score_and_entry(run, shelf, name):
    score_run(run, [name], shelf=shelf)
    return rows_of(run, shelf)["fast"][name]


def test_a_metric_added_later_reads_the_features_that_are_there(run, shelf, pinned, monkeypatch):
    score_run(run, ["fid.tf2015.legacy_tf"], shelf=shelf)
    before = read_scores(run)["m--fast"].arrays["feature.tf2015.pool"]
    monkeypatch.setattr(Network, "features", None)  # would raise if anything were extracted again
    empty = Shelf(pinned[1], run)  # no files there
    score_run(run, ["sfid.tf2015.legacy_tf", "is.tf2015.legacy_tf"], shelf=empty)
    after = read_scores(run)["m--fast"]
    assert after.reasons["sfid.tf2015.legacy_tf"] == after.reasons["is.tf2015.legacy_tf"] == ""
    np.testing.assert_array_equal(after.arrays["feature.tf2015.pool"], before)


def test_features_do_not_depend_on_the_cells_around_them_and_a_second_run_does_nothing(run, shelf):
    score_run(run, ["clip100.openai_vit_l14"], shelf=shelf)
    before = (run / "scores" / "m--fast.safetensors").read_bytes()
    assert score_run(run, ["clip100.openai_vit_l14"], shelf=shelf).kept == ["m--fast", "m--none"]
    assert (run / "scores" / "m--fast.safetensors").read_bytes() == before


def test_without_files_the_reason_names_them_and_the_rest_of_the_table_is_there(
    run, tmp_path, pinned
):
    score_run(run, shelf=Shelf(pinned[1], tmp_path / "nowhere"))
    scores = read_scores(run)["m--fast"]
    for name in NAMES:
        file = next(iter(pinned[1][metrics()[name].extractor].files))
        assert file in scores.reasons[name] and "published at https://" in scores.reasons[name]
    assert scores.reasons["psnr.vs_none"] == "" and "fid.tf2015.legacy_tf" not in scores.arrays
    entry = rows_of(run, Shelf(pinned[1]))["fast"]["fid.tf2015.legacy_tf"]
    assert entry["value"] is None and "weights-inception" in entry["reason"]


def test_files_that_appear_later_are_used(run, tmp_path, pinned, shelf):
    score_run(run, ["clip100.openai_vit_l14"], shelf=Shelf(pinned[1], tmp_path / "nowhere"))
    assert score_run(run, ["clip100.openai_vit_l14"], shelf=shelf).written == ["m--fast", "m--none"]
    assert read_scores(run)["m--fast"].reasons["clip100.openai_vit_l14"] == ""


def test_a_file_with_another_hash_is_refused_by_name_and_never_used(run, tmp_path, pinned):
    folder = tmp_path / "wrong" / "dinov2_l14"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(
        (pinned[0] / "openai_vit_l14" / "model.safetensors").read_bytes()
    )
    score_run(run, ["fd.dinov2_l14.bicubic224"], shelf=Shelf(pinned[1], tmp_path / "wrong"))
    scores = read_scores(run)["m--fast"]
    said = scores.reasons["fd.dinov2_l14.bicubic224"]
    assert "its sha256 is" in said and pinned[1]["dinov2_l14"].files["model.safetensors"] in said
    assert list(scores.arrays) == ["group"]


def test_models_of_a_shapes_world_are_looked_at_through_networks_only_when_asked(tmp_path, shelf):
    (tmp_path / "spec.json").write_text(json.dumps({"schema": 1, "cells": []}))
    write_requests(tmp_path, "m", [None] * N, PROMPTS)
    write_cell(tmp_path, "m", "none", pixels(0), world="scene")
    score_run(tmp_path, shelf=shelf, judge_folder=tmp_path)
    assert not set(read_scores(tmp_path)["m--none"].reasons) & set(NAMES)
    assert not set(rows_of(tmp_path, shelf)["none"]) & set(NAMES)
    score_run(tmp_path, ["clip100.openai_vit_l14"], shelf=shelf)
    assert "clip100.openai_vit_l14" in rows_of(tmp_path, shelf)["none"]


def test_videos_and_classes_have_reasons(tmp_path, shelf):
    (tmp_path / "spec.json").write_text(json.dumps({"schema": 1, "cells": []}))
    write_requests(tmp_path, "v", [None] * 2, ["a", "b"])
    write_cell(tmp_path, "v", "none", np.zeros((2, 3, 16, 16, 3), np.uint8), world="")
    write_requests(tmp_path, "c", [None] * N)
    write_cell(tmp_path, "c", "none", pixels(0), world="")
    score_run(tmp_path, ["fid.tf2015.legacy_tf", "clip100.openai_vit_l14"], shelf=shelf)
    scores = read_scores(tmp_path)
    assert (
        scores["v--none"].reasons["fid.tf2015.legacy_tf"]
        == "tf2015 reads pictures, and these samples are videos"
    )
    assert (
        scores["v--none"]
        .reasons["clip100.openai_vit_l14"]
        .startswith("openai_vit_l14 reads pictures")
    )
    assert scores["c--none"].reasons["clip100.openai_vit_l14"] == "the requests carry no prompts"
    assert scores["c--none"].reasons["fid.tf2015.legacy_tf"] == ""


def test_a_reference_of_another_extractor_or_another_file_is_refused(
    run, shelf, references, tmp_path
):
    with pytest.raises(
        ValueError, match=r"was made by a tf2015 of key [0-9a-f]{8}, here it is [0-9a-f]{8}"
    ):
        tell(run, [str(references / "tf2015.safetensors")])  # the official table pins other files
    with pytest.raises(ValueError, match="there is no file 'nowhere'"):
        tell(run, ["m=nowhere"], shelf.table)
    (tmp_path / "half.safetensors").write_bytes(
        (references / "tf2015.safetensors").read_bytes()[:900]
    )
    with pytest.raises(ValueError, match="is no reference file, or damaged"):
        tell(run, [str(tmp_path / "half.safetensors")], shelf.table)
    assert not RunFolder(run).references.exists()
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes((references / "dinov2_l14.safetensors").read_bytes())
    tell(run, [str(mine)], shelf.table)
    score_run(run, ["fd.dinov2_l14.bicubic224"], shelf=shelf)
    mine.write_bytes(mine.read_bytes()[:-8] + b"changed!")
    said = rows_of(run, shelf)["fast"]["fd.dinov2_l14.bicubic224"]["reason"]
    assert said.endswith("is not the file the run was told (its sha256 is another)")
    mine.unlink()
    assert (
        "there is no reference file"
        in rows_of(run, shelf)["fast"]["fd.dinov2_l14.bicubic224"]["reason"]
    )


def test_features_that_are_not_finite_are_refused_by_name(run, shelf, monkeypatch):
    real = Network.features
    monkeypatch.setattr(
        Network, "features", lambda self, p: {k: v * np.nan for k, v in real(self, p).items()}
    )
    score_run(run, ["fd.dinov2_l14.bicubic224"], shelf=shelf)
    reasons = read_file(run / "scores" / "m--fast.safetensors").reasons
    assert reasons["feature.dinov2_l14"] == "feature.dinov2_l14.cls came out not finite"
    assert (
        reasons["fd.dinov2_l14.bicubic224"]
        == "there are no features of dinov2_l14 of these samples"
    )


def test_new_samples_make_new_features(run, shelf):
    score_run(run, ["fd.dinov2_l14.bicubic224"], shelf=shelf)
    before = read_scores(run)["m--fast"].arrays["feature.dinov2_l14.cls"]
    save_file({"samples": pixels(9)}, run / "cells" / "m--fast" / "samples.safetensors")
    assert score_run(run, ["fd.dinov2_l14.bicubic224"], shelf=shelf).written == ["m--fast"]
    assert not np.allclose(read_scores(run)["m--fast"].arrays["feature.dinov2_l14.cls"], before)
