import json

import numpy as np
import pytest
import torch

from ditbench.records import facts, files, record

WHOLE = {
    "schema": record.SCHEMA, "key": "k", "model": "m", "family": "dit", "stack": "none",
    "methods": [], "status": "ok", "reason": "",
    "run": {}, "sampling": {}, "environment": {}, "timing": [], "memory": {}, "flops": {},
    "counters": {},
}  # fmt: skip


def run_folder(tmp_path, **cells):
    files.write_json(tmp_path / "spec.json", {"schema": record.SCHEMA, "cells": list(cells)})
    for key, text in cells.items():
        (tmp_path / "cells" / key).mkdir(parents=True)
        (tmp_path / "cells" / key / "record.json").write_text(text)
    return tmp_path


def test_a_damaged_record_is_named_and_the_rest_is_read_in_planned_order(tmp_path):
    b, a = (json.dumps(WHOLE | {"key": key}) for key in "ba")
    run = record.read_run(
        run_folder(
            tmp_path, b=b, half=b[:50], a=a, other=b, wrong=json.dumps(WHOLE | {"timing": "x"})
        )
    )
    assert [r["key"] for r in run.records] == ["b", "a"]
    assert len(run.damaged) == 3
    assert "half/record.json is damaged" in run.damaged[0]
    assert "its key is 'b', not the name of its folder" in run.damaged[1]
    assert "timing is missing or of the wrong type" in run.damaged[2]


def test_another_schema_version_is_refused_with_what_to_do(tmp_path):
    run_folder(tmp_path)
    files.write_json(tmp_path / "spec.json", {"schema": 99})
    with pytest.raises(
        ValueError,
        match=r"schema version 99 and this ditbench reads 1; use the version that wrote it",
    ):
        record.read_run(tmp_path)


def test_a_folder_without_spec_is_no_run_folder(tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        record.read_run(tmp_path)


def test_a_write_that_fails_leaves_the_old_document(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(path, {"a": float("nan")})
    assert record.read_json(path) == {"a": 1}


def test_damaged_files_are_set_aside_not_lost(tmp_path):
    for n in (1, 2):
        (tmp_path / "record.json").write_text("x")
        assert files.set_aside(tmp_path / "record.json").name == f"record.json.damaged-{n}"


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (3, 3), (0.5, 0.5), (True, True), ("text", "text"), (None, None), (np.float32(0.5), 0.5), (np.int64(7), 7), (np.bool_(True), True),
        (np.array(2.5), 2.5), (torch.tensor(3), 3), (torch.tensor(0.25, dtype=torch.bfloat16), 0.25), (10**300, 10**300),
        ([1, (np.int8(2), "x")], [1, [2, "x"]]), ({"a": np.float64(1)}, {"a": 1.0}),
    ],
)  # fmt: skip
def test_facts_become_what_json_knows(value, held):
    found = facts.plain("the note", value)
    assert json.loads(json.dumps(found, allow_nan=False)) == held and type(found) is type(held)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), "the note m.x is nan, and a record holds finite numbers"),
        (float("inf"), "the note m.x is inf, and"),
        (np.float32("-inf"), "the note m.x is -inf, and"),
        (torch.tensor(float("nan")), "the note m.x is nan, and"),
        (10**400, "the note m.x is an integer of 1329 bits, and a record holds finite numbers"),
        (object(), "the note m.x is a object, and a record holds numbers and texts"),
        (torch.zeros(2), "the note m.x is a Tensor, and"),
        (1j, "the note m.x is a complex, and"),
        ([0, float("nan")], "the note m.x, entry 1 is nan, and"),
        ({"a": [float("nan")]}, "the note m.x, entry a, entry 0 is nan, and"),
    ],
)
def test_facts_that_no_json_holds_are_named(value, told):
    with pytest.raises(ValueError) as error:
        facts.plain("the note m.x", value)
    assert str(error.value).startswith(told)
