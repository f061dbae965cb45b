"""`blocks`: times of blocks by level, what follows for schedules, and schedules that spend them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from narrow import narrow

from ditbench import ROOT
from ditbench.acceleration.caching import block_benchmark as benchmark
from ditbench.acceleration.caching import timing
from ditbench.acceleration.caching.block_times import BlockTimes, Times, Work
from ditbench.acceleration.caching.budget import DENSE
from ditbench.acceleration.caching.level_times import lists_of
from ditbench.acceleration.caching.schedule import LEVELS
from ditbench.acceleration.caching.timing import least_times, work_of
from ditbench.cli import blocks as commands
from ditbench.cli.commands import main
from ditbench.method.stack import Stack
from ditbench.models.loading import load
from ditbench.models.sublayers import sublayers
from ditbench.models.table import select

PIXART = select("pixart-tiny")[0]
KINDS = ("self", "cross", "mlp")


def work(ms):
    return Work(seconds=ms / 1e3, flops=10, moved=20)


def made_up(added, reused=1.0, rest=2.0, name="transformer_blocks"):
    """Times in which a level of a kind adds `added[kind][level]` ms."""
    levels = {
        (kind, level): work(ms) for kind, row in added.items() for level, ms in zip(LEVELS[1:], row, strict=True)
    }  # fmt: skip
    block = BlockTimes(name=name, kinds=tuple(added), whole={"reused": work(reused)}, levels=levels)
    return Times(blocks=(block,), rest=rest / 1e3, about={"model": "m", "batch": 1})


def test_a_schedule_takes_what_its_levels_and_reused_blocks_take():
    times = made_up({"self": (1, 2, 3, 4), "mlp": (5, 6, 7, 8)})
    names = ("0.self", "0.mlp", "1.self", "1.mlp")
    lists = ("transformer_blocks",) * 4
    table = times.table(names, lists)
    assert (table == np.array([[0, 1, 2, 3, 4], [0, 5, 6, 7, 8]] * 2) * 1_000_000).all()
    chosen = np.array([[4, 4, 4, 4], [0, 1, 2, 0]])
    # a step: 2 ms beside two reused blocks of 1 ms
    assert times.predicted(chosen, names, lists) == pytest.approx(
        (2 * (2 + 2 * 1) + 24 + 5 + 2) / 1e3
    )
    assert times.predicted(chosen, names, lists, calls=2) == pytest.approx(0.078)
    with pytest.raises(ValueError, match=r"no 'cross' of transformer_blocks, so 0.cross has none"):
        times.table(("0.cross",), lists[:1])


def test_times_are_read_as_they_were_written_and_nothing_else_is(tmp_path):
    times, file = made_up({"self": (1, 2, 3, 4)}), tmp_path / "times.json"
    times.write(file)
    again = Times.read(file)
    one = (("0.self",), ("transformer_blocks",))
    assert (again.table(*one) == times.table(*one)).all()
    assert (again.rest, dict(again.about)) == (times.rest, dict(times.about))
    good = json.loads(file.read_text())
    for change, words in (
        ({"format": "other"}, "its format is not"),
        ({"levels": [0, 1]}, "its levels are not"),
        ({"rest": -1}, "-1 is no time"),
        ({"rest": float("nan")}, "nan is no time"),
        ({"blocks": [{"name": "x", "reused": 1, "added": {"self": [0, 1]}}]}, "2 levels of self"),
        ({"blocks": 3}, "a number is not where one belongs"),
        ({"blocks": [{"name": "x", "reused": 1}]}, "holds no whole times: 'added' is missing"),
    ):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=words):
            Times.read(file)
    with pytest.raises(ValueError, match=r"there are no times .*blocks --out makes them"):
        Times.read(tmp_path / "absent.json")


def test_the_least_of_calls_in_turn_and_what_they_compute_and_move():
    x, layer, order = torch.ones(4, 8), torch.nn.Linear(8, 16, bias=False), []

    def prepared(name):
        def before():
            order.append(name)
            return lambda: layer(x)

        return before

    times = least_times({"a": prepared("a"), "b": prepared("b")}, 3, "cpu")
    assert order == ["a", "b"] * 4 and all(0 <= t.seconds < 1 for t in times.values())
    with torch.no_grad():
        flops, moved = work_of(prepared("a"))
    assert (flops, moved) == (2 * 4 * 8 * 16, 4 * (4 * 8 + 8 * 16 + 4 * 16))


class Queue:
    """A GPU's timeline: what is launched waits until what was launched before is done."""

    def __init__(self, monkeypatch):
        self.host = self.free = 0.0
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = max(gpu.free, gpu.host)

            def query(self):
                return gpu.host >= self.at

            def elapsed_time(self, later):
                return 1e3 * (later.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.busy(cycles / 2e9))
        monkeypatch.setattr(timing, "of_host", lambda: self.host)

    def wait(self, _=None):
        self.host = max(self.host, self.free)

    def busy(self, seconds):
        self.free = max(self.free, self.host) + seconds

    def call(self, host, device, *, waits=False):
        def run():
            for _ in range(10):
                self.host += host / 10
                self.busy(device / 10)
            if waits:
                self.wait()

        return lambda: run


def test_on_a_gpu_host_and_device_are_timed_apart(monkeypatch):
    gpu = Queue(monkeypatch)
    runs = {
        "host decides": gpu.call(4e-3, 1e-3), "device decides": gpu.call(1e-3, 4e-3),
        "waits": gpu.call(1e-3, 4e-3, waits=True),
    }  # fmt: skip
    taken = least_times(runs, 2, "cuda")
    slow = taken["host decides"]
    assert (slow.seconds, slow.host, slow.device) == pytest.approx((4.1e-3, 4e-3, 1e-3))
    fast = taken["device decides"]
    assert (fast.seconds, fast.host, fast.device) == pytest.approx((4.1e-3, 1e-3, 4e-3))
    assert taken["waits"].device is None and taken["waits"].seconds == pytest.approx(4.1e-3)


def test_a_call_takes_what_host_or_device_take_longer_over():
    """Two blocks; a block alone waits for its launches, 1 ms each, which a whole call does not."""

    def apart(seconds, host, device):
        return replace(work(seconds), host=host / 1e3, device=device / 1e3)

    levels = {("self", level): apart(5, 1, 4 * level) for level in LEVELS[1:]}
    block = BlockTimes(
        name="blocks", kinds=("self",), levels=levels,
        whole={"plain": apart(6, 2, 4), "reused": apart(2, 1, 0)},
    )  # fmt: skip
    times = Times(blocks=(block,), rest=3e-3, about={}, rest_apart=(1e-3, 2e-3))
    names, lists = ("0.self", "1.self"), ("blocks", "blocks")
    assert times.clocks == ("host", "device")
    assert times.plain(names, lists) == pytest.approx(max(1 + 2 * 2, 2 + 2 * 4) / 1e3)
    # everything: 10 ms of the device; nothing: 3 ms of the host
    chosen = np.array([[DENSE, DENSE], [0, 0]])
    assert times.predicted(chosen, names, lists, calls=2) == pytest.approx(2 * (10 + 3) / 1e3)
    for unknown in (replace(times, rest_apart=None), made_up({"self": (1, 2, 3, 4)})):
        assert unknown.clocks == ("seconds",)
    assert replace(times, rest_apart=None).plain(names, lists) == pytest.approx(15e-3)


@pytest.fixture(scope="module")
def subject():
    return benchmark.subject_of(PIXART, "cpu", "float32", 2)


@pytest.fixture(scope="module")
def times(subject):
    return benchmark.times_of(subject, 2, 2, "attention")


def test_what_a_sublayer_adds_at_a_level_is_what_its_products_say(subject, times):
    (block,) = times.blocks
    assert block.kinds == KINDS and block.whole["reused"].flops == 0
    assert block.whole["plain"].flops == block.whole["dense"].flops
    weights = dict(zip(subject.names, subject.weights, strict=True))
    rows = 2 * 2  # samples, and guidance passes
    for kind in KINDS:
        for level, macs in zip(LEVELS[1:], weights[f"0.{kind}"][1:], strict=True):
            # no more: no later ranking looks at its attention
            assert block.levels[kind, level].flops == 2 * rows * macs, (kind, level)
    assert block.whole["reused"].moved < block.whole["plain"].moved / 3


def test_rows_and_predictions_hold_together(subject, times):
    rows = benchmark.block_rows(times, {"flops": 1e12, "copied": None})
    assert len(rows) == 3 + 3 * 4
    plain = rows[0]
    assert (plain["speedup"], plain["flops_ratio"], plain["realised"]) == (1, 1, 1)
    assert plain["of_flops"] == pytest.approx(plain["gflop"] / plain["ms"])
    assert plain["of_bandwidth"] is None
    schedules = benchmark.schedules_of(subject, times, 0.46)
    assert schedules.keys() == {
        "dense", "evenly", "uniform", "uniform, by time", "transferred", "transferred, by time"
    }  # fmt: skip
    measured = {"dense": 2.0, "evenly": 1.0}
    by_name = {
        r["schedule"]: r for r in benchmark.schedule_rows(subject, times, schedules, measured)
    }
    dense = by_name["dense"]
    assert dense["predicted_speedup"] == dense["flops_ratio"] == 1
    # the un-accelerated model: not its blocks under a method, each sub-layer timed by itself
    call = times.rest + 6 * times.blocks[0].whole["plain"].seconds
    assert dense["predicted_s"] == pytest.approx(20 * call)
    sum_of_parts = times.predicted(schedules["evenly"], subject.names, subject.lists)
    assert by_name["evenly"]["predicted_speedup"] == pytest.approx(20 * call / sum_of_parts)
    assert by_name["evenly"]["measured_speedup"] == 2
    assert by_name["evenly"]["flops_ratio"] == pytest.approx(1 / 0.46, rel=0.02)
    assert by_name["uniform"]["measured_s"] is None and by_name["uniform"]["partial"] > 0.5
    table = times.table(subject.names, subject.lists)
    for name in ("uniform, by time", "transferred, by time"):
        assert benchmark.spent_share(schedules[name], table) <= 0.46 + 1e-6
    measured_all = [r for r in by_name.values() if r["measured_s"]]
    assert benchmark.summary_line(measured_all).startswith("predicted times are within ")
    assert benchmark.summary_line([by_name["uniform"]]) == ""


def test_the_least_time_is_that_of_the_products_that_are_counted(subject, times):
    (block,) = times.blocks
    once = sum(block.whole[how].flops for how in ("plain", "dense"))
    once += sum(work.flops for work in block.levels.values())
    assert subject.model == PIXART  # as `times`: two samples
    assert benchmark.least_seconds(PIXART, 2, 3, 10.0) == pytest.approx((3 + 2) * once / 10)


def test_blocks_that_take_minutes_are_announced(monkeypatch, capsys):
    """Full-size blocks on a CPU: said before they are timed, by the rate just measured."""
    model, changes = narrow("flux-1-dev")
    model = replace(model, steps=4, changes={**model.changes, **changes})
    monkeypatch.setattr("ditbench.models.table.select", lambda _: [model])

    def stopped(*_, **__):
        raise ValueError("stopped before blocks are built")

    monkeypatch.setattr(benchmark, "subject_of", stopped)
    for rate, announced in ((1e15, False), (1e6, True), (None, False)):
        ceilings = {"flops": rate, "copied": None}
        monkeypatch.setattr("ditbench.profiling.probe.probe", lambda *_, c=ceilings: c)
        assert main(["blocks", "--models", "flux-1-dev"]) == 2
        lines = [x for x in capsys.readouterr().err.splitlines() if "its blocks take" in x]
        assert bool(lines) == announced
    commands.warn_if_long("m", 90, "cuda")
    assert "take at least 2 min on cuda" in capsys.readouterr().err
    seconds = benchmark.least_seconds(model, 1, 10, 1e6)
    commands.warn_if_long("m", seconds, "cpu")
    told = capsys.readouterr().err
    assert f"take at least {max(1, round(seconds / 60))} min on cpu" in told
    assert "--device cuda times a GPU" in told


def test_schedules_run_whole_compute_what_they_say(subject):
    chosen = np.full((subject.sampling.steps, len(subject.names)), 0)
    chosen[0] = DENSE
    schedules = {"dense": np.full_like(chosen, DENSE), "once": chosen}
    times = benchmark.run_schedules(subject, schedules, 1, 5, "attention")
    assert 0 < times["once"] < times["dense"]


@pytest.mark.parametrize("name", ["flux-1-dev", "sd3-medium", "wan-2.1-1.3b", "dit-xl-2-256"])
def test_blocks_of_full_size_models_are_built_in_few(name, monkeypatch):
    model, changes = narrow(name)
    model = replace(model, steps=4, changes={**model.changes, **changes})
    subject = benchmark.subject_of(model, "cpu", "float32", 2)
    times = benchmark.times_of(subject, 2, 1, "norm")
    lists = {block.name: block.kinds for block in times.blocks}
    assert times.table(subject.names, subject.lists).shape == (len(subject.names), len(LEVELS))
    assert set(lists) == set(subject.lists) and not subject.whole
    assert subject.calls == (2 if model.family == "wan" else 1)
    assert not any("forward" in vars(m) for m in subject.pipe.transformer.modules())


def test_a_schedule_by_time_avoids_levels_that_do_not_pay(tmp_path):
    """Parts of a sub-layer that take longer than all of it are left out of the schedule."""
    pipe = load(PIXART, weights="bundled", device="cpu", dtype="float32")
    listed = sublayers(pipe.transformer)
    names, lists = [s.name for s in listed], lists_of(pipe.transformer, listed)
    file = tmp_path / "times.json"
    made_up(dict.fromkeys(KINDS, (30, 30, 30, 9))).write(file)
    shares = {}
    for knobs in ("", f",times='{file}'"):
        stack = Stack.parse(f"diffsparse(allocator='transferred'{knobs})")
        assert stack.refusal(pipe) is None
        with stack.attached(pipe) as attached:
            at = attached.attachments["diffsparse"]
            at.now.num_steps, at.now.grid, at.now.text_tokens = 20, (1, 8, 8), 16
            shares[knobs] = stack.methods[0]._table(pipe, at, "pixart")
            assert ("times" in at.notes) == bool(knobs)
    without, by_time = shares.values()
    partial = [int(((share > 0) & (share < 1)).sum()) for share in (without, by_time)]
    assert partial[0] > 20 and partial[1] <= partial[0] / 5
    spent = np.where(by_time == 1, 9, np.where(by_time > 0, 30, 0)).sum() / (9 * by_time.size)
    assert spent == pytest.approx(0.46, abs=0.005)
    assert stack.methods[0].inputs() == [file]
    made_up({"self": (1, 2, 3, 4)}).write(file)
    assert "the times hold no 'cross'" in stack.refusal(pipe)
    assert names[0] == "0.self" and set(lists) == {"transformer_blocks"}


def test_times_and_a_schedule_rule_each_other_out():
    for knobs in ("schedule='b.json'", "by_macs=False"):
        with pytest.raises(ValueError, match="times decide what levels cost"):
            Stack.parse(f"diffsparse(times='a.json',{knobs})")


def test_sparsecast_spends_its_share_of_measured_time(tmp_path):
    """A sub-layer that takes long is run less often; what is spent is a share of the time."""
    file = tmp_path / "times.json"
    pipe = load(PIXART, weights="bundled", device="cpu", dtype="float32")
    cost = {"self": 1, "cross": 1, "mlp": 50}
    made_up({kind: (1, 1, 1, ms) for kind, ms in cost.items()}).write(file)
    (artifact,) = (
        folder
        for folder in (ROOT / "bench" / "zoo" / "artifacts" / "sparsecast").iterdir()
        if (made := json.loads((folder / "manifest.json").read_text(encoding="utf-8")))["stack"] == "sparsecast"
        and (made["model"], made["steps"]) == ("pixart-tiny", 20)
    )  # fmt: skip
    masks = {}
    for knobs in ("", f"times='{file}'"):
        stack = Stack.parse(f"sparsecast({knobs})")
        assert stack.refusal(pipe) is None
        with stack.attached(pipe, {"sparsecast": artifact}) as attached:
            at = attached.attachments["sparsecast"]
            at.now.num_steps, at.now.grid, at.now.text_tokens = 20, (1, 8, 8), 16
            masks[knobs] = stack.methods[0]._plan(pipe, at).mask
            assert ("times" in at.notes) == bool(knobs)
    by_macs, by_time = masks.values()
    weights = np.array([cost[s.kind] for s in sublayers(pipe.transformer)])
    for mask in (by_macs, by_time):
        assert mask[0].all()
    assert (by_time * weights).sum() == pytest.approx(0.46 * 20 * weights.sum(), rel=0.02)
    mlp = np.array([s.kind == "mlp" for s in sublayers(pipe.transformer)])
    assert by_time[:, ~mlp].sum() > by_macs[:, ~mlp].sum()
    assert stack.methods[0].inputs() == [file]
    made_up({"self": (1, 2, 3, 4)}).write(file)
    assert f"{file}, measured on " in stack.refusal(pipe)
    assert "the times hold no 'cross'" in stack.refusal(pipe)
    made_up(dict.fromkeys(cost, (0, 0, 0, 0))).write(file)
    assert "all sub-layers take 0 seconds" in stack.refusal(pipe)
    with pytest.raises(ValueError, match="times decide what sub-layers cost"):
        Stack.parse("sparsecast(times='a.json', schedule='b.json')")


def test_the_command_prints_blocks_and_schedules(tmp_path, capsys):
    file = tmp_path / "times.json"
    words = ["blocks", "--models", "flux-tiny", "--repeats", "1", "--out", str(file), "--json"]
    assert main(words) == 0
    out = capsys.readouterr().out
    told = " ".join(out.split())  # however wide the terminal is
    assert "transformer_blocks block" in told and "realised: speed-up over" in told
    rows = json.loads(out[out.rindex("\n[") + 1 :])
    assert {r["schedule"] for r in rows if "schedule" in r} >= {"dense", "uniform, by time"}
    about = Times.read(file).about
    assert (about["model"], about["rows"]) == ("flux-tiny", "torch")
    for wrong, sentence in (
        (["--keep", "0"], "--keep: 0.0 is not above 0 and at most 1"),
        (["--repeats", "0"], "--repeats: 0 is less than 1"),
        (["--device", "cuda"], "this machine has no GPU that torch can use"),
        (["--dtype", "int3"], "'int3' is none of float32"),
        (["--selector", "nrm"], "no selector 'nrm'; did you mean norm?"),
        (["--models", "tiny", "--out", str(file)], "--out: it takes the times of one model, not of 4"),
        (["--out", str(tmp_path)], "is a folder, not a file"),
        (["--out", str(tmp_path / "none" / "times.json")], "--out: there is no folder"),
    ):  # fmt: skip
        assert main(["blocks", "--models", "flux-tiny", *wrong]) == 2
        assert sentence in capsys.readouterr().err
