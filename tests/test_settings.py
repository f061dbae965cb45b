"""Settings: one list of their names, stored as requested, with what was made beside them."""

from dataclasses import fields

import pytest

from ditbench.records.record import Done, Record, TimedCall, read_run
from ditbench.records.settings import DEFAULTS, ROW_SETTINGS, WORKLOADS, Settings
from ditbench.reports.sections.reproduce import asked_of
from ditbench.runner.execute import execute
from ditbench.runner.plan import plan
from ditbench.runner.spec import Spec, from_table

OLDER = ("settings", "samples", "batch")


def test_a_spec_has_every_setting_with_its_default():
    assert {name: getattr(Spec(), name) for name in DEFAULTS} == DEFAULTS == Settings().requested()
    assert DEFAULTS.keys() == {f.name for f in fields(Settings)}
    assert set(ROW_SETTINGS) < DEFAULTS.keys()


def test_keys_hold_all_settings_but_threads_processes_shards_and_what_the_sampling_has():
    assert DEFAULTS.keys() - Spec().settings().keys() == {
        "threads", "process", "shard", *WORKLOADS
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "samples", "batch"),
    [("dit-tiny", 16, 4), ("pixart-tiny", 16, 4), ("flux-tiny", 16, 4), ("wan-tiny", 4, 1)],
)
def test_a_record_has_settings_as_requested_and_what_was_made(tmp_path, model, samples, batch):
    """`hub` refuses the tiny models, so that nothing is run."""
    table = {
        "models": [model], "weights": "hub", "num_samples": 16, "batch_size": 4, "rounds": 1,
        "threads": 1, "out": str(tmp_path / "run"),
    }  # fmt: skip
    spec = from_table(table, Spec())
    run = read_run(execute(plan(spec), "a command"))
    (record,) = run.records
    assert record.keys() == Record.__annotations__.keys() - {
        "left_behind",
        "compilation",
    }  # nothing was
    assert record["run"].keys() == Done.__annotations__.keys()
    assert record["settings"] == spec.requested()
    assert (record["samples"], record["batch"]) == (samples, batch)
    again = from_table(asked_of(record, run.spec["spec"]), Spec())
    assert again.requested() == spec.requested()
    assert [cell.key for cell in plan(again)] == [record["key"]]
    older = {name: value for name, value in record.items() if name not in OLDER}
    older["sampling"] = {"frames": 2 if model == "wan-tiny" else 1}
    again = from_table(asked_of(older, {}), Spec())
    assert [cell.key for cell in plan(again)] == [record["key"]]


def test_timed_calls_of_a_record_are_those_of_the_sampler():
    from ditbench.profiling.latency import Timing

    sampler = {f.name for f in fields(Timing)}
    assert TimedCall.__annotations__.keys() == sampler | {"session", "round", "batch"}
