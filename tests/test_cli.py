"""The command line as a user meets it: bad input is one sentence and exit code 2, before anything
heavy is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ditbench import ZOO
from ditbench.cli.commands import COMMANDS, main
from ditbench.method import METHODS
from ditbench.method.stack import Stack
from ditbench.records import files, record
from ditbench.testing import tiny

ROOT = Path(__file__).resolve().parents[1]


def told(capsys, *arguments):
    code = main(list(arguments))
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--models", "dit-tyni"], "dit-tiny"),
        (["--methods", "forra"], "fora"),
        (["--methods", "fora(intervall=2)"], "interval"),
        (["--methods", "fora(interval=0)"], "interval"),
        (["--methods", "fora(interval='x')"], "interval"),
        (["--methods", "fora(interval=2"], "fora(interval=2"),
        (["--methods", "fora*int8"], "fora*int8"),
        (["--methods", "fora+fora"], "fora appears 2 times"),
        (["--num-samples", "0"], "--num-samples: 0 is not between"),
        (["--spec", "no-such-spec.toml"], "no-such-spec.toml"),
        (["--device", "tpu"], "--device: 'tpu'"),
        (["--plugin", "no-such-file.py"], "no-such-file.py"),
        (["--reference", "no-such-file"], "--reference: there is no file 'no-such-file'"),
        (["--reference", f"dit-tiny={__file__}"], "is no reference file, or damaged"),
        (
            ["--prompts", "no-such-set"],
            "--prompts: there is no file 'no-such-set', nor a set of that name; there are coco2014",
        ),
        (
            ["reference", "build", "no-such-folder", "--extractor", "tf2015", "--out", "x.npz"],
            "does not end in .safetensors",
        ),
        (["report", "no-such-run"], "no-such-run"),
        (["count", "--models", "flux-9"], "flux-1-dev"),
        (["count", "--steps", "0"], "--steps: 0 is less than 1"),
        (["check", "forra"], "fora"),
        (["--methods", ""], "--methods: nothing is given; the un-accelerated model is called none"),
        (["--methods="], "--methods: nothing is given; the un-accelerated model is called none"),
        (["plan", "--methods", " "], "there is an empty stack in ' '"),
        (["count", "--methods", ""], "--methods: nothing is given"),
        (["match", "--saved", "0.5", "--methods", ""], "--methods: nothing is given"),
        (["--models", ""], "--models: nothing is given"),
        (["--models", ","], "--models: none given"),
        (["--weights", ""], "--weights: nothing is given"),
        (["--prompts", ""], "--prompts: nothing is given"),
        (["--spec", ""], "--spec: nothing is given"),
        (["--out", ""], "--out: nothing is given"),
        (["--plugin", ""], "--plugin: nothing is given"),
        (["prepare", ""], "the argument after prepare: nothing is given"),
        (["report", ""], "the argument after report: nothing is given"),
        (["score", "no-such-run", "--metrics", ""], "--metrics: nothing is given"),
        (
            ["stack", "fora", "int8", "--reference", "no-such-file"],
            "--reference: there is no file 'no-such-file'",
        ),
        (
            ["stack", "fora", "int8", "--reference", f"dit-tiny={__file__}"],
            "is no reference file, or damaged",
        ),
        (["stack", "fora", "int8", "--prompts", f"{__file__}"], "ends in none of .txt"),
        (["stack", "mine_test", "int8"], "no method 'mine_test'"),
        (["--reference", f"flux-1-dev={__file__}"], "is for flux-1-dev, which is not asked for"),
        (
            ["plan", "--models", "dit-tiny", "--reference", f"dit-tyni={__file__}"],
            "did you mean dit-tiny?",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    capsys, tmp_path, monkeypatch, arguments, complaint
):
    monkeypatch.chdir(tmp_path)
    code, _, err = told(capsys, *arguments)
    assert code == 2
    assert complaint in err
    assert err.startswith("ditbench: ") and err.count("\n") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir()), "something was written before the complaint"


def test_an_unknown_metric_is_refused_with_the_nearest_name(capsys, tmp_path):
    files.write_json(tmp_path / "spec.json", {"schema": record.SCHEMA, "cells": []})
    code, _, err = told(capsys, "score", str(tmp_path), "--metrics", "algn.shapes_v1")
    assert code == 2 and "align.shapes_v1" in err


def test_an_unwritable_output_folder_is_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = told(capsys, "--out", str(tmp_path / "file" / "run"))
    assert code == 2 and "is a file, not a folder" in err


def test_bad_input_is_refused_before_torch_is_loaded(tmp_path):
    code = (
        "import sys, runpy\nsys.argv = ['run_bench.py', '--methods', 'forra']\n"
        f"try:\n    runpy.run_path({str(ROOT / 'run_bench.py')!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n    assert stop.code == 2\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_but_ditbench_and_does_little():
    """Work instead of time, which is the machine's (`python -m ditbench.testing.benchmarks`):
    3,200 function calls a command."""
    code = f"""
import cProfile, pstats, runpy, sys
sys.argv, before, profile = ["run_bench.py", "--help"], set(sys.modules), cProfile.Profile()
try:
    profile.runcall(runpy.run_path, {str(ROOT / "run_bench.py")!r}, run_name="__main__")
except SystemExit as stop:
    assert not stop.code
others = {{name.partition(".")[0] for name in sys.modules.keys() - before}} - sys.stdlib_module_names
assert others == {{"ditbench"}}, others
print("calls", pstats.Stats(profile).total_calls)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.rpartition("calls ")[2]) <= 3_333 * len(COMMANDS)


def test_dry_run_prints_the_plan_with_refusals_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = told(
        capsys,
        "--dry-run",
        "--json",
        "--models",
        "dit-tiny",
        "--methods",
        "fora+firstblock,fora",
        "--num-samples",
        "8",
    )
    rows = json.loads(out.splitlines()[-1])
    assert code == 0
    assert [(r["stack"], r["status"]) for r in rows] == [
        ("none", "planned"),
        ("firstblock+fora", "refused"),
        ("fora", "planned"),
    ]
    assert "block-schedule" in rows[1]["reason"]
    assert not list(tmp_path.iterdir())


PLUGIN = '''
from ditbench.method import Stage, method

@method("mine_test", family="test", stage=Stage.SCHEDULE, claims={"scheduler"}, needs={NEEDS})
class Mine:
    """Does nothing."""
    def attach(self, pipeline, at):
        pass
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A file with a method that needs what the test puts in place of NEEDS."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN.replace("NEEDS", '"package:numpy"'))
    yield tmp_path / "mine.py"
    METHODS.pop("mine_test", None)


def plans(capsys, *arguments):
    code, out, err = told(capsys, "plan", "--json", *arguments)
    reasons = {
        (row["model"], row["stack"]): row["reason"] or row["lacks"]
        for row in json.loads(out.splitlines()[-1])
    }
    baseline_refused = any(why for (_, stack), why in reasons.items() if stack == "none")
    assert code == (3 if baseline_refused else 0), err
    return reasons


@pytest.mark.parametrize(
    ("need", "reason"),
    [
        ("cuda", "mine_test: needs a CUDA device, but the model is on cpu"),
        ("sm>=89", "mine_test: needs a CUDA device, but the model is on cpu"),
        (
            "package:no-such-package>=2",
            "mine_test: needs the package no-such-package>=2, which is not installed",
        ),
        ("package:numpy<0", "mine_test: needs numpy<0, but numpy"),
        ("model:flux|wan", "mine_test: works on flux and wan, not on dit"),
    ],
)
def test_plan_refuses_what_a_method_needs_and_is_not_there_as_run_does(
    capsys, plugin, need, reason
):
    plugin.write_text(PLUGIN.replace("NEEDS", f"{need!r}"))
    found = plans(capsys, "--models", "dit-tiny", "--methods", "mine_test", "--plugin", "mine.py")
    assert found["dit-tiny", "mine_test"].startswith(reason) and found["dit-tiny", "none"] == ""
    refusal = Stack.parse("mine_test").refusal(tiny("dit").pipeline)
    assert found["dit-tiny", "mine_test"] == refusal


def test_plan_refuses_a_device_that_is_not_there_and_a_folder_of_another_pipeline(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert set(
        plans(capsys, "--models", "dit-tiny", "--methods", "fora", "--device", "cuda").values()
    ) == {"this machine has no GPU that torch can use, and the device is cuda"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert set(plans(capsys, "--models", "dit-tiny", "--device", "cuda:1").values()) == {""}
    assert set(plans(capsys, "--models", "dit-tiny", "--device", "cuda:2").values()) == {
        "this machine has 2 GPUs, and no cuda:2"
    }
    folder = str(ZOO / "dit-tiny")
    found = plans(capsys, "--models", "pixart-tiny,dit-tiny", "--weights", folder)
    assert (
        found["pixart-tiny", "none"] == f"{folder} holds a DiTPipeline, not a PixArtAlphaPipeline"
    )
    assert found["dit-tiny", "none"] == ""
    assert (
        plans(capsys, "--models", "dit-tiny", "--weights", "hub")["dit-tiny", "none"]
        == "dit-tiny is not on the hub; it is bundled"
    )


def test_a_run_whose_baseline_was_refused_leaves_with_3(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = (
        "--models",
        "flux-1-dev",
        "--methods",
        "fora",
        "--num-samples",
        "2",
        "--rounds",
        "1",
        "--out",
        "run",
    )
    code, out, err = told(capsys, *arguments, "--json")
    assert code == 3, err
    rows = json.loads(out.splitlines()[-1])
    assert "has no bundled weights" in json.dumps(rows)
    assert [r["status"] for r in record.read_run(tmp_path / "run").records] == [
        "refused",
        "refused",
    ]
    assert told(capsys, "report", "run")[0] == 3


def test_a_run_is_scored_by_as_many_processes_as_made_it(capsys, tmp_path, monkeypatch):
    given = {}

    class Enough(BaseException):
        pass

    def score_run(folder, **settings):
        given.update(settings)
        raise Enough

    monkeypatch.setattr("ditbench.runner.execute.execute", lambda cells, *a, **k: tmp_path)
    monkeypatch.setattr("ditbench.extractors.references.tell", lambda folder, references: None)
    monkeypatch.setattr("ditbench.metrics.scoring.score_run", score_run)
    with pytest.raises(Enough):
        main(["run", "--models", "dit-tiny", "--methods", "fora", "--workers", "2"])
    assert (given["workers"], given["plugins"]) == (2, ())


def test_stack_loads_plugins_before_it_reads_the_stacks(capsys, plugin, monkeypatch):
    seen = []

    class Enough(BaseException):
        pass

    def carry_out(cells, memory):
        seen.extend(cells)
        raise Enough

    monkeypatch.setattr("ditbench.cli.commands._carry_out", carry_out)
    with pytest.raises(Enough):
        main(["stack", "mine_test", "int8", "--plugin", "mine.py", "--models", "dit-tiny"])
    assert {"mine_test", "int8", "int8+mine_test"} <= {str(cell.stack) for cell in seen}


def test_both_spellings_of_a_stack_are_one_cell(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, out, _ = told(
        capsys,
        "plan",
        "--json",
        "--models",
        "dit-tiny",
        "--methods",
        "fora+int8,int8+fora(interval=3)",
    )
    assert [r["stack"] for r in json.loads(out.splitlines()[-1])] == ["none", "int8+fora"]


@pytest.mark.parametrize("what", ["models", "methods", "metrics"])
def test_list_shows_in_json_what_the_table_shows(capsys, what):
    code, out, _ = told(capsys, "list", what, "--json")
    rows = json.loads(out.splitlines()[-1])
    assert code == 0 and len(rows) >= 4
    assert all(next(iter(row.values())) in out for row in rows)


def test_a_model_without_weights_is_a_refused_row_of_check_and_not_its_end(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr("ditbench.models.weights.ZOO", tmp_path)
    code, out, _ = told(capsys, "check", "fora", "--models", "dit-tiny,wan-tiny", "--json")
    rows = json.loads(out.splitlines()[-1])
    assert code == 0
    assert [(row["model"], row["result"]) for row in rows] == [
        ("dit-tiny", "refused"),
        ("wan-tiny", "refused"),
    ]
    assert all("has not been trained yet" in row["note"] for row in rows)


def test_count_knows_its_conventions(capsys):
    code, _, err = told(capsys, "count", "--models", "dit-xl-2-256", "--convention", "linear-mac")
    assert code == 2 and "did you mean linear-macs" in err


@pytest.mark.parametrize(
    ("arguments", "code", "states"),
    [
        (["--models", "pixart-tiny", "--steps", "1"], 3, ["refused"]),
        (["--models", "pixart-tiny,flux-tiny", "--steps", "1"], 0, ["refused", "ok"]),
        (["--models", "dit-tiny", "--methods", "firstblock", "--steps", "2"], 0, ["ok", "refused"]),
        (
            ["--models", "dit-tiny", "--methods", "breaks_in_count", "--steps", "2"],
            3,
            ["ok", "failed"],
        ),
        (["--models", "dit-tiny", "--height", "32", "--width", "64"], 2, None),
    ],
)
def test_count_has_a_row_for_whatever_goes_wrong_and_an_exit_code(
    capsys, tmp_path, arguments, code, states
):
    (tmp_path / "bad.py").write_text(
        "from ditbench.method import METHODS, Stage, method\n\nMETHODS.pop('breaks_in_count', "
        "None)\n\n\n"
        "@method('breaks_in_count', family='test', stage=Stage.SCHEDULE)\n"
        "class Breaks:\n    def attach(self, pipeline, at):\n        at.sublayers[1000]\n"
    )
    found, out, err = told(
        capsys, "count", "--json", *arguments, "--plugin", str(tmp_path / "bad.py")
    )
    assert found == code and "Traceback" not in out + err
    if states:
        rows = json.loads(out.splitlines()[-1])
        assert [row["status"] for row in rows] == states
        assert all(bool(row["note"]) == (row["status"] != "ok") for row in rows)


def test_a_stack_in_several_spellings_is_counted_once(capsys):
    stacks = "none,fora,fora(),fora(interval=3)+int8,int8+fora(interval=3)"
    arguments = ("--models", "dit-tiny", "--steps", "1", "--methods", stacks)
    code, out, _ = told(capsys, "count", "--json", *arguments)
    rows = json.loads(out.splitlines()[-1])
    told_of = [row["stack"] for row in rows]
    assert code == 0 and len(told_of) == len(set(told_of)) == 3, told_of
