"""Processes that measure: shared by the cells of a round or not, ended early, late, or killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import command
from safetensors.numpy import load_file

from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder
from ditbench.reports.sections.section import read_sections
from ditbench.runner import processes
from ditbench.runner.plan import plan
from ditbench.runner.spec import Spec
from ditbench.runner.units import Unit

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--models", "dit-tiny", "--num-samples", "4", "--batch-size", "2", "--rounds", "2",
         "--steps", "6"]  # fmt: skip
STACKS = "fewer_steps(steps=3),fora,int8,fora+int8,distill(steps=4)"

ENDING = '''
import os, signal, time

from ditbench.method import Stage, method

@method("killed", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"})
class Killed:
    """Kills its process in the loop."""
    def attach(self, pipeline, at):
        at.reroute(at.sublayers[0], lambda run, hidden: os.kill(os.getpid(), signal.SIGKILL))

@method("exits", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"})
class Exits:
    """Ends its process in the loop."""
    def attach(self, pipeline, at):
        at.reroute(at.sublayers[0], lambda run, hidden: os._exit(7))

@method("raises", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"})
class Raises:
    """Fails in the loop."""
    def attach(self, pipeline, at):
        def route(run, hidden):
            raise RuntimeError("planted")
        at.reroute(at.sublayers[0], route)

@method("lingers", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"})
class Lingers:
    """Leaves a thread that outlives its result."""
    def attach(self, pipeline, at):
        import threading
        threading.Thread(target=time.sleep, args=(600,)).start()
        at.reroute(at.sublayers[0], lambda run, hidden: (at.count("runs"), run())[1])

@method("greedy", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"})
class Greedy:
    """Wants more memory than there is."""
    def attach(self, pipeline, at):
        at.reroute(at.sublayers[0], lambda run, hidden: hidden.new_empty(10**15))

@method("waits", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"})
class Waits:
    """Takes too long."""
    def attach(self, pipeline, at):
        at.reroute(at.sublayers[0], lambda run, hidden: time.sleep(600))

@method("lasting", family="cache", stage=Stage.SCHEDULE, claims={"scheduler"}, reversible=False)
class Lasting:
    """Cannot be taken off."""
    def attach(self, pipeline, at):
        at.count("attached")
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """One file for all tests: a name belongs to one."""
    path = tmp_path_factory.mktemp("plugin") / "ending.py"
    path.write_text(ENDING)
    return path


def bench(out, *arguments, check=True):
    done = command("run", *QUICK, "--out", out, *arguments)
    assert not check or done.returncode == 0, done.stderr[-2000:]
    return done


def samples(folder):
    return {
        path.parent.name: load_file(path)["samples"].tobytes()
        for path in folder.glob("cells/*/samples.safetensors")
    }


@pytest.mark.parametrize("stacks", [STACKS, "fora"], ids=["six", "two"])
def test_cells_that_share_a_process_give_the_same_samples(tmp_path, stacks):
    # those that the student was trained for
    flags = ["--steps", "20" if "distill" in stacks else "6", "--methods", stacks]
    bench(tmp_path / "cell", *flags)
    bench(tmp_path / "round", *flags, "--process", "round")
    own, shared = samples(tmp_path / "cell"), samples(tmp_path / "round")
    assert len(own) == len(read_run(tmp_path / "cell").records) > 1 and own == shared
    for name, process in (("cell", None), ("round", "round")):
        for record in read_run(tmp_path / name).records:
            assert record["status"] == "ok", record["reason"]
            assert record["environment"].get("process") == process
            assert [(t["round"], t["batch"]) for t in record["timing"]] == [(0, 1), (1, 1)]
            assert record["memory"]["weights_bytes"] > 0 and record["first_call_s"] > 0
            # in a shared process it would depend on the order of the cells
            assert ("peak_bytes" in record["memory"]) == (name == "cell")
            assert ("peak_missing" in record["memory"]) == (name == "round")
    sections = read_sections([tmp_path / name for name in ("cell", "round")])
    assert ["no peak memory" in " ".join(s.rows[0]["notes"]) for s in sections] == [False, True]


def test_a_unit_that_ends_its_process_fails_alone(tmp_path, plugin):
    out = tmp_path / "run"
    stacks = "killed,exits,raises,greedy,waits,lasting,fora,fewer_steps(steps=3)"
    bench(
        out, "--plugin", plugin, "--methods", stacks, "--process", "round", "--time-limit", "10",
        check=False,
    )  # fmt: skip
    of = {record["stack"]: record for record in read_run(out).records}
    reasons = {name: of[name]["reason"] for name in ("killed", "exits", "raises", "waits")}
    assert {of[name]["status"] for name in reasons} == {"failed"}
    assert reasons == {
        "killed": "its process was killed by SIGKILL (out of memory, most often)",
        "exits": "its process ended with exit code 7 and no word",
        "raises": reasons["raises"],
        "waits": "it took longer than its time limit of 10 s (--time-limit)",
    }
    assert "planted" in reasons["raises"]
    assert of["greedy"]["status"] == "oom" and "try --batch-size below 2" in of["greedy"]["reason"]
    for name in ("none", "fora", "fewer_steps(steps=3)", "lasting"):
        assert of[name]["status"] == "ok", of[name]["reason"]
        assert {entry["round"] for entry in of[name]["timing"]} == {0, 1}


def units(tmp_path, stacks, plugins=()):
    spec = Spec(models=("dit-tiny", "pixart-tiny"), methods=stacks, rounds=2, plugins=plugins)
    return [Unit(cell=cell, round=r) for cell in plan(spec) for r in (0, 1)]


def test_a_process_has_the_units_of_one_model_and_round_and_no_lasting_stack(tmp_path, plugin):
    todo = sorted(
        units(tmp_path, ("fora", "lasting"), (str(plugin),)),
        key=lambda u: (u.cell.model.name, u.round),
    )
    shared = processes.groups(todo, "round")
    assert [[f"{u.cell.label} {u.round}" for u in group] for group in shared] == [
        part
        for model in ("dit-tiny", "pixart-tiny")
        for r in (0, 1)
        for part in ([f"{model} none {r}", f"{model} fora {r}"], [f"{model} lasting {r}"])
    ]
    assert processes.groups(todo, "cell") == [[unit] for unit in todo]


def test_auto_shares_processes_on_a_gpu_alone():
    assert Spec().process_of_device == "cell"
    assert Spec(device="cuda:1").process_of_device == "round"
    assert Spec(device="cuda", process="cell").process_of_device == "cell"


SPAWNED = '''
"""On a machine that seems to have a GPU: whatever forks this process is a failure."""
import os, sys
sys.path.insert(0, {root!r})
import run_bench

if __name__ == "__main__":
    from multiprocessing import forkserver
    from ditbench.runner import plan
    from ditbench.runner.execute import execute
    from ditbench.runner.spec import Spec

    def forked(*arguments, **more):
        os.write(2, b"FORKED\\n")
        os._exit(9)

    plan.missing_device = lambda device: ""
    os.fork = forkserver.ensure_running = forked
    spec = Spec(
        models=("dit-tiny",), methods=("fora",), num_samples=2, rounds=2, device="cuda",
        out=sys.argv[1],
    )
    execute(plan.plan(spec), "test")
'''


def test_on_a_gpu_nothing_is_forked(tmp_path):
    """What is imported initialises CUDA, and a process forked from such a one cannot use it. The
    process that is started here finds no GPU, and says so."""
    script = tmp_path / "main.py"
    script.write_text(SPAWNED.format(root=str(ROOT)))
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, str(script), str(out)],
        capture_output=True, text=True, timeout=300, cwd=tmp_path, env=os.environ,
    )  # fmt: skip
    assert "FORKED" not in done.stderr
    statuses = {r["stack"]: (r["status"], r["reason"]) for r in read_run(out).records}
    assert set(statuses) == {"none", "fora"}, done.stderr[-2000:]
    for status, reason in statuses.values():
        assert status == "refused" and "no GPU that torch can use" in reason


def test_a_time_limit_is_no_part_of_a_key(tmp_path):
    one, two = (
        plan(Spec(models=("dit-tiny",), time_limit=limit, out=str(tmp_path)))[0]
        for limit in (10, 20)
    )
    assert one.key == two.key
    with pytest.raises(ValueError, match="time_limit: 0 is not between"):
        Spec(time_limit=0)
    assert RunFolder(Spec(time_limit=10).folder).path == RunFolder(Spec().folder).path


def test_a_run_stops_when_it_was_told_to_and_goes_on(tmp_path):
    out = tmp_path / "run"
    flags = ["--methods", "fora,fewer_steps(steps=3)", "--process", "round"]
    codes = []
    while not codes or codes[-1] == 4:
        done = bench(out, *flags, "--stop-after", "1", check=False)
        codes.append(done.returncode)
        assert len(codes) < 8, done.stderr
    assert codes[-1] == 0 and codes[0] == 4 and len(codes) > 2
    assert len(read_run(out).records) == 3
    first = bench(tmp_path / "first", *flags, "--stop-after", "1", check=False)
    assert "of 3 cells to do; the same command goes on" in first.stderr


def test_a_process_that_hangs_after_its_result_is_ended_and_the_result_kept(
    tmp_path, plugin, monkeypatch
):
    monkeypatch.setattr(processes, "ENDING_S", 2.0)
    out = tmp_path / "run"
    flags = ["--plugin", plugin, "--methods", "lingers", "--rounds", "1", "--time-limit", "100"]
    bench(out, *flags)
    assert [r["status"] for r in read_run(out).records] == ["ok", "ok"]


def test_what_runs_in_place_is_asked_for_the_steps_of_the_whole_stack():
    stack = "fewer_steps(steps=10)+diffsparse"
    cell = plan(Spec(models=("dit-xl-2-256",), methods=(stack,), weights="random"))[1]
    assert "diffsparse has not been prepared for dit-xl-2-256 with 10 steps" in cell.note


def test_a_folder_for_temporary_files_with_too_long_a_name_is_named(tmp_path, monkeypatch):
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    monkeypatch.setattr(processes.tempfile, "tempdir", str(folder))
    with pytest.raises(
        ValueError, match=r"TMPDIR is /.* bytes long.*set it to a folder of at most"
    ):
        processes.context_for("cpu")
