"""Attacks of the reliability audit on run folders, reports and output, each as it was found (V1 to
V13, and the low ones). Those on processes are in test_processes_under_attack.py."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from attacking import SECRET, attack, digest, outside, shown
from command import command
from report_runs import STACKS, edit, key_of, write_run
from safetensors.numpy import load_file, save_file

from ditbench.cli.parser import OK, SOME_FAILED, USAGE
from ditbench.extractors.references import describe
from ditbench.method.artifact import _read as read_artifact
from ditbench.models.folders import check_file, shards_of
from ditbench.models.weights import check_folder
from ditbench.records.checks import is_name
from ditbench.records.files import json_text, replacing, write_text
from ditbench.records.reading import DEEPEST, read_json
from ditbench.records.text import clean, one_line


def slow(*values):
    """Cases that say the same again, or take long."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


ROOT = Path(__file__).resolve().parents[2]
FORA = "fora(interval=3)"


@pytest.fixture
def run(tmp_path, undrawn_here):
    return write_run(tmp_path / "run", stacks=STACKS[:3], n=6)


@pytest.fixture
def elsewhere(tmp_path):
    return outside(tmp_path / "outside")


def record_of(run, stack=FORA):
    return run / "cells" / key_of("dit-tiny", stack) / "record.json"


@pytest.mark.parametrize("key", ["../../outside/samples", "other", *slow("/x", "..", "a\x00b", "")])
@pytest.mark.parametrize("words", [("report",), ("recommend",), *slow(("score",))])
def test_v1_a_key_that_is_not_the_folder_s_name_is_damage(run, elsewhere, words, key):
    edit(run, lambda record: record.update(key=key), stack=FORA)
    before = digest(elsewhere)
    done = attack(*words, run)
    assert digest(elsewhere) == before
    if words[0] != "recommend":
        assert done.returncode == SOME_FAILED
    assert "record.json is damaged" in " ".join((done.stdout + done.stderr).split())


def test_v1_cells_of_a_spec_are_names(run):
    document = json.loads((run / "spec.json").read_text())
    for cells in (["../../outside"], ["/"], [""], [".."]):
        (run / "spec.json").write_text(json.dumps(document | {"cells": cells}))
        done = attack("report", run)
        assert done.returncode == USAGE and "spec.json is damaged (cells[0] is" in done.stderr


@pytest.mark.parametrize("at", ["tables/speed.csv", "index.html", "tables", "plots", "", "grids"])
def test_v2_a_report_writes_through_no_link(run, elsewhere, at):
    link = run / "report" / at
    link.parent.mkdir(parents=True, exist_ok=True)
    target = elsewhere / "profile" if "." in at else elsewhere
    link.symlink_to(target) if at else (run / "report").symlink_to(target)
    before = digest(elsewhere)
    done = attack("report", run)
    assert digest(elsewhere) == before
    if "." in at:  # the link gave way to the file
        assert done.returncode == OK and not link.is_symlink() and link.is_file()
    else:
        assert done.returncode == USAGE and "is a link to" in done.stderr


@pytest.mark.parametrize("name", ["requests", "cells", "scores", "superseded"])
def test_v2_nothing_is_written_to_a_part_of_a_run_that_is_elsewhere(run, elsewhere, name):
    if (run / name).exists():
        (run / name).rename(run.with_name("moved"))
    (run / name).symlink_to(elsewhere)
    before = digest(elsewhere)
    done = attack("score", run)
    assert done.returncode == USAGE and "is a link out of the run folder" in done.stderr
    assert digest(elsewhere) == before


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_v2_the_lock_is_a_file_and_no_link(run, elsewhere, kind):
    lock, before = run / ".lock", digest(elsewhere)
    if kind == "link":
        lock.symlink_to(elsewhere / "profile")
    else:
        os.mkfifo(lock) if kind == "pipe" else lock.mkdir()
    done = attack("score", run)
    assert done.returncode == USAGE and ".lock cannot be locked" in done.stderr
    assert digest(elsewhere) == before


@pytest.mark.parametrize(
    "text", ["\x1b[31mred\x1b]0;title\x07a\x00b\r\n", "\ud800", *slow("x" * 10**6)]
)
def test_v5_no_text_of_a_cell_makes_a_run_unreportable(run, text):
    edit(run, lambda record: record.update(reason=text, status="failed"), stack=FORA)
    done = attack("report", run, "--json")
    assert done.returncode == SOME_FAILED
    for path in (run / "report").rglob("*"):
        if path.suffix in (".html", ".md", ".csv", ".tex"):
            assert shown(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    "name", ["spec.json", "record.json", "requests", "scores", "references.json"]
)
@pytest.mark.parametrize(
    "text", ["[]", "[" * 10**5, *slow("{}", "null", "3", '{"schema": 1, "x": []}')]
)
def test_v6_json_of_another_shape_is_a_sentence_that_names_the_file(run, name, text):
    path = {
        "record.json": record_of(run), "requests": run / "requests" / "dit-tiny.json",
        "scores": run / "scores" / f"{key_of('dit-tiny', FORA)}.safetensors",
    }.get(name, run / name)  # fmt: skip
    path.write_text(text)
    done = attack("report", run)
    said = " ".join((done.stdout + done.stderr).split())
    if name == "spec.json":
        assert "spec.json" in said if text != '{"schema": 1, "x": []}' else done.returncode == OK
        assert done.returncode == (OK if "x" in text else USAGE)
    elif name == "requests" or (name == "references.json" and text == "{}"):
        assert done.returncode == OK
    else:
        assert done.returncode == SOME_FAILED and path.name in said.replace(" ", "")


def test_a_number_beyond_all_bounds_is_damage(run):
    for number in ("NaN", "Infinity", "1e999", "9" * 400, "9" * 5000, "1e300", "-1"):
        text = record_of(run).read_text()
        record_of(run).write_text(text.replace('"seconds": 12.3', f'"seconds": {number}'))
        done = attack("recommend", run)
        assert "record.json is damaged" in done.stderr, number
        record_of(run).write_text(text)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_v6_scores_that_are_no_numbers_cost_their_own_cell(run, value):
    path = run / "scores" / f"{key_of('dit-tiny', FORA)}.safetensors"
    arrays = load_file(path)
    header = path.read_bytes()
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    document = json.loads(metadata["scores"])
    del document["checksums"]  # as a file of an older version, or of somebody else's making
    metadata["scores"] = json.dumps(document)
    arrays["align.shapes_v1"][2] = value
    save_file(arrays, path, metadata)
    done = attack("report", run, "--json")
    assert done.returncode == SOME_FAILED
    assert "NaN" not in done.stdout.splitlines()[-1]
    (model,) = json.loads(done.stdout.splitlines()[-1])["runs"][0]["models"]
    values = {row["stack"]: row["quality"]["align.shapes_v1"]["value"] for row in model["rows"]}
    assert values[FORA] is None and values["none"] is not None


@pytest.mark.parametrize(
    "words", [("plan", "--prompts"), ("plan", "--spec"), ("plan", "--reference"), ("report",)]
)
@pytest.mark.parametrize("text", ["[" * 200_000, '{"x":' * 200_000])
def test_depth_is_bounded(tmp_path, words, text):
    path = tmp_path / ("spec.toml" if "--spec" in words else "x.json")
    path.write_text("x = " + text if "--spec" in words else text)
    models = ["--models", "pixart-xl-2-512", "--weights", "random"] if words[0] == "plan" else []
    assert attack(*words, path, *models).returncode == USAGE


@pytest.mark.parametrize("words", [("report",), ("plan", "--out"), ("report", ".", "--out")])
def test_v10_names_and_places_that_no_system_has_are_a_sentence(run, tmp_path, words):
    for place in ("x" * 300, tmp_path / "run" / "spec.json" / "under", "a\x00b"):
        words = [run if word == "." else word for word in words]
        done = attack(*words, place)
        assert done.returncode == USAGE and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.slow
def test_v10_a_full_disk_is_a_sentence_and_the_old_page_stays(run):
    attack("report", run)
    page = (run / "report" / "index.html").read_bytes()
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900)); import signal;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import run_bench;"
        f"from ditbench.cli import main; sys.exit(main(['report', {str(run)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == USAGE and done.stderr.startswith("ditbench: "), done.stderr
    assert done.stderr.count("\n") == 1
    assert (run / "report" / "index.html").read_bytes() == page
    assert not list((run / "report").rglob("*.partial"))


@pytest.mark.parametrize(
    "name", ["command.txt", "record", "requests", "samples", "scores", "readings"]
)
def test_v12_nothing_outside_of_the_folder_gets_into_a_report(run, elsewhere, name):
    key = key_of("dit-tiny", FORA)
    path = {
        "record": record_of(run), "requests": run / "requests" / "dit-tiny.json",
        "samples": run / "cells" / key / "samples.safetensors",
        "scores": run / "scores" / f"{key}.safetensors", "readings": run / "readings.safetensors",
    }.get(name, run / name)  # fmt: skip
    path.unlink(missing_ok=True)
    path.symlink_to(elsewhere / "x.json")
    attack("report", run)
    for written in (run / "report").rglob("*"):
        assert not written.is_file() or SECRET.encode() not in written.read_bytes()


def test_v12_a_model_is_a_name(run, elsewhere):
    (elsewhere / "requests.json").write_bytes((run / "requests" / "dit-tiny.json").read_bytes())
    for model in (str(elsewhere / "requests"), "../../outside/requests", "", ".", "a/b"):
        edit(run, lambda record, model=model: record.update(model=model))
        done = attack("report", run)
        assert done.returncode == SOME_FAILED
        assert "model is missing or of the wrong type" in " ".join(done.stdout.split())
        edit(run, lambda record: record.update(model="dit-tiny"))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nowhere"])
@pytest.mark.parametrize("name", ["record.json", "requests", "scores", "samples", "spec.json"])
@pytest.mark.parametrize("words", ["recommend", *slow("report", "score")])
def test_v13_what_is_no_file_is_not_opened(run, kind, name, words):
    key = key_of("dit-tiny", FORA)
    path = {
        "record.json": record_of(run), "requests": run / "requests" / "dit-tiny.json",
        "samples": run / "cells" / key / "samples.safetensors",
        "scores": run / "scores" / f"{key}.safetensors",
    }.get(name, run / name)  # fmt: skip
    path.unlink()
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "nowhere":
        path.symlink_to(run / "not there")
    else:
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
    attack(words, run)


def test_two_records_with_one_key_are_one_row_and_a_sentence(run, tmp_path):
    record = json.loads(record_of(run).read_text())
    lines = tmp_path / "published"
    lines.mkdir()
    (lines / "spec.json").write_text(json.dumps({"schema": 1, "files": {"records.jsonl": "x"}}))
    (lines / "records.jsonl").write_text(f"{json.dumps(record)}\n{json.dumps(record)}\n")
    done = attack("report", lines, "--out", tmp_path / "report")
    assert done.returncode == SOME_FAILED
    assert f"its key {record['key']} is there already" in " ".join(done.stdout.split())


def test_new_files_have_the_umask_s_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "x.safetensors") as partial:
            save_file({"x": np.zeros(3)}, partial)
        write_text(tmp_path / "x.txt", "\ud800 é")
    finally:
        os.umask(before)
    for name in ("x.safetensors", "x.txt"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
    assert (tmp_path / "x.txt").read_bytes() == "? é".encode()


def test_a_name_is_no_path_and_text_is_fit_to_be_shown():
    assert all(map(is_name, ("dit-tiny--none-64271a4b", "a.b", "..x", "ü")))
    wrong = ("", ".", "..", "a/b", "/", "\\", "a\x00", "a\n", "x" * 201, "\ud800", None, 3)
    assert not any(map(is_name, wrong))
    assert clean("a\x1b[31mb\x1b]0;t\x07c\x07\u202e\ud800\td\r\ne\n") == "abc???\td\ne\n"
    assert clean("x" * 20, 10) == "xxxxxx ..." and one_line("a \n\n b\t c") == "a b c"
    assert json.loads(json_text({"a": [float("nan"), 1.5, (float("inf"),)]})) == {
        "a": [None, 1.5, [None]]
    }


def test_levels_of_a_document_are_counted(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[" * DEEPEST + "]" * DEEPEST)
    read_json(path)
    path.write_text("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))
    with pytest.raises(ValueError, match=f"x.json is damaged .more than {DEEPEST} levels deep"):
        read_json(path)


JSONS = ("[]", "3", "null", '"x"', "{", "[" * 10**5, '{"x": NaN}', "\xff", '{"": [[]]}')
"""Texts that are no document of ours."""
INDICES = (*JSONS, '{"transformer": []}', '{"transformer": ["x"]}', '{"transformer": [{}, 3]}')
SHARDS = (
    *JSONS,
    "{}",
    '{"weight_map": null}',
    '{"weight_map": {"x": 3}}',
    '{"weight_map": {"x": "../x"}}',
)
HEADERS = (
    *JSONS, '{"x": null}', '{"x": {}}', '{"x": {"data_offsets": [0]}}', '{"x": {"data_offsets": [0, "1"]}}',
    '{"x": {"data_offsets": [0, 1e9]}}',
)  # fmt: skip
MANIFESTS = (
    *JSONS, "{}", '{"files": null}', '{"files": []}', '{"files": {}}', '{"files": {"../x": "y"}}',
    '{"files": {}, "recipe": {}, "below": "", "seconds": -1, "notes": {}}',
    '{"files": {}, "recipe": {}, "below": "", "seconds": 1, "notes": {"iterations": "x"}}',
)  # fmt: skip
METADATA = (*JSONS, "{}", '{"schema": 1}', '{"schema": 1, "extractor": 1, "key": 2, "n": 3}')


def header(text):
    return len(text.encode()).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize("text", INDICES)
def test_the_index_of_a_pipeline_of_another_shape_is_a_sentence(tmp_path, text):
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ValueError, match=r"model_index.json (is damaged|cannot)") as error:
        check_folder(tmp_path)
    assert "\n" not in str(error.value)
    words = ("plan", "--models", "dit-xl-2-256", "--weights", tmp_path, "--device", "cpu")
    attack(*words)


@pytest.mark.parametrize("text", SHARDS)
def test_shards_of_another_shape_are_a_sentence(tmp_path, text):
    (tmp_path / "x.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"x.safetensors.index.json is damaged"):
        shards_of(tmp_path / "x.safetensors.index.json")


@pytest.mark.parametrize("text", HEADERS)
def test_headers_of_another_shape_are_a_sentence(tmp_path, text):
    (tmp_path / "x.safetensors").write_bytes(header(text))
    with pytest.raises(ValueError, match=r"x.safetensors is damaged"):
        check_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize("text", MANIFESTS)
def test_manifests_of_another_shape_are_a_sentence(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"is damaged"):
        read_artifact(tmp_path)


@pytest.mark.parametrize("text", METADATA)
def test_references_of_another_shape_are_a_sentence(tmp_path, text):
    path = tmp_path / "x.safetensors"
    save_file({"x": np.zeros(3)}, path, {"reference": text})
    with pytest.raises(ValueError, match=r"x.safetensors is (damaged|no reference)"):
        describe(path)


LEAVING = {
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "leaves": ("import os; os._exit(0)", "SystemExit: 0"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "endless": ("raise ValueError('x\\n' * 6000)", "ValueError: x"),
    "long": ("raise ValueError('x' * 10**6)", "ValueError: xxx"),
    "unprintable": (
        "class E(Exception):\n    def __str__(self): raise self\nraise E", "its text is not available",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAVING)
def test_a_plug_in_that_ends_the_program_is_an_error(tmp_path, name):
    source, words = LEAVING[name]
    (tmp_path / "p.py").write_text(source)
    done = attack("list", "methods", "--plugin", tmp_path / "p.py")
    assert done.returncode == USAGE and words in done.stderr and done.stderr.count("\n") == 1


RAISING = """
from ditbench.method import Stage, method

@method("attacks_{name}", family="cache", stage=Stage.SCHEDULE, claims={{"block-schedule"}})
class Attacks:
    \"\"\"Fails before anything runs.\"\"\"
    {member}
    def attach(self, pipeline, at):
        pass
"""


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("adapt", "def adapt(self, sampling): raise KeyError('x')"),
        ("nothing", "def adapt(self, sampling): return None"),
        ("inputs", "def inputs(self): raise KeyError('x')"),
        ("exits", "def adapt(self, sampling): raise SystemExit(0)"),
    ],
)
def test_a_method_that_fails_while_it_is_planned_is_a_sentence(tmp_path, name, member):
    (tmp_path / "p.py").write_text(RAISING.format(name=name, member=member))
    words = ("--plugin", tmp_path / "p.py", "--methods", f"attacks_{name}", "--models", "dit-tiny")
    done = command("plan", *words, "--json")
    assert "Traceback" not in done.stderr
    if name == "nothing":  # which is no exception: the cell is refused
        assert (
            done.returncode == OK and "adapt returns a NoneType, and should a Sampl" in done.stdout
        )
    else:
        assert done.returncode == USAGE and done.stderr.count("\n") == 1, done.stderr
