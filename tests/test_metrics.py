"""Metric families on pixels whose answers are known."""

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from ditbench.extractors.table import extractors, unnamed
from ditbench.metrics import alignment, fidelity, perceptual
from ditbench.metrics import shapes_features as frechet
from ditbench.metrics import shapes_reference as references
from ditbench.metrics.samples import Sampled, Samples, to_pixels
from ditbench.metrics.table import Metric, metrics, select
from ditbench.shapes import scenes as shapes
from ditbench.shapes.judge import Judge


def samples_at(path, array):
    save_file({"samples": array}, path)
    return Samples(path)


def cell(samples, **told):
    return Sampled(
        **{
            "world": "class",
            "weights": "bundled",
            "samples": samples,
            "truths": None,
            "baseline": None,
        }
        | told
    )


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    """Judges that learned nothing: enough to show what is done with what they say."""
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    for world, name in (("class", "still"), ("video", "video")):
        save_torch(Judge(world).state_dict(), folder / f"{name}.safetensors")
    return folder


def test_names_belong_to_us_and_every_metric_says_what_it_is():
    for name, metric in metrics().items():
        assert metric.official or unnamed(name, extractors().get(metric.extractor)) == ""
        assert (
            metric.better in ("higher", "lower", "neither")
            and metric.doc.endswith(".")
            and metric.needs
        )
        assert (
            callable(metric.module.extract)
            and callable(metric.module.refuse)
            and callable(metric.module.fingerprint)
        )


def test_the_table_answers_without_torch():
    code = (
        "import sys; sys.path.insert(0, '.'); import run_bench\n"
        "from ditbench import statistics, analysis, metrics\n"
        "assert metrics.metrics()['fd.shapes_v1'].better == 'lower'\n"
        "assert not {'torch', 'torchmetrics'} & set(sys.modules), 'torch came along'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_an_unknown_metric_is_refused_with_the_nearest_names():
    with pytest.raises(
        ValueError, match=r"unknown metric 'psnr.vs_nun'; did you mean psnr.vs_none"
    ):
        select("align.shapes_v1,psnr.vs_nun")
    assert [m.name for m in select("ssim.vs_none, align.shapes_v1")] == [
        "ssim.vs_none",
        "align.shapes_v1",
    ]
    assert [m.name for m in select()] == [name for name, m in metrics().items() if not m.asked]


def test_psnr_of_unrelated_pictures_is_not_flattered_by_uint8_wrapping_round(tmp_path):
    a, b = noise(0, 4, 32, 32, 3), noise(1, 4, 32, 32, 3)
    wrapped = 10 * np.log10(255**2 / np.mean((a - b) ** 2))
    by_hand = [
        10 * np.log10(1 / np.mean((x / 255.0 - y / 255.0) ** 2)) for x, y in zip(a, b, strict=True)
    ]
    both = cell(samples_at(tmp_path / "a", a), baseline=samples_at(tmp_path / "b", b))
    found = fidelity.extract(both, metrics()["psnr.vs_none"])
    np.testing.assert_allclose(found["psnr.vs_none"], by_hand, rtol=1e-12)
    assert wrapped > 27 > 10 > found["psnr.vs_none"].max()


def test_psnr_is_per_sample_and_capped_where_nothing_changed(tmp_path):
    a = noise(0, 3, 16, 16, 3)
    b = a.copy()
    b[1] = 255 - b[1]
    both = cell(samples_at(tmp_path / "a", a), baseline=samples_at(tmp_path / "b", b))
    found = fidelity.extract(both, metrics()["psnr.vs_none"])
    assert found["psnr.vs_none"][0] == found["psnr.vs_none"][2] == 100
    assert found["mse.vs_none"][0] == 0 < found["mse.vs_none"][1]
    similar = fidelity.extract(both, metrics()["ssim.vs_none"])["ssim.vs_none"]
    assert similar[0] == pytest.approx(1) and similar[1] < 0.2


def slow_ssim(x, y):
    """Wang et al. 2004 with explicit windows; x, y [H, W, 3] in 0..1, windows that lie wholly in
    the picture."""
    axis = np.arange(11) - 5
    g = np.exp(-(axis**2) / (2 * 1.5**2))
    window = np.outer(g, g) / g.sum() ** 2
    (height, width, channels), values = x.shape, []
    for i, j, c in np.ndindex(height - 10, width - 10, channels):
        p, q = (z[i : i + 11, j : j + 11, c] for z in (x, y))
        mp, mq = np.sum(window * p), np.sum(window * q)
        vp, vq = np.sum(window * p * p) - mp**2, np.sum(window * q * q) - mq**2
        shared = np.sum(window * p * q) - mp * mq
        upper = (2 * mp * mq + 0.01**2) * (2 * shared + 0.03**2)
        values.append(upper / ((mp**2 + mq**2 + 0.01**2) * (vp + vq + 0.03**2)))
    return np.mean(values)


@pytest.mark.parametrize("size", [(12, 14), (11, 11), (24, 19)])
def test_ssim_is_the_published_one_and_does_not_look_beyond_the_border(size):
    """Windows over reflected borders moved a sample by up to .034."""
    a = noise(0, 1, *size, 3)
    b = (0.6 * a + 0.4 * noise(1, 1, *size, 3)).astype(np.uint8)
    assert fidelity.similarity(a, b)[0] == pytest.approx(
        slow_ssim(a[0] / 255, b[0] / 255), abs=1e-4
    )


def test_ssim_inside_the_border_is_torchmetrics_own():
    from torchmetrics.functional.image import structural_similarity_index_measure

    a = noise(0, 4, 40, 33, 3)
    b = (0.7 * a + 0.3 * noise(1, 4, 40, 33, 3)).astype(np.uint8)
    b[3] = a[3] = 255  # flat: variances of nothing
    _, windows = structural_similarity_index_measure(
        to_pixels(a), to_pixels(b), sigma=1.5, kernel_size=11, data_range=1.0, reduction="none",
        return_full_image=True,
    )  # fmt: skip
    oracle = windows[..., 5:-5, 5:-5].mean((1, 2, 3))
    np.testing.assert_allclose(fidelity.similarity(a, b), oracle, atol=2e-6)


def test_ms_ssim_is_torchmetrics_own(tmp_path):
    from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

    a = noise(0, 3, 176, 180, 3)
    b = (0.7 * a + 0.3 * noise(1, 3, 176, 180, 3)).astype(np.uint8)
    both = cell(samples_at(tmp_path / "a", a), baseline=samples_at(tmp_path / "b", b))
    metric, oracle = (
        metrics()["ms_ssim.vs_none"],
        MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0, normalize="relu"),
    )
    assert fidelity.refuse(both, metric) == ""
    found = fidelity.extract(both, metric)[metric.name]
    expected = [
        float(oracle(to_pixels(x[None]), to_pixels(y[None]))) for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.min() > 0 and found.max() < 1


def test_ms_ssim_is_refused_where_halving_leaves_less_than_a_window(tmp_path):
    small, metric = (
        samples_at(tmp_path / "s", noise(0, 1, 175, 200, 3)),
        metrics()["ms_ssim.vs_none"],
    )
    assert "at least 176 pixels" in fidelity.refuse(cell(small, baseline=small), metric)


@pytest.mark.parametrize("shape", [(8, 8), (15, 64), (2, 48, 48)])
def test_samples_that_are_too_small_for_a_judge_are_refused_in_a_sentence(tmp_path, shape):
    world, table = "video" if len(shape) == 3 else "class", metrics()
    one = cell(samples_at(tmp_path / "s", noise(0, 2, *shape, 3)), world=world)
    needs = (
        "5 frames, not 2" if world == "video" else f"16 pixels a side, not {shape[0]} x {shape[1]}"
    )
    for name in ("align.shapes_v1", "fd.shapes_v1"):
        module = table[name].module
        assert module.refuse(one, table[name]).endswith(needs)
    check = table["align.shapes_check_v1"]
    assert (
        "second judge reads 64 x 64 pixels" in check.module.refuse(one, check) or world == "video"
    )


def test_pooled_psnr_is_that_of_the_mean_error_and_never_above_the_mean_psnr():
    errors = np.array([0.1, 0.001, 0.0])
    assert fidelity.pooled(errors) == pytest.approx(10 * np.log10(3 / 0.101))
    assert (
        fidelity.pooled(errors)
        < fidelity.decibels(errors).mean()
        == pytest.approx((10 + 30 + 100) / 3)
    )
    assert fidelity.pooled(np.zeros(2)) == 100


def test_psnr_and_ssim_that_contradict_each_other_are_doubted():
    a, b = noise(0, 1, 32, 32, 3), noise(1, 1, 32, 32, 3)
    wrapped = 10 * np.log10(255**2 / np.mean((a - b) ** 2))
    assert "8-bit differences that wrapped round" in fidelity.doubtful(
        wrapped, fidelity.similarity(a, b)[0]
    )
    honest = fidelity.decibels(fidelity.frame_errors(a, b)).mean()
    assert (
        fidelity.doubtful(honest, 0.1)
        == fidelity.doubtful(35, 0.9)
        == fidelity.doubtful(None, None)
        == ""
    )


def test_a_video_is_the_mean_of_its_frames(tmp_path):
    a, b = noise(0, 2, 3, 16, 16, 3), noise(1, 2, 3, 16, 16, 3)
    b[:, 0] = a[:, 0]
    video = cell(samples_at(tmp_path / "a", a), baseline=samples_at(tmp_path / "b", b))
    psnr = fidelity.extract(video, metrics()["psnr.vs_none"])["psnr.vs_none"]
    ssim = fidelity.extract(video, metrics()["ssim.vs_none"])["ssim.vs_none"]
    for i in range(2):
        frames = [cell(samples_at(tmp_path / "x", a[i]), baseline=samples_at(tmp_path / "y", b[i]))]
        np.testing.assert_allclose(
            psnr[i], fidelity.extract(frames[0], metrics()["psnr.vs_none"])["psnr.vs_none"].mean()
        )
        np.testing.assert_allclose(ssim[i], fidelity.similarity(a[i], b[i]).mean(), rtol=1e-6)


def test_a_metric_that_cannot_run_says_why(tmp_path, judge_folder, monkeypatch):
    table, small, large = (
        metrics(),
        samples_at(tmp_path / "s", noise(0, 2, 8, 8, 3)),
        samples_at(tmp_path / "l", noise(0, 2, 16, 16, 3)),
    )
    ssim, psnr = table["ssim.vs_none"], table["psnr.vs_none"]
    assert fidelity.refuse(cell(small, no_baseline="none of it"), psnr) == "none of it"
    assert "cannot be held against" in fidelity.refuse(cell(small, baseline=large), psnr)
    assert "at least 11 pixels" in fidelity.refuse(cell(small, baseline=small), ssim)
    assert (
        fidelity.refuse(cell(small, baseline=small), psnr)
        == fidelity.refuse(cell(large, baseline=large), ssim)
        == ""
    )
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    assert fidelity.refuse(cell(large, baseline=large), ssim) == ""
    huge = samples_at(tmp_path / "h", noise(0, 1, 176, 176, 3))
    assert "torchmetrics cannot be imported" in fidelity.refuse(
        cell(huge, baseline=huge), table["ms_ssim.vs_none"]
    )
    align = table["align.shapes_v1"]
    assert "paints none" in alignment.refuse(cell(large, world=""), align)
    assert "no weights (video.safetensors" in alignment.refuse(
        cell(large, world="video", judge_folder=tmp_path), align
    )
    assert "no ground truth" in alignment.refuse(cell(large, judge_folder=judge_folder), align)
    assert frechet.refuse(cell(large, judge_folder=judge_folder), table["fd.shapes_v1"]) == ""


@pytest.mark.parametrize("world", ["class", "scene", "video"])
def test_what_the_judge_reads_is_what_agreement_and_features_say(world, tmp_path, judge_folder):
    n = 70 if world == "class" else 5  # 70: more than one chunk
    scenes = shapes.draw(world, n, split="test", seed=3)
    pixels = (shapes.render(scenes, world, split="test", seed=3) * 255).round().byte()
    samples = samples_at(tmp_path / "s", np.ascontiguousarray(pixels.movedim(1, -1).numpy()))
    truths = list(scenes.truths())
    seen = cell(samples, world=world, truths=truths, judge_folder=judge_folder)

    judge = Judge(world)
    judge.load_state_dict(_weights(judge_folder, world))
    judge.eval()
    whole = pixels.float() / 255
    np.testing.assert_allclose(
        frechet.extract(seen, metrics()["fd.shapes_v1"])["feature.shapes_v1"],
        judge.features(whole).detach().numpy(),
        atol=1e-5,
    )
    found = alignment.extract(seen, metrics()["align.shapes_v1"])
    read = judge.read(whole)
    parts = [a for name, a in found.items() if name.count(".") == 2]
    np.testing.assert_allclose(found["align.shapes_v1"], np.mean(parts, axis=0))
    if world == "class":
        one = (read.shape >= 0).sum(1) == 1
        np.testing.assert_array_equal(
            found["align.shapes_v1"], ((read.labels == scenes.labels) & one).double()
        )
    else:
        background = (read.background == scenes.background).double()
        np.testing.assert_array_equal(found["align.shapes_v1.background"], background)
        assert len(parts) == (7 if world == "video" else 6)


def _weights(folder, world):
    from safetensors.torch import load_file as load_torch

    return load_torch(folder / ("video.safetensors" if world == "video" else "still.safetensors"))


def test_samples_must_be_bytes(tmp_path):
    with pytest.raises(TypeError, match="uint8, got float32"):
        to_pixels(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="F32 samples of shape"):
        samples_at(tmp_path / "f", np.zeros((1, 8, 8, 3), np.float32))


def test_the_fingerprint_of_alignment_follows_the_judge_and_the_truths(tmp_path, judge_folder):
    samples, metric = (
        samples_at(tmp_path / "s", noise(0, 1, 64, 64, 3)),
        metrics()["align.shapes_v1"],
    )
    other = tmp_path / "judge"
    other.mkdir()
    (other / "still.safetensors").write_bytes(b"another judge")
    prints = {
        alignment.fingerprint(cell(samples, judge_folder=judge_folder), metric),
        alignment.fingerprint(cell(samples, judge_folder=other), metric),
        alignment.fingerprint(cell(samples, judge_folder=other, truths=[{"shape": [1]}]), metric),
    }
    assert len(prints) == 3


def test_references_are_made_the_same_twice_and_entered_in_the_manifest(tmp_path, judge_folder):
    (tmp_path / "manifest.toml").write_text('["prompts.txt"]\nsource = "a \\"quoted\\" page"\n')
    path = references.write("class", tmp_path, num=80, judge_folder=judge_folder)
    first = load_file(path)["feature"]
    assert first.shape == (80, 64) and first.dtype == np.float16
    references.write("class", tmp_path, num=80, judge_folder=judge_folder)
    np.testing.assert_array_equal(load_file(path)["feature"], first)
    manifest = tomllib.loads((tmp_path / "manifest.toml").read_text())
    assert manifest["prompts.txt"] == {"source": 'a "quoted" page'}
    assert manifest[path.name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert frechet.reference("class", path).n == 80


def test_a_missing_or_damaged_reference_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"missing \(gone.safetensors"):
        frechet.reference("class", tmp_path / "gone.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ValueError, match=r"cut.safetensors is damaged"):
        frechet.reference("class", tmp_path / "cut.safetensors")


def test_a_metric_is_plain_data():
    assert (
        Metric(name="a.b", family="fidelity", better="higher", unit="", doc="A.", needs="b").module
        is fidelity
    )


@pytest.mark.parametrize(
    ("world", "shape"), [("class", (3, 32, 32, 3)), ("video", (3, 5, 32, 32, 3))]
)
def test_perceptual_distance_is_nothing_for_the_same_picture_and_refused_without_a_baseline(
    tmp_path, judge_folder, world, shape
):
    metric, mine, other = metrics()["perceptual.shapes_v1"], noise(0, *shape), noise(1, *shape)
    mine[0] = other[0]
    told = {"world": world, "judge_folder": judge_folder}
    both = cell(
        samples_at(tmp_path / "a", mine), baseline=samples_at(tmp_path / "b", other), **told
    )
    assert perceptual.refuse(both, metric) == ""
    found = perceptual.extract(both, metric)["perceptual.shapes_v1"]
    assert (
        found.shape == (3,) and found[0] == 0 and (found[1:] > 0.01).all() and (found <= 16).all()
    )
    alone = cell(both.samples, no_baseline="this is the baseline itself", **told)
    assert perceptual.refuse(alone, metric) == "this is the baseline itself"
    assert perceptual.fingerprint(alone, metric) != perceptual.fingerprint(both, metric)
