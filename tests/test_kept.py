"""Readings kept beside a run: used again where nothing changed, made anew where anything did, and
never a reason to fail."""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from report_runs import STACKS, key_of, write_run
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ditbench import reports
from ditbench.metrics import statistic_cache as kept
from ditbench.metrics.set_statistics import STATISTICS
from ditbench.metrics.statistic_cache import Kept
from ditbench.metrics.statistic_cache import key_of as kept_under
from ditbench.records.run_folder import RunFolder
from ditbench.records.scores import Scores, read_file, write_file
from ditbench.reports.sections.section import read_sections
from ditbench.statistics.frechet import Reference, read_frechet, read_jackknifed
from ditbench.statistics.influence import Reading

FILE = RunFolder(Path()).readings.name
RNG = np.random.default_rng(0)
X, GROUP = RNG.random((8, 4)).astype(np.float32), np.arange(8)
REFERENCE = Reference.through(RNG.random((32, 4)))


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", n=9, stacks=STACKS[:3])


def quality(run):
    (section,) = read_sections([run])
    return [row["quality"] for row in section.rows]


def test_a_reading_comes_back_bit_by_bit_and_what_was_not_asked_for_is_forgotten(tmp_path):
    reading = Reading(value=1 / 3, parts=np.array([0.1, -0.2, 0.1]))
    first = Kept(tmp_path)
    assert first.get("a") is None
    first.put("a", reading)
    first.put("b", reading)
    first.save()
    again = Kept(tmp_path)
    found = again.get("a")
    assert found.value == reading.value and (found.parts == reading.parts).all()
    again.save()
    assert list(load_file(tmp_path / FILE)) == ["a"]


def test_a_key_changes_with_whatever_a_reading_depends_on():
    frechet, check, cubic = read_frechet, read_jackknifed, STATISTICS["mmd_cubic"].read
    same = kept_under(frechet, X, GROUP, REFERENCE)
    assert same == kept_under(
        frechet, X.copy(), GROUP.copy(), Reference.through(REFERENCE.features)
    )
    others = [
        kept_under(cubic, X, GROUP, REFERENCE), kept_under(check, X, GROUP, REFERENCE),
        kept_under(frechet, X + 1e-6, GROUP, REFERENCE),
        kept_under(frechet, X, GROUP // 2, REFERENCE),
        kept_under(frechet, X, GROUP, Reference.through(REFERENCE.features + 1e-9)),
        kept_under(frechet, X, GROUP, None), kept_under(frechet, X.reshape(4, 8), GROUP, REFERENCE),
    ]  # fmt: skip
    assert len({same, *others}) == 8


def test_every_statistic_of_the_table_has_a_key_of_its_own():
    keys = [kept_under(s.read, X, GROUP, REFERENCE) for s in STATISTICS.values()]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("edited", ["spread.py", "helpers/centre.py"])
def test_a_statistic_of_any_package_is_read_anew_when_its_source_or_what_that_imports_was_edited(
    tmp_path, monkeypatch, edited
):
    """A statistic in a module nobody knew of had stale readings: the modules that count were a
    list."""
    package = tmp_path / "foreign_statistics"
    (package / "helpers").mkdir(parents=True)
    for path in (package, package / "helpers"):
        (path / "__init__.py").write_text("")
    (package / "spread.py").write_text(
        "from ditbench.statistics.influence import Reading\n\n"
        "def read(features, reference, group):\n"
        "    from .helpers import centre\n"
        "    return Reading(value=float(features.std()), parts=centre.of(features))\n"
    )
    (package / "helpers" / "centre.py").write_text("def of(x):\n    return x.mean(1) - x.mean()\n")
    (package / "unused.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def key():
        for name in [n for n in sys.modules if n.startswith("foreign_statistics")]:
            del sys.modules[name]
        kept._source_sha256.cache_clear()
        return kept_under(import_module("foreign_statistics.spread").read, X, GROUP, REFERENCE)

    before = key()
    (package / "unused.py").write_text("x = 1\n")
    assert key() == before
    (package / edited).write_text(
        (package / edited).read_text().replace("mean()", "min()").replace("std", "var")
    )
    assert key() != before


def test_a_second_report_takes_its_readings_from_the_run_and_shows_the_same(run):
    first = quality(run)
    assert quality(run) == first
    readings = load_file(run / FILE)
    assert len(readings) > 10
    save_file(
        {key: np.concatenate([told[:1] + 1, told[1:]]) for key, told in readings.items()},
        run / FILE,
    )
    for before, after in zip(first, quality(run), strict=True):
        assert (
            after["fd.shapes_v1"]["value"]["value"] == before["fd.shapes_v1"]["value"]["value"] + 1
        )
        assert after["align.shapes_v1"] == before["align.shapes_v1"]


def test_other_features_are_read_anew_and_a_damaged_file_costs_nothing_but_time(run):
    first = quality(run)
    path = run / "scores" / f"{key_of('dit-tiny', STACKS[2][0])}.safetensors"
    scores = read_file(path)
    arrays = dict(scores.arrays) | {"feature.shapes_v1": scores.arrays["feature.shapes_v1"] + 1}
    write_file(path, Scores(samples_sha256="", arrays=arrays, reasons=scores.reasons))
    second = quality(run)
    assert second[2]["fd.shapes_v1"]["value"] != first[2]["fd.shapes_v1"]["value"]
    assert second[1]["fd.shapes_v1"]["value"] == first[1]["fd.shapes_v1"]["value"]
    (run / FILE).write_bytes(b"half")
    assert quality(run) == second and len(load_file(run / FILE)) > 10


def test_a_report_that_reads_kept_readings_has_the_same_bytes(run, tmp_path):
    one, two = (reports.build([run], tmp_path / name) for name in ("x", "y"))
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one.files, two.files, strict=True))


def test_values_that_are_not_those_that_were_written_are_damage(tmp_path):
    path = tmp_path / "scores" / "k.safetensors"
    arrays = {"group": np.arange(3), "a": np.ones(3), "feature.x": np.ones((3, 2), np.float32)}
    write_file(path, Scores(samples_sha256="x", arrays=arrays, reasons={"a": ""}))
    assert read_file(path, whole=True).arrays["a"].sum() == 3
    metadata = metadata_of(path)
    with_other = {name: arrays | {name: arrays[name] * 2} for name in ("a", "feature.x")}
    for name, changed in with_other.items():
        save_file(changed, path, metadata)
        with pytest.raises(ValueError, match=f"{name} is not what was written"):
            read_file(path, whole=True)
    assert read_file(path).reasons == {"a": ""}  # features are read, and compared, by `score` alone
    save_file({"group": arrays["group"]}, path, metadata)
    with pytest.raises(ValueError, match="its arrays are not those that were written"):
        read_file(path)
    save_file(arrays, path, metadata | {"scores": metadata["scores"].replace("x", "y")})
    with pytest.raises(ValueError, match="its metadata are not what was written"):
        read_file(path)
    document = json.loads(metadata["scores"])
    del document["checksums"]  # an older file has none
    save_file(with_other["a"], path, {"scores": json.dumps(document)})
    assert read_file(path, whole=True).arrays["a"].sum() == 6


def metadata_of(path):
    with safe_open(path, "np") as file:
        return file.metadata()
