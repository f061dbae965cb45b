"""Two commands never write to one run folder, and what a killed one had started ends with it."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import command

from ditbench.cli.parser import USAGE
from ditbench.records.lock import writing_to
from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder

PROGRAM = [sys.executable, str(Path(__file__).resolve().parents[1] / "run_bench.py")]
QUICK = ["--models", "dit-tiny", "--num-samples", "2", "--batch-size", "2", "--rounds", "1",
         "--steps", "8"]  # fmt: skip
WAITING = '''
import os, pathlib, time

from ditbench.method import Stage, method

@method("waits_here", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"})
class WaitsHere:
    """Says which process it is in, and stays there."""
    def attach(self, pipeline, at):
        path = pathlib.Path(__file__).with_name("process.txt")
        path.with_suffix(".part").write_text(str(os.getpid()))
        path.with_suffix(".part").rename(path)
        time.sleep(600)
'''


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def runs(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("watching", [True, False])
def test_a_killed_command_takes_its_processes_along_and_its_folder_is_free(tmp_path, watching):
    plugin, out = tmp_path / "waiting.py", tmp_path / "run"
    plugin.write_text(WAITING)
    flags = [*QUICK, "--plugin", str(plugin), "--out", str(out)]
    running = subprocess.Popen(
        [*PROGRAM, "run", *flags, "--methods", "waits_here"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for((tmp_path / "process.txt").exists)
        child = int((tmp_path / "process.txt").read_text())
        assert runs(child)
        for refused in (["run", *flags, "--methods", "fora"], ["score", out]):
            done = command(*refused)
            assert done.returncode == USAGE
            part = f"another command writes to {out} (process {running.pid} on {platform.node()}"
            assert part in done.stderr and done.stderr.count("\n") == 1, done.stderr
        if watching:
            running.kill()
        else:  # it ends in an orderly way, and so do they
            running.send_signal(signal.SIGTERM)
        wait_for(lambda: not runs(child), 20)
    finally:
        running.kill()
        running.wait()
    done = command("run", *flags, "--methods", "fewer_steps(steps=4)")
    assert done.returncode == 0, done.stderr
    assert {r["stack"] for r in read_run(out).records} == {"none", "fewer_steps(steps=4)"}
    assert not RunFolder(out).lock.exists()


HOLDING = """
import sys, time
sys.path.insert(0, {root!r})
import run_bench
from pathlib import Path
from ditbench.records.lock import writing_to
with writing_to(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def holding(folder):
    root = str(Path(__file__).resolve().parents[1])
    running = subprocess.Popen(
        [sys.executable, "-c", HOLDING.format(root=root), str(folder)], stdout=subprocess.PIPE
    )
    assert running.stdout.readline() == b"locked\n"
    return running


def test_a_lock_is_given_back_by_whatever_end(tmp_path):
    running = holding(tmp_path)
    try:
        with (
            pytest.raises(ValueError, match=f"process {running.pid} on ") as error,
            writing_to(tmp_path),
        ):
            pass
        assert "\n" not in str(error.value)
    finally:
        running.kill()
        running.wait()
    assert RunFolder(tmp_path).lock.exists()  # of a dead process
    with writing_to(tmp_path):
        assert json.loads(RunFolder(tmp_path).lock.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), writing_to(tmp_path):
        raise KeyError
    with writing_to(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": "x"}'])
def test_what_a_lock_says_need_not_be_whole(tmp_path, text):
    RunFolder(tmp_path).lock.write_text(text)
    with writing_to(tmp_path):
        pass
    running = holding(tmp_path)
    try:
        RunFolder(tmp_path).lock.write_text(text)
        with (
            pytest.raises(ValueError, match=r"process (unknown|x) on an unknown host"),
            writing_to(tmp_path),
        ):
            pass
    finally:
        running.kill()
        running.wait()


def test_without_locks_of_the_file_system_a_living_process_is_believed(tmp_path, monkeypatch):
    import errno
    import fcntl

    def unable(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", unable)

    def said(pid, host):
        RunFolder(tmp_path).lock.write_text(json.dumps({"pid": pid, "host": host}))

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    said(dead.pid, platform.node())
    with writing_to(tmp_path):
        pass
    for pid, host in ((os.getppid(), platform.node()), (dead.pid, "elsewhere")):
        said(pid, host)
        with pytest.raises(ValueError, match=f"process {pid} on {host}"), writing_to(tmp_path):
            pass


def test_a_folder_of_which_only_the_first_moments_are_there_is_a_run_folder(tmp_path):
    out = tmp_path / "run"
    (out / "requests").mkdir(parents=True)
    (out / "requests" / ".dit-tiny.json.17.partial").write_text("[")
    (out / ".spec.json.17.partial").write_text("{")
    assert command("run", *QUICK, "--methods", "none", "--out", out).returncode == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    done = command("run", *QUICK, "--methods", "none", "--out", tmp_path / "other")
    assert done.returncode == USAGE and "is not empty and is no run folder" in done.stderr
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]
