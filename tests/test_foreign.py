"""Runs that hold methods, families and metrics from plug-ins: every command that reads a run works
without the plug-in, and takes it."""

import json
import shutil

import numpy as np
import pytest
import report_runs
from command import command
from report_runs import edit, write_run
from test_stack import TESTS

from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder
from ditbench.records.scores import read_scores, write_file
from ditbench.reports.publishing.records import publish

METHOD, METRIC = "token_merging(size=3)", "sharpness.from_outside"
PLUGINS = [str(TESTS / f"example_{name}.py") for name in ("token_merging", "family")]
STACKS = (
    ("none", "ok"), (METHOD, "ok"), ("int8", "ok"), (f"int8+{METHOD}", "ok"),
    ("gone_method", "failed"), ("No stack at all!", "ok"),
)  # fmt: skip


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A run folder with a family, methods and a metric that nothing here declares."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(report_runs.WORLDS, "gone-model", "")
        models = ("dit-tiny", "gone-model")
        run = write_run(tmp_path_factory.mktemp("foreign") / "run", models, STACKS, n=9)
    edit(run, lambda record: record.update(family="gone", world=""), model="gone-model")
    for key, scores in read_scores(run).items():
        values = np.linspace(0, 1, 9)
        write_file(RunFolder(run).scores(key), scores.having(METRIC, "", "v1", {METRIC: values}))
    document = json.loads((run / "spec.json").read_text())
    document["spec"] |= {"plugins": ["gone.py"], "margins": {METRIC: 0.1}}
    (run / "spec.json").write_text(json.dumps(document))
    return run


@pytest.mark.parametrize("plugins", [[], PLUGINS], ids=["without", "with"])
@pytest.mark.parametrize(
    "words",
    [
        ("report", "RUN"),
        ("recommend", "RUN"),
        ("compare", "RUN", "RUN"),
        ("score", "RUN"),
        *(("reproduce", "RUN", f"dit-tiny/{stack}") for stack, _ in STACKS),
        *(("reproduce", "RUN", f"gone-model/{stack}") for stack, _ in STACKS[:3]),
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_commands_read_a_run_of_methods_and_models_that_are_not_there(
    foreign, tmp_path, words, plugins
):
    if words[0] == "score":  # it writes
        foreign = shutil.copytree(foreign, tmp_path / "run")
    given = [foreign if word == "RUN" else word for word in words]
    done = command(*given, *(word for path in plugins for word in ("--plugin", path)), "--json")
    assert done.returncode in (0, 1, 3) and "Traceback" not in done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    if words[0] == "reproduce":
        assert words[-1].partition("/")[2] in answer["command"]
        named = plugins or ["gone.py"]
        assert answer["command"].count("--plugin") == len(named)
        assert all(path in answer["command"] for path in named)
    elif words[0] == "recommend":
        stacks = {row["stack"] for row in answer}
        assert {METHOD, f"int8+{METHOD}"} <= stacks


def test_a_run_of_what_is_not_there_is_published_and_read_again(foreign, tmp_path):
    publish(foreign, tmp_path / "published")
    assert command("report", tmp_path / "published").returncode == 3  # the run has a failed cell
    assert [r["stack"] for r in read_run(tmp_path / "published").records] == [
        stack for stack, _ in STACKS
    ] * 2
    (scores,) = {len(s.arrays[METRIC]) for s in read_scores(tmp_path / "published").values()}
    assert scores == 9


def test_reproduce_finds_a_row_by_any_spelling_of_a_plug_ins_stack(foreign):
    spelt = "dit-tiny/token_merging( size = 3 )"
    without = command("reproduce", foreign, spelt)
    assert without.returncode == 2 and f"no row '{spelt}'" in without.stderr
    done = command("reproduce", foreign, spelt, "--plugin", PLUGINS[0])
    assert done.returncode in (0, 1) and METHOD in done.stdout


@pytest.mark.parametrize("name", ["recommend", "compare", "reproduce"])
def test_a_plug_in_that_is_no_file_is_wrong_usage(foreign, name):
    more = {"recommend": [], "compare": [foreign], "reproduce": ["int8"]}[name]
    done = command(name, foreign, *more, "--plugin", "nowhere.py")
    assert done.returncode == 2 and "nowhere.py is not a file" in done.stderr
