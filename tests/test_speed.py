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
PLUGIN = """
from typing import Any

from ditbench.method import Attachment, Stage, method


@method("leaving", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="none")
class Leaving:
    \"\"\"Leaves another forward behind.\"\"\"

    def attach(self, pipeline: Any, at: Attachment) -> None:
        pipeline.transformer.transformer_blocks[0].forward = lambda hidden, *_, **__: hidden


@method(
    "lasting", family="cache", stage=Stage.WEIGHTS, claims={"weights"}, paper="none", reversible=False,
)
class Lasting:
    \"\"\"Cannot be taken off.\"\"\"

    def attach(self, pipeline: Any, at: Attachment) -> None:
        del pipeline.transformer.transformer_blocks[1:]


@method("spoiling", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="none")
class Spoiling:
    \"\"\"Makes what are no numbers.\"\"\"

    def attach(self, pipeline: Any, at: Attachment) -> None:
        for block in at.blocks:
            at.reroute(block, lambda run, streams: tuple(float("nan") * x for x in run(streams)))


@method("idling", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="none")
class Idling:
    \"\"\"Does nothing.\"\"\"

    def attach(self, pipeline: Any, at: Attachment) -> None:
        pass


STARTS: list[int] = []


@method("failing", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="none")
class Failing:
    \"\"\"Breaks down in its fourth generation.\"\"\"

    def attach(self, pipeline: Any, at: Attachment) -> None:
        def start() -> None:
            STARTS.append(1)
            at.count("starts")
            if len(STARTS) == 4:
                raise ValueError("out of luck")

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
        "model": "", "stack": "", "gflop": 80e-9, "loop_s": 4.0, "rounds_s": [4.0, 5.0, 4.5], "flops_ratio": 1, "speedup": 1,
        "lowest": 1, "highest": 1, "realised": 1, "against": None, "speedup_against": None,
        "realised_against": None, "status": "ok", "reason": "",
    }  # fmt: skip
    # round by round: 1.6, 2.5, 1.5
    assert [rows[1][k] for k in ("loop_s", "flops_ratio", "speedup", "lowest", "highest")] == [
        2.0, 2.0, 1.6, 1.5, 2.5
    ]  # fmt: skip
    assert rows[1]["realised"] == pytest.approx(0.8)


def test_a_remark_is_made_once_and_takes_nothing_away():
    one = loop("fora", 1, 1.0, reason="in place of that")
    for _ in range(2):
        one.remark("it is idle")
    assert one.reason == "in place of that; it is idle"


def test_a_compiled_stack_is_compared_with_what_compiles_alone():
    none, alone = loop("none", 80, 4.0), loop("compile", 80, 3.0)
    both = loop("fora+compile", 40, 2.0)
    rows = loop_rows(PIXART, [none, alone, both])
    assert rows[1]["against"] is None and rows[2]["against"] == "compile"
    assert rows[2]["speedup"] == 2 and rows[2]["speedup_against"] == 1.5
    assert rows[2]["realised_against"] == 0.75
    assert rows[2]["lowest"] is None  # one round has no range
    # another baseline, for all stacks but itself
    other = loop("fora", 40, 2.5)
    rows = loop_rows(PIXART, [none, other, both], Stack.parse("fora"))
    assert [row["against"] for row in rows] == ["fora", None, "fora"]
    assert rows[2]["speedup_against"] == rows[2]["realised_against"] == 1.25


@pytest.mark.parametrize("status", ["refused", "failed"])
def test_what_was_not_timed_in_every_round_has_no_numbers(status):
    none, lost = loop("none", 80, 4.0, 4.0), loop("fora", 40, 2.0)
    lost.ends(status, "it broke")
    row = loop_rows(PIXART, [none, lost], Stack.parse("fora"))[1]
    assert row["status"] == status and row["reason"] == "it broke"
    assert all(row[k] is None for k in ("gflop", "loop_s", "flops_ratio", "speedup", "realised"))
    # nor is anything compared with it
    _, second = loop_rows(PIXART, [lost, none])
    assert second["speedup"] is None
    assert loop_rows(PIXART, [none, lost], Stack.parse("fora"))[0]["against"] is None


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


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """A file of methods that misbehave."""
    file = tmp_path_factory.mktemp("plugin") / "misbehaving.py"
    file.write_text(PLUGIN)
    return file


def rows_of(capsys, plugin, methods, code, *flags):
    flags = ["--models", "pixart-tiny", "--steps", "3", "--plugin", str(plugin), *flags]
    assert main(["speed", *flags, "--methods", methods, "--json"]) == code
    out = capsys.readouterr().out
    rows = {row["stack"]: row for row in json.loads(out.splitlines()[-1])}
    assert rows["none"]["status"] == "ok"
    return rows, " ".join(out.split())


def test_a_stack_that_breaks_down_is_a_row_and_ends_no_other(plugin, capsys):
    # counted, warmed up and timed once; then it breaks down
    rows, out = rows_of(capsys, plugin, "failing,cudagraph,fora", 3, "--rounds", "2")
    assert rows["failing"]["status"] == "failed" and rows["failing"]["gflop"] is None
    assert rows["failing"]["reason"] == "ValueError: out of luck"
    assert rows["cudagraph"]["status"] == "refused" and "CUDA" in rows["cudagraph"]["reason"]
    assert rows["fora"]["status"] == "ok"
    assert "failing: failed: ValueError: out of luck" in out
    # what is refused is no failure
    rows_of(capsys, plugin, "cudagraph,fora", 0, "--rounds", "1")


def test_nothing_that_a_stack_leaves_reaches_another(plugin, capsys):
    rows, _ = rows_of(capsys, plugin, "leaving,lasting,fora", 3, "--rounds", "2")
    assert rows["leaving"]["status"] == "failed"
    assert "left a changed transformer.transformer_blocks.0.forward" in rows["leaving"]["reason"]
    assert rows["lasting"]["status"] == "refused"
    assert "lasting: cannot be taken off again" in rows["lasting"]["reason"]
    alone = count_model(replace(PIXART, steps=3), stack=Stack.parse("fora"))["flops"]
    assert rows["fora"]["gflop"] == pytest.approx(alone / 1e9)


def test_what_did_nothing_or_made_no_numbers_is_no_success(plugin, capsys):
    rows, _ = rows_of(capsys, plugin, "idling,spoiling", 3, "--rounds", "1")
    assert rows["idling"]["status"] == "inert" and rows["idling"]["speedup"]
    assert rows["idling"]["reason"] == "idling changed nothing and counted no event"
    assert rows["spoiling"]["status"] == "failed"
    assert rows["spoiling"]["reason"] == "ValueError: the latents are not finite numbers"


def test_methods_that_are_prepared_have_what_stands_for_them_at_full_size():
    model = short("pixart-alpha-256")
    none, diffsparse = time_loops(model, [Stack(), Stack.parse("diffsparse")], **HERE)
    assert diffsparse.status == "ok" and diffsparse.flops < none.flops
    assert str(diffsparse.stack) == "diffsparse(allocator='transferred')"
    assert diffsparse.reason.startswith("in place of diffsparse, ")
    rows = loop_rows(model, [none, diffsparse], Stack.parse("diffsparse"))
    assert rows[0]["against"] == "diffsparse(allocator='transferred')"


def test_the_text_of_full_size_models_does_not_go_by_the_order_of_stacks():
    model = short("flux-1-dev")
    stacks = [Stack.parse(text) for text in ("none", "lazy_queries", "top_tiles")]
    flops = [
        {str(one.stack): one.flops for one in time_loops(model, order, **(HERE | {"rounds": 1}))}
        for order in (stacks, stacks[::-1])
    ]
    assert flops[0] == flops[1] and all(flops[0].values())


def test_a_model_that_cannot_be_built_has_rows(monkeypatch):
    def build(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("ditbench.models.encoderless.build_encoderless", build)
    (none,) = time_loops(short("flux-1-dev"), [Stack()], **HERE)
    assert none.status == "failed" and none.reason == "RuntimeError: out of memory"


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
    # counted, warmed up, timed; and a round later
    assert calls == [0, 0, 0, *[1] * (1 + first + 1), 0, *[1] * (first + 1)]


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
    assert main(["speed", *flags, "--out", str(file)]) == 3
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
    assert least_seconds(model, 3, 2, 4, None, 10.0) == flops * 2 * 3 * 6 / 10
    monkeypatch.setattr("ditbench.models.table.select", lambda _: [model])
    for rate, announced in ((1e15, False), (flops / 100, True), (None, False)):
        monkeypatch.setattr(
            "ditbench.profiling.probe.probe", lambda *_, r=rate: {"flops": r, "copied": None}
        )
        assert main(["speed", "--models", "dit-xl-2-256", "--rounds", "1"]) == 0
        error = capsys.readouterr().err
        assert ("all loops take at least 5 min on cpu" in error) == announced
        assert ("--depth 2 or --steps 6 takes fewer calls" in error) == announced


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
        ("--against=", "--against: nothing is given"),
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
