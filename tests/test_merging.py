"""Several runs in one report: one table where everything agrees, else the field that differs;
ratios only within a run."""

import json

import pytest
from report_runs import ENVIRONMENT, STACKS, edit, key_of, lines_of, write_run

from ditbench import reports
from ditbench.analysis import verdict
from ditbench.metrics.margins import MARGINS
from ditbench.reports.figures import sample_grid as grids
from ditbench.reports.sections.merge import merge, unlike
from ditbench.reports.sections.section import read_sections

A, B = (
    (("none", "ok"), ("fora(interval=3)", "ok")),
    (("none", "ok"), ("int8", "ok"), ("firstblock", "refused")),
)


@pytest.fixture
def runs(tmp_path):
    return [
        write_run(tmp_path / name, n=80, stacks=stacks, seed=i)
        for i, (name, stacks) in enumerate((("a", A), ("b", B)))
    ]


@pytest.mark.usefixtures("undrawn_here")
def test_runs_that_agree_share_a_table_and_it_is_said_which_cells_were_kept(runs, tmp_path, capsys):
    report = reports.build(runs, tmp_path / "out")
    (section,) = report.sections
    assert section.name == "a+b" and [row["stack"] for row in section.rows] == [
        "none",
        *(s for s, _ in (*A[1:], *B[1:])),
    ]
    assert [row["run"] for row in section.rows] == ["a", "a", "b", "b"]
    reports.print_report(report)
    told = "in each of a, b, and kept from a: dit-tiny none"
    texts = (
        capsys.readouterr().out,
        report.page.read_text(),
        *((tmp_path / f"out/tables/speed.{k}").read_text() for k in ("md", "tex")),
    )
    assert all(told in " ".join(text.split()) for text in texts)
    assert {line["stack"]: line["run"] for line in lines_of(tmp_path / "out/tables/speed.csv")}[
        "int8"
    ] == "b"


def test_a_merged_row_keeps_speed_ups_and_changes_against_the_baseline_of_its_own_run(runs):
    edit(runs[1], lambda r: [t.update(call_s=1.05 * t["call_s"]) for t in r["timing"]])
    alone = {
        row["stack"]: row
        for section in read_sections(runs)
        for row in section.rows
        if not row["baseline"]
    }
    (section,) = merge(read_sections(runs))
    for row in section.rows[1:3]:
        assert (
            row["speedup_call"] == alone[row["stack"]]["speedup_call"]
            and row["speedup_call"]["n"] == 3
        )
        for metric, entry in row["quality"].items():
            assert entry["delta"] == alone[row["stack"]]["quality"][metric]["delta"]


def test_verdicts_of_merged_runs_pay_for_all_their_stacks(runs):
    (section,) = merge(read_sections(runs))
    fora, int8 = (row["quality"] for row in section.rows[1:3])
    found = [
        entry
        for quality in (fora, int8)
        for entry in quality.values()
        if entry["primary"] and entry["p"] is not None
    ]
    assert len(found) == 4 and [e["p_holm"] for e in found] == verdict.holm([e["p"] for e in found])
    assert all(
        row["quality"]["align.shapes_v1"]["frontier"] is not None for row in section.rows[:3]
    )


def test_samples_requests_and_commands_of_merged_rows_come_from_their_own_run(runs):
    (section,) = merge(read_sections(runs))
    int8 = section.rows[2]
    assert section.home(int8).folder == runs[1] and section.home(section.rows[0]).folder == runs[0]
    assert grids.read_tiles(section, int8).samples and len(section.requests("dit-tiny")) == 80


def test_a_cell_that_failed_in_one_run_and_ran_in_another_is_that_of_the_other(runs, tmp_path):
    third = write_run(tmp_path / "c", n=80, stacks=(("none", "ok"), ("int8", "failed")), seed=0)
    (section,) = merge(read_sections([third, runs[1]]))
    assert {row["stack"]: (row["run"], row["status"]) for row in section.rows}["int8"] == (
        "b",
        "ok",
    )
    assert "in each of c, b, and kept from b: dit-tiny int8" in section.remarks


def other_environment(record):
    record["environment"] = (
        ENVIRONMENT | {"processor": "Another 4000", "packages": {"torch": "2.12.0"}}
        if record["environment"]
        else {}
    )


@pytest.mark.usefixtures("undrawn_here")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_environment, "processor (Imaginary 3000, Another 4000); packages.torch (2.13.0+cpu, 2.12.0)"),
        (lambda r: r["run"].update(model_sha256="other"), "weights (same; other) of dit-tiny"),
        (lambda r: r["run"].update(requests_sha256="other"), "requests (same; other) of dit-tiny"),
        (lambda r: r["run"].update(num_samples=8), "sample count (80; 8) of dit-tiny"),
        (lambda r: r["run"].update(seed=3), "seed (0; 3) of dit-tiny"),
        (lambda r: r["run"].pop("model_sha256"), "weights (same; unknown) of dit-tiny"),
        (lambda r: r["sampling"].update(steps=20), "sampling of dit-tiny"),
        (lambda r: [t.update(call_s=2 * t["call_s"]) for t in r["timing"]], "time of none ("),
    ],
)  # fmt: skip
def test_runs_that_differ_keep_separate_tables_and_the_field_is_named(
    runs, tmp_path, capsys, change, named
):
    edit(runs[1], change)
    report = reports.build(runs, tmp_path / "out")
    assert [section.name for section in report.sections] == ["a", "b"]
    assert not report.sections[0].remarks
    (told,) = report.sections[1].remarks
    assert told.startswith("kept apart from a, for they differ in ") and named in told
    reports.print_report(report)
    assert (
        "kept apart from a" in " ".join(capsys.readouterr().out.split())
        and "kept apart from a" in report.page.read_text()
    )
    assert "kept apart from a" in (tmp_path / "out/b/tables/quality.md").read_text()


def test_runs_that_differ_in_margins_or_in_what_a_stack_was_prepared_with_are_kept_apart(
    runs, tmp_path
):
    twin = write_run(tmp_path / "twin", n=80, stacks=A)
    old, new = (twin / "cells" / key for key in (key_of("dit-tiny", A[1][0]), "dit-tiny--other"))
    old.rename(new)
    edit(twin, lambda r: r.update(key="dit-tiny--other"), A[1][0])
    assert unlike(*read_sections([runs[0], twin])) == [
        f"what {A[1][0]} was prepared with of dit-tiny"
    ]
    edit(runs[0], lambda r: r.update(depends_on={"sources": {"m": "a"}, "inputs": {}}), A[1][0])
    edit(twin, lambda r: r.update(depends_on={"sources": {"m": "b"}, "inputs": {}}), A[1][0])
    assert unlike(*read_sections([runs[0], twin])) == [f"sources of {A[1][0]} of dit-tiny"]
    spec = json.loads((runs[1] / "spec.json").read_text())
    spec["spec"]["margins"] = dict(MARGINS) | {"align.shapes_v1": 0.5}
    (runs[1] / "spec.json").write_text(json.dumps(spec))
    assert unlike(*read_sections(runs)) == ["margins"]


def test_of_three_runs_the_two_that_agree_are_merged(runs, tmp_path):
    other = write_run(tmp_path / "c", n=80, stacks=A, environment=ENVIRONMENT | {"cores": 64})
    first, second = merge(read_sections([runs[0], other, runs[1]]))
    assert first.name == "a+b" and second.name == "c" and "cores (2, 64)" in second.remarks[0]


def test_runs_of_different_models_in_one_environment_share_a_section(tmp_path):
    runs = [
        write_run(tmp_path / m, models=(m,), n=n, stacks=STACKS[:2])
        for m, n in (("dit-tiny", 9), ("wan-tiny", 4))
    ]
    (section,) = merge(read_sections(runs))
    assert list(section.models) == ["dit-tiny", "wan-tiny"] and "n = 4 videos" in section.caption(
        "wan-tiny"
    )
    assert len(section.requests("wan-tiny")) == 4 and len(section.remarks) == 1


def test_two_reports_of_merged_runs_have_the_same_bytes(runs, tmp_path):
    one, two = (reports.build(runs, tmp_path / name) for name in ("x", "y"))
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one.files, two.files, strict=True))


def test_reports_of_different_runs_never_share_a_folder(tmp_path):
    a, b, c = (tmp_path / name for name in ("a", "b", "c"))
    elsewhere_b = tmp_path / "elsewhere" / "b"
    names = [
        reports._name(runs)
        for runs in ([a], [a, b], [a, c], [a, elsewhere_b], [a, b, c], [a, c, b], [a, b / "../b"])
    ]
    assert names[0] == "report" and names[1].startswith("report-with-b-") and names[-1] == names[1]
    assert len(set(names)) == len(names) - 1
