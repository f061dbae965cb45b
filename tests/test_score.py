"""Scoring a run folder made by hand, with a judge that learned nothing."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from other_environment import executable, site
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from ditbench.metrics.scoring import group, score_run
from ditbench.records.run_folder import RunFolder
from ditbench.records.scores import read_cell, read_file, read_scores
from ditbench.shapes import scenes as shapes
from ditbench.shapes.judge import Judge

N = 6


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    for world, name in (("class", "still"), ("video", "video")):
        save_torch(Judge(world).state_dict(), folder / f"{name}.safetensors")
    return folder


def write_cell(folder, model, stack, pixels, *, world="class", status="ok", weights="bundled"):
    key = f"{model}--{stack}"
    at = folder / "cells" / key
    at.mkdir(parents=True)
    record = {
        "schema": 1, "key": key, "model": model, "family": "dit", "world": world, "stack": stack,
        "methods": [], "status": status,
        "reason": "", "run": {"weights": weights, "requests_sha256": "r"}, "sampling": {},
        "environment": {}, "timing": [],
        "memory": {}, "flops": {}, "counters": {},
    }  # fmt: skip
    (at / "record.json").write_text(json.dumps(record))
    if pixels is not None:
        save_file({"samples": pixels}, at / "samples.safetensors")
    return key


def write_requests(folder, model, truths, prompts=None):
    (folder / "requests").mkdir(exist_ok=True)
    told = [
        {"id": f"{i:05d}", "seed": i, "prompt": prompts and prompts[i], "label": 3, "truth": truth}
        for i, truth in enumerate(truths)
    ]
    (folder / "requests" / f"{model}.json").write_text(json.dumps(told))


@pytest.fixture
def run(tmp_path):
    """A run of one class model: none, a noisy copy of it, and a cell that failed."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps({"schema": 1, "cells": []}))
    scenes = shapes.draw("class", N, split="test", seed=5)
    pixels = (
        (shapes.render(scenes, "class", split="test", seed=5) * 255)
        .round()
        .byte()
        .movedim(1, -1)
        .contiguous()
        .numpy()
    )
    noisy = np.clip(
        pixels.astype(int) + np.random.default_rng(0).integers(-20, 21, pixels.shape), 0, 255
    ).astype(np.uint8)
    write_requests(folder, "m", list(scenes.truths()))
    write_cell(folder, "m", "none", pixels)
    write_cell(folder, "m", "fast", noisy)
    write_cell(folder, "m", "broken", None, status="failed")
    return folder


def test_every_measured_cell_gets_values_per_sample_and_reasons_for_what_is_missing(
    run, judge_folder
):
    done = score_run(run, judge_folder=judge_folder)
    assert done.written == ["m--fast", "m--none"] and not done.kept and not done.damaged
    scores = read_scores(run)
    fast, none = scores["m--fast"], scores["m--none"]
    assert {name: a.shape for name, a in fast.arrays.items() if "@" not in name} == {
        "align.shapes_v1": (N,), "align.shapes_v1.class": (N,), "feature.shapes_v1": (N, 64),
        "mse.vs_none": (N,),
        "psnr.vs_none": (N,), "ssim.vs_none": (N,), "perceptual.shapes_v1": (N,), "group": (N,),
    }  # fmt: skip
    assert {name for name, reason in fast.reasons.items() if not reason} == {
        "align.shapes_v1", "fd.shapes_v1", "mmd.shapes_v1", "precision.shapes_v1",
        "recall.shapes_v1", "psnr.vs_none", "ssim.vs_none",
        "perceptual.shapes_v1",
    }  # fmt: skip
    assert fast.reasons["vstyle.frame_mad"] == "these are pictures, not videos"
    assert "at least 176 pixels" in fast.reasons["ms_ssim.vs_none"]
    assert 20 < fast.arrays["psnr.vs_none"].mean() < 40
    assert (
        none.reasons["psnr.vs_none"] == "this is the baseline itself"
        and "psnr.vs_none" not in none.arrays
    )
    assert not list((run / "scores").glob(".*"))


def test_a_second_run_does_nothing_and_leaves_the_files_alone(run, judge_folder):
    score_run(run, judge_folder=judge_folder)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (run / "scores").iterdir()}
    time.sleep(0.01)
    done = score_run(run, judge_folder=judge_folder)
    assert done.kept == ["m--fast", "m--none"] and not done.written
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (run / "scores").iterdir()}


def test_metrics_can_be_added_later_and_the_earlier_ones_stay(run, judge_folder):
    score_run(run, "psnr.vs_none", judge_folder=judge_folder)
    first = read_file(run / "scores" / "m--fast.safetensors")
    assert set(first.reasons) == {"psnr.vs_none"}
    score_run(run, ["ssim.vs_none"], judge_folder=judge_folder)
    both = read_file(run / "scores" / "m--fast.safetensors")
    assert set(both.reasons) == {"psnr.vs_none", "ssim.vs_none"}
    np.testing.assert_array_equal(both.arrays["psnr.vs_none"], first.arrays["psnr.vs_none"])


def bytes_of_samples(run):
    return {
        p: (p.stat().st_mtime_ns, p.read_bytes())
        for p in (run / "cells").rglob("samples.safetensors")
    }


def test_a_scoring_that_is_killed_goes_on_where_it_stopped(run, judge_folder):
    before = bytes_of_samples(run)
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nsys.path.insert(0, '.')\nimport "
        "run_bench\n"
        "from ditbench.metrics.scoring import score_run\n"
        "def tell(key, done, total):\n    if done == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "score_run(Path(sys.argv[1]), 'psnr.vs_none', progress=tell)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(run)], cwd=Path(__file__).parents[1])
    assert killed.returncode == -signal.SIGKILL
    assert set(read_scores(run)) == {"m--fast"}
    kept = (run / "scores" / "m--fast.safetensors").stat().st_mtime_ns
    done = score_run(run, "psnr.vs_none", judge_folder=judge_folder)
    assert done.kept == ["m--fast"] and done.written == ["m--none"] and not done.damaged
    assert (run / "scores" / "m--fast.safetensors").stat().st_mtime_ns == kept
    assert bytes_of_samples(run) == before


def test_a_metric_that_is_asked_for_later_adds_to_the_scores_and_leaves_the_samples_alone(
    run, judge_folder
):
    score_run(run, judge_folder=judge_folder)
    first, before = read_scores(run)["m--fast"], bytes_of_samples(run)
    told = []
    done = score_run(
        run,
        "pickscore,vbench.total",
        progress=lambda *at: told.append(at),
        judge_folder=judge_folder,
    )
    assert done.written == ["m--fast", "m--none"] and told[-1] == ("", 2, 2)
    after = read_scores(run)["m--fast"]
    assert set(after.reasons) - set(first.reasons) == {"pickscore.v1", "vbench.total"}
    assert after.reasons["pickscore.v1"] == "the requests carry no prompts"
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(after.arrays[name], array)
    assert bytes_of_samples(run) == before
    assert score_run(run, "pickscore,vbench.total", judge_folder=judge_folder).kept == [
        "m--fast",
        "m--none",
    ]


def test_what_took_hours_is_kept_before_the_next_begins(tmp_path, monkeypatch):
    (tmp_path / "spec.json").write_text(json.dumps({"schema": 1, "cells": []}))
    write_requests(tmp_path, "w", [None], ["a red car"])
    write_cell(tmp_path, "w", "none", np.zeros((1, 3, 64, 64, 3), np.uint8), world="")
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(site(folder)))
    monkeypatch.setenv("STAND_IN_WIDTH", "64")
    python = f'#!/bin/sh\nif grep -q object_class "$2"; then kill -9 $PPID; fi\nexec {sys.executable} "$@"\n'
    monkeypatch.setenv("DITBENCH_PYTHON_VBENCH", str(executable(tmp_path / "python", python)))
    command = [
        sys.executable,
        "run_bench.py",
        "score",
        str(tmp_path),
        "--metrics",
        "vbench.color,vbench.object_class",
    ]
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    scores = read_scores(tmp_path)["w--none"]
    assert (
        scores.arrays["vbench.color"].shape == (1,) and "vbench.object_class" not in scores.reasons
    )


def test_new_samples_of_the_baseline_make_fidelity_stale_and_nothing_else(run, judge_folder):
    score_run(run, judge_folder=judge_folder)
    before = read_cell(RunFolder(run), "m--fast")
    path = run / "cells" / "m--none" / "samples.safetensors"
    save_file({"samples": np.zeros((N, 64, 64, 3), np.uint8)}, path)
    assert score_run(run, judge_folder=judge_folder).written == ["m--fast", "m--none"]
    after = read_cell(RunFolder(run), "m--fast")
    assert (after.arrays["psnr.vs_none"] < before.arrays["psnr.vs_none"]).all()
    np.testing.assert_array_equal(
        after.arrays["feature.shapes_v1"], before.arrays["feature.shapes_v1"]
    )


def test_a_judge_that_appears_later_is_used(run, judge_folder, tmp_path):
    score_run(run, judge_folder=tmp_path / "nowhere")
    scores = read_scores(run)["m--fast"]
    assert (
        scores.reasons["align.shapes_v1"]
        == "the judge has no weights (still.safetensors is missing)"
    )
    assert scores.reasons["psnr.vs_none"] == ""
    assert score_run(run, judge_folder=tmp_path / "nowhere").written == []
    assert score_run(run, judge_folder=judge_folder).written == ["m--fast", "m--none"]
    assert read_scores(run)["m--fast"].reasons["align.shapes_v1"] == ""


def test_a_truncated_samples_file_is_named_and_set_aside(run, judge_folder):
    score_run(run, judge_folder=judge_folder)
    path = run / "cells" / "m--none" / "samples.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    done = score_run(run, judge_folder=judge_folder)
    assert (
        len(done.damaged) == 1 and str(path) in done.damaged[0] and "set aside" in done.damaged[0]
    )
    assert not path.exists() and (path.parent / "samples.safetensors.damaged-1").exists()
    assert "m--none" not in read_scores(run)
    assert "`none` of m has no samples" in read_scores(run)["m--fast"].reasons["psnr.vs_none"]


def test_a_damaged_scores_file_is_named_and_made_again(run, judge_folder):
    score_run(run, judge_folder=judge_folder)
    path = run / "scores" / "m--fast.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    assert "m--fast" not in read_scores(run)
    done = score_run(run, judge_folder=judge_folder)
    assert done.written == ["m--fast"] and "m--fast.safetensors is damaged" in done.damaged[0]
    assert path.read_bytes() == whole


def test_what_was_read_of_a_file_stays_when_another_takes_its_place(run, judge_folder):
    score_run(run, "psnr.vs_none", judge_folder=judge_folder)
    path = run / "scores" / "m--fast.safetensors"
    before, by_hand = read_file(path), load_file(path)
    score_run(run, "ssim.vs_none", judge_folder=judge_folder)
    assert set(before.arrays) == set(by_hand) and "ssim.vs_none" not in before.arrays
    np.testing.assert_array_equal(before.arrays["psnr.vs_none"], by_hand["psnr.vs_none"])
    with pytest.raises(KeyError):
        before.arrays["ssim.vs_none"]


def test_random_weights_have_no_quality(tmp_path, judge_folder):
    (tmp_path / "spec.json").write_text(json.dumps({"schema": 1, "cells": []}))
    write_requests(tmp_path, "m", [None, None], ["a cat", "a cat"])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    write_cell(tmp_path, "m", "none", pixels, world="", weights="random")
    write_cell(tmp_path, "m", "fast", pixels, world="", weights="random")
    score_run(tmp_path, judge_folder=judge_folder)
    scores = read_scores(tmp_path)["m--fast"]
    assert set(scores.reasons.values()) == {"the weights are random, so the samples show nothing"}
    assert list(scores.arrays) == ["group"]


def test_a_model_of_no_shapes_world_is_compared_with_its_baseline_only(tmp_path, judge_folder):
    (tmp_path / "spec.json").write_text(json.dumps({"schema": 1, "cells": []}))
    write_requests(tmp_path, "m", [None, None], ["a cat", "a dog"])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    write_cell(tmp_path, "m", "none", pixels, world="")
    write_cell(tmp_path, "m", "fast", pixels, world="")
    score_run(tmp_path, judge_folder=judge_folder)
    scores = read_scores(tmp_path)["m--fast"]
    assert "paints none" in scores.reasons["fd.shapes_v1"]
    np.testing.assert_array_equal(scores.arrays["psnr.vs_none"], [100, 100])


def test_videos_are_judged_in_their_world(tmp_path, judge_folder):
    (tmp_path / "spec.json").write_text(json.dumps({"schema": 1, "cells": []}))
    scenes = shapes.draw("video", 2, split="test", seed=5)
    pixels = (
        (shapes.render(scenes, "video", split="test", seed=5) * 255)
        .round()
        .byte()
        .movedim(1, -1)
        .contiguous()
        .numpy()
    )
    write_requests(tmp_path, "w", list(scenes.truths()), shapes.captions(scenes))
    write_cell(tmp_path, "w", "none", pixels, world="video")
    score_run(tmp_path, judge_folder=judge_folder)
    scores = read_scores(tmp_path)["w--none"]
    parts = [
        scores.arrays[f"align.shapes_v1.{name}"]
        for name in ("shape", "motion", "position", "background")
    ]
    assert all(a.shape == (2,) and ((a >= 0) & (a <= 1)).all() for a in parts)


def test_samples_and_requests_that_do_not_match_are_an_error(run, judge_folder):
    write_requests(run, "m", [None] * (N + 1))
    with pytest.raises(ValueError, match=f"m has {N} samples for {N + 1} requests"):
        score_run(run, judge_folder=judge_folder)


def test_an_unknown_metric_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"unknown metric 'fd.shape'; did you mean fd\.shapes_v1"):
        score_run(tmp_path / "nowhere", "fd.shape")


def test_progress_is_told_for_every_cell_and_at_the_end(run, judge_folder):
    told = []
    score_run(run, "psnr.vs_none", progress=lambda *at: told.append(at), judge_folder=judge_folder)
    assert told == [("m--fast", 0, 2), ("m--none", 1, 2), ("", 2, 2)]


def test_samples_of_one_prompt_are_one_group_and_classes_stand_alone():
    def told(*prompts):
        return [{"id": str(i), "prompt": prompt} for i, prompt in enumerate(prompts)]

    assert group(told("a", "b", "a")).tolist() == [0, 1, 0]
    assert group(told(None, None)).tolist() == [0, 1]
