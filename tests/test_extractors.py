"""The table of extractors, where their files are found, and that only the right file is used."""

import hashlib
import re
from dataclasses import replace

import pytest

from ditbench.extractors.table import (
    FOLDER,
    RESERVED,
    Extractor,
    extractors,
    find,
    locate,
    unnamed,
    verified,
)
from ditbench.metrics.table import metrics

ROW = Extractor(
    name="small", architecture="inception", preprocessing="legacy_tf",
    files={"w.pth": hashlib.sha256(b"right").hexdigest()},
    features={"pool": 4}, published="https://example.org/w.pth", licence="",
)  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(FOLDER, raising=False)


def test_every_row_has_whole_hashes_or_says_it_has_none():
    for row in extractors().values():
        assert row.files and row.features and row.published and row.preprocessing
        assert all(
            sha256 == "" or re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in row.files.values()
        )
        assert not row.hub or re.fullmatch("[0-9a-f]{40}", row.revision)
    assert {name for name, row in extractors().items() if not row.pinned} == {"i3d", "videomae"}
    assert (
        extractors()["tf2015"]
        .files["weights-inception-2015-12-05-6726825d.pth"]
        .startswith("6726825d")
    )


@pytest.mark.parametrize("judge", ["shapes_v1", "shapes_check_v1"])
def test_the_judges_rows_pin_the_weights_that_come_along(judge):
    paths = locate(extractors()[judge])
    for name, path in paths.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == extractors()[judge].files[name]


def test_what_is_missing_is_named_with_its_hash_and_where_it_is_published(tmp_path):
    with pytest.raises(ValueError) as said:
        locate(ROW, tmp_path)
    assert (
        f"small lacks w.pth (sha256 {ROW.files['w.pth']}); published at https://example.org/w.pth"
        in str(said.value)
    )
    assert FOLDER in str(said.value) and "\n" not in str(said.value)


@pytest.mark.parametrize("place", ["w.pth", "small/w.pth"])
def test_files_lie_in_the_folder_or_in_one_of_the_extractors_name(tmp_path, monkeypatch, place):
    path = tmp_path / "files" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(b"right")
    monkeypatch.setenv(FOLDER, str(tmp_path / "files"))
    assert verified(ROW) == {"w.pth": path} == verified(ROW, tmp_path / "files")


def test_torchs_cache_is_looked_into(tmp_path):
    path = tmp_path / "torch" / "hub" / "checkpoints" / "w.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"right")
    assert verified(ROW) == {"w.pth": path}


@pytest.mark.parametrize("fetched", ["a" * 40, "b" * 40])
def test_the_hubs_cache_is_looked_into_at_the_pinned_revision_and_at_main(
    tmp_path, monkeypatch, fetched
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    at = tmp_path / "hub" / "models--somebody--small"
    (at / "snapshots" / fetched).mkdir(parents=True)
    (at / "refs").mkdir()
    (at / "refs" / "main").write_text(fetched)
    (at / "snapshots" / fetched / "w.pth").write_bytes(b"right")
    row = replace(ROW, hub="somebody/small", revision="a" * 40)
    assert verified(row) == {"w.pth": at / "snapshots" / fetched / "w.pth"}


def test_a_file_with_another_hash_is_refused_naming_both(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"wrong")
    with pytest.raises(ValueError) as said:
        verified(ROW, tmp_path)
    wrong = hashlib.sha256(b"wrong").hexdigest()
    assert f"its sha256 is {wrong}, expected {ROW.files['w.pth']}" in str(said.value)


def test_an_unpinned_extractor_is_refused_even_when_its_file_is_there(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"right")
    with pytest.raises(
        ValueError, match="small is not pinned: the sha256 of its published files is not known here"
    ):
        verified(replace(ROW, files={"w.pth": ""}), tmp_path)


def test_a_row_without_a_network_says_why():
    with pytest.raises(
        ValueError, match="videomae cannot be run: the architecture is not written here yet"
    ):
        verified(extractors()["videomae"])
    with pytest.raises(ValueError, match="no extractor 'tf2016'; did you mean tf2015"):
        find("tf2016")


def test_the_key_changes_with_files_preprocessing_and_sizes():
    others = [
        replace(ROW, files={"w.pth": "0" * 64}),
        replace(ROW, preprocessing="clean"),
        replace(ROW, shape={"a": 1}),
    ]
    assert len({ROW.key, *(row.key for row in others)}) == 4
    assert replace(ROW, name="other", licence="MIT").key == ROW.key


def test_no_metric_bears_a_reserved_word_without_a_pinned_extractor_or_what_else_entitles_it():
    for name, metric in metrics().items():
        assert metric.official or unnamed(name, extractors().get(metric.extractor)) == ""


@pytest.mark.parametrize("word", RESERVED)
@pytest.mark.parametrize("spelt", ["{}.small", "{}", "x.{}.small", "{}_small.y", "proxy-{}.small"])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_reserved_words_are_refused_in_any_place_and_case_when_nothing_is_pinned(word, spelt, case):
    name = spelt.format(case(word))
    unpinned = replace(ROW, files={"w.pth": ""})
    assert "bears" in unnamed(name, unpinned) and "bears" in unnamed(name, None)
    assert "bears" in unnamed(name.replace("small", "another"), ROW)
    assert (unnamed(name, ROW) == "") == ("small" in name)


def test_words_that_only_contain_a_reserved_word_are_free():
    assert unnamed("fidelity.vs_none", None) == unnamed("vstyle.listen", None) == ""
