"""PickScore on the real CLIP classes with small random weights; the published folder is the only
thing that is missing."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from ditbench.extractors import pinned_files as published
from ditbench.extractors.pinned_files import Published
from ditbench.metrics import pickscore
from ditbench.metrics.samples import Sampled, Samples
from ditbench.metrics.table import metrics

METRIC = metrics()["pickscore.v1"]


def cell(path, samples, prompts):
    save_file({"samples": samples}, path / "s")
    return Sampled(
        world="",
        weights="bundled",
        samples=Samples(path / "s"),
        truths=None,
        baseline=None,
        prompts=prompts,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small CLIP of random weights in an ordinary folder, pinned as this test's record."""
    at = tmp_path / "shelf" / "pickscore_v1"
    at.mkdir(parents=True)
    letters = [f"{c}{end}" for c in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    words = {word: i for i, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (at / "vocab.json").write_text(json.dumps(words))
    (at / "merges.txt").write_text("#version: 0.2\n")
    size = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ends = {
        "vocab_size": len(words),
        "bos_token_id": len(words) - 2,
        "eos_token_id": len(words) - 1,
        "pad_token_id": len(words) - 1,
    }
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=size | ends,
        vision_config=size | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(at)
    sha256 = hashlib.sha256((at / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(
        pickscore,
        "WEIGHTS",
        Published(extractor="pickscore_v1", name="model.safetensors", sha256=sha256, where="here"),
    )
    monkeypatch.setenv(published.FOLDER, str(tmp_path / "shelf"))
    return at


def test_scores_are_the_models_own_logits_of_each_pair(folder, tmp_path):
    samples = np.random.default_rng(0).integers(0, 256, (3, 48, 40, 3), dtype=np.uint8)
    prompts = ["a cat", "a very small dog", "x" * 100]
    sampled = cell(tmp_path, samples, prompts)
    assert pickscore.refuse(sampled, METRIC) == ""
    found = pickscore.extract(sampled, METRIC)
    model, tokenizer = (
        CLIPModel.from_pretrained(folder).eval(),
        CLIPTokenizer.from_pretrained(folder),
    )
    for i, prompt in enumerate(prompts):
        told = tokenizer([prompt], truncation=True, max_length=77, return_tensors="pt")
        pixels = torch.from_numpy(pickscore.prepared(samples[i : i + 1], 32))
        with torch.inference_mode():
            expected = model(pixel_values=pixels, **told).logits_per_image[0, 0]
        assert found["pickscore.v1"][i] == pytest.approx(float(expected), rel=1e-4)
    assert found["pickscore.v1.cut"].tolist() == [0, 0, 1]


def test_pictures_are_prepared_as_clips_own_processor_does():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    picture = np.random.default_rng(0).integers(0, 256, (45, 63, 3), dtype=np.uint8)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    expected = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
    np.testing.assert_allclose(pickscore.prepared(picture[None], 32)[0], expected, atol=1e-5)


def test_another_folder_has_no_published_name_and_an_unpinned_one_neither(
    folder, tmp_path, monkeypatch
):
    sampled = cell(tmp_path, np.zeros((1, 8, 8, 3), np.uint8), ["a"])
    (folder / "model.safetensors").write_bytes(b"other")
    assert "is not the published model.safetensors" in pickscore.refuse(sampled, METRIC)
    monkeypatch.undo()
    monkeypatch.setenv(published.FOLDER, str(tmp_path / "shelf"))
    assert "the sha256 of the published model.safetensors" in pickscore.refuse(sampled, METRIC)
    assert pickscore.refuse(
        cell(tmp_path, np.zeros((1, 2, 8, 8, 3), np.uint8), ["a"]), METRIC
    ).startswith("these are videos")
    assert (
        pickscore.refuse(cell(tmp_path, np.zeros((1, 8, 8, 3), np.uint8), None), METRIC)
        == "the requests carry no prompts"
    )
