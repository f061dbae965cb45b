"""README and CONTRIBUTING say what the code does."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_runs import lines_of

from ditbench.reports.publishing.matched import floor_table, matched_table
from ditbench.reports.publishing.run import run_figure, run_table
from ditbench.reports.publishing.stacking import answer_table

ROOT = Path(__file__).resolve().parents[1]


def test_the_example_in_contributing_is_the_one_the_tests_run():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = re.search(
        r"<!-- example: (\S+) -->\n```python\n(.*?)```\n<!-- end of example -->", text, re.S
    )
    assert shown and shown[2] == (ROOT / shown[1]).read_text()


def test_every_command_line_in_the_documents_parses():
    import shlex

    from ditbench.cli.commands import COMMANDS
    from ditbench.cli.parser import parsers
    from ditbench.cli.usage import UsageError

    seen = 0
    for name in ("README.md", "CONTRIBUTING.md"):
        for line in re.findall(r"python run_bench\.py([^`\n&|#]*)", (ROOT / name).read_text()):
            told = shlex.split(line.strip().rstrip(".,;:"))
            if not told or told[0] not in COMMANDS:
                told = ["run", *told]
            told = [word for word in told if word not in ("[...]", "...")]
            try:
                parsers(COMMANDS)[0].parse_args(told)
            except UsageError as error:
                raise AssertionError(f"{name}: {line!r}: {error}") from None
            seen += 1
    assert seen >= 5


TABLES = {
    "matched": lambda path, budget: matched_table(lines_of(path), budget),
    "stacking": lambda path: answer_table(json.loads(path.read_text())),
    "floor": lambda path: floor_table(lines_of(path)),
    "run": run_table,
}
GENERATED = re.compile(r"<!-- table: (\S+) (\S+) ?(\S*) -->\n\n(.*?)\n<!-- end of table -->", re.S)
DOCUMENTS = [ROOT / "README.md", *ROOT.glob("reports/published/*/README.md")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.parent.name)
def test_tables_in_the_documents_are_those_of_the_published_numbers(path):
    found = GENERATED.findall(path.read_text())
    assert path.read_text().count("<!-- table:") == len(found) >= 1
    for kind, file, told, shown in found:
        assert shown == TABLES[kind](ROOT / "reports/published" / file, *told.split())


def test_the_figure_in_the_readme_is_that_of_the_published_numbers(tmp_path):
    (shown,) = re.findall(
        r"!\[[^]]*\]\((reports/published/[^/)]+)/plots/([^)]+)\.png\)",
        (ROOT / "README.md").read_text(),
    )
    drawn = run_figure(ROOT / shown[0], tmp_path, shown[1])[0]
    kept, fresh = (
        np.asarray(Image.open(p).convert("RGB"), float)
        for p in (ROOT / shown[0] / "plots" / drawn.name, drawn)
    )
    assert kept.shape == fresh.shape and np.abs(kept - fresh).mean() < 0.5
