"""Run folders in hostile hands: whatever a file of them has become, commands that read them answer
in a sentence and touch nothing else."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from attacking import SECRET, attack, digest, outside
from mutating import mutate, restore
from report_runs import STACKS, key_of, write_run

from ditbench.cli.parser import USAGE

SEED = int(os.environ.get("DITBENCH_FUZZ_SEED", "1"))
"""Other cases with another."""
CELLS = (*STACKS[:3], STACKS[8])
ALL = {key_of("dit-tiny", stack) for stack, _ in CELLS}
WRITTEN = ("report", "readings.safetensors")
"""What commands that read a run write into its folder."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, undrawn):
    """A run, the same once more, and a folder that has nothing to do with them."""
    folder = tmp_path_factory.mktemp("fuzz")
    run = write_run(folder / "run", stacks=CELLS, n=6)
    (run / "references.json").write_text(
        json.dumps({"dit-tiny": {"tf2015": {"path": str(folder / "outside" / "x"), "sha256": ""}}})
    )
    shutil.copytree(run, folder / "other")
    return run, folder / "other", outside(folder / "outside")


def keys_of(document):
    """The cells that a report has rows of."""
    models = [model for run in document["runs"] for model in run["models"]]
    return {row["key"] for model in models for row in model["rows"]}


def commands(run, other, rng):
    """What is asked of a run, the quick more often."""
    return rng.choice(
        [("recommend", run)] * 4 + [("recommend", run, "--json")] + [("reproduce", run, "none")] * 2
        + [("reproduce", run, "fora(interval=3)"), ("compare", run, other), ("compare", other, run)]
        + [("report", run, "--json"), ("report", run, other)]
    )  # fmt: skip


def case(number, runs):
    """One file changed, one command."""
    run, other, elsewhere = runs
    rng = random.Random(f"{SEED} {number}")
    files = [
        p for p in run.rglob("*") if p.is_file() and not str(p.relative_to(run)).startswith(WRITTEN)
    ]
    path = rng.choice(sorted(files))
    content = path.read_bytes()
    how = mutate(path, rng, elsewhere)
    before = digest(run, WRITTEN), digest(other, WRITTEN), digest(elsewhere)
    words = commands(run, other, rng)
    try:
        done = attack(*words)
        if path.name != "spec.json" and words[0] in ("recommend", "report"):
            assert done.returncode != USAGE, done.stderr  # one file costs its own cell
        if path.name != "spec.json" and words == ("report", run, "--json"):
            rows = keys_of(json.loads(done.stdout.splitlines()[-1]))
            assert rows >= ALL - {path.parent.name}, (rows, done.stdout)
        assert (digest(run, WRITTEN), digest(other, WRITTEN), digest(elsewhere)) == before
        for page in run.glob("report*/**/*"):
            if page.suffix in (".html", ".md", ".csv", ".tex"):
                text = page.read_text(encoding="utf-8")
                assert SECRET not in text and "\x1b" not in text, page
    except BaseException as error:
        error.add_note(f"case {number}: {path.relative_to(run)}, {how}, {words[0]}")
        raise
    finally:
        restore(path, content)
        for written in run.glob("report*"):
            shutil.rmtree(written)


def test_no_file_of_a_run_breaks_a_command_that_reads_it(runs):
    for i in range(30):
        case(i, runs)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_no_file_of_a_run_breaks_a_command_that_reads_it_in_many_cases(part, runs):
    for i in range(1000 + 100 * part, 1100 + 100 * part):
        case(i, runs)


def test_the_cases_change_what_they_should(runs):
    """Most cases are damage: a harness that changed nothing would find nothing."""
    run, _, elsewhere = runs
    path = next(iter(run.glob("cells/*/record.json")))
    content, changed = path.read_bytes(), 0
    for i in range(60):
        mutate(path, random.Random(f"changes {i}"), elsewhere)
        changed += not path.is_file() or Path(path).read_bytes() != content
        restore(path, content)
    assert changed > 50
