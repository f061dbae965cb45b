"""Times are compared inside one command: what a later command adds to a run folder is timed beside
the baseline again."""

import json
import shutil

import pytest
from command import command

from ditbench.analysis.summary import read_scores, summarise
from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder
from ditbench.runner.plan import plan
from ditbench.runner.spec import Spec
from ditbench.runner.units import units_to_do
from ditbench.statistics import times

QUICK = ["--models", "dit-tiny", "--num-samples", "4", "--batch-size", "2", "--rounds", "2",
         "--steps", "8"]  # fmt: skip


def bench(out, methods):
    done = command("run", *QUICK, "--methods", methods, "--out", out)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def records(out):
    return {r["stack"]: r for r in read_run(out).records}


def rows(out):
    return {row["stack"]: row for row in summarise(read_run(out).records, read_scores(out))}


def slow_down(out, factor):
    """As if the machine had done other work during all that was measured so far."""
    for path in out.glob("cells/*/*.json"):
        document = json.loads(path.read_text())
        for entry in document["timing"]:
            entry |= {name: factor * s for name, s in entry.items() if name.endswith("_s")}
        path.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def one_method(tmp_path_factory):
    out = tmp_path_factory.mktemp("sessions") / "run"
    bench(out, "fora")
    return out


@pytest.fixture(scope="module")
def extended(one_method, tmp_path_factory):
    out = tmp_path_factory.mktemp("sessions") / "extended"
    shutil.copytree(one_method, out)
    slow_down(out, 50)
    bench(out, "fora,fewer_steps(steps=4)")
    return out


def test_a_cell_added_later_is_paired_with_the_baseline_of_its_own_command(extended):
    cells, of = records(extended), rows(extended)
    first, second = sorted({entry["session"] for entry in cells["none"]["timing"]})
    assert {entry["session"] for entry in cells["fora"]["timing"]} == {first}
    added = cells["fewer_steps(steps=4)"]
    assert {entry["session"] for entry in added["timing"]} == {second}
    beside = [entry for entry in cells["none"]["timing"] if entry["session"] == second]
    assert [(entry["round"], entry["batch"]) for entry in beside] == [(0, 1), (1, 1)]
    right = times.speedup(beside, added["timing"]).estimate.value
    assert of[added["stack"]]["speedup_call"]["value"] == pytest.approx(right)
    assert 1 < right < 10  # half the steps; 50 times as much by the first command's baseline
    wrong = [entry | {"session": second} for entry in cells["none"]["timing"][:2]]
    assert times.speedup(wrong, added["timing"]).estimate.value > 25


def test_seconds_of_a_row_agree_with_its_speed_up(extended):
    of = rows(extended)
    base = of["none"]["timing"]["call_s"]["value"]
    for stack in ("fora", "fewer_steps(steps=4)"):
        row = of[stack]
        ratio = base / row["timing"]["call_s"]["value"]
        assert ratio == pytest.approx(row["speedup_call"]["value"])


def test_another_load_in_another_command_is_no_drift(extended):
    of = rows(extended)
    assert all(row["drift"] is not None and row["drift"] < 10 for row in of.values())


def test_the_samples_and_the_first_rounds_stay_as_they_were(one_method, extended):
    for old in one_method.glob("cells/*/samples.safetensors"):
        assert (extended / old.relative_to(one_method)).read_bytes() == old.read_bytes()
    before, after = records(one_method)["none"], records(extended)["none"]
    for name in ("flops", "memory", "counters", "environment", "first_call_s", "status"):
        assert after[name] == before[name]


def test_the_same_command_again_times_nothing(extended):
    before = {p: p.stat().st_mtime_ns for p in extended.glob("cells/*/*")}
    bench(extended, "fora,fewer_steps(steps=4)")
    assert {p: p.stat().st_mtime_ns for p in extended.glob("cells/*/*")} == before


def cells_of(out, methods="fora,fewer_steps(steps=4)"):
    return plan(
        Spec(
            models=("dit-tiny",), methods=tuple(methods.split(",")), num_samples=4, batch_size=2,
            rounds=2, steps="8", out=str(out),
        )
    )  # fmt: skip


def to_do(out):
    units = units_to_do(cells_of(out), RunFolder(out))
    return {(str(unit.cell.stack), unit.round, unit.again) for unit in units}


def test_a_round_killed_before_its_baseline_is_timed_again_as_a_whole(extended, tmp_path):
    out = tmp_path / "killed"
    shutil.copytree(extended, out)
    assert to_do(out) == set()
    none, fora, _ = (cell.key for cell in cells_of(out))
    folder = RunFolder(out)
    for path in (*folder.timed_again(none), *folder.rounds(none), folder.record(none)):
        path.unlink()
    assert to_do(out) == {
        (stack, r, stack != "none")
        for stack in ("none", "fora", "fewer_steps(steps=4)")
        for r in (0, 1)
    }
    bench(out, "fora,fewer_steps(steps=4)")
    assert to_do(out) == set()
    newest = max(entry["session"] for entry in records(out)["none"]["timing"])
    for record in records(out).values():
        assert {e["round"] for e in record["timing"] if e["session"] == newest} == {0, 1}
    assert RunFolder(out).record(fora).exists()


def test_a_baseline_that_could_not_be_timed_again_leaves_no_wrong_speed_up(extended, tmp_path):
    out = tmp_path / "failed"
    shutil.copytree(extended, out)
    none, *_ = (cell.key for cell in cells_of(out))
    folder = RunFolder(out)
    for path in folder.timed_again(none):
        path.write_text(json.dumps({"status": "failed", "reason": "no memory", "seconds": 0.0}))
    record = json.loads(folder.record(none).read_text())
    record["timing"] = [
        entry for path in folder.rounds(none) for entry in json.loads(path.read_text())["timing"]
    ]
    folder.record(none).write_text(json.dumps(record))
    assert rows(out)["fewer_steps(steps=4)"]["speedup_call"] is None
    done = command("report", out)
    assert done.returncode == 0
    tables = "".join(path.read_text() for path in (out / "report").rglob("*.md"))
    assert "the baseline was not timed beside it by one command" in tables
    added = "fewer_steps(steps=4)"
    assert to_do(out) == {(stack, r, True) for stack in ("none", added) for r in (0, 1)}


def test_a_baseline_that_failed_is_not_waited_for(extended, tmp_path):
    out = tmp_path / "failed"
    shutil.copytree(extended, out)
    none, *_ = (cell.key for cell in cells_of(out))
    folder = RunFolder(out)
    for path in (*folder.rounds(none), *folder.timed_again(none)):
        path.unlink()
    folder.round(none, 0).write_text(json.dumps({"status": "failed", "reason": "no memory"}))
    assert to_do(out) == set()


def test_a_baseline_of_which_only_the_record_is_left_is_timed_again(one_method, tmp_path):
    out = tmp_path / "record"
    shutil.copytree(one_method, out)
    none = cells_of(out)[0].key
    folder = RunFolder(out)
    before = json.loads(folder.record(none).read_text())
    for path in folder.rounds(none):
        path.unlink()
    bench(out, "fora")
    assert json.loads(folder.record(none).read_text()) == before  # nothing is missing of these
    assert to_do(out) == {
        (stack, r, stack == "none") for stack in ("none", "fewer_steps(steps=4)") for r in (0, 1)
    }
    bench(out, "fora,fewer_steps(steps=4)")
    assert to_do(out) == set()
    after, of = records(out)["none"], rows(out)
    assert after["timing"][:2] == before["timing"] and len(after["timing"]) == 4
    assert len(after["environments"]) == 2 and after["seconds"] > before["seconds"]
    assert of["fora"]["speedup_call"] and of["fewer_steps(steps=4)"]["speedup_call"]
