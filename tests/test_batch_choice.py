"""The batch size that is chosen for full-size models, what a plan says of a GPU, and cells whose
memory runs out."""

import json
import re

import pytest
from command import command

from ditbench.cli.forecasting import gpu_for
from ditbench.records.record import read_run
from ditbench.runner.plan import plan, rebuild
from ditbench.runner.spec import Spec, states

FULL = ("dit-xl-2-256", "flux-1-dev")
STACKS = "diffsparse,toca,taylorseer,distill,int8,fora,teacache,fewer_steps,distill+diffsparse"
LIMITED = '''
import torch
from ditbench.method import Stage, method

@method("limited", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"})
class Limited:
    """Runs out of memory above two samples."""
    def attach(self, pipeline, at):
        def route(run, hidden):
            if at.now.samples > 2:
                raise torch.OutOfMemoryError("planted")
            at.count("runs")
            return run()
        at.reroute(at.sublayers[0], route)
'''


def planned(*more, models=FULL):
    done = command("plan", "--models", ",".join(models), "--methods", STACKS, "--json",
                   "--weights", "random", *more)  # fmt: skip
    return done, json.loads(done.stdout.splitlines()[-1])


def test_a_plan_says_hours_memory_and_batch_of_every_cell():
    """None of it is simulated anew: the budget for that is nothing."""
    from unittest import mock

    with mock.patch("ditbench.cli.forecasting.BUDGET", 0.0):
        done, rows = planned("--gpu", "a100")
    assert len(rows) == 20 and "not estimated" not in done.stdout
    by = {(r["model"], r["stack"].partition("(")[0]): r for r in rows}
    assert all(r["peak_gb"] > 0 and r["hours"] > 0 for r in rows)
    for model in FULL:
        assert len({r["batch"] for r in rows if r["model"] == model}) == 1
    none, steps = by["flux-1-dev", "none"], by["flux-1-dev", "fewer_steps"]
    assert 30 < none["peak_gb"] < 40 and none["hours"] == pytest.approx(2 * steps["hours"], rel=0.1)
    assert by["flux-1-dev", "teacache"]["hours"] == none["hours"]
    assert "hours at most" in by["flux-1-dev", "teacache"]["reason"]
    caption = " ".join(done.stdout.split())
    assert "NVIDIA A100 SXM 80 GB in bfloat16, simulated" in caption
    begun = sum(r["hours"] for r in rows if "has not been prepared" not in r["reason"]
                or "runs in its place" in r["reason"])  # fmt: skip
    total = re.search(r"simulated: ([\d.e+-]+) hours at the least", caption)
    assert float(total[1]) == pytest.approx(begun, rel=0.1)


def test_what_does_not_fit_is_said_and_a_batch_that_was_requested_stays():
    done, rows = planned("--gpu", "rtx4090")
    flux = [r for r in rows if r["model"] == "flux-1-dev"]
    little = [r for r in flux if r["stack"] == "int8"]
    assert all("to spare" in r["reason"] and 24 < r["peak_gb"] < 25.8 for r in little)
    assert all(
        "does not fit" in r["reason"] and r["hours"] is None for r in flux if r not in little
    )
    assert all(r["batch"] == 1 for r in flux)
    assert "flux-1-dev: batch size 1 (no stack fits" in " ".join(done.stdout.split())
    done, rows = planned("--gpu", "h100", "--batch-size", "5")
    assert {r["batch"] for r in rows} == {5} and "batch size" not in done.stdout


def test_flux_with_its_parts_moved_in_turn_fits_a_card_of_24_gib():
    """diffusers' users run it so: 24.3e9 bytes of 24564 MiB."""
    _, rows = planned(
        "--gpu", "rtx4090", "--offload", "model", "--device", "cuda", "--dtype", "bf16",
        models=FULL[1:],
    )  # fmt: skip
    none = next(r for r in rows if r["stack"] == "none")
    assert none["hours"] > 0 and 24 < none["peak_gb"] < 24564 * 2**20 / 1e9


def test_a_plan_of_tiny_models_is_as_it_was():
    rows = json.loads(command("plan", "--models", "tiny", "--json").stdout.splitlines()[-1])
    assert {"peak_gb", "hours"}.isdisjoint(rows[0]) and {r["batch"] for r in rows} == {4, 16}


def test_what_is_not_known_and_takes_too_long_is_not_estimated(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("ditbench.cli.forecasting.BUDGET", 0.01)
    done = command("plan", "--models", "dit-xl-2-256", "--methods", "fora(interval=7)", "--json",
                   "--weights", "random", "--device", "cuda")  # fmt: skip
    row = json.loads(done.stdout.splitlines()[-1])[1]
    assert row["hours"] is None
    hint = "python run_bench.py estimate --models dit-xl-2-256 --methods 'fora(interval=7)'"
    assert hint in row["reason"]


def test_a_chosen_batch_is_in_key_and_settings_as_if_it_had_been_requested():
    spec = Spec(models=FULL, weights="random", batches=("dit-xl-2-256=8", "flux-1-dev=2"))
    dit, flux = plan(spec)
    for cell, batch in ((dit, 8), (flux, 2)):
        (asked,) = plan(Spec(models=(cell.model.name,), weights="random", batch_size=batch))
        assert (cell.batch_size, cell.key) == (batch, asked.key)
        assert cell.own.requested() == asked.spec.requested()
        assert rebuild(spec, cell.model.name, "none").key == cell.key
    # the folder is named after what was asked for, so that another GPU's choice goes on in it
    assert spec.folder == Spec(models=FULL, weights="random").folder
    assert states("gpu", "batch_size") and not states("gpu", "seed")


def test_a_run_that_was_begun_keeps_its_batches(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    document = {"schema": 1, "spec": {"batches": ["dit-xl-2-256=2"]}}
    (out / "spec.json").write_text(json.dumps(document))
    (row, *_), done = reversed(planned("--out", out, models=FULL[:1]))
    assert row["batch"] == 2
    assert "batch size 2 (that of the run that lies there)" in " ".join(done.stdout.split())


def test_the_gpu_is_the_one_that_is_named_or_an_h100():
    assert gpu_for("l20", "cpu").memory == 46068 * 2**20
    assert gpu_for(None, "cpu").title.startswith("NVIDIA H100")
    with pytest.raises(ValueError, match="--gpu: no GPU 'h101'"):
        gpu_for("h101", "cpu")


@pytest.mark.parametrize("process", ["cell", "round"])
def test_a_cell_whose_memory_runs_out_is_measured_with_half_the_batch(tmp_path, process):
    (tmp_path / "limited.py").write_text(LIMITED)
    done = command(
        "--models", "dit-tiny", "--methods", "limited,fora", "--num-samples", 8, "--batch-size", 8,
        "--rounds", 2, "--steps", 6, "--on-oom", "halve", "--process", process,
        "--plugin", tmp_path / "limited.py", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = {r["stack"]: r for r in read_run(tmp_path / "run").records}
    limited, none = records["limited"], records["none"]
    assert (limited["status"], limited["batch"], limited["run"]["batch_size"]) == ("ok", 2, 2)
    assert limited["settings"]["batch_size"] == none["batch"] == records["fora"]["batch"] == 8
    assert limited["notes"]["batch"].startswith("2: memory ran out with the planned one")
    assert "batch" not in none["notes"]
    assert {entry["size"] for entry in limited["timing"]} == {2}
    assert {entry["round"] for entry in limited["timing"]} == {0, 1}


def test_a_cell_whose_batch_was_requested_fails_where_memory_runs_out(tmp_path):
    (tmp_path / "limited.py").write_text(LIMITED)
    done = command(
        "--models", "dit-tiny", "--methods", "limited", "--num-samples", 4, "--batch-size", 4,
        "--rounds", 1, "--steps", 6, "--plugin", tmp_path / "limited.py",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 3
    (limited,) = (r for r in read_run(tmp_path / "run").records if r["stack"] == "limited")
    assert limited["status"] == "oom" and "try --batch-size below 4" in limited["reason"]
    assert command("--on-oom", "half").returncode == 2


def test_what_the_gpu_itself_has_no_kernels_for_is_refused_in_the_plan():
    done = command("plan", "--models", "flux-1-dev", "--methods", "fp8", "--weights", "random", "--device",
                   "cuda", "--dtype", "bf16", "--gpu", "a100", "--json")  # fmt: skip
    none, fp8 = json.loads(done.stdout.splitlines()[-1])
    assert none["status"] == "planned" and fp8["status"] == "refused"
    assert fp8["reason"].startswith("refused there: ") and "float8" in fp8["reason"]
