"""Whole JSON with a field missing, or of another type, in the files of a run: a sentence that names
file and field, never a traceback, and nothing is lost."""

import copy
import json
import shutil

import pytest
from command import command
from report_runs import STACKS, write_run

from ditbench.cli.parser import OK, SOME_FAILED, USAGE
from ditbench.records import checks
from ditbench.records.record import (
    check_not_published,
    is_published,
    read_record,
    read_round,
    read_run,
)
from ditbench.reports.answers.compare import Gates, compare
from ditbench.reports.publishing.records import publish
from ditbench.reports.sections.reproduce import command_of, elsewhere
from ditbench.reports.sections.section import read_sections
from ditbench.reports.tables.speed_quality import quality, speed
from ditbench.reports.tables.stacking import stacking_frame

OTHERS = (None, "x", "", -1, 0, 2.5, True, [], {}, [[]], {"x": {}}, float("nan"))


def fields(document, at=()):
    """The paths of all fields of a document, of lists the first two entries."""
    if isinstance(document, dict):
        entries = list(document.items())
    elif isinstance(document, list):
        entries = list(enumerate(document))[:2]
    else:
        return
    for name, value in entries:
        yield (*at, name)
        yield from fields(value, (*at, name))


def damaged(document):
    """The document with one field missing, or something else in its place, and which."""
    for path in list(fields(document)):
        for other in (*OTHERS, ...):
            changed = copy.deepcopy(document)
            inside = changed
            for name in path[:-1]:
                inside = inside[name]
            if other is ...:
                del inside[path[-1]]
            elif inside[path[-1]] == other:
                continue
            else:
                inside[path[-1]] = other
            yield path, other, changed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "run", stacks=STACKS[:3], n=6)


def read(folder, again=False):
    """What reports read of a run, without the drawing; `again`: where a record is left out as
    damaged, all the others were read before."""
    if again and (run := read_run(folder)).damaged:
        return run
    (section,) = read_sections([folder])
    speed(section), quality(section), stacking_frame(section)
    section.caption("dit-tiny")
    for record in section.records.values():
        command_of(record, section.spec)
        elsewhere(record, section.spec, {})
    compare(section, section, Gates())
    return section


@pytest.mark.parametrize("stack", [0, 2])
def test_no_field_of_a_record_that_is_missing_or_another_breaks_a_report(run, tmp_path, stack):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    path = sorted(folder.glob("cells/*/record.json"))[stack]
    whole = json.loads(path.read_text())
    named = 0
    for field, other, document in damaged(whole):
        path.write_text(json.dumps(document))
        try:
            section = read(folder, again=named > 0)
        except ValueError as error:
            raise AssertionError(f"{field} {other!r}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{field} {other!r}: {type(error).__name__} {error}") from error
        for sentence in section.damaged:
            named += 1
            assert "record.json" in sentence and "\n" not in sentence, (field, sentence)
    assert named > 200


@pytest.mark.parametrize("name", ["spec.json", "requests/dit-tiny.json"])
def test_no_field_of_a_run_s_other_files_breaks_a_report(run, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    path = folder / name
    for field, other, document in damaged(json.loads(path.read_text())):
        path.write_text(json.dumps(document))
        try:
            read(folder).requests("dit-tiny")
        except ValueError as error:
            assert name in str(error), (field, other, error)
        except Exception as error:
            raise AssertionError(f"{field} {other!r}: {type(error).__name__} {error}") from error


def test_a_sentence_names_file_and_field(tmp_path):
    call = {"round": 0, "batch": 0, "size": 1, "call_s": 1.0, "text_s": 0.1, "denoise_s": 0.8}
    path = tmp_path / "cells" / "k" / "round-1.json"
    path.parent.mkdir(parents=True)
    measured = {
        "status": "ok", "reason": "", "round": 1, "seconds": 2.0, "sampling": {},
        "environment": {}, "timing": [call | {"decode_s": 0.1}, call], "counters": {},
    }  # fmt: skip
    path.write_text(json.dumps(measured))
    part = r"round-1.json is damaged \(timing\[1\].decode_s is missing or of the wrong type\)"
    with pytest.raises(ValueError, match=part):
        read_round(path)
    path.write_text(json.dumps(measured | {"timing": [], "status": "great"}))
    with pytest.raises(ValueError, match="status 'great' is none of"):
        read_round(path)
    path.write_text(json.dumps({"status": "failed", "reason": "no memory", "seconds": 1.0}))
    assert read_round(path)["reason"] == "no memory"


@pytest.mark.parametrize(
    ("value", "shape", "field"),
    [
        ({"a": 1}, {"a": int}, ""), ({"a": True}, {"a": int}, "a"), ({}, {"a": int}, "a"),
        ({}, {"a?": int}, ""), ({"a": None}, {"a?": int}, "a"),
        ({"a": [1, "x"]}, {"a": [int]}, "a[1]"), ({"a": {"b": 1}}, {"a": {"b": str}}, "a.b"),
        ({"a": {"b": 1}}, {"a": checks.Values(str)}, "a.b"), ([], {"a": int}, "it"),
        ({"a": float("inf")}, {"a": checks.NUMBER}, "a"), ({"a": 1}, {"a": checks.NUMBER}, ""),
        ({"a": None}, {"a": ([int], checks.MAYBE)}, ""), ({"a": 1}, {"a": ([int], checks.MAYBE)}, "a"),
    ],
)  # fmt: skip
def test_the_first_field_that_is_wrong_is_found(value, shape, field):
    assert checks.wrong(value, shape) == field


QUICK = ["--models", "dit-tiny", "--num-samples", "2", "--batch-size", "2", "--rounds", "2",
         "--steps", "8"]  # fmt: skip


def test_a_run_measures_again_what_is_damaged_keeps_it_and_says_so(tmp_path):
    out = tmp_path / "run"
    flags = ["run", *QUICK, "--methods", "fewer_steps(steps=4)", "--out", out]
    assert command(*flags).returncode == OK
    first, second = sorted(out.glob("cells/*/round-1.json"))
    record = first.with_name("record.json")
    changed = json.loads(first.read_text())
    del changed["timing"][0]["call_s"]
    first.write_text(json.dumps(changed))
    done = command("report", out)
    assert done.returncode == OK  # the record is whole
    document = json.loads(record.read_text()) | {"methods": [{}]}
    record.write_text(json.dumps(document))
    done = command("report", out)
    assert done.returncode == SOME_FAILED
    said = " ".join((done.stderr + done.stdout).split())  # wherever its lines are broken
    assert "methods[0].name is missing or of the wrong type" in said
    done = command(*flags)
    assert done.returncode == OK, done.stderr
    assert "round-1.json is damaged (timing[0].call_s is missing" in done.stderr
    assert "set aside as round-1.json.damaged-1, measured again" in done.stderr
    assert json.loads(first.with_name("round-1.json.damaged-1").read_text()) == changed
    assert json.loads(first.with_name("record.json.damaged-1").read_text()) == document
    assert read_record(record)["status"] == "ok" and read_round(first) and read_round(second)
    (out / "spec.json").write_text(json.dumps({"schema": 1, "cells": "none"}))
    done = command(*flags)
    assert done.returncode == USAGE
    assert "spec.json is damaged (cells is missing or of the wrong type)" in done.stderr


def test_a_published_run_without_its_records_is_damage_and_not_written_to(run, tmp_path):
    published = tmp_path / "published"
    publish(run, published)
    (published / "records.jsonl").unlink()
    assert is_published(published)
    (section,) = read_sections([published])
    assert any("records.jsonl" in sentence for sentence in section.damaged)
    assert command("report", published, "--out", tmp_path / "report").returncode == SOME_FAILED
    with pytest.raises(ValueError, match="is a published run"):
        check_not_published(published)
