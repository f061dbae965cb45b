"""The figure of what stacks: every combination a cell, and nothing in it that was not measured side
by side."""

import json

import pytest
from report_runs import ENVIRONMENT, key_of, write_run

from ditbench.reports.figures import stacking_matrix as matrices
from ditbench.reports.sections.section import read_sections

FROZEN = "distill+diffsparse(tuned='alone')"
STACKS = (
    ("none", "ok"), ("distill", "ok"), ("int8", "ok"), ("diffsparse", "ok"), ("distill+int8", "ok"),
    ("distill+diffsparse", "ok"),
    (FROZEN, "ok"), ("int8+diffsparse", "failed"), ("distill+int8+diffsparse", "ok"),
    ("fewer_steps(share=0.5)", "ok"),
)  # fmt: skip


@pytest.fixture
def written(monkeypatch):
    """What is written into the figure, cell by cell."""
    told = []
    cell = matrices._write
    monkeypatch.setattr(
        matrices, "_write", lambda axis, *rest: told.append(rest) or cell(axis, *rest)
    )
    return told


def make(folder, stacks=STACKS, **more):
    return write_run(folder, models=("pixart-tiny",), stacks=stacks, n=12, **more)


def test_every_combination_is_a_cell_with_its_verdict_both_interactions_and_its_readings(
    tmp_path, written
):
    (section,) = read_sections([make(tmp_path / "run")])
    (png, svg) = matrices.draw_matrices(section, tmp_path / "plots")["pixart-tiny"]
    assert png.stat().st_size > 5000 and svg.read_text().startswith("<?xml")
    rows = {row["stack"]: row for row in section.stacking}
    assert [row["reading"] for row in rows.values()] == [
        "tuned",
        "tuned",
        "frozen",
        "tuned",
        "tuned",
    ]
    cells = [(head, lines) for head, lines, *_ in written]
    assert [head for head, _ in cells].count("alone") == 3
    for stack in ("distill+int8", "distill+diffsparse", FROZEN, "distill+int8+diffsparse"):
        row = rows[stack]
        gamma, quality = row["gamma_clock"], row["alignment"]
        mark = matrices.MARKS[row["verdict"]][0]
        found = [
            lines
            for head, lines in cells
            if head == f"{mark} {row['verdict']}" and lines[0].endswith(f" {gamma.value:.2f}")
        ]
        assert found and f"[{gamma.low:.2f}, {gamma.high:.2f}]" in found[0], stack
        assert f"[{quality.low:+.3f}, {quality.high:+.3f}]" in found[0]
    assert ("not run", ["failed: RuntimeError:", "the | matrix is", "singular"]) in cells


def test_marks_tell_verdicts_apart_without_colour():
    assert len({mark for mark, _ in matrices.MARKS.values()}) == len(matrices.MARKS)


def test_a_run_without_combinations_has_no_such_figure(tmp_path):
    (section,) = read_sections([make(tmp_path / "run", stacks=STACKS[:4])])
    assert section.stacking == [] and matrices.draw_matrices(section, tmp_path / "plots") == {}


def test_no_speed_interaction_is_made_across_two_environments(tmp_path, written):
    run = make(tmp_path / "run")
    path = run / "cells" / key_of("pixart-tiny", "int8") / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"environment": ENVIRONMENT | {"cores": 64}}))
    (section,) = read_sections([run])
    told = {row["stack"]: row["gamma_clock"] for row in section.stacking if "gamma_clock" in row}
    assert (
        told["distill+int8"] is None
        and told["distill+int8+diffsparse"] is None
        and told["distill+diffsparse"] is not None
    )
    matrices.draw_matrices(section, tmp_path / "plots")
    assert [lines[0] for _, lines, *_ in written].count("\u03b3 clock -") == 2


def test_suspect_times_are_marked(tmp_path, written):
    (section,) = read_sections([make(tmp_path / "run", drift=0.2)])
    matrices.draw_matrices(section, tmp_path / "plots")
    clocks = [lines[0] for head, lines, *_ in written if head != "not run"]
    assert clocks and all(matrices.UNSURE in line for line in clocks)
