"""Samples on disk: one file or shards, read alike, and whether they are as they were written."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from ditbench.metrics.samples import CHUNK, Samples
from ditbench.metrics.scoring import score_run
from ditbench.records.files import write_json
from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder
from ditbench.records.sample_files import (
    digest_of,
    not_as_written,
    open_samples,
    write_samples,
    writing_shard,
)
from ditbench.records.scores import read_scores
from ditbench.reports.sections.samples import first_samples

SHAPES = {"pictures": (150, 12, 20, 3), "videos": (9, 17, 12, 20, 3), "one frame": (5, 1, 8, 8, 3)}


def pixels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_shards(folder, samples, size, batch=4):
    for number, start in enumerate(range(0, len(samples), size)):
        end = min(start + size, len(samples))
        with writing_shard(folder / f"{number:05d}.tar", start) as add:
            for at in range(start, end, batch):
                add(samples[at : min(at + batch, end)])
    return folder


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shards_and_one_file_are_read_alike_and_chunk_by_chunk(tmp_path, shape):
    samples = pixels(shape)
    write_samples(tmp_path / "one", [samples[:3], samples[3:]])
    shards = write_shards(tmp_path / "several", samples, 4)
    one, several = Samples(tmp_path / "one"), Samples(shards)
    assert one.shape == several.shape == shape and one.num_frames == several.num_frames
    size = max(1, CHUNK // one.num_frames)
    for start, mine, theirs in zip(
        range(0, len(samples), size), one.chunks(), several.chunks(), strict=True
    ):
        np.testing.assert_array_equal(mine, samples[start : start + size])
        np.testing.assert_array_equal(theirs, mine)
    whole = several.as_file(tmp_path)
    np.testing.assert_array_equal(load_file(whole)["samples"], samples)
    assert one.as_file(tmp_path) == tmp_path / "one"
    if len(shape) == 5:
        shown = [shape[1] - 1, 0]
        for stored in (one.stored, several.stored):
            np.testing.assert_array_equal(stored.read(1, 3, shown), samples[1:3][:, shown])


def test_the_same_samples_make_the_same_bytes_however_they_lie_in_memory(tmp_path):
    samples = pixels((4, 8, 10, 3))
    turned = np.ascontiguousarray(samples.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    one = write_shards(tmp_path / "one", samples, 4) / "00000.tar"
    other = write_shards(tmp_path / "other", turned, 4, batch=1) / "00000.tar"
    assert one.read_bytes() == other.read_bytes()
    assert Samples(one.parent).sha256 == Samples(other.parent).sha256


def test_a_shard_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), writing_shard(tmp_path / "00000.tar", 0) as add:
        add(pixels((2, 8, 8, 3)))
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "zeroed", "gap", "empty"])
def test_damaged_shards_are_named(tmp_path, damage):
    samples = pixels((8, 8, 8, 3))
    folder = write_shards(tmp_path / "samples", samples, 4)
    second = folder / "00001.tar"
    content = second.read_bytes()
    if damage == "cut":
        second.write_bytes(content[:700])
    elif damage == "zeroed":
        second.write_bytes(content[:512] + bytes(len(content) - 512))
    elif damage == "gap":
        (folder / "00000.tar").unlink()
    else:
        for path in folder.iterdir():
            path.unlink()
    with pytest.raises(ValueError, match=r"holds no samples|0000\d\.tar is damaged"):
        open_samples(folder).read(0, 8)


def test_a_file_that_is_not_as_written_is_noticed_though_its_size_is_the_same(tmp_path):
    write_samples(tmp_path / "s", [pixels((4, 8, 8, 3))])
    stated = digest_of(tmp_path, tmp_path / "s")
    assert list(stated) == ["s"] and not not_as_written(tmp_path, stated)
    (tmp_path / "s").write_bytes(bytes((tmp_path / "s").stat().st_size))
    assert not_as_written(tmp_path, stated) == [tmp_path / "s"]
    assert not not_as_written(tmp_path, {"gone": "x"})


@pytest.fixture
def run(tmp_path):
    """A run of one model of no world: none in one file, `fast` in three shards."""
    files = RunFolder(tmp_path / "run")
    files.path.mkdir()
    write_json(files.spec, {"schema": 1, "cells": ["m--none", "m--fast"]})
    files.requests("m").parent.mkdir()
    write_json(
        files.requests("m"),
        [{"id": str(i), "seed": i, "prompt": "a cat", "label": None} for i in range(10)],
    )
    requests = json.loads(files.requests("m").read_text())
    write_json(files.requests("m"), [r | {"truth": None} for r in requests])
    for seed, stack in enumerate(("none", "fast")):
        key, samples = f"m--{stack}", pixels((10, 16, 16, 3), seed)
        files.cell(key).mkdir(parents=True)
        if stack == "none":
            write_samples(files.samples(key), [samples])
            stated = digest_of(files.cell(key), files.samples(key))
        else:
            write_shards(files.shards(key), samples, 4)
            stated = {}
            for i in range(3):
                stated |= digest_of(files.cell(key), files.shard(key, i))
        record = {
            "schema": 1, "key": key, "model": "m", "family": "dit", "world": "", "stack": stack,
            "methods": [], "status": "ok", "reason": "", "run": {"weights": "bundled"},
            "sampling": {}, "environment": {}, "timing": [], "memory": {}, "flops": {},
            "counters": {}, "sample_files": stated,
        }  # fmt: skip
        write_json(files.record(key), record)
    return files


def test_a_cell_of_shards_is_scored_and_shown_like_one_of_one_file(run):
    done = score_run(run.path)
    assert sorted(done.written) == ["m--fast", "m--none"] and not done.damaged
    fast = read_scores(run.path)["m--fast"].arrays["psnr.vs_none"]
    write_samples(run.samples("m--fast"), [pixels((10, 16, 16, 3), 1)])  # is read in their place
    (run.path / "scores" / "m--fast.safetensors").unlink()
    record = json.loads(run.record("m--fast").read_text())
    write_json(run.record("m--fast"), record | {"sample_files": {}})
    score_run(run.path)
    np.testing.assert_array_equal(read_scores(run.path)["m--fast"].arrays["psnr.vs_none"], fast)
    run.samples("m--fast").unlink()
    shown = first_samples(run, "m--fast", lambda video, side: 5, lambda frames: [0])
    np.testing.assert_array_equal(np.stack([s[0] for s in shown]), pixels((10, 16, 16, 3), 1)[:5])


@pytest.mark.parametrize("key", ["m--none", "m--fast"])
def test_a_samples_file_that_was_zeroed_is_named_set_aside_and_not_scored(run, key):
    path = run.samples(key) if key == "m--none" else run.shard(key, 1)
    path.write_bytes(bytes(path.stat().st_size))
    done = score_run(run.path)
    (sentence,) = done.damaged
    assert sentence.startswith(f"{path} is damaged (its sha256") and "set aside" in sentence
    assert not path.exists() and path.with_name(f"{path.name}.damaged-1").exists()
    assert key not in read_scores(run.path) and len(read_run(run.path).records) == 2
    (again,) = score_run(run.path).damaged
    assert again == f"{path} is missing"


def test_a_shard_that_is_missing_is_named_and_the_cell_is_not_scored(run):
    run.shard("m--fast", 2).unlink()
    done = score_run(run.path)
    assert done.damaged == [f"{run.shard('m--fast', 2)} is missing"]
    assert set(read_scores(run.path)) == {"m--none"}
