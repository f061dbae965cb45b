"""Tables for papers: LaTeX that is whole and escaped, and which methods stack."""

import csv
import json
import re
from pathlib import Path

import pytest
import report_runs
from report_runs import REASONS, STACKS, key_of, write_run

from ditbench import reports
from ditbench.analysis.interaction import VERDICTS, rules
from ditbench.method.artifact import BUNDLED, Artifact
from ditbench.models.table import models
from ditbench.records.files import read_json
from ditbench.reports.sections import section as sections
from ditbench.reports.sections.frontier import frontier
from ditbench.reports.tables import imported, stacking
from ditbench.reports.tables import sheet as sheets

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def run(tmp_path_factory, undrawn):
    folder = write_run(tmp_path_factory.mktemp("runs") / "demo_1", models=("dit-tiny", "wan-tiny"))
    reports.build([folder])
    return folder


def lines_of(path):
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def check_latex(text):
    """Raise AssertionError unless environments nest, braces balance, rows have as many cells as
    columns and no sign is bare."""
    open_, columns = [], 0
    assert (
        text.startswith("% \\usepackage{booktabs}\n") and text.count("%") - text.count("\\%") == 1
    )
    for line in text.splitlines()[1:]:
        for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", line):
            assert kind == "begin" or open_.pop() == name, line
            open_ += [name] if kind == "begin" else []
        if told := re.search(r"\\begin\{tabular\}\{([lr]+)\}", line):
            columns = len(told.group(1))
        bare = re.sub(r"\\[&%$#_{}]", "", line)
        assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0, line
        assert not re.search(r"[#%~^|<>\"]", bare) and not re.search(r"_", bare), line
        if "tabular" in open_ and line.endswith(r"\\"):
            assert bare.count("&") == columns - 1, line
        else:
            assert "&" not in bare, line
    assert (
        not open_
        and text.count("\\toprule") == text.count("\\midrule") == text.count("\\bottomrule") > 0
    )


def test_every_table_is_also_latex_that_is_whole_and_escaped(run):
    names = sorted(path.name for path in (run / "report/tables").glob("*.tex"))
    assert names == ["quality.tex", "speed.tex", "stacking.tex"]
    for name in names:
        check_latex((run / "report/tables" / name).read_text())


def test_a_latex_table_says_n_hardware_convention_and_record_keys(run):
    text = (run / "report/tables/speed.tex").read_text()
    for told in (
        "n = 12 samples",
        "Imaginary 3000",
        "FLOP = 2 MAC",
        "fora(interval=3): dit-tiny--fora-interval-3-",
        "demo\\_1",
    ):
        assert told in text
    assert sheets.tex(REASONS["failed"]) in text and "the \\textbar{} matrix" in text
    quality = (run / "report/tables/quality.tex").read_text()
    assert "$-$" in quality and "Margins stated before the run" in quality


def test_signs_of_latex_are_escaped_whatever_a_reason_says():
    lines = [{"stack": r"a_b\c{d}", "value": "-0.5 [-0.6, +0.1]", "key": "k#1"}]
    block = sheets.Block(model="m&m", caption="50 % of $9 ~ ^", lines=lines, notes=['"<|>" [x]'])
    text = sheets.latex(
        sheets.Sheet(name="s", title="T", run="r_1", convention="c # d.", blocks=[block])
    )
    check_latex(text)
    assert r"a\_b\textbackslash{}c\{d\} & $-$0.5 {\scriptsize {[}$-$0.6, +0.1{]}} \\" in text


def test_an_imported_row_is_italic_in_both():
    block = sheets.Block(
        model="m", caption="", lines=[{"method": "ToCa", "FID": "2.9"}], italic=True
    )
    sheet = sheets.Sheet(name="s", title="T", run="", convention="c", blocks=[block])
    assert "| *ToCa* | *2.9* |" in sheets.markdown(
        sheet
    ) and r"\textit{ToCa} & \textit{2.9} \\" in sheets.latex(sheet)


def test_what_others_published_stands_under_its_model_in_italics_with_its_source_and_nowhere_else(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(report_runs.WORLDS, "dit-xl-2-256", "class")
    run = write_run(tmp_path / "run", models=("dit-xl-2-256",), n=9, stacks=STACKS[:3])
    report = reports.build([run])
    tables = run / "report/tables"
    groups = [group for group in imported.published() if group["model"] == "dit-xl-2-256"]
    lines = lines_of(tables / "imported.csv")
    assert len(lines) == sum(len(group["rows"]) for group in groups) > 10
    assert all(
        line["source"].startswith("imported: ") and len(line["source"]) > 20 for line in lines
    )
    text, page = (tables / "imported.md").read_text(), report.page.read_text()
    check_latex((tables / "imported.tex").read_text())
    assert (
        "| *ToCa, N = 3, ratio 0.07* | *10.23* | *3.04* |" in text and groups[0]["source"] in text
    )
    assert page.count('<table class="imported">') == len(groups)
    (section,) = report.sections
    # frontier and ratios are worked out of rows alone
    assert {row["key"] for row in section.rows} == set(section.records)
    for metric in ("align.shapes_v1", "fd.shapes_v1"):
        assert {row["key"] for row in frontier(section.rows, metric)} <= set(section.records)
    for name in ("speed.csv", "quality.csv", "speed.md", "quality.md", "speed.tex", "quality.tex"):
        assert (
            "ToCa" not in (tables / name).read_text()
            and "imported" not in (tables / name).read_text()
        )


def test_imported_rows_are_copied_and_never_computed_with():
    for group in imported.published():
        assert (
            set(group) <= {"model", "setting", "unit", "source", "rows"}
            and group["source"]
            and group["setting"]
        )
        assert "unit" in group or not any("compute" in row for row in group["rows"])
        for row in group["rows"]:
            assert row["method"] and all(
                float(told) > 0 for name, told in row.items() if name not in ("method", "counted")
            )
    told = (Path(imported.__file__).parent / "imported.toml").read_text()
    assert "shapes_v1" not in told and {g["model"] for g in imported.published()} <= set(models())
    used = {
        p.stem
        for p in Path(reports.__file__).parent.rglob("*.py")
        if "tables.imported" in p.read_text()
    }
    assert used == {"speed_quality", "page"}


def test_tiny_models_have_no_imported_rows(run):
    assert not (run / "report/tables/imported.md").exists()


def test_stacks_whose_methods_ran_alone_too_have_a_table_with_both_interactions_and_the_keys_they_are_from(
    run,
):
    (line,) = [
        told for told in lines_of(run / "report/tables/stacking.csv") if told["model"] == "dit-tiny"
    ]
    assert line["stack"] == "int8+fora(interval=3)" and line["verdict"] in VERDICTS
    assert (
        float(line["gamma_clock_low"])
        < float(line["gamma_clock"])
        < float(line["gamma_clock_high"])
    )
    assert (
        line["gamma_clock_n"] == "3"
        and line["alignment_interaction_n"] == "12"
        and line["num_samples"] == "12"
    )
    speed = {told["key"]: told for told in lines_of(run / "report/tables/speed.csv")}
    a, b, both = (
        float(speed[key_of("dit-tiny", s)]["speedup_flops"])
        for s in ("int8", "fora(interval=3)", line["stack"])
    )
    assert float(line["gamma_flops"]) == pytest.approx(both / a / b)
    assert line["keys"].split() == [
        key_of("dit-tiny", s) for s in ("none", "int8", "fora(interval=3)", line["stack"])
    ]
    table = (run / "report/tables/stacking.md").read_text()
    assert (
        rules(sections.read_sections([run])[0].stacking)[0] in table
        and stacking.STACKING in table
        and f"| {line['stack']} | tuned | ok | {line['verdict']} |" in table
    )


def test_a_stack_with_a_part_that_was_not_measured_is_a_row_with_the_reason_and_no_numbers(
    tmp_path,
):
    run = write_run(tmp_path / "run", n=9, stacks=[*STACKS, ("fora(interval=9)+noop", "ok")])
    (section,) = sections.read_sections([run])
    sheet = stacking.stacking_sheet(section)
    assert (
        sheet.blocks[0].lines[1]["verdict"] == "not measured"
        and sheet.blocks[0].lines[1]["gamma clock"] == "-"
    )
    assert sheet.blocks[0].notes[1:] == [
        f"`fora(interval=9)+noop`: fora(interval=9) is oom: {REASONS['oom']}"
    ]
    line = stacking.stacking_frame(section).iloc[1]
    assert line["gamma_flops"] is None or line.isna()["gamma_flops"]


def test_what_was_trained_stands_with_its_cost_beside_what_its_stack_bought(tmp_path):
    run = write_run(tmp_path / "run", n=9, stacks=STACKS[:3])
    (section,) = sections.read_sections([run])
    assert not section.trained
    path = run / "cells" / key_of("dit-tiny", "fora(interval=3)") / "record.json"
    record = read_json(path)
    told = find_bundled("distill").cost()
    path.write_text(json.dumps(record | {"artifacts": {"distill": told}}))
    reports.build([run])
    (line,) = lines_of(run / "report/tables/training.csv")
    speed = {row["stack"]: row for row in lines_of(run / "report/tables/speed.csv")}[line["stack"]]
    assert (line["artifact"], line["method"], line["seconds"]) == (
        told["key"],
        "distill",
        str(told["seconds"]),
    )
    assert (
        line["iterations"] == str(told["iterations"])
        and line["samples"] == "2560"
        and told["iterations"] > 1000
    )
    assert line["speedup_call"] == speed["speedup_call"] and line["speedup_call_n"] == "3"
    assert (
        line["align.shapes_v1_delta_n"] == "9"
        and line["num_samples"] == "9"
        and line["processor"] == "Imaginary 3000"
    )
    check_latex((run / "report/tables/training.tex").read_text())
    assert "| fora(interval=3) | ok | distill |" in (run / "report/tables/training.md").read_text()


def test_the_cost_of_an_artefact_is_in_its_manifest_or_its_log_and_null_where_it_is_in_neither():
    assert (
        find_bundled("diffsparse").cost()["iterations"] == 121
        and find_bundled("diffsparse").cost()["samples"] is None
    )
    assert (
        find_bundled("magcache").cost()["iterations"] is None
        and find_bundled("magcache").cost()["seconds"] > 0
    )


def find_bundled(method):
    folder = sorted((BUNDLED / method).iterdir())[0]
    return Artifact(folder, read_json(folder / "manifest.json"))


def test_a_run_without_such_stacks_has_no_such_table(tmp_path):
    run = write_run(tmp_path / "run", n=9, stacks=STACKS[:4])
    reports.build([run])
    assert not list((run / "report/tables").glob("stacking.*"))


def test_a_sign_stays_with_its_number_where_text_is_broken():
    from ditbench.reports.terminal.table import broken

    assert broken("change of align +0.000", 17) == ["change of align", "+0.000"]
    assert broken("distill+int8(down='same')", 14) == ["distill+int8", "(down='same')"]
