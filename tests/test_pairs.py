"""The matrix of pairs: what is legal by claims and by model, what was run, and how it is shown."""

import csv
import json
import re
import subprocess
import sys
from functools import partial
from html import unescape
from itertools import combinations
from pathlib import Path

import pytest
from report_runs import edit, key_of, write_run

from ditbench import reports
from ditbench.analysis import pairs
from ditbench.analysis.pairs import check_refusals, pair_matrices
from ditbench.method import METHODS, Stage, method
from ditbench.method.registry import find, names
from ditbench.method.stack import Stack
from ditbench.models.table import models
from ditbench.records.record import read_run
from ditbench.runner.plan import plan
from ditbench.runner.spec import Spec
from ditbench.testing import refusals

ROOT = Path(__file__).parents[1]


def our_methods():
    return {name for name in names() if find(name).__module__.startswith("ditbench.methods.")}


PUBLISHED = sorted(p.parent for p in (ROOT / "reports/published").glob("*/spec.json"))
STACKS = (
    ("none", "ok"), ("fewer_steps", "ok"), ("fora(interval=3)", "ok"), ("int8", "ok"),
    ("int8+fora(interval=3)", "ok"), ("firstblock", "refused"), ("int8+fewer_steps", "failed"),
    ("distill", "ok"), ("distill+int8+fora", "ok"),
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(
        tmp_path_factory.mktemp("runs") / "demo", models=("dit-tiny", "wan-tiny"), stacks=STACKS
    )


def matrix_of(folder, model, stacking=()):
    return next(m for m in pair_matrices(read_run(folder).records, stacking) if m.model == model)


def at(matrix, *methods):
    return next(
        c
        for c in (*matrix.alone, *matrix.pairs, *matrix.triples)
        if set(c.methods) == set(methods) and len(c.methods) == len(methods)
    )


def test_every_pair_of_every_method_is_there_once(run):
    matrix = matrix_of(run, "dit-tiny")
    # those that other tests declared may be such as cannot be made
    assert our_methods() <= set(matrix.methods) <= set(names())
    expected = {frozenset(pair) for pair in combinations(matrix.methods, 2)}
    assert len(matrix.pairs) == len(expected)
    assert {frozenset(c.methods) for c in matrix.pairs} == expected
    assert [c.methods for c in matrix.alone] == [(name,) for name in matrix.methods]


def test_what_was_run_counts_with_any_knobs_and_has_its_verdict_and_key(run):
    stacking = [
        {"model": "dit-tiny", "stack": "int8+fora(interval=3)", "verdict": "clashes"},
        {"model": "dit-tiny", "stack": "distill+int8+fora", "verdict": "fora is missing"},
    ]
    matrix = matrix_of(run, "dit-tiny", stacking)
    pair = at(matrix, "int8", "fora")
    assert pair.state == "run" and [r.verdict for r in pair.ran] == ["clashes"]
    assert pair.ran[0].key == key_of("dit-tiny", "int8+fora(interval=3)")
    triple = at(matrix, "distill", "int8", "fora")
    assert triple.state == "run" and [r.verdict for r in triple.ran] == [""]
    assert at(matrix, "distill").state == "run"


def test_a_pair_that_failed_is_not_run_and_says_why(run):
    pair = at(matrix_of(run, "dit-tiny"), "int8", "fewer_steps")
    assert pair.state == "not run" and "int8+fewer_steps failed: RuntimeError" in pair.reason


def test_claims_model_and_device_refuse_as_plan_says(run):
    matrix = matrix_of(run, "dit-tiny")
    assert at(matrix, "fora", "teacache").reason == "fora and teacache both claim block-schedule"
    assert at(matrix, "magcache", "int8").reason == "magcache: works on flux and wan, not on dit"
    assert at(matrix, "fp8").reason == "fp8: needs a CUDA device, but the model is on cpu"
    # what `check` says of the model, and what the run's own cell was refused for
    assert at(matrix, "radial", "int8").reason.startswith("radial: its mask goes by the distance")
    assert at(matrix, "firstblock", "int8").state == "refused"
    assert at(matrix, "taylorseer", "int8").state == "not run"
    assert at(matrix, "taylorseer", "int8").reason == ""
    assert at(matrix_of(run, "wan-tiny"), "radial", "int8").state == "not run"


@pytest.mark.parametrize("model", ["dit-tiny", "flux-tiny", "wan-tiny"])
def test_refused_without_the_checks_is_what_plan_refuses(model, tmp_path, monkeypatch):
    """All pairs of a third of the methods, against the plan of a run of them."""
    monkeypatch.setattr(pairs, "check_refusals", dict)
    run = write_run(tmp_path / "run", models=(model,), stacks=(("none", "ok"),))

    def add_sampling(record):
        row = models()[model]
        record["sampling"] = {
            name: getattr(row, name)
            for name in ("steps", "guidance", "height", "width", "frames", "text_tokens")
        }

    edit(run, add_sampling)
    matrix = matrix_of(run, model)
    few = [name for i, name in enumerate(sorted(our_methods())) if i % 3 == 0]
    stacks = [str(Stack.of(find(a)(), find(b)())) for a, b in combinations(few, 2)]
    cells = plan(Spec(models=(model,), methods=tuple(stacks), out=str(tmp_path / "out")))
    assert len(cells) == len(stacks) + 1
    for cell in cells[1:]:
        mine = at(matrix, *(m.name for m in Stack.parse(cell.requested).methods))
        if "prepare" in cell.refusal:  # has to be trained first, which no matrix looks up
            continue
        assert (mine.state == "refused") == bool(cell.refusal), cell.label
        assert mine.reason == cell.refusal


def test_triples_are_a_student_a_format_and_a_third_and_the_refused_are_left_out(run):
    matrix = matrix_of(run, "dit-tiny")
    assert {c.methods[0] for c in matrix.triples} == {"distill"}
    assert {"int8", "fp8_attention"} & {c.methods[1] for c in matrix.triples} == {"int8"}
    assert all(c.state != "refused" for c in matrix.triples)
    assert ("distill", "int8", "teacache") in [c.methods for c in matrix.triples]
    assert not [c for c in matrix.triples if "fewer_steps" in c.methods]  # both claim num-steps


@pytest.mark.parametrize("kind", ["dit", "pixart", "flux", "wan"])
def test_the_table_of_checks_is_what_the_methods_say(kind):
    model = models()[f"{kind}-tiny"]
    assert refusals.refused(model) == check_refusals().get(model.name, {})


@pytest.mark.slow
def test_the_whole_table_of_checks_is_what_the_methods_say():
    assert refusals.main(["--check"]) == 0


def test_the_report_has_the_matrix_as_csv_json_and_a_page_whose_links_lead_to_rows(run):
    made = reports.build([run])
    folder = run / "report"
    assert folder / "pairs.html" in made.files and folder / "tables/pairs.csv" in made.files
    lines = list(csv.DictReader((folder / "tables/pairs.csv").open(newline="")))
    document = json.loads((folder / "tables/pairs.json").read_text())
    entries = [
        e for m in document["models"] for kind in ("alone", "pairs", "triples") for e in m[kind]
    ]
    assert len(lines) == len(entries)
    assert [line["state"] for line in lines] == [e["state"] for e in entries]
    assert {line["state"] for line in lines} == {"run", "refused", "not run"}
    page = (folder / "pairs.html").read_text()
    anchors = set(re.findall(r'<tr id="([^"]+)"', (folder / "index.html").read_text()))
    linked = set(re.findall(r'href="index\.html#([^"]+)"', page))
    assert linked and linked <= anchors
    size = len(matrix_of(run, "dit-tiny").methods)
    assert page.count("<td class=") == 2 * size**2
    titles = [unescape(title) for title in re.findall(r'<td class="[^"]*" title="([^"]*)"', page)]
    assert "fora+teacache: refused: fora and teacache both claim block-schedule" in titles
    assert 'href="pairs.html"' in (folder / "index.html").read_text()


def test_a_stranges_method_of_a_record_is_shown_escaped_and_never_refused(tmp_path):
    run = write_run(tmp_path / "run", stacks=STACKS)

    def rename(record):
        record["stack"] = "<b>x</b>"
        record["methods"] = [{"name": "<b>x</b>", "knobs": {}}]

    edit(run, rename, stack="int8")
    matrix = matrix_of(run, "dit-tiny")
    assert at(matrix, "<b>x</b>").state == "run"
    assert at(matrix, "<b>x</b>", "fora").state == "not run"
    made = reports.build_pairs([run])
    page = made.files[-1].read_text()
    assert "<b>x" not in page and "&lt;b&gt;x" in page
    assert "index.html" not in page  # which is not there, so that no link leads to it


def test_the_terminal_shows_a_square_where_it_is_wide_enough_and_always_the_reasons(
    run, monkeypatch, capsys
):
    for columns, square in (("140", True), ("60", False)):
        monkeypatch.setenv("COLUMNS", columns)
        reports.print_pairs(reports.build_pairs([run]))
        out = capsys.readouterr().out
        assert bool(re.search(r"^ ?\d+ fora +[.SCB?*-]", out, re.M)) == square
        assert "refused: both claim block-schedule" in out.replace("\n", " ")
        assert "int8+fora(interval=3)" in out


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda p: p.name)
def test_published_runs_have_a_matrix_in_little_work_without_torch(folder, tmp_path):
    code = f"""
import cProfile, pstats, sys
from pathlib import Path
from ditbench import reports
from ditbench.analysis.pairs import pair_matrices
from ditbench.records.record import read_run
records = read_run(Path({str(folder)!r})).records
profile = cProfile.Profile()
made = profile.runcall(pair_matrices, records, [])
calls = pstats.Stats(profile).total_calls
assert calls < 500_000, calls
assert len(made) == len({{r["model"] for r in records}}) > 0
with_methods = {{r["model"] for r in records if r["stack"] != "none"}}
assert all(any(c.state == "run" for c in m.alone) for m in made if m.model in with_methods)
assert not {{"torch", "diffusers", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-800:]


def test_only_pairs_from_the_command_line_and_its_document(run):
    from ditbench.cli.commands import main

    out = subprocess.run(
        [sys.executable, ROOT / "run_bench.py", "report", run, "--only", "pairs", "--json"],
        capture_output=True, text=True, timeout=120, cwd=run.parent,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    document = json.loads(out.stdout.splitlines()[-1])
    assert [m["model"] for m in document["runs"][0]["models"]] == ["dit-tiny", "wan-tiny"]
    assert main(["report", str(run / "nowhere"), "--only", "pairs"]) == 2


def test_a_plug_in_that_breaks_down_costs_its_own_fields(tmp_path, request):
    class Broken:
        def __post_init__(self):
            raise NameError("name 'ClassVar' is not defined")

        def attach(self, pipeline, at):
            pass

    class Unadaptable:
        def adapt(self, sampling):
            return sampling.nothing

        def attach(self, pipeline, at):
            pass

    for name, cls in (("broken_test", Broken), ("unadaptable_test", Unadaptable)):
        request.addfinalizer(partial(METHODS.pop, name, None))
        method(name, family="test", stage=Stage.OPERATOR)(cls)
    run = write_run(tmp_path / "run", models=("dit-tiny",), stacks=(("none", "ok"),))
    matrix = matrix_of(run, "dit-tiny")
    assert "broken_test" not in matrix.methods
    reason = at(matrix, "fora", "unadaptable_test").reason
    assert at(matrix, "fora", "int8").state == "not run" and "nothing" in reason
