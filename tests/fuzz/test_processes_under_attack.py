"""Signals, killed processes, modules that lie in the working directory, output that nobody takes:
commands in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from report_runs import STACKS, write_run

from ditbench.cli.parser import GATE, OK, USAGE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, str(ROOT / "run_bench.py")]
QUICK = ["--models", "dit-tiny", "--num-samples", "2", "--batch-size", "2", "--rounds", "1"]
WAITING = '''
import os, pathlib, time

from ditbench.method import Stage, method

@method("waits_under_attack", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"})
class WaitsUnderAttack:
    """Says that it is there, and stays."""
    def attach(self, pipeline, at):
        pathlib.Path(__file__).with_name("there").write_text(str(os.getpid()))
        time.sleep(600)
'''


def stat_of(pid):
    """State and parent of a process; none where there is no such process."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return state, int(parent)


def below(pid):
    """Processes that a process has started, and those these have."""
    parents = {int(p.name): stat_of(p.name)[1] for p in Path("/proc").iterdir() if p.name.isdigit()}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def lives(pid):
    return stat_of(pid)[0] not in ("", "Z")


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def begin(folder, *words):
    """A run in a process group of its own, as a terminal's."""
    (folder / "waiting.py").write_text(WAITING)
    flags = ["--plugin", "waiting.py", "--methods", "waits_under_attack", "--out", "run"]
    return subprocess.Popen(
        [*PROGRAM, "run", *QUICK, *(words or flags)],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=listen,
    )  # fmt: skip


def listen():
    """Ctrl-C is heard, as in a terminal: where the tests run in the background it is ignored, by all
    that they start too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(running, children):
    """Code and stderr of a command that is ending; nothing that it started lives on."""
    try:
        _, stderr = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    wait_for(lambda: not any(map(lives, children)), 20)
    assert "Traceback" not in stderr and "leaked" not in stderr, stderr
    return running.returncode, stderr


@pytest.mark.slow
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True)])  # fmt: skip
def test_v3_a_signal_stops_a_command_in_order(tmp_path, number, group, early):
    running = begin(tmp_path)
    if early:  # while processes are being started
        wait_for(lambda: len(below(running.pid)) > 1)
    else:
        wait_for((tmp_path / "there").exists)
    children = below(running.pid)
    (os.killpg if group else os.kill)(running.pid, number)
    code, stderr = end(running, children)
    assert code == 128 + number
    assert stderr.splitlines()[-1].startswith("ditbench: interrupted")
    assert stderr.count("ditbench: ") == 1


@pytest.mark.slow
def test_the_process_that_starts_the_others_is_killed(tmp_path):
    running = begin(tmp_path)

    def forkserver():
        commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in below(running.pid)}
        return [
            pid
            for pid, path in commands.items()
            if path.exists()
            and b"forkserver" in path.read_bytes()
            and stat_of(pid)[1] == running.pid
        ]

    wait_for(forkserver)
    children = below(running.pid)
    os.kill(forkserver()[0], signal.SIGKILL)
    code, stderr = end(running, children)
    assert code == USAGE and "the process that starts those that measure was killed" in stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multiprocessing", "json", "torch", "signal"])
def test_v11_nothing_is_imported_from_the_working_directory(tmp_path, name):
    (tmp_path / f"{name}.py").write_text(
        f"open({str(tmp_path / 'executed')!r}, 'w').close()\nraise SystemExit(9)\n"
    )
    running = begin(tmp_path, "--methods", "none", "--steps", "2", "--out", "run")
    code, stderr = end(running, ())
    assert code == OK, stderr
    assert not (tmp_path / "executed").exists()


KILLED = """
import os, sys, time
sys.path.insert(0, {root!r})
import run_bench
from ditbench.reports.sections.parallel import abreast
os.sched_getaffinity = lambda _: {{0, 1}}
def job():
    os.write(1, b"%d\\n" % os.getpid())  # in one piece
    time.sleep(600)
abreast([job, job])
"""
ASKING = """
import sys
sys.path.insert(0, {root!r})
import run_bench
from pathlib import Path
from ditbench.metrics.external import client
folder = Path({folder!r})
client.SCRIPT = folder / "job.py"
class Here(client.Environment):
    def python(self):
        return Path(sys.executable)
client.ask(Here(name="x", package="x", version="1"), {{}}, folder)
"""
JOB = """
import os, sys, time
sys.path.insert(0, {external!r})
import worker
worker.end_with_parent()
open({there!r}, "w").write(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_v3_what_draws_ends_with_its_command(number):
    code = KILLED.format(root=str(ROOT))
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    children = [int(running.stdout.readline()) for _ in range(2)]
    assert all(map(lives, children))
    running.send_signal(number)
    running.wait()
    wait_for(lambda: not any(map(lives, children)), 20)


def test_v3_what_judges_elsewhere_ends_with_its_command(tmp_path):
    there = tmp_path / "there"
    external = str(ROOT / "bench" / "metrics" / "external")
    (tmp_path / "job.py").write_text(JOB.format(external=external, there=str(there)))
    code = ASKING.format(root=str(ROOT), folder=str(tmp_path))
    running = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: there.exists() and there.read_text())
    child = int(there.read_text())
    assert lives(child)
    running.kill()
    running.wait()
    wait_for(lambda: not lives(child), 20)


@pytest.mark.parametrize(
    ("shell", "code", "lines"),
    [
        ("list metrics | head -1", OK, 0), ("list metrics > /dev/full", USAGE, 1),
        pytest.param("list metrics >&-", OK, 1, marks=pytest.mark.slow),
        pytest.param("list metrics 2>&-", OK, 0, marks=pytest.mark.slow),
        pytest.param("list metrics --json <&-", OK, 0, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_output_that_nobody_takes_is_no_failed_gate(tmp_path, shell, code, lines):
    words = f"set -o pipefail; {sys.executable} {ROOT / 'run_bench.py'} {shell}"
    done = subprocess.run(
        ["bash", "-c", words], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == code != GATE, done.stderr
    assert done.stderr.count("\n") == lines and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
def test_a_report_in_a_locale_without_letters_is_utf_8(tmp_path):
    run = write_run(tmp_path / "run", stacks=STACKS[:1], n=4, prompt="é")
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([*PROGRAM, "report", str(run)], capture_output=True, env=env)
    assert done.returncode == OK, done.stderr
    assert (run / "report" / "index.html").read_text(encoding="utf-8")


def test_a_working_directory_that_is_gone_is_no_traceback(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    words = f"cd {gone} && rmdir {gone} && {sys.executable} {ROOT / 'run_bench.py'} list methods"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True)
    assert done.returncode == OK and "Traceback" not in done.stderr, done.stderr
