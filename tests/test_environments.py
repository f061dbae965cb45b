"""A record holds the environment of every command that timed it, and times are judged by those of
the commands they are from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import ENVIRONMENT, STACKS, key_of, write_run

from ditbench.records.environment import differing
from ditbench.records.record import environment_of, environments_of, read_run
from ditbench.reports.sections.merge import unlike
from ditbench.reports.sections.reproduce import elsewhere
from ditbench.reports.sections.section import read_sections
from ditbench.reports.tables.sheet import circumstances

OTHER = ENVIRONMENT | {"threads": 7, "processor": "Another 4000"}


def change_record(folder, key, **fields):
    path = folder / "cells" / key / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def calls(session, seconds):
    return [
        {"session": session, "round": r, "batch": 1, "size": 2, "call_s": seconds * drift,
         "text_s": 0.001, "denoise_s": seconds * drift - 0.002, "decode_s": 0.001}
        for r, drift in enumerate((1.0, 1.01, 1.02))
    ]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """The baseline timed by two commands on two machines, the second twice as fast; one stack timed
    by the first, one added by the second, and one begun on the one and finished on the other."""
    folder = write_run(tmp_path / "run", stacks=STACKS[:4])
    none, first, added, split = (key_of("dit-tiny", stack) for stack, _ in STACKS[:4])
    both = {"s1": ENVIRONMENT, "s2": OTHER}
    change_record(folder, none, timing=calls("s1", 1.0) + calls("s2", 0.5), environments=both)
    change_record(folder, first, timing=calls("s1", 0.5), environments={"s1": ENVIRONMENT})
    change_record(
        folder, added, environment=OTHER, timing=calls("s2", 0.2), environments={"s2": OTHER}
    )
    change_record(
        folder, split, timing=calls("s1", 0.9)[:1] + calls("s2", 0.45)[1:], environments=both
    )
    return folder


def rows_of(folder):
    (section,) = read_sections([folder])
    return section, section.rows[:4]


def test_a_cell_added_in_another_environment_has_its_speed_up(run):
    section, rows = rows_of(run)
    _, first, added, _ = rows
    for row, speedup in ((first, 2.0), (added, 2.5)):
        assert row["speedup_call"]["value"] == pytest.approx(speedup, rel=0.02)
        assert not row["suspect"] and "environments" not in " ".join(row["notes"])
    assert [e["threads"] for e in section.environments(added)] == [7]
    assert circumstances(added, section.environments(added))["processor"] == "Another 4000"


def test_times_of_two_environments_are_said_to_be(run):
    section, (none, _, _, split) = rows_of(run)
    sentence = "timed in environments that differ in processor, threads, and its numbers are means"
    assert any(note.startswith(sentence) for note in none["notes"]) and not none["suspect"]
    assert any(note.startswith(f"suspect: {sentence}") for note in split["notes"])
    assert split["suspect"] and split["speedup_call"] is not None
    assert circumstances(split, section.environments(split))["threads"] == "2 / 7"
    assert " and Another 4000" in section.caption("dit-tiny")


def test_one_command_in_two_environments_gives_no_speed_up(run):
    change_record(run, key_of("dit-tiny", STACKS[1][0]), environments={"s1": OTHER})
    _, (_, first, added, _) = rows_of(run)
    assert first["speedup_call"] is None and added["speedup_call"]
    assert "environments that differ in processor, threads" in " ".join(first["notes"])


def test_records_without_environments_by_command_are_read_as_before(run):
    for stack, _ in STACKS[:4]:
        change_record(run, key_of("dit-tiny", stack), environments={}, environment=ENVIRONMENT)
    for record in read_run(run).records:
        assert environments_of(record) == [ENVIRONMENT]
        assert environment_of(record, "s2") == ENVIRONMENT
    _, rows = rows_of(run)
    assert all(row["speedup_call"] for row in rows if not row["baseline"])


def test_reproducing_goes_by_the_environment_that_is_most_like_this(run):
    of = {record["stack"]: record for record in read_run(run).records}
    split, first = (of[stack] for stack, _ in (STACKS[3], STACKS[1]))
    assert elsewhere(split, {}, OTHER) == elsewhere(split, {}, ENVIRONMENT) == []
    assert {row["field"] for row in elsewhere(first, {}, OTHER)} == {"processor", "threads"}


def test_runs_are_merged_by_all_environments_they_were_timed_in(run, tmp_path):
    other = write_run(tmp_path / "other", stacks=STACKS[4:6])
    one, two = (read_sections([folder])[0] for folder in (run, other))
    assert any(field.startswith("threads (") for field in unlike(one, two))


def test_differing_names_what_any_of_several_has_otherwise():
    assert differing(ENVIRONMENT) == differing(ENVIRONMENT, dict(ENVIRONMENT)) == []
    assert differing(ENVIRONMENT, ENVIRONMENT, OTHER) == ["processor", "threads"]


def test_a_real_cell_added_under_another_variable_keeps_its_speed_up(tmp_path):
    out = tmp_path / "run"
    flags = ["--models", "dit-tiny", "--num-samples", "4", "--batch-size", "2", "--rounds", "1",
             "--steps", "4", "--process", "round"]  # fmt: skip
    program = [sys.executable, str(Path(__file__).resolve().parents[1] / "run_bench.py")]
    for methods, threads in (("fora", "1"), ("fora,fewer_steps(steps=2)", "2")):
        subprocess.run(
            [*program, "run", *flags, "--methods", methods, "--out", str(out)],
            env=os.environ | {"OMP_NUM_THREADS": threads}, check=True, capture_output=True,
            timeout=300,
        )  # fmt: skip
    of = {record["stack"]: record for record in read_run(out).records}
    threads = {
        stack: [e["variables"].get("OMP_NUM_THREADS") for e in record["environments"].values()]
        for stack, record in of.items()
    }
    assert threads == {"none": ["1", "2"], "fora": ["1"], "fewer_steps(steps=2)": ["2"]}
    (section,) = read_sections([out])
    assert all(row["speedup_call"] for row in section.rows)
    (notes,) = (row["notes"] for row in section.rows if row["baseline"])
    assert any("variables" in note for note in notes), json.dumps(notes)
