"""A damaged run folder, taken up by the command that made it: whatever one file has become, the
command answers in a sentence, and what it leaves are the samples and scores of an undamaged run."""

import json
import os
import platform
import random
import shutil

import pytest
from attacking import attack, digest, outside
from in_process import in_process
from mutating import mutate

from ditbench.cli.parser import OK, USAGE
from ditbench.records.run_folder import RunFolder
from ditbench.testing.endurance import compare

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("DITBENCH_FUZZ_SEED", "1"))
"""Other cases with another."""
WORDS = ["run", "--models", "dit-tiny", "--methods", "fewer_steps(steps=1)", "--steps", "2"]
WORDS += ["--num-samples", "2", "--batch-size", "1", "--rounds", "1", "--threads", "1", "--shard"]
KINDS = {"whole": "2", "divided": "1"}
"""Runs by the samples of a shard."""
GONE = {"host": platform.node(), "pid": 2**22 + 1, "session": "x", "since": "x"}
"""No process has this number."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, undrawn):
    """Runs of both kinds that nothing happened to, a place for what is damaged, and a folder that
    has nothing to do with them."""
    folder = tmp_path_factory.mktemp("resuming")
    with in_process():
        for kind, size in KINDS.items():
            made = attack(*WORDS, size, "--out", folder / kind, seconds=300)
            assert made.returncode == OK
            shutil.rmtree(folder / kind / "report")
            divided = RunFolder(folder / kind).all_shards()
            assert len(divided) == (4 if kind == "divided" else 0)
            for tar in divided:  # what a process that was killed leaves
                tar.with_suffix(".lease-0").write_text(json.dumps(GONE))
            (folder / kind / ".lock").write_text(json.dumps(GONE))
        outside(folder / "outside")
        yield folder


def take_up(runs, kind, change):
    """The answer of the same command in a copy of a run in which `change(folder, elsewhere)` damaged
    a file."""
    run, elsewhere = runs / "damaged", runs / "outside"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(runs / kind, run)
    change(run, elsewhere)
    before = digest(elsewhere), digest(runs / kind)
    done = attack(*WORDS, KINDS[kind], "--out", run)
    assert (digest(elsewhere), digest(runs / kind)) == before
    if done.returncode == OK:
        assert not (differing := compare(runs / kind, run)["differing"]), differing
    return done


def case(number, runs):
    """One file of a run damaged at random, the run taken up."""
    rng = random.Random(f"{SEED} {number}")
    kind = rng.choice(sorted(KINDS))
    files = sorted(p.relative_to(runs / kind) for p in (runs / kind).rglob("*") if p.is_file())
    name, how = rng.choice(files), ""

    def change(run, elsewhere):
        nonlocal how
        how = mutate(run / name, rng, elsewhere)

    try:
        done = take_up(runs, kind, change)
        # what the folder was made with cannot be made again, nor is a lock that is no file removed
        may_refuse = name.name in ("spec.json", ".lock")
        assert done.returncode == OK or (may_refuse and done.returncode == USAGE), done.stderr
    except BaseException as error:
        error.add_note(f"case {number}: {kind}, {name}, {how}")
        raise


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def folder(path):
    path.unlink()
    path.mkdir()


def link(to):
    def change(path):
        path.unlink()
        path.symlink_to(to)

    return change


def other_values(path):
    """Whole arrays of the right shapes, as after a loss of power or a flipped bit."""
    content = bytearray(path.read_bytes())
    content[-4:] = bytes(b ^ 1 for b in content[-4:])
    path.write_bytes(content)


def other_world(path):
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"world": "?"}), "utf-8")


FOUND = (
    ("divided", "cells/*none*/samples/00001.tar", link("00001.tar")),
    ("divided", "cells/*none*/samples/00001.tar", pipe),
    ("divided", "cells/*none*/samples/00001.json", folder),
    ("divided", "cells/*none*/samples/00000.tar", link("/dev/zero")),
    ("whole", "cells/*none*/samples.safetensors", pipe),
    ("whole", "cells/*none*/samples.safetensors", other_values),
    ("whole", "cells/*none*/round-0.json", link("nothing")),
    ("whole", "cells/*none*/record.json", other_world),
    ("whole", "features/*none*.safetensors", other_values),
    ("whole", "scores/*none*.safetensors", other_values),
    ("whole", "scores/*none*.safetensors", folder),
    ("whole", "command.txt", folder),
)
"""Each was a hang, a refusal, or damaged values in a result."""


@pytest.mark.parametrize(("kind", "pattern", "change"), FOUND)
def test_what_was_found_is_made_again(runs, kind, pattern, change):
    done = take_up(runs, kind, lambda run, _: change(next(run.glob(pattern))))
    assert done.returncode == OK, done.stderr
    assert pattern == "command.txt" or "set aside" in done.stderr


@pytest.mark.parametrize("part", range(4))
def test_a_damaged_folder_is_taken_up_in_many_cases(part, runs):
    for i in range(1000 + 50 * part, 1050 + 50 * part):
        case(i, runs)
