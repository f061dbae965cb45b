import json

import pytest

from ditbench import record

WHOLE = {
    "schema": record.SCHEMA, "key": "k", "model": "m", "family": "dit", "stack": "none", "methods": [], "status": "ok", "reason": "",
    "run": {}, "sampling": {}, "environment": {}, "timing": [], "memory": {}, "flops": {}, "counters": {},
}  # fmt: skip


def run_folder(tmp_path, **cells):
    record.write_json(tmp_path / "spec.json", {"schema": record.SCHEMA, "cells": list(cells)})
    for key, text in cells.items():
        (tmp_path / "cells" / key).mkdir(parents=True)
        (tmp_path / "cells" / key / "record.json").write_text(text)
    return tmp_path


def test_a_damaged_record_is_named_and_the_rest_is_read_in_planned_order(tmp_path):
    whole = json.dumps(WHOLE | {"key": "b"})
    run = record.read_run(
        run_folder(tmp_path, b=whole, half=whole[:50], a=whole, wrong=json.dumps(WHOLE | {"timing": "x"}))
    )
    assert [r["key"] for r in run.records] == ["b", "b"]
    assert len(run.damaged) == 2
    assert "half/record.json is damaged" in run.damaged[0]
    assert "timing is missing or of the wrong type" in run.damaged[1]


def test_another_schema_version_is_refused_with_what_to_do(tmp_path):
    run_folder(tmp_path)
    record.write_json(tmp_path / "spec.json", {"schema": 99})
    with pytest.raises(ValueError, match=r"schema version 99 and this ditbench reads 1; use the version that wrote it"):
        record.read_run(tmp_path)


def test_a_folder_without_spec_is_no_run_folder(tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        record.read_run(tmp_path)


def test_a_write_that_fails_leaves_the_old_document(tmp_path):
    path = tmp_path / "x.json"
    record.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        record.write_json(path, {"a": float("nan")})
    assert record.read_json(path) == {"a": 1}


def test_damaged_files_are_set_aside_not_lost(tmp_path):
    for n in (1, 2):
        (tmp_path / "record.json").write_text("x")
        assert record.set_aside(tmp_path / "record.json").name == f"record.json.damaged-{n}"
