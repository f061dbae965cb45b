"""README and CONTRIBUTING say what the code does."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_example_in_contributing_is_the_one_the_tests_run():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = re.search(r"<!-- example: (\S+) -->\n```python\n(.*?)```\n<!-- end of example -->", text, re.S)
    assert shown and shown[2] == (ROOT / shown[1]).read_text()


def test_every_command_line_in_the_documents_parses():
    import contextlib
    import io
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
