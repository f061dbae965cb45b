"""README, CONTRIBUTING and the folder READMEs say what the code does."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_house import LEVELS

from ditbench.analysis.controls import VERDICTS
from ditbench.cli.commands import COMMANDS
from ditbench.cli.parser import parsers
from ditbench.cli.usage import UsageError
from ditbench.method import names
from ditbench.metrics import metrics
from ditbench.models import models
from ditbench.reports.publishing import __main__ as publishing
from ditbench.reports.publishing.documents import BLOCK, documents, rewrite, section_of
from ditbench.reports.publishing.run import run_figure
from ditbench.testing import level_kernels
from ditbench.zoo import models as zoo
from ditbench.zoo import train

ROOT = Path(__file__).resolve().parents[1]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"] + [
    ROOT / folder / "README.md"
    for folder in (
        "bench", "bench/metrics", "bench/runner", "bench/simulation", "bench/zoo", "datasets",
        "peers", "methods", "reports", "reports/published",
    )
]  # fmt: skip
"""Documents that describe; the others are cards and results."""
PEERS = {path.stem for path in (ROOT / "peers").glob("*.py")}
RESULTS = sorted(ROOT.glob("reports/published/*/README.md"))
READMES = documents(ROOT)


def name_of(path):
    return str(path.relative_to(ROOT))


def prose_of(path):
    """The lines of a document without code, tables, images and comments."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.S | re.M)
    return [line for line in text.splitlines() if not line.startswith(("|", "![", "<!--"))]


def test_the_example_in_contributing_is_the_one_the_tests_run():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = re.search(
        r"<!-- example: (\S+) -->\n```python\n(.*?)```\n<!-- end of example -->", text, re.S
    )
    assert shown and shown[2] == (ROOT / shown[1]).read_text()


def test_the_levels_in_contributing_are_those_that_imports_are_held_to():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (table,) = re.findall(r"<!-- levels -->\n(.*?)<!-- end of levels -->", text, re.S)
    rows = [row.split("|")[1:3] for row in table.strip().splitlines()[2:]]
    assert [int(level) for level, _ in rows] == list(range(1, len(LEVELS) + 1))
    assert [set(re.findall(r"`(\S+)`", rooms)) for _, rooms in rows] == [
        rooms - {"ditbench"} for rooms in LEVELS
    ]


def test_the_python_of_the_readme_runs():
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.S | re.M)
    assert len(code.split("\n\n")[1].splitlines()) <= 10
    scope = {}
    exec(code, scope)
    shape, kind = re.search(r"# (\w+) (\[.*\])", code).group(2, 1)
    assert str(list(scope["images"].shape)) == shape and scope["images"].dtype == kind
    assert scope["timing"].size == scope["images"].shape[0]
    assert scope["attached"].counters()["fora.reused"] > 0


def commands_of(path):
    """The arguments of each `python run_bench.py` in a document."""
    for line in re.findall(r"python run_bench\.py([^`\n&|#]*)", path.read_text()):
        words = [word for word in shlex.split(line.strip().rstrip(".,;:")) if word != "[...]"]
        yield words if words and words[0] in COMMANDS else ["run", *words]


@pytest.mark.parametrize("path", [*GUIDES, *RESULTS], ids=name_of)
def test_every_command_line_in_the_documents_parses(path):
    for words in commands_of(path):
        try:
            args = parsers(COMMANDS)[0].parse_args(words)
        except UsageError as error:
            raise AssertionError(f"{words}: {error}") from None
        stacks = f"{getattr(args, 'methods', '')} {getattr(args, 'method', '')}"
        stacks = re.sub(r"\([^()]*\)", "", stacks)  # knobs are not methods
        known = {"none", "my_method", *PEERS, *names()}
        assert "<" in stacks or not set(re.findall(r"(?:^|[ ,+])([a-z]\w*)", stacks)) - known - {
            "None"
        }
        if getattr(args, "models", None):
            assert set(args.models.split(",")) <= {"tiny", "small", "full", *models()}


def test_the_readmes_show_every_command():
    shown = {words[0] for path in READMES for words in commands_of(path)}
    assert shown == COMMANDS.keys()
    (table,) = re.findall(r"\| command \|.*?\n\n", (ROOT / "README.md").read_text(), re.S)
    listed = {
        span.split()[0]
        for row in table.strip().splitlines()
        for span in re.findall(r"`([^`]+)`", row.split("|")[1])
    }
    assert listed == COMMANDS.keys()


def test_every_flag_in_the_documents_is_one_of_a_command():
    # of all commands, of `ruff format`, of `hf download`, and of pip
    known = {"--help", "--check", "--local-dir", "--no-deps"}
    for sub in (
        *parsers(COMMANDS)[1].values(),
        publishing.flags(),
        level_kernels.flags(),
        zoo.flags(),
        train.flags(),
    ):
        known |= {flag for action in sub._actions for flag in action.option_strings}
    for path in GUIDES:
        text = re.sub(r"<!--|-->", "", path.read_text())
        assert not set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - known, path


def test_every_program_named_in_the_documents_is_there():
    programs = {
        found for path in [*GUIDES, *RESULTS]
        for found in re.findall(r"python -m (ditbench[\w.]*\w)", path.read_text())
    }  # fmt: skip
    assert programs >= {"ditbench.reports.publishing", "ditbench.analysis.simulations"}
    for program in programs:
        assert importlib.util.find_spec(program), program


def anchors(path):
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", sorted({*READMES, *ROOT.glob("*.md")}), ids=name_of)
def test_every_relative_link_resolves(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            there = path.parent / file if file else path
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def test_every_guide_can_be_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        if path not in reached and path.suffix == ".md":
            reached.add(path)
            links = re.findall(r"\]\(([^)#\s]+\.md)[)#]", path.read_text())
            waiting += [Path(os.path.normpath(path.parent / link)) for link in links]
    assert reached >= {*GUIDES, *RESULTS}


def test_the_readme_is_short_and_begins_with_what_a_stranger_needs():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 100
    first = text.partition("\n## ")[0]
    assert all(part in first for part in ("pip install", "pytest", "overview.png", "verdicts"))
    assert first.count("python run_bench.py ") >= 4


@pytest.mark.parametrize("path", [*GUIDES, *RESULTS], ids=name_of)
def test_documents_wrap_at_100_columns(path):
    code = re.findall(r"^```.*?^```$", path.read_text() if path in GUIDES else "", re.S | re.M)
    lines = prose_of(path) + [line for block in code for line in block.splitlines()]
    assert not [line for line in lines if len(line) > 100]


@pytest.mark.parametrize("path", [*GUIDES, *RESULTS], ids=name_of)
def test_numbers_in_prose_have_their_leading_zeros(path):
    assert not re.findall(r"(?<![\w.)\]`*\"'])\.\d+\b.*", "\n".join(prose_of(path)))


RETIRED = (
    "told", "held against", "set against", "to be had", "cannot be had", "for want of",
    "come along", "comes along", "bears", "as it comes", "as they come", "clock", "wholly",
    "world", "picture", "pictures", "looks through", "reads as", "eight bits and",
)  # fmt: skip
"""Words of our own for which the field has others."""


@pytest.mark.parametrize("path", [*GUIDES, *RESULTS], ids=name_of)
def test_documents_use_the_terms_of_the_field(path):
    prose = re.sub(r"`[^`]*`", "", " ".join(prose_of(path)).lower())
    assert not [words for words in RETIRED if re.search(rf"\b{words}\b", prose)]


def test_every_method_and_metric_is_in_the_readme_of_its_folder():
    methods = re.findall(r"^\| (`.*?) \|", (ROOT / "methods/README.md").read_text(), re.M)
    built_in = {path.stem for path in (ROOT / "methods").glob("*.py")} - {"__init__"}
    assert {n for cell in methods for n in re.findall(r"`(\w+)`", cell)} == {"none", *built_in}
    text = (ROOT / "bench/metrics/README.md").read_text()
    assert not [m for m in metrics() if f"`{m}`" not in text and not m.startswith("vbench.")]
    shown = set(re.findall(r"`([a-z_]+\.[a-z]\w*(?:\.\w+)?)`", text))
    assert {name for name in shown if name.split(".")[0] in {m.split(".")[0] for m in metrics()}} <= {
        *metrics(), "constraints.txt",
    }  # fmt: skip


def copied(folder):
    """A checkout's documents and what their tables are made of."""
    for path in READMES:
        (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.relative_to(ROOT))
    for path in ROOT.glob("reports/published/*/"):
        ignored = shutil.ignore_patterns("README.md", "report", "plots")
        shutil.copytree(
            path, folder / path.relative_to(ROOT),
            ignore=ignored, dirs_exist_ok=True, copy_function=linked_or_copied,
        )  # fmt: skip
    return folder


def linked_or_copied(source, target):
    """A hundred megabytes of records that nobody writes into."""
    try:
        os.link(source, target)
    except OSError:  # the temporary folder is on another file system
        shutil.copy2(source, target)


def test_publishing_finds_every_table_up_to_date_and_makes_a_changed_one_again(tmp_path):
    copy = copied(tmp_path)
    assert rewrite(copy) == []
    for path in READMES:
        tables = BLOCK.findall(path.read_text())
        simulated = ROOT / "bench" / "simulation" / "README.md"
        with_tables = (*RESULTS, ROOT / "README.md", GUIDES[-1], simulated)
        assert (len(tables) >= 1) == (path in with_tables)
    text = (copy / "README.md").read_text()
    for path in documents(copy):  # the others' tables have just been made
        path.write_text("")
    (copy / "README.md").write_text(text.replace("| clashes |", "| stacks |"))
    command = [sys.executable, "-m", "ditbench.reports.publishing", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "rewrote README.md\n", done.stderr[-500:]
    assert (copy / "README.md").read_text() == text
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "all tables are up to date\n"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("<!-- table: verdicts", "<!-- table: verdict", "'verdict' is no kind of table"),
        ("-stacking +", "-gpu +", "-gpu is no run folder"),
        ("+2026-11-28-stacking-1024", "+2026-11-28-none", "-none is no run folder"),
        ("<!-- end of table -->\n", "", "1 tables begin and 0 end"),
        ("-stacking +", "-stacking again +", "README.md: "),
    ],
)
def test_publishing_names_a_marker_it_cannot_follow_and_writes_nothing(tmp_path, old, new, why):
    copy = copied(tmp_path)
    text = (copy / "README.md").read_text()
    assert old in text
    (copy / "README.md").write_text(text.replace(old, new).replace("| clashes |", "| stacks |"))
    before = (copy / "README.md").read_text()
    with pytest.raises(ValueError, match=re.escape(why)) as complaint:
        rewrite(copy)
    assert str(complaint.value).startswith("README.md: ")
    assert (copy / "README.md").read_text() == before


def test_the_first_table_of_the_readme_has_single_words():
    first = BLOCK.search((ROOT / "README.md").read_text())
    cells = [cell.strip() for row in first[0].splitlines()[4:-2] for cell in row.split("|")[2:-1]]
    assert len(cells) >= 12 and set(cells) <= {*VERDICTS, "-"}
    explained = set(re.findall(r"\*(\w+)\*:", (ROOT / "README.md").read_text()))
    assert explained == set(VERDICTS)


def test_the_figure_in_the_readme_is_that_of_the_published_numbers(tmp_path):
    (shown,) = re.findall(
        r"!\[[^]]*\]\((reports/published/[^/)]+)/plots/([^)]+)\.png\)",
        (ROOT / "README.md").read_text(),
    )
    drawn = run_figure(section_of(ROOT / shown[0]), tmp_path, shown[1])[0]
    kept, fresh = (
        np.asarray(Image.open(p).convert("RGB"), float)
        for p in (ROOT / shown[0] / "plots" / drawn.name, drawn)
    )
    assert kept.shape == fresh.shape and np.abs(kept - fresh).mean() < 0.5
