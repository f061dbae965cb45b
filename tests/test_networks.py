"""The networks of the real architectures, against their definitions, with weights in files laid out
as the published ones."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_extractors import write_extractors

from ditbench.extractors.networks import Network, exact, load
from ditbench.extractors.networks.inception import BlockE, Inception
from ditbench.extractors.networks.preprocessing import (
    bicubic224,
    clip224,
    legacy_tf,
    resize_like_tensorflow1,
    square336,
)
from ditbench.extractors.networks.tensors import read_tensors


def pictures(n, height=40, width=52, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder of files, and the table that pins them."""
    folder = tmp_path_factory.mktemp("extractors")
    return folder, write_extractors(folder)


@pytest.mark.parametrize("name", ["tf2015", "dinov2_l14", "openai_vit_l14", "openai_l14_336"])
def test_features_have_the_widths_the_table_says_and_do_not_depend_on_the_batch(shelf, name):
    folder, table = shelf
    net = load(table[name], folder)
    together, one_by_one = net.features(pictures(3)), net.features(pictures(3), batch=1)
    said = {feature: width for feature, width in table[name].features.items() if feature != "text"}
    assert {feature: a.shape for feature, a in together.items()} == {
        f: (3, width) for f, width in said.items()
    }
    for feature, a in together.items():
        assert (
            a.dtype == np.float32
            and np.isfinite(a).all()
            and a.std(0).max() > 1e-3 * np.abs(a).max()
        )
        np.testing.assert_allclose(a, one_by_one[feature], rtol=1e-4, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("name", ["tf2015", "openai_vit_l14"])
def test_floats_are_refused_because_they_would_be_scaled_twice(shelf, name):
    folder, table = shelf
    net = load(table[name], folder)
    with pytest.raises(TypeError, match=f"{name} reads pictures as uint8 in 0..255, got float32"):
        net.features(pictures(1).astype(np.float32) / 255)
    with pytest.raises(ValueError, match=r"\[n, H, W, 3\], got shape \[1, 2, 40, 52, 3\]"):
        net.features(pictures(2)[None])


def test_a_wrong_file_is_refused_before_it_is_opened(shelf, tmp_path):
    _, table = shelf
    (tmp_path / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"its sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}"):
        load(table["tf2015"], tmp_path)


def pinned(row, path, name=None):
    name = name or next(iter(row.files))
    return replace(
        row, files=dict(row.files) | {name: hashlib.sha256(path.read_bytes()).hexdigest()}
    )


def test_a_file_that_fits_the_hash_but_not_the_architecture_is_named(shelf, tmp_path):
    folder, table = shelf
    path = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, path)
    with pytest.raises(ValueError, match="does not fit inception"):
        load(pinned(table["tf2015"], path), tmp_path)
    other = replace(
        table["dinov2_l14"],
        files={"model.safetensors": table["openai_vit_l14"].files["model.safetensors"]},
    )
    with pytest.raises(ValueError, match="does not fit Dinov2Model"):
        load(other, folder / "openai_vit_l14")


@pytest.mark.parametrize("archive", [True, False])
def test_files_that_hold_programs_are_not_run(archive, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.arange(3)}, path, _use_new_zipfile_serialization=archive)
    assert read_tensors(path)["a"].tolist() == [0, 1, 2]
    torch.save({"a": Runs()}, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(ValueError, match="holds something else than tensors"):
        read_tensors(path)
    assert not Runs.ran
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match="holds something else than named tensors"):
        read_tensors(path)
    path.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(ValueError, match=r"w\.pth"):
        read_tensors(path)


class Runs:
    ran = False

    def __setstate__(self, state):
        Runs.ran = True

    def __getstate__(self):
        return {"x": 1}


def test_tensorflows_old_resize_is_what_its_definition_says_pixel_by_pixel():
    source = torch.from_numpy(pictures(1, 5, 9)).permute(0, 3, 1, 2).float()
    for size in (3, 7, 12):
        found = resize_like_tensorflow1(source, size)
        for i in range(size):
            for j in range(size):
                y, x = np.float32(i) * np.float32(5 / size), np.float32(j) * np.float32(9 / size)
                top, left = int(y), int(x)
                bottom, right = min(top + 1, 4), min(left + 1, 8)
                upper = source[0, :, top, left] * (1 - (x - left)) + source[0, :, top, right] * (
                    x - left
                )
                lower = source[0, :, bottom, left] * (1 - (x - left)) + source[
                    0, :, bottom, right
                ] * (x - left)
                by_hand = upper * (1 - (y - top)) + lower * (y - top)
                np.testing.assert_allclose(found[0, :, i, j], by_hand, atol=1e-3)


def test_inceptions_input_runs_from_minus_one_to_almost_one_and_a_picture_of_its_size_is_not_resized():
    same = pictures(1, 299, 299)
    np.testing.assert_array_equal(
        legacy_tf(same), (torch.from_numpy(same).permute(0, 3, 1, 2).float() - 128) / 128
    )


@pytest.mark.parametrize("size", [(40, 52), (52, 40), (30, 30), (400, 300)])
def test_clips_preprocessing_is_that_of_transformers(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    shot = pictures(2, *size)
    theirs = CLIPImageProcessorPil()([Image.fromarray(p) for p in shot], return_tensors="pt")[
        "pixel_values"
    ]
    np.testing.assert_allclose(clip224(shot), theirs, atol=1e-5)


def test_squeezing_keeps_the_whole_picture_and_cmmds_square_its_middle():
    half = np.zeros((1, 100, 200, 3), np.uint8)
    half[:, :, 100:] = 255
    squeezed = bicubic224(half)
    assert squeezed.shape == (1, 3, 224, 224) and squeezed[0, 0, 0, 0] < 0 < squeezed[0, 0, 0, -1]
    half[:, :, :50] = 128  # outside the middle square
    square = square336(half)
    assert square.shape == (1, 3, 336, 336)
    np.testing.assert_allclose(
        square[0, :, 100, 5],
        [-0.48145466 / 0.26862954, -0.4578275 / 0.26130258, -0.40821073 / 0.27577711],
        atol=1e-5,
    )


def test_inception_has_as_many_numbers_as_the_published_file():
    numbers = sum(t.numel() for t in Inception().state_dict().values())
    # the file is a little larger, for it holds names too
    assert 0 < 95_628_359 - 4 * numbers < 200_000


def test_the_last_block_pools_by_maximum_and_the_one_before_leaves_padding_out_of_the_mean():
    torch.manual_seed(0)
    x, y = torch.rand(1, 1280, 8, 8), torch.rand(1, 2048, 8, 8)
    with torch.inference_mode():
        first, last = BlockE(1280, by_maximum=False).eval(), BlockE(2048, by_maximum=True).eval()
        mean, most = (
            x[:, :, :2, :2].mean((2, 3), keepdim=True),
            y[:, :, :2, :2].amax((2, 3), keepdim=True),
        )
        np.testing.assert_allclose(
            first(x)[:, -192:, :1, :1], first.branch_pool(mean), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            last(y)[:, -192:, :1, :1], last.branch_pool(most), rtol=1e-4, atol=1e-6
        )


def test_inceptions_features_are_the_layers_they_are_named_for(shelf):
    folder, table = shelf
    net = load(table["tf2015"], folder)
    inner, seen = net._net, {}
    inner.Mixed_6d.branch1x1.register_forward_hook(lambda m, i, out: seen.update(spatial=out))
    inner.Mixed_7c.register_forward_hook(lambda m, i, out: seen.update(last=out))
    found = net.features(pictures(2))
    np.testing.assert_array_equal(
        found["spatial"], seen["spatial"][:, :7].reshape(2, 7 * 17 * 17).cpu()
    )
    np.testing.assert_allclose(found["pool"], seen["last"].mean((2, 3)).cpu(), rtol=1e-6)
    weight = inner.fc.weight.double().cpu().numpy()
    logits = found["pool"] @ weight.T
    powers = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        found["classes"], powers / powers.sum(1, keepdims=True), rtol=1e-3, atol=1e-7
    )


def test_dinov2_gives_the_class_token_from_a_file_with_the_published_names(shelf):
    from transformers import Dinov2Config, Dinov2Model

    folder, table = shelf
    row = table["dinov2_l14"]
    tensors = load_file(folder / "dinov2_l14" / "model.safetensors")
    assert "encoder.layer.0.attention.attention.query.weight" in tensors
    model = Dinov2Model.from_pretrained(
        None, config=Dinov2Config(**row.shape), state_dict=tensors
    ).eval()
    with exact():
        by_hand = model(bicubic224(pictures(2))).last_hidden_state[:, 0]
    np.testing.assert_allclose(
        load(row, folder, "cpu").features(pictures(2))["cls"], by_hand, rtol=1e-5, atol=1e-6
    )


def test_clips_cosine_is_its_own_logit_without_the_scale_and_cut_prompts_are_told(shelf):
    folder, table = shelf
    net = load(table["openai_vit_l14"], folder, "cpu")
    prompts = ["a red circle", "a blue square " * 20]
    texts, cut = net.texts(prompts)
    assert cut.tolist() == [False, True]
    images = net.features(pictures(2))["image"]
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    model, tokenizer = net._net.model, net._net.tokenizer
    asked = tokenizer(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with exact():
        logits = (
            model(pixel_values=clip224(pictures(2), 28), **asked).logits_per_image
            / model.logit_scale.exp()
        )
    np.testing.assert_allclose(images @ texts["text"].T, logits, atol=1e-5)


def test_prompts_do_not_depend_on_the_batch_they_are_read_in(shelf):
    folder, table = shelf
    net = load(table["openai_vit_l14"], folder)
    prompts = ["a", "a much longer prompt than that", "B"]
    np.testing.assert_allclose(
        net.texts(prompts)[0]["text"], net.texts(prompts, batch=1)[0]["text"], atol=1e-5
    )


def test_the_switches_of_the_process_are_put_back(shelf):
    before = torch.backends.cudnn.allow_tf32
    with exact():
        assert not torch.backends.cudnn.allow_tf32 and not torch.is_grad_enabled()
    assert torch.backends.cudnn.allow_tf32 == before and torch.is_grad_enabled()


def test_a_network_runs_where_it_is_told_to(shelf):
    folder, table = shelf
    from ditbench.extractors.table import verified

    assert (
        Network(table["dinov2_l14"], verified(table["dinov2_l14"], folder), "cpu").device == "cpu"
    )
