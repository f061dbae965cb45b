"""Scores and reports of very many samples: read by block, without features, and the same numbers as
sample by sample."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from command import command
from made_up_runs import make_run
from report_runs import STACKS, key_of, write_run
from safetensors.numpy import load_file
from test_score import judge_folder, run  # noqa: F401  (fixtures)

from ditbench.analysis.quality import statistic_delta
from ditbench.metrics import features as extraction
from ditbench.metrics.cell_statistics import with_statistics
from ditbench.metrics.features import PartlyExtracted
from ditbench.metrics.scoring import score_run
from ditbench.metrics.set_statistics import sets_of
from ditbench.metrics.table import metrics
from ditbench.records.files import file_sha256
from ditbench.records.run_folder import RunFolder
from ditbench.records.sample_blocks import Blocked, blocks_of
from ditbench.records.scores import Scores, read_cell, read_file, read_scores, write_cell
from ditbench.reports import build
from ditbench.statistics import estimates as statistics
from ditbench.statistics.estimates import Blocks
from ditbench.statistics.frechet import Reference
from ditbench.statistics.influence import MOST, Reading, contrast, linear, num_blocks, summed

FEATURE = "feature.shapes_v1"


def blocks(arrays):
    return Blocks(arrays["samples@blocks"], int(arrays["prompts@blocks"][0]))


@pytest.mark.parametrize(("groups", "num"), [(50_000, 3125), (30_000, 3750), (4096, 4096), (4099, 4096), (10, 10)])  # fmt: skip
def test_blocks_are_of_one_size_where_their_number_allows_it(groups, num):
    assert num_blocks(groups) == num


def test_a_mean_over_blocks_is_the_mean_and_its_error_that_of_the_prompts():
    rng = np.random.default_rng(0)
    for n in (20_000, 20_011):  # the latter is a prime: blocks of unequal sizes
        values = rng.gamma(2.0, 0.1, n).clip(0, 1)
        view = Blocked({"group": np.arange(n), "align": values})
        whole = statistics.mean(values, bounds=(0, 1))
        by_block = statistics.mean(view["align"], view["group"], bounds=(0, 1), blocks=blocks(view))
        assert by_block.value == pytest.approx(whole.value, abs=1e-6)
        assert by_block.n == whole.n == n
        error = 1 / np.sqrt(2 * (num_blocks(n) - 1))  # of a standard error by so many units
        assert by_block.se == pytest.approx(whole.se, rel=4 * error)
        assert by_block.low == pytest.approx(whole.low, abs=4 * error * whole.se * 1.96)
        assert by_block.skew == pytest.approx(whole.skew, abs=4.0)


def test_prompts_of_several_samples_stay_together_and_few_prompts_change_nothing():
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(1000), 5)
    values = rng.random(1000)[group] + 0.1 * rng.random(5000)
    view = Blocked({"group": group, "score": values})
    whole = statistics.mean(values, group)
    by_block = statistics.mean(view["score"], view["group"], blocks=blocks(view))
    assert (by_block.value, by_block.se) == pytest.approx((whole.value, whole.se), rel=1e-12)
    assert by_block.n == whole.n == 1000
    np.testing.assert_array_equal(view["group@samples"], group)


def test_summed_influences_give_the_error_of_all_and_few_are_left_alone():
    rng = np.random.default_rng(2)
    pair = [linear(0.0, rng.standard_normal(50_000), None) for _ in range(2)]
    whole = contrast(pair, [1, -1])
    by_block = contrast([summed(reading) for reading in pair], [1, -1])
    assert by_block.n == 3125 and len(summed(pair[0]).parts) == 3125
    assert by_block.se == pytest.approx(whole.se, rel=4 / np.sqrt(2 * 3124))
    few = linear(0.0, rng.standard_normal(MOST), None)
    assert summed(few) is few
    halves = Reading(value=0.0, parts=np.zeros(MOST + 1), groups=3)
    assert summed(halves) is halves


def test_blocks_in_the_file_are_those_made_on_reading():
    rng, n = np.random.default_rng(3), MOST + 904
    arrays = {
        "group": np.arange(n) // 2, "align": rng.random(n), "mse.vs_none": rng.integers(0, 2, n) / 4,
        "vbench.color": rng.random(7), "vbench.color@rows": np.arange(7), "feature.x": rng.random(n),
    }  # fmt: skip
    stored, made = Blocked(arrays | blocks_of(arrays)), Blocked(arrays)
    assert set(stored) == set(made) == {*arrays, "samples@blocks", "prompts@blocks", "group@samples", "mse.vs_none@zeros"}  # fmt: skip
    for name in stored:
        np.testing.assert_array_equal(stored[name], made[name], err_msg=name)
    assert made["mse.vs_none@zeros"] == [(arrays["mse.vs_none"] == 0).sum()]
    assert len(made["align"]) == num_blocks(n // 2) and len(made["feature.x"]) == n
    assert blocks_of({"group": np.arange(MOST), "align": np.zeros(MOST)}) == {}
    with pytest.raises(KeyError):
        made["samples"]


def cell(n, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    arrays = {
        FEATURE: (rng.standard_normal((n, 64)) + shift).astype(np.float32),
        "align.shapes_v1": rng.random(n).round(2), "group": np.arange(n),
    }  # fmt: skip
    names = ("align.shapes_v1", "fd.shapes_v1", "precision.shapes_v1")
    return Scores(samples_sha256=str(seed), arrays=arrays, reasons=dict.fromkeys(names, ""))


RECORD = {"key": "k", "model": "dit-tiny", "world": "class"}


def test_statistics_of_many_samples_are_those_of_the_features_to_within_the_error_of_an_error(
    tmp_path,
):
    reference = Reference.through(np.random.default_rng(9).standard_normal((512, 64)))

    def sets():
        return sets_of({"class": reference}, None)

    n, files = MOST + 1024, RunFolder(tmp_path)
    pair = [cell(n, 0, 0.05), cell(n, 1)]
    for key, scores in zip("ab", pair, strict=True):
        write_cell(files, key, with_statistics(RECORD, scores, sets()))
    shutil.rmtree(tmp_path / "features")  # a report needs none of it
    read = read_scores(tmp_path)
    for name in ("fd.shapes_v1", "precision.shapes_v1"):
        metric = metrics()[name]
        whole, how, _ = statistic_delta(metric, RECORD, *pair, sets())
        small, words, _ = statistic_delta(metric, RECORD, read["a"], read["b"], sets())
        assert small.value == pytest.approx(whole.value, rel=1e-9, abs=1e-9)
        assert small.se == pytest.approx(whole.se, rel=4 / np.sqrt(2 * (num_blocks(n) - 1)))
        assert how != words or name.startswith("precision")
    assert sets().floor(metrics()["fd.shapes_v1"], RECORD, read["a"]) > 0


def test_a_statistic_is_made_again_where_what_it_is_made_of_is_another(tmp_path):
    drawn = np.random.default_rng(0).standard_normal((512, 64))
    near, far = (sets_of({"class": Reference.through(drawn + i)}, None) for i in (0, 1))
    fd, files = metrics()["fd.shapes_v1"], RunFolder(tmp_path)
    first = with_statistics(RECORD, cell(200, 0), near)
    assert with_statistics(RECORD, first, near) is first
    write_cell(files, "k", first)
    (stored,) = read_scores(tmp_path).values()
    assert near.read(fd, RECORD, stored).value == near.read(fd, RECORD, cell(200, 0)).value
    assert far.read(fd, RECORD, stored).value == far.read(fd, RECORD, cell(200, 0)).value
    second = with_statistics(RECORD, read_cell(files, "k"), far)
    assert second is not first and second.arrays["fd.shapes_v1@read.head"][0] == (
        far.read(fd, RECORD, cell(200, 0)).value
    )
    few = with_statistics(RECORD, cell(1, 0), near)
    assert few.unread["fd.shapes_v1"].startswith("a Fréchet distance needs at least two samples")
    with pytest.raises(ValueError, match="at least two samples"):
        near.read(fd, RECORD, few)


def test_a_report_of_an_older_folder_and_of_one_scored_now_are_the_same_without_features(tmp_path):
    older = write_run(tmp_path / "run", n=90, stacks=STACKS[:4])
    sets, files = sets_of(None, None), RunFolder(older)
    (tmp_path / "now").mkdir()
    now = RunFolder(shutil.copytree(older, tmp_path / "now" / "run"))
    for stack, _ in STACKS[:4]:
        key = key_of("dit-tiny", stack)
        record = {"key": key, "model": "dit-tiny", "world": "class"}
        write_cell(now, key, with_statistics(record, read_file(files.scores(key)), sets))
        assert set(load_file(now.features(key))) == {FEATURE}
        assert FEATURE not in load_file(now.scores(key))
    shutil.rmtree(now.path / "features")
    for folder in (older, now.path):
        assert command("report", folder, "--out", folder / "report").returncode == 0
    names = {path.relative_to(older) for path in (older / "report").rglob("*") if path.is_file()}
    assert names
    for name in names:
        assert (older / name).read_bytes() == (now.path / name).read_bytes(), name
    assert (older / "readings.safetensors").is_file()
    assert not (now.path / "readings.safetensors").exists()


def test_what_a_report_reads_does_not_grow_with_the_samples(tmp_path, undrawn_here, monkeypatch):
    from ditbench.records import scores as stored

    sizes, plain = {}, stored._StoredArrays.__getitem__

    def counted(self, name):
        array = plain(self, name)
        sizes[n].append(array.size)
        return array

    monkeypatch.setattr(stored._StoredArrays, "__getitem__", counted)
    for n in (50_000, 100_000):
        sizes[n] = []
        build([make_run(tmp_path / str(n), 3, n, models=("dit-tiny",), features=False)])
    few, many = sizes.values()
    assert max(few) == num_blocks(50_000) and max(many) == num_blocks(100_000) <= MOST
    assert len(few) == len(many)


def test_cells_scored_side_by_side_have_the_same_files(run, judge_folder, tmp_path):  # noqa: F811
    other = Path(shutil.copytree(run, tmp_path / "other"))
    done = score_run(run, judge_folder=judge_folder)
    again = score_run(other, judge_folder=judge_folder, workers=2)
    assert again == done and done.written == ["m--fast", "m--none"]
    for name in ("scores", "features"):
        paths = sorted((run / name).iterdir())
        assert [path.name for path in paths] == sorted(p.name for p in (other / name).iterdir())
        for path in paths:
            assert path.read_bytes() == (other / name / path.name).read_bytes(), path
    assert score_run(other, judge_folder=judge_folder, workers=2).kept == done.written


def test_no_workers_are_refused(run):  # noqa: F811
    with pytest.raises(ValueError, match="at least one process scores, got 0"):
        score_run(run, workers=0)


def test_features_that_were_deleted_or_are_of_other_samples_are_extracted_again(run, judge_folder):  # noqa: F811
    score_run(run, judge_folder=judge_folder)
    path = RunFolder(run).features("m--fast")
    before = path.read_bytes()
    path.unlink()
    assert score_run(run, judge_folder=judge_folder).written == ["m--fast"]
    assert path.read_bytes() == before
    shutil.copy(RunFolder(run).features("m--none"), path)
    assert FEATURE not in read_cell(RunFolder(run), "m--fast").arrays
    assert score_run(run, judge_folder=judge_folder).written == ["m--fast"]
    path.write_bytes(b"half")
    done = score_run(run, judge_folder=judge_folder)
    assert done.written == ["m--fast"] and "set aside and made again" in done.damaged[0]
    assert path.read_bytes() == before


class Pictures:
    """Samples as metrics see them, which count how often they were looked at."""

    def __init__(self, path, n):
        path.write_bytes(b"pixels")
        self.path, self.n, self.sha256 = path, n, file_sha256(path)

    def __len__(self):
        return self.n

    def chunks(self):
        for start in range(0, self.n, 64):
            yield np.arange(start, min(start + 64, self.n))


def test_an_extraction_that_was_stopped_goes_on_from_its_last_part(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "PART", 128)
    monkeypatch.setattr(extraction, "fingerprint", lambda cell, metric: "f")

    class Cell:
        samples, parts = Pictures(tmp_path / "samples", 1000), tmp_path / "parts"

    metric = extraction.before([metrics()["fid.tf2015.legacy_tf"]])[0]

    def extracted(most):
        part, looked = PartlyExtracted(Cell, metric), 0
        for chunk in part.missing():
            if looked >= most:
                return None, looked
            looked += len(chunk)
            part.add({"pool": np.stack([chunk, chunk**2], 1)})
        return part.whole()["pool"], looked

    assert extracted(300) == (None, 320)
    assert len(list(Cell.parts.iterdir())) == 2
    whole, looked = extracted(10_000)
    assert looked == 1000 - 256
    np.testing.assert_array_equal(whole, np.stack([np.arange(1000), np.arange(1000) ** 2], 1))
    next(Cell.parts.iterdir()).write_bytes(b"half")
    np.testing.assert_array_equal(extracted(10_000)[0], whole)
