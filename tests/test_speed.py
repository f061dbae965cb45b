"""`speed`: sampler loops of stacks in turn, beside the FLOPs they execute."""

import json
from dataclasses import replace

import pytest
import torch
from narrow import PARTS, narrow

from ditbench.cli import speed as commands
from ditbench.cli.commands import main
from ditbench.method.stack import Stack
from ditbench.models.encoderless import build_encoderless, changes_of
from ditbench.models.table import select
from ditbench.profiling import loops as timing
from ditbench.profiling.counting import count_model
from ditbench.profiling.loops import Loop, least_seconds, loop_rows, time_loops

PIXART = replace(select("pixart-tiny")[0], steps=4)
HERE = {"device": "cpu", "dtype": "float32", "batch": 2, "rounds": 2}
FAILING = """
from typing import Any

from ditbench.method import Attachment, Stage, method


@method("failing", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="none")
class Failing:
    \"\"\"Breaks down in its second generation.\"\"\"

    def attach(self, pipeline: Any, at: Attachment) -> None:
        starts: list[int] = []

        def start() -> None:
            starts.append(1)
            if len(starts) == 2:
                raise RuntimeError("out of luck")

        at.on_start(start)
"""


def short(name):
    """A narrow full-size model of few steps."""
    model, changes = narrow(name)
    return replace(model, steps=4, changes={**model.changes, **changes})


def loop(text, flops, *seconds, **more):
    return Loop(Stack.parse(text), flops, list(seconds), **more)


def test_rows_say_what_share_of_the_saved_flops_arrives():
    none, fora = loop("none", 80, 4.0, 5.0, 4.5), loop("fora", 40, 2.5, 2.0, 3.0)
    rows = loop_rows(PIXART, [none, fora])
    assert rows[0] | {"model": "", "stack": ""} == {
        "model": "", "stack": "", "gflop": 80e-9, "loop_s": 4.0, "flops_ratio": 1, "speedup": 1,
        "lowest": 1, "highest": 1, "realised": 1, "against": None, "speedup_against": None,
        "realised_against": None, "status": "ok", "reason": "",
    }  # fmt: skip
    # round by round: 1.6, 2.5, 1.5
    assert [rows[1][k] for k in ("loop_s", "flops_ratio", "speedup", "lowest", "highest")] == [
        2.0, 2.0, 1.6, 1.5, 2.5
    ]  # fmt: skip
    assert rows[1]["realised"] == pytest.approx(0.8)


def test_a_compiled_stack_is_compared_with_what_compiles_alone():
    none, alone = loop("none", 80, 4.0), loop("compile", 80, 3.0)
    both = loop("fora+compile", 40, 2.0)
    rows = loop_rows(PIXART, [none, alone, both])
    assert rows[1]["against"] is None and rows[2]["against"] == "compile"
    assert rows[2]["speedup"] == 2 and rows[2]["speedup_against"] == 1.5
    assert rows[2]["realised_against"] == 0.75
    # another baseline, for all stacks but itself
    other = loop("fora", 40, 2.5)
    rows = loop_rows(PIXART, [none, other, both], Stack.parse("fora"))
    assert [row["against"] for row in rows] == ["fora", None, "fora"]
    assert rows[2]["speedup_against"] == rows[2]["realised_against"] == 1.25


@pytest.mark.parametrize("status", ["refused", "failed"])
def test_what_was_not_timed_wholly_has_no_time(status):
    none = loop("none", 80, 4.0, 4.0)
    lost = loop("fora", 40, 2.0, status=status, reason="it broke")
    row = loop_rows(PIXART, [none, lost])[1]
    assert row["status"] == status and row["reason"] == "it broke"
    assert all(row[k] is None for k in ("loop_s", "flops_ratio", "speedup", "realised"))
    # nor is anything compared with a baseline that was not
    assert loop_rows(PIXART, [lost, none])[1]["speedup"] is None


def test_loops_execute_the_flops_that_are_counted():
    stacks = [Stack.parse(text) for text in ("none", "fora(interval=2)", "diffsparse")]
    none, fora, diffsparse = time_loops(PIXART, stacks, **HERE)
    for one in (none, fora):
        counted = count_model(PIXART, stack=one.stack)["flops"]
        assert one.status == "ok" and one.flops == 2 * counted, one
        assert len(one.seconds) == 2 and all(t > 0 for t in one.seconds)
    assert fora.flops < none.flops
    # prepared for 20 steps, and these are four
    assert diffsparse.status == "refused" and "run_bench.py prepare" in diffsparse.reason


def test_a_stack_that_breaks_down_is_a_row_and_ends_no_other(tmp_path, capsys):
    plugin = tmp_path / "failing.py"
    plugin.write_text(FAILING)
    flags = ["--models", "pixart-tiny", "--steps", "3", "--rounds", "1", "--plugin", str(plugin)]
    assert main(["speed", *flags, "--methods", "failing,cudagraph,fora", "--json"]) == 3
    out = capsys.readouterr().out
    rows = {row["stack"]: row for row in json.loads(out.splitlines()[-1])}
    assert rows["failing"]["status"] == "failed"
    assert rows["failing"]["reason"] == "RuntimeError: out of luck"
    assert rows["cudagraph"]["status"] == "refused" and "CUDA" in rows["cudagraph"]["reason"]
    assert rows["none"]["status"] == rows["fora"]["status"] == "ok"
    assert "failing: failed: RuntimeError: out of luck" in " ".join(out.split())


@pytest.mark.parametrize("name", PARTS)
def test_full_size_models_are_built_without_encoders(name):
    model = short(name)
    stacks = [Stack.parse(text) for text in ("none", "fora(interval=2)")]
    loops = {depth: time_loops(model, stacks, depth=depth, **HERE) for depth in (1, None)}
    for depth, (none, fora) in loops.items():
        assert none.status == fora.status == "ok", (none, fora)
        counted = count_model(model, changes=changes_of(model, depth))["flops"]
        assert none.flops == 2 * counted
        assert fora.flops < none.flops
    assert loops[1][0].flops < loops[None][0].flops
    pipe = build_encoderless(model, "cpu", "bfloat16", 1)
    assert pipe.transformer.dtype == torch.bfloat16
    assert all(v is None for k, v in pipe.components.items() if k.startswith("text_encoder"))


def test_nothing_is_left_on_the_pipeline(monkeypatch):
    made = []
    build = build_encoderless
    monkeypatch.setattr(
        "ditbench.models.encoderless.build_encoderless",
        lambda *given: made.append(build(*given)) or made[-1],
    )
    time_loops(short("flux-1-dev"), [Stack(), Stack.parse("fora")], **HERE)
    (pipe,) = made
    assert "decode" not in vars(pipe.vae)
    assert not pipe.transformer._forward_pre_hooks
    assert not any("forward" in vars(m) for m in pipe.transformer.modules())


def test_what_compiles_compiles_before_it_is_timed(monkeypatch):
    calls = []
    monkeypatch.setattr(
        timing, "_seconds", lambda pipe, attached, *_: calls.append(len(attached.attachments)) or 1
    )
    monkeypatch.setattr(timing, "count_generation", lambda _, call, alike: call() and Counted())
    stacks = [Stack(), Stack.parse("compile(backend='eager')")]
    first = stacks[1].methods[0].first_calls
    time_loops(PIXART, stacks, **HERE)
    assert calls == [0, 0, *[1] * (1 + first + 1), 0, *[1] * (first + 1)]


class Counted:
    """FLOPs of a loop."""

    flops = 7


def test_a_transformer_larger_than_the_memory_is_refused_and_no_other(
    monkeypatch, tmp_path, capsys
):
    small = short("dit-xl-2-256")
    monkeypatch.setattr("ditbench.records.environment.memory_bytes", lambda: 20_000_000_000)
    monkeypatch.setattr("ditbench.models.table.select", lambda _: [small, *select("flux-1-dev")])
    file = tmp_path / "speed.json"
    flags = ["--models", "full", "--dtype", "bfloat16", "--rounds", "1", "--threads", "1"]
    assert main(["speed", *flags, "--out", str(file)]) == 0
    sentence = "its transformer has 23.8 GB of weights in bfloat16, and this machine has 20.0 GB"
    assert sentence in " ".join(capsys.readouterr().out.split())
    document = json.loads(file.read_text())
    assert [row["status"] for row in document["rows"]] == ["ok", "refused"]
    assert sentence in document["rows"][1]["reason"]
    assert document["environment"]["threads"] == 1 and document["environment"]["processor"]
    assert document["settings"] == {
        "dtype": "bfloat16", "batch": 1, "rounds": 1, "depth": None, "steps": None,
        "row_kernels": "auto",
    }  # fmt: skip


def test_loops_that_take_minutes_are_announced(monkeypatch, capsys):
    model = short("dit-xl-2-256")
    flops = count_model(model)["flops"]
    assert least_seconds(model, 3, 2, 4, None, 10.0) == flops * 2 * 3 * 5 / 10
    monkeypatch.setattr("ditbench.models.table.select", lambda _: [model])
    for rate, announced in ((1e15, False), (flops / 100, True), (None, False)):
        monkeypatch.setattr(
            "ditbench.profiling.probe.probe", lambda *_, r=rate: {"flops": r, "copied": None}
        )
        assert main(["speed", "--models", "dit-xl-2-256", "--rounds", "1"]) == 0
        error = capsys.readouterr().err
        assert ("all loops take at least 3 min on cpu" in error) == announced
        assert ("--rounds 1 takes fewer calls" in error) == announced


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--models pixart-tiny --depth 1", "--depth: it is for full-size models, and pixart-tiny is none"),
        ("--rounds 0", "--rounds: 0 is less than 1"),
        ("--depth 0 --models full", "--depth: 0 is less than 1"),
        ("--threads 0", "--threads: 0 is less than 1"),
        ("--steps 0", "--steps: 0 is less than 1"),
        ("--batch-size 0", "--batch-size: 0 is less than 1"),
        ("--models flux-9", "no model 'flux-9'; did you mean flux-"),
        ("--methods fara", "no method 'fara'; did you mean fora"),
        ("--against fara", "no method 'fara'; did you mean fora"),
        ("--out nowhere/at.json", "--out: there is no folder nowhere to write at.json to"),
        ("--dtype int3", "'int3' is none of float32, bfloat16, float16"),
    ],
)  # fmt: skip
def test_wrong_flags_are_one_sentence(flags, sentence, capsys):
    assert main(["speed", *flags.split()]) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1


def test_threads_are_as_before_afterwards():
    before = torch.get_num_threads()
    with commands._threads(before + 1) as there:
        assert there == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with commands._threads(None) as there:
        assert there == before
