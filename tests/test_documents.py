"""README and CONTRIBUTING say what the code does."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from ditbench.reports.matching import floor_table, matched_table
from ditbench.reports.stacking import answer_table

ROOT = Path(__file__).resolve().parents[1]


def test_the_example_in_contributing_is_the_one_the_tests_run():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = re.search(r"<!-- example: (\S+) -->\n```python\n(.*?)```\n<!-- end of example -->", text, re.S)
    assert shown and shown[2] == (ROOT / shown[1]).read_text()


def test_every_command_line_in_the_documents_parses():
    import contextlib
    import shlex

    from ditbench.cli import COMMANDS
    from ditbench.flags import parser

    seen = 0
    for name in ("README.md", "CONTRIBUTING.md"):
        for line in re.findall(r"python run_bench\.py([^`\n&|#]*)", (ROOT / name).read_text()):
            told = shlex.split(line.strip().rstrip(".,;:"))
            if not told or told[0] not in COMMANDS:
                told = ["run", *told]
            told = [word for word in told if word not in ("[...]", "...")]
            with contextlib.redirect_stderr(io.StringIO()) as complaint:
                try:
                    parser(COMMANDS).parse_args(told)
                except SystemExit:
                    raise AssertionError(f"{name}: {line!r}: {complaint.getvalue()}") from None
            seen += 1
    assert seen >= 5


def matched(text, budget):
    return matched_table(list(csv.DictReader(io.StringIO(text))), budget)


TABLES = {
    "matched": matched,
    "stacking": lambda text: answer_table(json.loads(text)),
    "floor": lambda text: floor_table(list(csv.DictReader(io.StringIO(text)))),
}
GENERATED = re.compile(r"<!-- table: (\S+) (\S+) ?(\S*) -->\n\n(.*?)\n<!-- end of table -->", re.S)
DOCUMENTS = [ROOT / "README.md", *ROOT.glob("reports/published/*/README.md")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.parent.name)
def test_tables_in_the_documents_are_those_of_the_published_numbers(path):
    found = GENERATED.findall(path.read_text())
    assert path.read_text().count("<!-- table:") == len(found) >= 1
    for kind, file, told, shown in found:
        assert shown == TABLES[kind]((ROOT / "reports/published" / file).read_text(), *told.split())
