"""The run on a real pipeline: rounds, records, statuses, and going on after being killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import command
from safetensors.numpy import load_file

from ditbench.records import environment, files
from ditbench.records.files import read_json
from ditbench.records.record import read_run
from ditbench.records.sample_files import write_samples
from ditbench.records.text import LONGEST
from ditbench.runner import worker as cell
from ditbench.runner.spec import Spec

ROOT = Path(__file__).resolve().parents[1]
QUICK = [
    "--models",
    "dit-tiny",
    "--num-samples",
    "4",
    "--batch-size",
    "2",
    "--rounds",
    "2",
    "--methods",
    "fewer_steps,fora",
    "--steps",
    "12",
]


def bench(out, *arguments, check=True):
    done = command("run", *QUICK, "--out", out, *arguments)
    if check:
        assert done.returncode == 0, done.stderr[-2000:]
    return done


def samples(folder):
    return {
        p.parent.name: load_file(p)["samples"].tobytes()
        for p in folder.glob("cells/*/samples.safetensors")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """As a user runs it: from a shell, down to the report."""
    out = tmp_path_factory.mktemp("run") / "whole"
    shell = [sys.executable, str(ROOT / "run_bench.py"), *QUICK, "--out", str(out), "--json"]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_every_cell_has_a_whole_record_with_raw_times_of_every_round(finished):
    run = read_run(finished)
    assert [r["stack"] for r in run.records] == ["none", "fewer_steps", "fora"]
    assert not run.damaged
    for r in run.records:
        assert r["status"] == "ok"
        assert [(t["round"], t["batch"]) for t in r["timing"]] == [(0, 1), (1, 1)]
        for t in r["timing"]:
            assert t["text_s"] + t["denoise_s"] + t["decode_s"] == pytest.approx(
                t["call_s"], rel=1e-6
            )
        assert r["flops"]["flops"] > 0 and not r["flops"]["uncounted"]
        assert r["memory"]["weights_bytes"] > 1_000_000


def test_fora_keeps_tensors_and_the_baseline_does_not(finished):
    by_stack = {r["stack"]: r for r in read_run(finished).records}
    assert by_stack["none"]["memory"]["cache_bytes"] == 0
    # 6 blocks of 2 sub-layers, [2 samples x 2 guidance passes, 64 tokens, 128 wide] float32
    assert by_stack["fora"]["memory"]["cache_bytes"] == 12 * 4 * 64 * 128 * 4
    assert by_stack["fora"]["counters"]["fora.reused"] > 0


def test_saved_flops_are_those_of_the_steps_left_out(finished):
    by_stack = {r["stack"]: r for r in read_run(finished).records}
    steps = by_stack["fewer_steps"]["sampling"]["steps"] / by_stack["none"]["sampling"]["steps"]
    assert by_stack["fewer_steps"]["flops"]["flops"] / by_stack["none"]["flops"][
        "flops"
    ] == pytest.approx(steps, rel=1e-9)


def test_records_hold_an_allow_list_of_variables_and_no_paths(finished):
    for path in finished.glob("cells/*/record.json"):
        text = path.read_text()
        assert str(Path.home()) not in text and str(ROOT) not in text
        assert set(read_json(path)["environment"]["variables"]) <= set(environment.VARIABLES)


def test_a_second_run_with_the_same_seed_gives_bit_identical_samples(finished, tmp_path):
    bench(tmp_path / "again", "--rounds", "1")  # the first round makes them; keys hold the number
    again = sorted(samples(tmp_path / "again").values())
    assert len(again) == 3 and again == sorted(samples(finished).values())


@pytest.mark.parametrize(
    "sizes, which",
    [
        ((2,), [0]),
        ((2, 2), [1]),
        ((4, 2), [0, 1]),
        ((16, 16, 16, 16), [1, 2, 3]),
        ((16, 16, 4), [1, 2]),
    ],
)
def test_the_batch_that_warms_up_is_not_timed_unless_there_is_no_other_like_it(sizes, which):
    assert cell.timed([range(n) for n in sizes]) == which


def test_samples_come_back_as_they_were_however_they_lay_in_memory(tmp_path):
    made = [
        np.arange(240, dtype=np.uint8).reshape(2, 3, 5, 8).transpose(0, 2, 3, 1) + i
        for i in range(2)
    ]
    write_samples(tmp_path / "samples.safetensors", made)
    assert np.array_equal(
        load_file(tmp_path / "samples.safetensors")["samples"], np.concatenate(made)
    )


def test_running_again_redoes_nothing(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.glob("cells/*/*")}
    bench(finished)
    assert {p: p.stat().st_mtime_ns for p in finished.glob("cells/*/*")} == before


def test_killed_and_run_again_it_redoes_only_what_was_in_flight(finished, tmp_path):
    out = tmp_path / "killed"
    shell = [sys.executable, str(ROOT / "run_bench.py"), *QUICK, "--out", str(out)]
    running = subprocess.Popen(
        shell, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 200
    while len(list(out.glob("cells/*/round-*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    kept = {p: p.stat().st_mtime_ns for p in out.glob("cells/*/round-*.json")}
    assert 3 <= len(kept) < 6
    bench(out)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert samples(out) == samples(finished)
    assert not list(out.rglob("*.partial"))


def test_a_damaged_record_and_damaged_samples_are_set_aside_and_redone(finished, tmp_path):
    out = tmp_path / "damaged"
    shutil.copytree(finished, out)
    whole = samples(out)
    first, second, _ = (out / "cells" / r["key"] for r in read_run(out).records)
    (first / "record.json").write_text('{"schema": 1, "key"')
    data = (second / "samples.safetensors").read_bytes()
    (second / "samples.safetensors").write_bytes(data[: len(data) // 2])
    bench(out)
    assert samples(out) == whole
    assert (first / "record.json.damaged-1").exists() and (
        second / "samples.safetensors.damaged-1"
    ).exists()
    assert [r["status"] for r in read_run(out).records] == ["ok"] * 3


def test_other_settings_need_another_folder(finished):
    done = bench(finished, "--seed", "1", check=False)
    assert done.returncode == 2
    assert "was made with seed 0, not 1; choose another folder with --out" in done.stderr


def test_margins_are_stated_with_the_run_and_fixed_from_then_on(finished, tmp_path):
    stated = read_json(finished / "spec.json")["spec"]["margins"]
    assert stated == dict(Spec().margins)
    (tmp_path / "wide.toml").write_text("[margins]\nfd.shapes_v1 = 900\n")
    done = bench(finished, "--spec", str(tmp_path / "wide.toml"), check=False)
    assert (
        done.returncode == 2
        and "they are fixed before a run; choose another folder with --out" in done.stderr
    )
    assert read_json(finished / "spec.json")["spec"]["margins"] == stated


def test_a_run_that_began_without_margins_gets_none_afterwards(finished, tmp_path):
    out = tmp_path / "old"
    shutil.copytree(finished, out)
    document = read_json(out / "spec.json")
    del document["spec"]["margins"]
    files.write_json(out / "spec.json", document)
    bench(out)
    assert "margins" not in read_json(out / "spec.json")["spec"]


def test_a_folder_of_another_schema_version_is_refused(tmp_path):
    files.write_json(tmp_path / "spec.json", {"schema": 99})
    done = bench(tmp_path, check=False)
    assert done.returncode == 2 and "schema version 99" in done.stderr


CONSTANT = '''
from ditbench.method import Stage, method

@method("constant", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"})
class Constant:
    """Adds a constant to what the first sub-layer gives."""
    def attach(self, pipeline, at):
        def route(run, hidden):
            at.count("added")
            return run() + 0.25
        at.reroute(at.sublayers[0], route)
'''


def test_an_edited_plugin_is_run_again_by_the_same_command_and_nothing_else_is(tmp_path):
    plugin, out = tmp_path / "plugin.py", tmp_path / "run"
    flags = (
        "--plugin",
        str(plugin),
        "--methods",
        "constant",
        "--num-samples",
        "2",
        "--rounds",
        "1",
        "--json",
    )
    plugin.write_text(CONSTANT)
    bench(out, *flags)
    before = {r["stack"]: r for r in read_run(out).records}
    first = samples(out)
    plugin.write_text(CONSTANT.replace("0.25", "0.75"))
    done = bench(out, *flags)
    after = {r["stack"]: r for r in read_run(out).records}
    old, new = before["none"], after["none"]
    assert new["timing"][: len(old["timing"])] == old["timing"]  # timed again beside the new cell
    assert old["environments"].items() <= new["environments"].items()
    of_both = {"timing": [], "environments": {}, "seconds": 0}
    assert {**new, **of_both} == {**old, **of_both}
    assert samples(out)[new["key"]] == first[old["key"]]
    assert after["constant"]["key"] != before["constant"]["key"]
    assert samples(out)[after["constant"]["key"]] != first[before["constant"]["key"]]
    assert after["constant"]["depends_on"]["sources"] != before["constant"]["depends_on"]["sources"]
    assert done.stdout.splitlines()[-1].count('"stack": "constant"') == 1


BROKEN = '''
from ditbench.method import Stage, method

@method("broken", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"})
class Broken:
    """Fails in the middle of the loop."""
    def attach(self, pipeline, at):
        def route(run, hidden):
            if at.now.step == 2:
                raise RuntimeError("planted")
            return run()
        at.reroute(at.sublayers[0], route)

@method("idle", family="cache", stage=Stage.SCHEDULE, claims={"scheduler"})
class Idle:
    """Does nothing."""
    def attach(self, pipeline, at):
        pass

@method("suicide", family="cache", stage=Stage.SCHEDULE, claims={"guidance"})
class Suicide:
    """Takes its process with it."""
    def attach(self, pipeline, at):
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)

@method("greedy", family="cache", stage=Stage.SCHEDULE, claims={"weights"})
class Greedy:
    """Runs out of memory."""
    def attach(self, pipeline, at):
        raise MemoryError("planted")

class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")

def leave(error):
    """A method that fails with an error."""
    def attach(self, pipeline, at):
        raise error
    return attach

def note(name, value, where="notes"):
    """A method that skips a sub-layer and leaves a fact."""
    def attach(self, pipeline, at):
        def route(run, hidden):
            at.count("calls")
            if where == "shares":
                at.shares[0, 0] = value
            return run()
        at.reroute(at.sublayers[0], route)
        if where == "notes":
            at.notes[name] = value
        elif where == "counters":
            at.count(name, value)
    return attach

import numpy, torch
for name, attach in {
    "leaves_nan": note("error", float("nan")), "leaves_inf": note("events", numpy.inf, "counters"),
    "leaves_share": note("", torch.tensor(float("nan")), "shares"), "leaves_array": note("norms", numpy.zeros(3)),
    "leaves_scalars": note("error", torch.tensor(0.5)), "exits": leave(SystemExit(0)), "unprintable": leave(Unprintable()),
    "endless": leave(ValueError("x" * 1_000_000)), "surrogate": leave(ValueError("\\ud800")),
}.items():
    cls = type(name, (), {"__doc__": name, "attach": attach, "__module__": __name__})
    method(name, family="cache", stage=Stage.SCHEDULE, claims={"num-steps"})(cls)
'''


def test_every_failure_is_a_record_with_its_reason_and_the_rest_runs(tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(BROKEN)
    leaving = "leaves_nan,leaves_inf,leaves_share,leaves_array,leaves_scalars,exits,unprintable,endless,surrogate"
    done = bench(
        tmp_path / "run", "--plugin", str(plugin), "--rounds", "1", "--json", "--num-samples", "2",
        "--methods", f"broken,idle,suicide,greedy,firstblock,fora+firstblock,fora,{leaving}",
        check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr[-2000:]
    records = {r["stack"]: r for r in read_run(tmp_path / "run").records}
    told = {stack: (r["status"], r["reason"]) for stack, r in records.items()}

    def at(text):
        """Where the plug-in's line with this text is, as a reason has it."""
        (line,) = [i for i, code in enumerate(BROKEN.splitlines(), 1) if text in code]
        return f" (plugin.py, line {line})"

    assert (
        told["broken"] == ("failed", "RuntimeError: planted" + at('RuntimeError("planted")'))
        and "planted" in records["broken"]["traceback"]
    )
    assert told["idle"] == ("inert", "idle changed nothing and counted no event")
    assert told["suicide"] == (
        "failed",
        "its process was killed by SIGKILL (out of memory, most often)",
    )
    assert told["greedy"][0] == "oom"
    assert "weights 0.0 GB, peak " in told["greedy"][1] and "try --batch-size" in told["greedy"][1]
    assert records["greedy"]["memory"]["weights_bytes"] > 1e6
    assert told["firstblock"][0] == "refused" and "DiT" in told["firstblock"][1]
    assert (
        told["firstblock+fora"][0] == "refused" and "block-schedule" in told["firstblock+fora"][1]
    )
    assert told["none"][0] == told["fora"][0] == "ok"
    assert told["leaves_nan"] == (
        "failed",
        "the note leaves_nan.error is nan, and a record holds finite numbers",
    )
    assert told["leaves_inf"] == (
        "failed",
        "the counter leaves_inf.events is inf, and a record holds finite numbers",
    )
    assert (
        told["leaves_share"][1]
        == "the share of 0.self computed at step 0 is nan, and a record holds finite numbers"
    )
    assert (
        told["leaves_array"][1]
        == "the note leaves_array.norms is a ndarray, and a record holds numbers and texts"
    )
    assert told["leaves_scalars"][0] == "ok" and records["leaves_scalars"]["notes"] == {
        "leaves_scalars.error": 0.5
    }
    assert told["exits"] == ("failed", f"SystemExit: 0{at('raise error')}")
    assert told["unprintable"] == (
        "failed",
        f"Unprintable: its text is not available{at('raise error')}",
    )
    assert told["endless"] == ("failed", "x" * (LONGEST - 4) + " ...")
    assert told["surrogate"] == ("failed", "?")
    shown = json.loads(done.stdout.splitlines()[-1])
    assert all(name in json.dumps(shown) for name in ("planted", "SIGKILL"))
