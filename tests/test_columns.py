"""One table of columns for CSV, Markdown, LaTeX, page and terminal."""

import pytest
from report_runs import lines_of, write_run

from ditbench import reports
from ditbench.reports.sections.section import read_sections
from ditbench.reports.tables import columns, metric_columns
from ditbench.reports.tables.columns import COLUMNS, FACTOR, Column, in_order
from ditbench.reports.tables.metric_columns import Measure
from ditbench.reports.tables.sheet import frame

FACES = ("csv", "sheet", "glance", "page", "terminal")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("columns") / "run", n=9)


def test_a_new_column_of_speed_is_one_row_of_the_table(run, monkeypatch, capsys):
    new = Column(
        name="twice", value=lambda row: 2 * row["speedup_flops"] if row["speedup_flops"] else None,
        show=FACTOR, where=dict.fromkeys(FACES, 0),
    )  # fmt: skip
    monkeypatch.setattr(columns, "COLUMNS", [*COLUMNS, new])
    report = reports.build([run])
    reports.print_report(report)
    tables = run / "report/tables"
    assert lines_of(tables / "speed.csv")[0]["twice"] == "2.0"
    assert "| stack | status | twice | s/sample" in (tables / "speed.md").read_text()
    assert "twice" in (tables / "speed.tex").read_text()
    assert report.page.read_text().count('<th scope="col">twice</th>') == 2  # glance and details
    terminal = capsys.readouterr().out
    assert "twice" in terminal and "2.00x" in terminal


def test_no_two_columns_of_a_table_have_one_name_or_one_head(run):
    (section,) = read_sections([run])
    row = section.rows[1]
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)
    assert len({column.name for column in metric_columns.COLUMNS}) == len(metric_columns.COLUMNS)
    for face in FACES:
        heads = [column.head(face, row) for column in in_order(COLUMNS, face)]
        for metric in row["quality"]:
            measure = Measure(row=row, metric=metric)
            heads += [
                f"{metric}: {head}" if face == "csv" else head
                for column in in_order(metric_columns.COLUMNS, face)
                if (head := column.head(face, measure))
                and (face != "glance" or row["quality"][metric]["table"] in ("", "video"))
            ]
        assert len(set(heads)) == len(heads) > 0, face


def test_a_metric_has_the_same_columns_whatever_it_is_called(run):
    (section,) = read_sections([run])
    line = metric_columns.lines(section.rows[1], ("", "more"))
    for metric in ("mmd.shapes_v1", "hpsv3.v1_0"):
        heads = [head.removeprefix(metric) for head in line if head.startswith(f"{metric} ")]
        assert heads == [" minus none", " detectable", " verdict"]
    assert "align.shapes_v1 on frontier" in line and "psnr.vs_none verdict" not in line


def test_a_csv_writes_whole_numbers_as_such_where_some_are_missing():
    content = frame([{"a": 1, "b": True, "c": 1.0}, {"a": None, "b": False, "c": None}, {}])
    assert content.to_csv(index=False, lineterminator="\n") == "a,b,c\n1,True,1.0\n,False,\n,,\n"
