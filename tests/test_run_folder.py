"""Run folders: one place that knows where files lie, one way to replace a file, one hash of it."""

import hashlib
import re
from pathlib import Path

import pytest

from ditbench.records.files import file_sha256, replacing, write_json
from ditbench.records.run_folder import RunFolder

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
