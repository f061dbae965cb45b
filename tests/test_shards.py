"""Cells in shards: the samples of the undivided cell, by one process or several, and what is made
again when something fails."""

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from command import command

from ditbench.cli.parser import SOME_FAILED, STOPPED
from ditbench.metrics.samples import Samples
from ditbench.records.record import read_run, read_shard
from ditbench.records.run_folder import RunFolder
from ditbench.runner.plan import plan
from ditbench.runner.processes import context_for
from ditbench.runner.resume import with_threads
from ditbench.runner.shards import num_shards, shard_range, shard_size
from ditbench.runner.spec import Spec, from_table
from ditbench.runner.tally import Tally
from ditbench.runner.units import Unit, shards_to_do
from ditbench.runner.workers import Workers
from ditbench.testing.endurance import compare

RUN = ["--models", "dit-tiny", "--steps", "4", "--num-samples", "20", "--batch-size", "4"]
RUN += ["--rounds", "2", "--threads", "1", "--methods", "fora"]

FAILING = '''
import os, signal, time
from pathlib import Path

from ditbench.method import Stage, method

HERE = Path(__file__).parent

@method("flaky", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"})
class Flaky:
    """Fails at samples that a file names, as it says."""
    def attach(self, pipeline, at):
        calls = []
        at.on_start(lambda: calls.append(1))
        def route(run, hidden):
            at.count("runs")
            for path in HERE.glob("fails-*"):
                _, how, call = path.name.split("-")
                if len(calls) == int(call):
                    if how.endswith("once"):
                        path.unlink()
                    if how.startswith("waits"):
                        time.sleep(600)
                    if how.startswith("killed"):
                        os.kill(os.getpid(), signal.SIGKILL)
                    raise RuntimeError("planted")
            return run()
        at.reroute(at.sublayers[0], route)
'''


def bench(out, *arguments, code=0):
    done = command("run", *RUN, *arguments, "--out", out)
    assert done.returncode == code, done.stderr[-2000:]
    return done


def written(out):
    """When every file of the cells was written."""
    return {
        p: p.stat().st_mtime_ns for p in RunFolder(out).path.rglob("cells/*/**/*") if p.is_file()
    }


@pytest.fixture(scope="module")
def undivided(tmp_path_factory):
    out = tmp_path_factory.mktemp("undivided") / "run"
    bench(out)
    return out


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    out = tmp_path_factory.mktemp("divided") / "run"
    bench(out, "--shard", "7")
    return out


def wait_for(condition, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def alike(one, other, *, files=True):
    result = compare(one, other)
    if not files:  # one has shards
        result["differing"] = [t for t in result["differing"] if not t.endswith("samples files")]
    assert not result["differing"] and result["arrays"] > 10
    return result


def cell_of(**settings):
    return plan(Spec(models=("dit-tiny",), **settings))[0]


@pytest.mark.parametrize(
    ("samples", "batch", "shard", "size", "number"),
    [(80, 16, 512, 512, 1), (512, 16, 512, 512, 1), (513, 16, 512, 512, 2), (20, 4, 7, 8, 3),
     (50_000, 24, 512, 528, 95), (6, 8, 1, 6, 1)],
)  # fmt: skip
def test_shards_are_whole_batches_and_every_sample_is_in_one(samples, batch, shard, size, number):
    cell = cell_of(num_samples=samples, batch_size=batch, shard=shard)
    assert (shard_size(cell), num_shards(cell)) == (size, number)
    ranges = [shard_range(cell, i) for i in range(number)]
    assert [i for one in ranges for i in one] == list(range(samples))


def test_a_video_counts_as_four_in_a_shard_too():
    cell = plan(Spec(models=("wan-tiny",), num_samples=4096, shard=512))[0]
    assert (shard_size(cell), num_shards(cell)) == (128, 8)


def test_neither_shards_nor_workers_change_a_key_and_only_shards_the_name_of_a_folder():
    plain = Spec(models=("dit-tiny",))
    others = [Spec(models=("dit-tiny",), shard=16), Spec(models=("dit-tiny",), workers=2)]
    assert {plan(spec)[0].key for spec in (plain, *others)} == {plan(plain)[0].key}
    assert others[1].folder == plain.folder != others[0].folder
    on_gpus = from_table({"models": ["dit-tiny"], "devices": ["cuda:0", "cuda:1"]}, Spec())
    assert on_gpus.device == "cuda:0"
    assert on_gpus.folder == Spec(models=("dit-tiny",), device="cuda:0").folder


def test_workers_share_the_cores_and_a_folder_keeps_its_number_of_threads(tmp_path, undivided):
    spec = Spec(models=("dit-tiny",), workers=2)
    shared = with_threads(spec)
    assert shared.threads >= 1 and shared.folder == spec.folder
    assert with_threads(Spec(workers=64)).threads == 1
    assert (
        with_threads(Spec()).threads == 0 and with_threads(Spec(workers=2, threads=5)).threads == 5
    )
    assert with_threads(Spec(workers=2, out=str(undivided))).threads == 1  # it was begun with 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"workers": 2, "device": "cuda"}, "2 processes share a CPU"),
        ({"devices": ["cuda:0", "cuda:0"]}, "name one GPU twice"),
        ({"devices": ["cuda", "cuda:0"]}, "name one GPU twice"),
        ({"devices": ["cpu", "cuda:0"]}, "these are GPUs, one process each"),
        ({"devices": ["cuda:0"], "workers": 2}, "these are GPUs, one process each"),
        ({"devices": ["cuda:1"], "device": "cuda:0"}, "the first of them times everything"),
        ({"devices": ["tpu"]}, "device: 'tpu' is neither cpu, cuda nor cuda:N"),
        ({"shard": 0}, "shard: 0 is not between 1 and 1000000"),
        ({"workers": 0}, "workers: 0 is not between 1 and 256"),
    ],
)
def test_devices_and_workers_that_do_not_go_together_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_table(settings, Spec())


def test_samples_and_scores_of_shards_are_those_of_the_undivided_cell(undivided, divided):
    assert alike(undivided, divided, files=False)["samples"] == 40
    for record in read_run(divided).records:
        folder = RunFolder(divided)
        assert sorted(record["sample_files"]) == [f"samples/{i:05d}.tar" for i in range(3)]
        assert [(t["round"], t["batch"]) for t in record["timing"]] == [(0, 1), (1, 1)]
        assert record["samples"] == 20 and record["flops"]["flops"] > 0
        shards = [read_shard(folder.shard_document(record["key"], i)) for i in (1, 2)]
        assert [s["requests"] for s in shards] == [[8, 16], [16, 20]]
        assert not folder.samples(record["key"]).exists() and not folder.leases()
    for record in read_run(undivided).records:
        assert list(record["sample_files"]) == ["samples.safetensors"]


def test_two_processes_make_the_same_and_nothing_twice(undivided, divided, tmp_path):
    out = tmp_path / "run"
    done = bench(out, "--shard", "7", "--workers", "2")
    alike(divided, out)
    alike(undivided, out, files=False)
    counted = [line.split("]")[0].strip("[") for line in done.stderr.splitlines() if "[" in line]
    assert "8/8" in counted  # two rounds and two shards of both cells


def test_the_same_command_again_makes_nothing(divided):
    before = written(divided)
    bench(divided, "--shard", "7", "--workers", "2")
    assert written(divided) == before


def test_a_folder_keeps_its_shards(divided):
    done = bench(divided, code=2)
    assert "was made with shard 7, not 512" in done.stderr


@pytest.mark.parametrize("model", ["pixart-tiny", "wan-tiny"])
def test_prompts_encoded_once_and_videos_are_the_same_in_shards(tmp_path, model):
    flags = ["--models", model, "--steps", "2", "--num-samples", "16", "--rounds", "1"]
    flags += ["--text-encoding", "once"]
    for name, shard in (("undivided", 512), ("divided", 4)):
        bench(tmp_path / name, *flags, "--shard", shard)
    alike(tmp_path / "undivided", tmp_path / "divided", files=False)


@pytest.mark.parametrize("number", [0, 1])
def test_a_shard_that_was_zeroed_is_set_aside_and_made_again_alone(divided, tmp_path, number):
    out = tmp_path / "run"
    shutil.copytree(divided, out)
    key = next(r["key"] for r in read_run(out).records if r["stack"] == "fora")
    path = RunFolder(out).shard(key, number)
    whole, before = path.read_bytes(), written(out)
    path.write_bytes(bytes(len(whole)))
    done = bench(out, "--shard", "7")
    assert f"{path} is damaged (its sha256 is not that of what was written)" in done.stderr
    assert path.read_bytes() == whole and path.with_name(f"{path.name}.damaged-1").exists()
    alike(divided, out)
    others = {p for p in before if p.suffix == ".tar" and p != path}
    assert {p: written(out)[p] for p in others} == {p: before[p] for p in others}


def test_samples_of_a_small_cell_that_were_zeroed_are_made_again(undivided, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(undivided, out)
    key = read_run(out).records[0]["key"]
    path = RunFolder(out).samples(key)
    path.write_bytes(bytes(path.stat().st_size))
    assert f"{path} is damaged (its sha256" in bench(out).stderr
    alike(undivided, out)


def test_a_large_cell_of_an_older_run_stays_one_file(undivided, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(undivided, out)
    spec = json.loads((out / "spec.json").read_text())
    spec["settings"]["shard"] = 8
    (out / "spec.json").write_text(json.dumps(spec))
    before = written(out)
    bench(out, "--shard", "8")
    assert written(out) == before


@pytest.fixture
def flaky(tmp_path):
    path = tmp_path / "flaky.py"
    path.write_text(FAILING)
    return path


def fails(plugin: Path, how: str, call: int) -> None:
    """Let the method fail in a call of a process, in each or only once."""
    (plugin.parent / f"fails-{how}-{call}").touch()


def test_a_killed_process_costs_its_shard_and_one_that_dies_twice_fails_the_cell(flaky, tmp_path):
    out, flags = tmp_path / "run", ["--plugin", flaky, "--methods", "flaky", "--shard", "4"]
    flags += ["--rounds", "1", "--num-samples", "12"]
    bench(out, *flags)
    files = RunFolder(out)
    key = next(r["key"] for r in read_run(out).records if r["stack"] == "flaky")
    whole = Samples(files.stored_samples(key)).sha256
    for number in (1, 2):
        files.shard_document(key, number).unlink()
    files.record(key).unlink()
    fails(flaky, "killedonce", 1)
    bench(out, *flags)
    assert Samples(files.stored_samples(key)).sha256 == whole
    for number in (1, 2):
        files.shard_document(key, number).unlink()
    files.record(key).unlink()
    fails(flaky, "killed", 2)  # each process makes one shard and dies in the second
    before = files.round(key, 0).stat().st_mtime_ns
    bench(out, *flags)
    assert Samples(files.stored_samples(key)).sha256 == whole
    files.shard_document(key, 2).unlink()
    files.record(key).unlink()
    (flaky.parent / "fails-killed-2").unlink()
    fails(flaky, "killed", 1)
    bench(out, *flags, code=SOME_FAILED)
    record = next(r for r in read_run(out).records if r["key"] == key)
    assert record["status"] == "failed"
    assert record["reason"] == (
        "shard 2: its process was killed by SIGKILL (out of memory, most often), 2 times"
    )
    (flaky.parent / "fails-killed-1").unlink()
    kept = {p: p.stat().st_mtime_ns for p in files.all_shards() if p.name != "00002.tar"}
    bench(out, *flags)
    assert next(r for r in read_run(out).records if r["key"] == key)["status"] == "ok"
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert files.round(key, 0).stat().st_mtime_ns == before
    assert Samples(files.stored_samples(key)).sha256 == whole


def test_an_error_in_a_shard_is_its_reason_and_the_others_are_made(flaky, tmp_path):
    out, flags = tmp_path / "run", ["--plugin", flaky, "--methods", "flaky", "--shard", "4"]
    flags += ["--rounds", "1", "--num-samples", "16"]
    bench(out, *flags)
    files = RunFolder(out)
    key = next(r["key"] for r in read_run(out).records if r["stack"] == "flaky")
    for number in (1, 2, 3):
        files.shard_document(key, number).unlink()
    files.record(key).unlink()
    fails(flaky, "raisesonce", 2)
    bench(out, *flags, code=SOME_FAILED)
    record = next(r for r in read_run(out).records if r["key"] == key)
    assert record["status"] == "failed" and "RuntimeError: planted" in record["reason"]
    statuses = [read_shard(files.shard_document(key, n))["status"] for n in (1, 2, 3)]
    assert statuses == ["ok", "failed", "ok"]
    bench(out, *flags)
    assert {r["status"] for r in read_run(out).records} == {"ok"}


def test_a_shard_that_takes_too_long_is_ended_and_is_the_reason(flaky, tmp_path):
    out, flags = tmp_path / "run", ["--plugin", flaky, "--methods", "flaky", "--shard", "4"]
    flags += ["--rounds", "1", "--num-samples", "8"]
    bench(out, *flags)
    files = RunFolder(out)
    key = next(r["key"] for r in read_run(out).records if r["stack"] == "flaky")
    files.shard_document(key, 1).unlink()
    files.record(key).unlink()
    fails(flaky, "waits", 1)
    bench(out, *flags, "--time-limit", "15", code=SOME_FAILED)
    record = next(r for r in read_run(out).records if r["key"] == key)
    assert record["reason"] == "shard 1: it took longer than its time limit of 15 s (--time-limit)"


def test_further_devices_make_shards_while_something_is_timed(divided, tmp_path, monkeypatch):
    """As on two GPUs, here both the CPU."""
    monkeypatch.setattr("ditbench.runner.spec.check_devices", lambda *_: None)
    out = tmp_path / "run"
    shutil.copytree(divided, out)
    files = RunFolder(out)
    spec = Spec(
        models=("dit-tiny",), methods=("fora",), steps="4", num_samples=20, batch_size=4, rounds=2,
        threads=1, shard=7, devices=("cpu", "cpu"), out=str(out),
    )  # fmt: skip
    cells = plan(spec)
    for cell in cells:
        files.record(cell.key).unlink()
        for number in (1, 2):
            files.shard_document(cell.key, number).unlink()
    made, units = [], shards_to_do(cells, files)
    workers = Workers(
        context=context_for("cpu"), spec=spec, session="s", folder=files, late=lambda: False,
        tally=Tally(units, lambda step: None, abreast=2),
        finish=lambda cell: made.append(cell.key) or "",
    )  # fmt: skip
    first = files.shard_document(cells[0].key, 1)
    with workers.beside(units):
        wait_for(first.exists)
    assert len(units) == 4 and sorted(made) == sorted(unit.cell.key for unit in units)
    assert not shards_to_do(cells, files)
    bench(out, "--shard", "7")
    alike(divided, out)


def test_an_error_while_timing_ends_the_processes_beside(divided, tmp_path, monkeypatch):
    monkeypatch.setattr("ditbench.runner.spec.check_devices", lambda *_: None)
    spec = Spec(models=("dit-tiny",), num_samples=20, shard=8, batch_size=4, devices=("cpu", "cpu"))
    cell = plan(spec)[0]
    units = [Unit(cell=cell, round=0, shard=1)]
    workers = Workers(
        context=None, spec=spec, session="s", folder=RunFolder(tmp_path), late=lambda: False,
        tally=Tally(units, lambda step: None, abreast=2), finish=lambda cell: "",
    )  # fmt: skip
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), workers.beside(units):
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_a_run_of_shards_stops_when_it_was_told_to_and_goes_on(divided, tmp_path):
    out, codes = tmp_path / "run", []
    while not codes or codes[-1] == STOPPED:
        codes.append(
            command("run", *RUN, "--shard", "7", "--stop-after", "1", "--out", out).returncode
        )
        assert len(codes) < 12
    assert codes[-1] == 0 and len(codes) > 2
    alike(divided, out)
    assert np.all([r["status"] == "ok" for r in read_run(out).records])


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_gives_what_an_undisturbed_one_gives(tmp_path):
    """Ten kills of the command or of a process that makes shards, at random moments."""
    from ditbench.testing.endurance import disturb

    flags = ["--models", "dit-tiny", "--steps", "4", "--num-samples", "192", "--batch-size", "8"]
    flags += ["--shard", "16", "--rounds", "1", "--workers", "2", "--threads", "1"]
    flags += ["--methods", "fora"]
    assert command("run", *flags, "--out", tmp_path / "undisturbed").returncode == 0
    kills = disturb(tmp_path / "killed", flags, kills=10, mean=5.0, seed=1)
    assert sum(kills.values()) == 10 and min(kills.values()) > 0
    alike(tmp_path / "undisturbed", tmp_path / "killed")
