"""Run folders: one place that knows where files lie, one way to replace a file, one hash of it."""

import hashlib
import os
import re
from pathlib import Path

import pytest

from ditbench.records.files import file_sha256, read_json, replacing, write_json
from ditbench.records.run_folder import RunFolder
from ditbench.runner.resume import without_what_is_no_file

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [p for folder in ("bench", "methods", "reports") for p in (ROOT / folder).rglob("*.py")]
OUTSIDE = ROOT / "bench/metrics/external/worker.py"
"""Runs in another environment, where ditbench is not installed."""


def test_a_file_is_replaced_when_the_block_ends_and_left_alone_when_it_fails(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    with replacing(path) as partial:
        partial.write_bytes(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"after" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError):
        write_json(path, float("nan"))
    assert path.read_bytes() == b"after" and list(tmp_path.iterdir()) == [path]


def test_the_hash_of_a_file_is_that_of_its_content(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(256)) * 5000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(bytes(range(256)) * 5000).hexdigest()


def test_records_rounds_and_scores_are_listed(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.rounds("k") == folder.records() == folder.all_scores() == []
    for path in (
        folder.record("k"),
        folder.round("k", 1),
        folder.round("k", 0),
        folder.scores("k"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert folder.rounds("k") == [folder.round("k", 0), folder.round("k", 1)]
    assert folder.records() == [folder.record("k")] and folder.all_scores() == [folder.scores("k")]
    assert {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*")} == {"cells", "scores"}


def test_the_layout_the_atomic_writer_and_the_hash_are_written_once():
    layout = re.compile(
        r'"(samples\.safetensors|record\.json|spec\.json|command\.txt|references\.json|superseded)"'
        r'|/ "(cells|requests|scores)"|round-(\{\}|\*)|cells/\*'
    )
    replaced = re.compile(r"os\.replace\(|partial\w*\.rename\(\w*path\)")
    hashed = re.compile(r"file_digest\(|sha256\([\w.]*read_bytes\(\)\)")
    for path in SOURCES:
        text = path.read_text()
        if path != ROOT / "bench/records/run_folder.py":
            assert not layout.search(text), path
        if path not in (ROOT / "bench/records/files.py", OUTSIDE):
            assert not replaced.search(text) and not hashed.search(text), path


def test_a_name_that_the_locale_could_not_decode_is_written_as_what_can_be_read(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"out": "c\udcc3\udca9", "half": ["\ud800"], "whole": "\U0001f600"})
    assert read_json(path) == {"out": "cé", "half": ["?"], "whole": "\U0001f600"}


def test_what_cannot_be_written_is_named_by_its_own_name(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(IsADirectoryError) as error:
        write_json(tmp_path / "x.json", {})
    assert error.value.filename == str(tmp_path / "x.json")
    with pytest.raises(OSError) as error, replacing(tmp_path / "y.json"):
        raise OSError(28, "No space left on device")
    assert error.value.filename == str(tmp_path / "y.json")
    assert not list(tmp_path.glob(".*"))


def test_what_is_no_file_makes_way_when_a_cell_is_taken_up(tmp_path):
    folder, names = RunFolder(tmp_path), ("record.json", "round-0.json", "samples.safetensors")
    at = folder.cell("k")
    folder.shards("k").mkdir(parents=True)
    (at / names[0]).symlink_to("nothing")
    os.mkfifo(at / names[1])
    (at / names[2]).symlink_to("/dev/zero")
    folder.shard("k", 1).symlink_to(folder.shard("k", 1))
    folder.shard_document("k", 1).mkdir()
    folder.shard_document("k", 2).write_text("{}")
    sentences = without_what_is_no_file(folder, "k")
    assert len(sentences) == 5 and all("set aside as" in sentence for sentence in sentences)
    assert [path.name for path in folder.shards("k").glob("*.json")] == ["00002.json"]
    assert not [path for path in at.iterdir() if path.name in names]
    assert without_what_is_no_file(folder, "k") == []
    folder.cell("l").write_text("")
    assert "l is damaged (not a folder)" in without_what_is_no_file(folder, "l")[0]
