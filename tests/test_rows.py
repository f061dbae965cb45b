"""The types of rows and of the metrics in them say which keys there are."""

from typing import get_type_hints

import pytest
from report_runs import write_run

from ditbench.analysis.rows import Interval, QualityEntry, Row, unscored
from ditbench.analysis.verdict import judge
from ditbench.reports.sections.rows import ReportRow, ranked
from ditbench.reports.sections.section import read_sections


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    return read_sections([write_run(tmp_path_factory.mktemp("rows") / "run", n=9)])[0]


def test_a_row_has_the_keys_of_its_type_whatever_its_status(section):
    assert {row["status"] for row in section.rows} >= {"ok", "inert", "refused", "failed"}
    for row in section.rows:
        assert row.keys() == get_type_hints(ReportRow).keys() > get_type_hints(Row).keys()
        for entry in row["quality"].values():
            assert entry.keys() == get_type_hints(QualityEntry).keys()
            for name in ("value", "delta"):
                assert entry[name] is None or entry[name].keys() == get_type_hints(Interval).keys()


def test_a_row_that_is_not_shown_has_no_numbers(section):
    nothing = unscored()
    for row in section.rows:
        if row["status"] != "ok":
            for entry in row["quality"].values():
                assert {n for n in nothing if entry[n] != nothing[n]} == {"reason", "delta_reason"}
                assert entry["reason"] == entry["delta_reason"] == f"the cell is {row['status']}"


def test_verdicts_and_ranks_leave_the_rows_they_are_given_as_they_are(section):
    bare = [
        row | {"quality": {m: e | {"verdict": "", "p_holm": None} for m, e in row["quality"].items()}}
        for row in section.rows
    ]  # fmt: skip
    judged = judge(bare)
    assert any(e["verdict"] for row in judged for e in row["quality"].values())
    assert not any(e["verdict"] for row in bare for e in row["quality"].values())
    assert ranked(list(reversed(judged)))[0]["baseline"] and not judged[-1]["baseline"]
    assert judge(judged) == judged
