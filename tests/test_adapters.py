"""Packages in environments of their own: real processes, real files between them, stand-ins for the
packages."""

import hashlib
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from other_environment import ENTRIES, executable, site
from safetensors.numpy import save_file

from ditbench.analysis.summary import summarise
from ditbench.extractors import pinned_files as published
from ditbench.metrics import cdfvd, preference, vbench
from ditbench.metrics.external import vbench as official
from ditbench.metrics.external import worker as inside
from ditbench.metrics.external.client import Environment, ask, numbers
from ditbench.metrics.samples import Sampled, Samples
from ditbench.metrics.scoring import _extract
from ditbench.metrics.table import metrics, select
from ditbench.records.scores import Scores
from ditbench.statistics.frechet import Reference, frechet
from ditbench.statistics.moments import Moments

THING = Environment(name="thing", package="thing", version="1")
PROMPTS = ["a fantasy landscape", "a red car", "a person is surfing", "a fantasy landscape"]


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def cell(path, samples, prompts=None):
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
def other(tmp_path, monkeypatch):
    """This Python as the other environment, with stand-ins for its packages before everything
    else."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(site(folder)))
    monkeypatch.setenv("STAND_IN_WIDTH", "64")
    for name in ("VBENCH", "IMAGEREWARD", "HPSV2", "HPSV3", "CDFVD"):
        monkeypatch.setenv(f"DITBENCH_PYTHON_{name}", sys.executable)
    return folder


def program(tmp_path, monkeypatch, text):
    path = executable(
        tmp_path / "python",
        f"#!{sys.executable}\nimport json, sys\njob = json.load(open(sys.argv[2]))\n{text}\n",
    )
    monkeypatch.setenv("DITBENCH_PYTHON_THING", str(path))


def test_a_job_goes_in_and_its_answer_comes_out(tmp_path, monkeypatch):
    program(
        tmp_path,
        monkeypatch,
        "print('chatter')\njson.dump({'values': [len(job['prompts'])] * 2}, open(sys.argv[3], "
        "'w'))",
    )
    answer = ask(THING, {"prompts": ["a", "b"]}, tmp_path)
    assert numbers(THING, answer, 2) == [2.0, 2.0]
    assert (
        json.loads((tmp_path / "job.json").read_text())["version"] == "1"
        and "chatter" in (tmp_path / "log.txt").read_text()
    )
    with pytest.raises(
        ValueError, match="was asked for 3 numbers and answered with something else"
    ):
        numbers(THING, answer, 3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "print('Traceback', file=sys.stderr)\nsys.exit('torch is too old')",
            "thing failed with code 1: torch is too old",
        ),
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
            "thing failed with code -9: it said nothing",
        ),
        ("pass", "left no answer that can be read"),
        ("open(sys.argv[3], 'w').write('{')", "left no answer that can be read"),
        ("open(sys.argv[3], 'w').write('[]')", "it is no table"),
        ("json.dump({'refused': 'no such thing'}, open(sys.argv[3], 'w'))", "^no such thing$"),
    ],
)
def test_whatever_goes_wrong_there_is_one_sentence_here(tmp_path, monkeypatch, text, reason):
    program(tmp_path, monkeypatch, text)
    with pytest.raises(ValueError, match=reason):
        ask(THING, {}, tmp_path)


def test_an_environment_that_is_not_named_says_how_to_name_it(tmp_path, monkeypatch):
    monkeypatch.delenv("DITBENCH_PYTHON_THING", raising=False)
    with pytest.raises(
        ValueError, match=r"needs thing 1 in an environment of its own: set DITBENCH_PYTHON_THING"
    ):
        THING.python()
    monkeypatch.setenv("DITBENCH_PYTHON_THING", str(tmp_path))
    with pytest.raises(ValueError, match="no program that can be run"):
        THING.python()


def test_prompts_that_stand_twice_in_the_list_take_turns_and_strangers_are_none_of_it():
    assert inside.pair([*PROMPTS, "a fantasy landscape"], ENTRIES) == [2, 1, 0, 3, 2]
    assert inside.pair(["a red car", "a blue car"], ENTRIES) is None
    assert inside.pair(["A red car"], ENTRIES) is None


def test_samples_are_mapped_from_the_file_that_ditbench_writes(tmp_path):
    samples = noise(0, 2, 3, 4, 5, 3)
    save_file({"other": noise(1, 7), "samples": samples}, tmp_path / "s")
    np.testing.assert_array_equal(inside.read_samples(str(tmp_path / "s")), samples)


def measured(name, sampled):
    reason, arrays = _extract(sampled, metrics()[f"vbench.{name}"])
    assert not reason, reason
    return arrays[f"vbench.{name}@rows"].tolist(), arrays[f"vbench.{name}"]


def test_a_dimension_is_measured_on_its_own_videos_told_apart_by_entry(other, tmp_path):
    samples = noise(0, 4, 3, 64, 64, 3)
    sampled = cell(tmp_path, samples, PROMPTS)
    checksums = samples.reshape(4, -1).sum(1, dtype=np.int64) % 1000 / 1000
    # 0 and 3 are one prompt and two entries
    for name, row in (
        ("overall_consistency", 0),
        ("object_class", 1),
        ("scene", 3),
    ):
        rows, values = measured(name, sampled)
        assert rows == [row]
        np.testing.assert_allclose(values, checksums[[row]])
    rows, values = measured("imaging_quality", sampled)  # in percent there
    assert rows == [3] and values[0] == pytest.approx(checksums[3] / 100)
    rows, values = measured("human_action", sampled)  # read from the file's name
    assert rows == [2] and values.tolist() == [1.0]


def test_videos_of_other_prompts_have_six_dimensions_and_no_more(other, tmp_path):
    sampled = cell(tmp_path, noise(0, 2, 3, 64, 64, 3), ["a red car", "a circle that moves"])
    assert measured("dynamic_degree", sampled)[0] == [0, 1]
    reason, arrays = _extract(sampled, metrics()["vbench.color"])
    assert (
        reason == "VBench measures color on its own prompts only, and these are others"
        and not arrays
    )
    sampled = cell(tmp_path, noise(0, 1, 3, 64, 64, 3), ["a red car"])
    assert (
        _extract(sampled, metrics()["vbench.scene"])[0]
        == "none of these prompts belongs to VBench's scene"
    )


def test_videos_that_its_reader_would_change_are_not_measured(other, tmp_path, monkeypatch):
    sampled = cell(tmp_path, noise(0, 1, 3, 64, 64, 3), ["x"])
    monkeypatch.setenv("STAND_IN_LOSS", "1")
    assert (
        "decord reads other frames than were written"
        in _extract(sampled, metrics()["vbench.motion_smoothness"])[0]
    )
    monkeypatch.setenv("STAND_IN_WIDTH", "32")
    sampled = cell(tmp_path, noise(0, 1, 3, 32, 32, 3), ["x"])
    assert (
        "decord cannot read a video 32 pixels wide"
        in _extract(sampled, metrics()["vbench.motion_smoothness"])[0]
    )


def test_another_version_goes_by_another_name(other, tmp_path, monkeypatch):
    monkeypatch.setattr(official, "ENVIRONMENT", replace(official.ENVIRONMENT, version="0.1.4"))
    reason, _ = _extract(
        cell(tmp_path, noise(0, 1, 3, 64, 64, 3), ["x"]), metrics()["vbench.motion_smoothness"]
    )
    assert (
        reason
        == "vbench 0.1.5 is installed there, and 0.1.4 is the one whose results go by this name"
    )


def test_long_videos_pictures_and_requests_without_prompts_are_refused(
    other, tmp_path, monkeypatch
):
    metric = metrics()["vbench.total"]
    assert "5.06 s (81 frames) needs VBench-Long" in vbench.refuse(
        cell(tmp_path, noise(0, 1, 81, 4, 4, 3), ["x"]), metric
    )
    assert "5.00 s (80 frames) needs VBench-Long" in vbench.refuse(
        cell(tmp_path, noise(0, 1, 80, 4, 4, 3), ["x"]), metric
    )
    assert vbench.refuse(cell(tmp_path, noise(0, 1, 79, 4, 4, 3), ["x"]), metric) == ""
    assert (
        vbench.refuse(cell(tmp_path, noise(0, 1, 4, 4, 3), ["x"]), metric)
        == "these are pictures, not videos"
    )
    assert (
        vbench.refuse(cell(tmp_path, noise(0, 1, 3, 4, 4, 3)), metric)
        == "the requests carry no prompts"
    )
    monkeypatch.delenv("DITBENCH_PYTHON_VBENCH")
    short = cell(tmp_path, noise(0, 1, 3, 4, 4, 3), ["x"])
    assert "set DITBENCH_PYTHON_VBENCH" in vbench.refuse(short, metrics()["vbench.scene"])
    assert vbench.refuse(short, metric) == ""  # it is made of what is there already


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"scene": [0.5, []]},
        {"scene": [0.5, [{"video_path": "videos/00007/video-0.mp4", "video_results": 0.5}]]},
        {"scene": [0.5, [{"video_path": "videos/00001/video-0.mp4", "video_results": 0.5}] * 2]},
        {"scene": [0.5, [{"video_path": "videos/a prompt-0.mp4", "video_results": 0.5}]]},
    ],
)
def test_results_of_other_videos_are_not_taken(told, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(told))
    with pytest.raises(
        ValueError, match=r"VBench left no result of scene|VBench scored other videos of scene"
    ):
        official.read_results(tmp_path / "x.json", "scene", 3)


def scored(value):
    """Every dimension with three videos of prompts of its own, at `value(dimension)`."""
    return {
        name: (np.full(3, value(d)), np.arange(3) + 3 * i)
        for i, (name, d) in enumerate(official.DIMENSIONS.items())
    }


def test_the_best_there_is_adds_up_to_one_and_the_worst_to_nothing():
    for what in official.SUMS:
        assert official.combine(scored(lambda d: d.high), what).value == pytest.approx(1)
        assert official.combine(scored(lambda d: d.low), what).value == pytest.approx(0, abs=1e-12)
    assert (
        sum(d.quality for d in official.DIMENSIONS.values()) == 7 and len(official.DIMENSIONS) == 16
    )


def test_the_total_is_four_fifths_quality_and_dynamic_degree_counts_half():
    mixed = scored(lambda d: d.high if d.quality else d.low)
    assert official.combine(mixed, "total").value == pytest.approx(0.8)
    still = scored(lambda d: d.high) | {"dynamic_degree": (np.zeros(3), np.arange(3))}
    assert official.combine(still, "quality").value == pytest.approx(6 / 6.5)
    assert official.combine(still, "semantic").value == pytest.approx(1)


@pytest.mark.parametrize("dimension", list(official.DIMENSIONS))
def test_no_total_without_all_sixteen(dimension):
    told = scored(lambda d: d.high)
    del told[dimension]
    with pytest.raises(
        ValueError, match=f"total needs all of its 16 dimensions; missing: {dimension}$"
    ):
        official.combine(told, "total")


def test_the_interval_of_a_sum_is_that_of_prompts_drawn_again():
    rng = np.random.default_rng(0)
    level, told = rng.normal(0.6, 0.1, 40), {}  # dimensions share prompts, and prompts have levels
    for name in official.DIMENSIONS:
        group = np.sort(rng.choice(40, 25, replace=False)).repeat(2)
        told[name] = (level[group] + rng.normal(0, 0.05, 50), group)
    found = official.combine(told, "total")
    factors, added = official.coefficients("total")
    drawn = []
    for _ in range(2000):
        times = np.bincount(rng.integers(0, 40, 40), minlength=40)
        drawn.append(
            added
            + sum(f * np.average(told[n][0], weights=times[told[n][1]]) for n, f in factors.items())
        )
    assert found.se == pytest.approx(np.std(drawn), rel=0.15) and found.n == 40
    assert found.value == pytest.approx(
        np.mean(drawn), abs=3 * np.std(drawn) / np.sqrt(2000) + 2e-3
    )


def record(stack):
    told = {"num_samples": 3, "requests_sha256": "r", "weights": "bundled"}
    return {
        "schema": 1, "key": f"m--{stack}", "model": "m", "family": "wan", "world": "",
        "stack": stack, "methods": [], "status": "ok",
        "reason": "", "run": told, "sampling": {}, "environment": {}, "timing": [], "memory": {},
        "flops": {}, "counters": {},
    }  # fmt: skip


def stored(seed, **more):
    """Scores of three videos in all sixteen dimensions, without the second video in `color`."""
    rng, arrays = np.random.default_rng(seed), {"group": np.arange(3)}
    for name in official.DIMENSIONS:
        rows = np.array([0, 2]) if name == "color" and seed else np.arange(3)
        arrays |= {f"vbench.{name}": rng.random(len(rows)), f"vbench.{name}@rows": rows}
    names = [name for name, metric in metrics().items() if metric.family == "vbench"]
    return Scores(samples_sha256="", arrays=arrays | more, reasons=dict.fromkeys(names, ""))


def test_a_row_has_the_total_with_its_change_paired_video_by_video():
    mine, theirs = stored(1), stored(0)
    rows = summarise([record("none"), record("fast")], {"m--none": theirs, "m--fast": mine})
    total, color = (rows[1]["quality"][f"vbench.{name}"] for name in ("total", "color"))
    expected = sum(
        f
        * (
            mine.arrays[f"vbench.{n}"]
            - theirs.arrays[f"vbench.{n}"][mine.arrays[f"vbench.{n}@rows"]]
        ).mean()
        for n, f in official.coefficients("total")[0].items()
    )
    assert (
        total["delta"]["value"] == pytest.approx(expected)
        and total["delta"]["low"] < expected < total["delta"]["high"]
    )
    assert color["value"]["n"] == color["delta"]["n"] == 2
    assert color["delta"]["value"] == pytest.approx(
        np.mean(mine.arrays["vbench.color"] - theirs.arrays["vbench.color"][[0, 2]])
    )
    assert rows[0]["quality"]["vbench.total"]["value"]["value"] == pytest.approx(
        official.combine(vbench.scored(theirs), "total").value
    )
    json.dumps(rows, allow_nan=False)


def test_a_total_that_lacks_a_dimension_is_null_with_the_dimension_named():
    less = stored(0)
    arrays = {name: a for name, a in less.arrays.items() if "scene" not in name}
    reasons = dict(less.reasons) | {"vbench.scene": "vbench failed"}
    row = summarise([record("none")], {"m--none": replace(less, arrays=arrays, reasons=reasons)})[0]
    assert row["quality"]["vbench.total"]["value"] is None
    assert row["quality"]["vbench.total"]["reason"].endswith("16 dimensions; missing: scene")
    assert row["quality"]["vbench.quality"]["value"] is not None


def test_dynamic_degree_stands_beside_the_total_in_every_table():
    names = list(metrics())
    assert names.index("vbench.dynamic_degree") + 1 == names.index("vbench.total")
    assert {f"vbench.{name}" for name in (*official.DIMENSIONS, *official.SUMS)} == {
        m.name for m in select("vbench")
    }


def test_what_needs_another_environment_is_scored_only_when_asked_for():
    assert not any(m.family in ("vbench", "preference", "pickscore", "cdfvd") for m in select())
    assert [m.name for m in select("imagereward,psnr.vs_none")] == [
        "imagereward.v1_0",
        "psnr.vs_none",
    ]
    row = summarise([record("none")], {"m--none": Scores(samples_sha256="")})[0]
    assert row["quality"]["vbench.total"]["reason"].startswith("scored only when asked for")
    assert row["quality"]["psnr.vs_none"]["reason"] == "not scored yet"


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    """Small files in place of the weights, pinned as this test's record."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv(published.FOLDER, str(shelf))

    def pin(file):
        (shelf / file.name).write_text(file.name)
        return replace(file, sha256=hashlib.sha256(file.name.encode()).hexdigest())

    judges = {
        name: replace(judge, files=[pin(file) for file in judge.files])
        for name, judge in preference.JUDGES.items()
    }
    monkeypatch.setattr(preference, "JUDGES", judges)
    monkeypatch.setattr(cdfvd, "WEIGHTS", pin(cdfvd.WEIGHTS))
    return shelf


@pytest.mark.parametrize("name", list(preference.JUDGES))
def test_each_picture_is_judged_with_its_own_prompt(name, other, pinned, tmp_path):
    samples, prompts = noise(0, 3, 8, 8, 3), ["one", "three", "one"]
    reason, found = _extract(cell(tmp_path, samples, prompts), metrics()[name])
    assert reason == ""
    scale = 1 if name == "imagereward.v1_0" else 256
    np.testing.assert_allclose(
        found[name], np.array([3, 5, 3]) + samples[:, 0, 0, 0] / scale, rtol=1e-6
    )


@pytest.mark.parametrize("name", list(preference.JUDGES))
def test_weights_whose_hash_is_not_on_record_have_no_published_name(
    name, other, tmp_path, monkeypatch
):
    sampled, metric = cell(tmp_path, noise(0, 2, 8, 8, 3), ["a", "b"]), metrics()[name]
    monkeypatch.setenv(published.FOLDER, str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert "is missing (sha256 not on record); published at https://" in preference.refuse(
        sampled, metric
    )
    for file in preference.JUDGES[name].files:
        (tmp_path / file.name).write_text("anything")
    assert "the sha256 of the published" in preference.refuse(sampled, metric)
    assert preference.refuse(
        cell(tmp_path, noise(0, 2, 3, 8, 8, 3), ["a", "b"]), metric
    ).startswith("these are videos")


def test_features_of_videos_come_from_there_and_the_distance_is_ours(other, pinned, tmp_path):
    metric, found = metrics()["fd.cdfvd_i3d.vs_none"], []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        reason, arrays = _extract(cell(tmp_path / str(i), noise(i, 6, 9, 8, 8, 3)), metric)
        assert reason == "" and arrays[cdfvd.FEATURE].shape == (6, 9)
        found.append(
            Scores(
                samples_sha256="",
                arrays=arrays | {"group": np.arange(6)},
                reasons={metric.name: ""},
            )
        )
    rows = summarise([record("none"), record("fast")], {"m--none": found[0], "m--fast": found[1]})
    mine, theirs = found[1].arrays[cdfvd.FEATURE], found[0].arrays[cdfvd.FEATURE]
    entry = rows[1]["quality"][metric.name]
    assert (
        entry["value"]["value"] == pytest.approx(frechet(mine, Reference.of(Moments.of(theirs))))
        and entry["value"]["n"] == 6
    )
    assert rows[0]["quality"][metric.name]["reason"] == "this is the baseline itself"
    short = cell(tmp_path, noise(0, 2, 8, 8, 8, 3))
    assert cdfvd.refuse(short, metric) == "I3D needs videos of at least 9 frames, got 8"
