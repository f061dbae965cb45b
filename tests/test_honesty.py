"""What a report cannot be made to show, whatever lies in the run folder: each a way in which tables
of accelerators have misled."""

import json

import pytest
from report_runs import ENVIRONMENT, REASONS, STACKS, edit, key_of, lines_of, write_run

from ditbench import reports
from ditbench.reports.sections.frontier import frontier, placed
from ditbench.reports.sections.rows import TIMES
from ditbench.reports.sections.section import read_sections
from ditbench.reports.tables.stacking import stacking_frame

pytestmark = pytest.mark.usefixtures("undrawn")

TOGETHER = ("none", "fora(interval=3)", "int8", "int8+fora(interval=3)")
OTHER = ENVIRONMENT | {"processor": "Another 4000"}


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", n=9)


@pytest.fixture
def merged(tmp_path):
    """Two runs that agree, the second without `fora` and with a damaged record."""
    parts = {"a": STACKS[:3], "b": STACKS[:1] + STACKS[3:]}
    runs = [
        write_run(tmp_path / name, n=9, stacks=stacks, seed=len(stacks))
        for name, stacks in parts.items()
    ]
    (runs[1] / "cells" / key_of("dit-tiny", "noop") / "record.json").write_text("{")
    return runs


@pytest.mark.parametrize("moved", TOGETHER)
def test_no_ratio_of_times_from_two_environments_alone_or_in_a_stack(run, moved):
    edit(run, stack=moved, change=lambda record: record.update(environment=OTHER))
    (section,) = read_sections([run])
    for row in section.rows:
        if moved in ("none", row["stack"]) and not row["baseline"]:
            assert all(row[name] is None for name in TIMES) and not placed(
                row, "align.shapes_v1"
            ), row["stack"]
    line = stacking_frame(section).iloc[0]
    assert (
        line["stack"] == TOGETHER[3]
        and line.isna()[["gamma_clock", "gamma_clock_low", "control"]].all()
    )
    assert line["gamma_flops"] > 0 and not line.isna()["alignment_interaction"]


@pytest.mark.parametrize("field", ["requests_sha256", "model_sha256"])
def test_no_delta_and_no_ratio_against_a_baseline_of_other_requests_or_other_weights(run, field):
    edit(run, stack="int8", change=lambda record: record["run"].update({field: "other"}))
    (section,) = read_sections([run])
    rows = {row["stack"]: row for row in section.rows}
    assert all(rows["int8"][name] is None for name in (*TIMES, "speedup_flops", "baseline_key"))
    assert all(entry["delta"] is None for entry in rows["int8"]["quality"].values())
    assert rows["fora(interval=3)"]["speedup_call"] and not section.stacking


def estimates(told, at=""):
    """(where, estimate) of everything in a JSON document that has a value and an interval."""
    if isinstance(told, dict):
        if {"value", "low", "high"} <= set(told):
            yield at, told
        for name, part in told.items():
            yield from estimates(part, f"{at}/{name}")
    elif isinstance(told, list):
        for i, part in enumerate(told):
            yield from estimates(part, f"{at}/{i}")


def test_no_number_with_an_interval_is_without_its_n_in_any_table_or_document(
    run, merged, tmp_path
):
    for report in (reports.build([run]), reports.build(merged, tmp_path / "out")):
        found = list(estimates(json.loads(json.dumps(reports.report_json(report)))))
        assert len(found) > 50 and all(
            isinstance(told["n"], int) and told["n"] > 0 for _, told in found
        )
        for path in report.out.glob("tables/*.csv"):
            if path.stem == "pairs":  # words, no number
                continue
            for line in lines_of(path):
                assert int(line["num_samples"]) == 9, path.name
                for name, told in line.items():
                    if told and name in (
                        "delta",
                        "gamma_clock",
                        "alignment_interaction",
                        "frechet_interaction",
                        "speedup_call",
                    ):
                        assert int(line[f"{name}_n"]) > 0, (path.name, name)
        for kind in ("md", "tex"):
            assert "n = 9 samples" in (report.out / f"tables/quality.{kind}").read_text()


def test_a_method_that_did_not_engage_has_no_speed_up_alone_in_a_stack_or_beside_what_it_cost(
    tmp_path,
):
    run = write_run(tmp_path / "run", n=9, stacks=[*STACKS, ("int8+noop", "ok")])
    cost = {"key": "k", "seconds": 3.0, "iterations": 2, "samples": None, "below": "none"}
    edit(run, stack="noop", change=lambda record: record.update(artifacts={"noop": cost}))
    reports.build([run])
    tables = run / "report/tables"
    speed = {line["stack"]: line for line in lines_of(tables / "speed.csv")}["noop"]
    assert speed["status"] == "inert" and not any(
        speed[name] for name in (*TIMES, "speedup_flops", "call_s", "flops")
    )
    (stacked,) = [
        line for line in lines_of(tables / "stacking.csv") if line["stack"] == "int8+noop"
    ]
    assert (
        stacked["verdict"] == f"noop is inert: {REASONS['inert']}"
        and not stacked["gamma_flops"]
        and not stacked["gamma_clock"]
    )
    (trained,) = lines_of(tables / "training.csv")
    assert (
        trained["status"] == "inert"
        and trained["seconds"] == "3.0"
        and not trained["speedup_call"]
        and not trained["speedup_flops"]
    )
    (section,) = read_sections([run])
    assert "noop" not in {row["stack"] for row in frontier(section.rows, "align.shapes_v1")}
    assert all(
        row["quality"]["align.shapes_v1"]["frontier"] is None
        for row in section.rows
        if row["status"] != "ok"
    )


def test_every_cell_that_has_no_numbers_is_a_row_with_its_reason_in_every_kind_of_table(
    run, merged, tmp_path
):
    for folders, out in (([run], tmp_path / "one"), (merged, tmp_path / "several")):
        report = reports.build(folders, out)
        there = {row["stack"] for row in report.sections[0].rows}
        for name in ("speed", "quality"):
            text, tex = ((out / f"tables/{name}.{kind}").read_text() for kind in ("md", "tex"))
            for stack, status in STACKS:
                if status != "ok" and stack in there:
                    assert f"| {stack} | {status} |" in text
                    reason = REASONS[status].split("|")[0].split("<")[0].strip()
                    assert reason in text and reason in tex, (name, stack)


def test_a_damaged_record_is_told_in_every_table_and_the_rest_reported_in_merged_runs_too(
    merged, tmp_path, capsys
):
    report = reports.build(merged, tmp_path / "out")
    (section,) = report.sections
    assert {row["stack"] for row in section.rows} == {stack for stack, _ in STACKS} - {"noop"}
    reports.print_report(report)
    told = f"b: cells/{key_of('dit-tiny', 'noop')}/record.json is damaged"
    texts = [
        path.read_text()
        for name in ("speed", "quality")
        for path in (tmp_path / "out/tables").glob(f"{name}.[mt]*")
    ]
    assert len(texts) == 4
    assert all(
        told in " ".join(text.split())
        for text in (capsys.readouterr().out, report.page.read_text())
    )
    assert all("is damaged" in text and "noop" in text for text in texts)
