"""Kernels of sub-layers that compute some rows: against torch's operations in Triton's interpreter, and
what a simulated GPU launches with them."""

import os
import subprocess
import sys
from collections import Counter as Tally
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import command
from narrow import NAMES, narrow
from torch.nn import functional as F
from torch.utils.flop_counter import sdpa_flop_count

from ditbench.acceleration.caching import attention_map, fused_ranking
from ditbench.acceleration.caching.token_cache import _with_bonus
from ditbench.method.stack import Stack
from ditbench.models import fused_rows, fused_sums
from ditbench.models.pending import Pending
from ditbench.profiling.flop_counter import Counter
from ditbench.records.record import read_run
from ditbench.simulation.device import NAME, simulated
from ditbench.testing import tiny
from ditbench.testing.level_kernels import level_kernels

MOST_ADDED = 4
"""Kernels above those of a dense sub-layer."""


def orders(batch, n):
    return torch.stack([torch.randperm(n) for _ in range(batch)])


def at(rows, width):
    return rows[..., None].expand(-1, -1, width)


def rows_are_taken_and_put(dtype, error):
    batch, n, width, count = 2, 9, 24, 4
    across = torch.randn(batch, width, n).mT.to(dtype)  # as patch embedders lay it
    order = orders(batch, n)
    scale, shift = torch.randn(batch, 1, width), torch.randn(1, 1, width)
    weight, bias = torch.randn(width), torch.randn(width)
    for rows in (order[:, :count], None):
        for affine in ((None, None), (weight, bias)):
            for by_sample in ((scale, shift), (None, None)):
                out = fused_rows.modulated(across, rows, *affine, 1e-6, *by_sample)
                want = F.layer_norm(across.float(), (width,), *affine, 1e-6)
                if by_sample[0] is not None:
                    want = want * (1 + scale) + shift
                want = want if rows is None else want.gather(1, at(rows, width))
                assert out.dtype == dtype and (out - want).abs().max() <= error * want.abs().max()
    for gate in (None, torch.randn(batch, 1, width).to(dtype)):
        for first in (True, False):
            kept, new = (
                torch.randn(batch, n, width).to(dtype),
                torch.randn(batch, count, width).to(dtype),
            )
            times = torch.full((batch, n), float("nan") if first else 1.0)
            rows = order[:, :count]
            whole = kept.scatter(1, at(rows, width), new)
            given = (kept, times, order, new, 3.0, first, gate, across)
            out = fused_rows.put_and_added(*given)
            want = across.float() + (1 if gate is None else gate.float()) * whole.float()
            assert torch.equal(kept, whole) and (out - want).abs().max() <= error * want.abs().max()
            assert torch.equal(times, torch.full_like(times, 1.0 - first).scatter(1, rows, 3.0))


def attention_is_watched():
    for heads, count, keys, width in ((2, 70, 70, 16), (3, 20, 130, 8)):
        q, k = torch.randn(2, heads, count, width), torch.randn(2, heads, keys, width)
        by_key = torch.where(torch.rand(2, 1, 1, keys) < 0.3, -1e4, 0.0)
        for mask in (None, by_key, by_key.expand(-1, heads, -1, -1)):
            given = (q, k, mask)
            for ours, reference in (
                (fused_ranking.received, attention_map.received_by),
                (fused_ranking.entropy, attention_map.entropy_of),
            ):
                torch.testing.assert_close(ours(*given), reference(*given), rtol=1e-4, atol=1e-6)
            signal, rows = torch.randn(2, 2 * count), orders(2, 2 * count)[:, :count]
            want = signal.scatter(1, rows, attention_map.entropy_of(*given))
            fused_ranking.entropy_into(signal, rows, *given)
            torch.testing.assert_close(signal, want, rtol=1e-4, atol=1e-6)


def tokens_are_scored():
    for grid, text, window in (((2, 4, 6), 5, 2), ((1, 9, 6), 0, 3), ((1, 40, 40), 0, 0)):
        n = text + grid[0] * grid[1] * grid[2]
        for passes, raised in ((1, (0.0,)), (2, (0.0, 1.7))):
            wide = torch.rand(4, n + 3)
            signals = [wide[:, 3:], torch.rand(4, n)][: len(raised)]
            for times in (None, torch.randint(5, (4, n)).float()):
                parts = [s.unflatten(0, (passes, -1)).mean(0) for s in signals]
                want = sum(F.normalize(p + r, dim=1) for p, r in zip(parts, raised, strict=True))
                want = want.repeat(passes, 1) + 0.1 * (5 - (0 if times is None else times))
                if window:
                    want = _with_bonus(want, grid, window, 0.4)
                given = (signals, raised, passes, times, 5.0, 0.1, grid, window, 0.4)
                torch.testing.assert_close(fused_ranking.scores(*given), want)


def samples_are_nearly_the_same(kind, device="cpu", selector="attention"):
    """And those of the un-accelerated model are further off."""
    subject = tiny(kind, steps=3)
    subject.pipeline.to(device)
    made = {"none": subject.generate(subject.sampling, [0, 1])}
    for kernel in ("torch", "triton"):
        stack = Stack.parse(f"diffsparse(allocator='uniform', keep=0.7, selector={selector!r})")
        with stack.attached(subject.pipeline) as attached, fused_rows.computed_by(kernel):
            attached.start(3, 2)
            made[kernel] = subject.generate(subject.sampling, [0, 1])
            assert attached.notes()["diffsparse.rows"] == kernel
    off = (made["triton"] - made["torch"]).abs().mean()
    without = (made["none"] - made["torch"]).abs().mean()
    assert 0 < off <= 1e-2 * without, (kind, off, without)


def sums_with_a_stream(dtype, error):
    batch, n, width = 2, 9, 24
    across = torch.randn(batch, width, n).mT.to(dtype)  # as patch embedders lay it
    for count in (1, 2, 4, 6):
        wide = [torch.randn(batch, n + 3, width + 1).to(dtype)[:, 3:, :width] for _ in range(count)]
        gates = [
            [None, torch.randn(batch, 1, width), torch.randn(1, 1, width)][i % 3]
            for i in range(count)
        ]
        out = fused_sums.added(across, wide, gates)
        want = across.float()
        for output, gate in zip(wide, gates, strict=True):
            want = want + output.float() * (1 if gate is None else gate)
        assert out.dtype == dtype and out.is_contiguous()
        assert (out - want).abs().max() <= error * want.abs().max()


def interpreted():
    """What the child process does."""
    torch.manual_seed(0)
    with torch.no_grad(), fused_rows.computed_by("triton"):
        rows_are_taken_and_put(torch.float32, 1e-5)
        # the interpreter of Triton 3.9 cuts a number off where a GPU rounds it to bfloat16
        rows_are_taken_and_put(torch.bfloat16, 2**-7)
        sums_with_a_stream(torch.float32, 1e-5)
        sums_with_a_stream(torch.bfloat16, 2**-7)
        attention_is_watched()
        tokens_are_scored()
    for kind in ("dit", "pixart", "flux", "wan", "sd3"):
        samples_are_nearly_the_same(kind)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_kernels_are_their_arithmetic_in_tritons_interpreter():
    child = "import sys; sys.path.insert(0, 'tests'); import test_fused_rows as t; t.interpreted()"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", child]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_some_rows_launch_at_most_four_kernels_more_than_all(name, noted):
    model, changes = narrow(name)
    with simulated() as device, fused_rows.computed_by("triton"):
        rows = list(level_kernels(device, model, changes, noted=noted))
    assert {row.kind: row.added for row in rows if row.added > MOST_ADDED} == {}
    for row in rows:
        assert row.partial["ditbench.rows_put_and_added"] == 1, row.kind
        # cross-attention of PixArt has no norm of its own, and rows of the stream are taken
        normed = row.partial["ditbench.rows_modulated"]
        assert normed == (0 if (model.family, row.kind) == ("pixart", "cross") else 1), row.kind


@pytest.mark.parametrize("name", NAMES)
def test_all_that_a_block_reuses_is_added_by_one_kernel_for_each_stream(name):
    model, changes = narrow(name)
    counted = {}
    for kernel in ("torch", "triton"):
        with simulated() as device, fused_rows.computed_by(kernel):
            rows = list(level_kernels(device, model, changes))
        counted[kernel] = {row.where: Tally(row.reused) for row in rows}
    for where, by_kernel in counted["triton"].items():
        by_torch = counted["torch"][where]
        streams = by_kernel["ditbench.outputs_added"]
        pair = model.family in ("flux", "sd3") and where == "transformer_blocks"
        assert streams == (2 if pair else 1)
        # sums and gates of sub-layers are in it; the gates' own making is left
        assert by_torch["add"] - by_kernel["add"] >= streams
        assert by_kernel.total() < by_torch.total()
        same = {n for n in by_torch if n not in ("add", "mul", "_to_copy")}
        assert all(by_torch[n] == by_kernel[n] for n in same)


def test_kernels_are_for_cuda_without_gradients():
    with torch.no_grad():
        assert fused_rows.kernel_of(torch.device("cpu")) == "torch"
        there = find_spec("triton") is not None
        assert fused_rows.kernel_of(torch.device("cuda")) == ("triton" if there else "torch")
        with fused_rows.computed_by("torch"):
            assert fused_rows.kernel_of(torch.device("cuda")) == "torch"
            with fused_rows.computed_by("auto"):
                assert fused_rows.kernel_of(torch.device("cuda")) == (
                    "triton" if there else "torch"
                )
    with fused_rows.computed_by("triton"):
        assert fused_rows.kernel_of(torch.device("cpu")) == "torch"


WATCHER = """
from pathlib import Path
import torch
from ditbench.method import Stage, method
from ditbench.models import fused_rows, fused_sums

fused_rows._triton_is_there = lambda: True

@method("watcher", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="none")
class Watcher:
    def attach(self, pipeline, at):
        def forward(*args, **kwargs):
            at.count("calls")
            with open(Path(__file__).with_name("kernels.txt"), "a") as file:
                print(fused_rows.kernel_of(torch.device("cuda")), file=file)
            return run(*args, **kwargs)
        run = at.patch(pipeline.transformer, "forward", forward)
"""


@pytest.mark.parametrize("asked", ["auto", "torch"])
def test_a_run_says_what_computes_rows_and_every_process_of_it_goes_by_that(tmp_path, asked):
    plugin = tmp_path / "watcher.py"
    plugin.write_text(WATCHER, encoding="utf-8")
    out = tmp_path / "run"
    done = command(
        "run", "--plugin", plugin, "--methods", "watcher", "--models", "dit-tiny", "--steps", 2,
        "--num-samples", 4, "--batch-size", 2, "--shard", 2, "--rounds", 2, "--threads", 1,
        "--row-kernels", asked, "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = [r for r in read_run(out).records if r["stack"] == "watcher"]
    assert record["run"]["row_kernels"] == asked and record["samples"] == 4
    kernels = plugin.with_name("kernels.txt").read_text().split()
    # the timed shard, its rounds and its count; the other shard, in a process of its own
    assert len(kernels) >= 2 * (1 + 2 + 1)
    assert {*kernels} == {"triton" if asked == "auto" else "torch"}
    if asked == "torch":
        assert "row kernels torch" in done.stdout


def test_another_kernel_than_there_is_is_refused():
    for words in (["run", "--models", "dit-tiny"], ["blocks", "--models", "dit-tiny"]):
        done = command(*words, "--row-kernels", "cuda")
        assert done.returncode == 2
        assert "--row-kernels: 'cuda' is none of auto, torch" in done.stderr


def test_bytes_and_flops_of_the_kernels_are_seen():
    batch, n, count, width = 2, 64, 16, 32
    with simulated() as device, torch.no_grad():
        x = torch.empty(batch, n, width, dtype=torch.bfloat16, device=NAME)
        rows = torch.empty(batch, count, dtype=torch.int64, device=NAME)
        device.work.kernels.clear()
        fused_rows.modulated(x, rows)
        (kernel,) = device.work.kernels
        # the chosen rows are read and written, and their numbers are read
        assert kernel.moved == 2 * 2 * batch * count * width + 8 * batch * count
        assert (kernel.name, kernel.flops) == ("ditbench.rows_modulated", 0)
        q = torch.empty(batch, 4, count, width, device=NAME)
        k = torch.empty(batch, 4, n, width, device=NAME)
        device.work.kernels.clear()
        fused_ranking.received(q, k, None)
        fused_ranking.entropy(q, k, None)
        product = sdpa_flop_count(q.shape, k.shape, k.shape) // 2
        # sums, weights, their mean over heads; of entropies sums and weights in one kernel
        flops = [kernel.flops for kernel in device.work.kernels.elements()]
        assert flops == [product, product, 0, 2 * product]
    counter, shape = Counter(), torch.zeros(1, device="meta")
    with counter.counting(), torch.no_grad():
        fused_ranking.received(*(shape.expand(s) for s in (q.shape, k.shape)), None)
    assert sum(counter.flops.values()) == 2 * product and not counter.uncounted


def pending_rows(gate):
    """A `PutRows` on its way through what a block does, and its parts."""
    torch.manual_seed(0)
    kept, new, stream = torch.randn(2, 6, 8), torch.randn(2, 3, 8), torch.randn(2, 6, 8)
    times, order = torch.zeros(2, 6), orders(2, 6)
    put = fused_rows.PutRows(kept, times, order, new, 2.0, True)
    whole = kept.scatter(1, at(order[:, :3], 8), new)
    gated = put if gate is None else gate * put
    return SimpleNamespace(put=put, kept=kept, times=times, stream=stream, whole=whole, gated=gated)


@pytest.mark.parametrize("gated", [False, True])
def test_what_is_no_sum_with_a_stream_is_worked_out_by_torch(gated):
    gate = torch.randn(2, 1, 8) if gated else None
    given = pending_rows(gate)
    want = given.whole if gate is None else gate * given.whole
    assert torch.equal(given.gated.sum(), want.sum())  # an operation nobody fuses
    assert torch.equal(given.kept, given.whole)
    assert (given.times == 2).sum() == 6 and (given.times == 0).sum() == 6
    # what has been written is not written again
    given.kept.zero_()
    given.put.write()
    assert not given.kept.any()


def test_the_sum_with_a_stream_is_one_call_and_keeps_its_type(monkeypatch):
    calls = []

    def kernel(kept, times, order, new, now, first, gate, stream):
        calls.append(gate is not None)
        kept.scatter_(1, at(order[:, : new.shape[1]], kept.shape[-1]), new)
        return stream + (kept if gate is None else gate * kept)

    monkeypatch.setattr(fused_rows, "put_and_added", kernel)
    gate = torch.randn(2, 1, 8)
    given = pending_rows(gate)
    summed = Pending(given.stream) + given.gated
    assert summed.waits and summed.shape == (2, 6, 8) and summed.dtype == torch.float32
    assert torch.equal(summed.value, given.stream + gate * given.whole) and calls == [True]
    # a gate for each token is no gate by sample
    given = pending_rows(torch.randn(2, 6, 8))
    assert (given.gated + given.stream).value.shape == (2, 6, 8) and calls == [True]
    given = pending_rows(None)
    assert torch.equal((given.stream + given.gated).value, given.stream + given.whole)
    assert calls == [True, False]


def sequential(stream, outputs, gates):
    """What the kernel does, by torch's operations."""
    dtype = stream.dtype
    for output, gate in zip(outputs, gates, strict=True):
        stream = stream + (output if gate is None else gate * output)
    return stream.to(dtype)


@pytest.fixture
def sums(monkeypatch):
    """How many outputs each call adds."""
    calls = []

    def added(stream, outputs, gates):
        calls.append(len(outputs))
        return sequential(stream, outputs, gates)

    monkeypatch.setattr(fused_sums, "added", added)
    return calls


def test_outputs_added_one_after_the_other_are_one_sum(sums):
    torch.manual_seed(0)
    stream, one, two, three = (torch.randn(2, 6, 8) for _ in range(4))
    gates = torch.randn(2, 1, 8), torch.randn(1, 1, 8)
    with torch.no_grad(), fused_rows.computed_by("triton"):
        x = Pending(stream) + gates[0] * fused_sums.not_run(one)
        x = fused_sums.not_run(two) + x  # no gate, and first
        x = torch.add(x, Pending(gates[1]) * fused_sums.not_run(three))
        assert x.waits and x.shape == (2, 6, 8) and x.dtype == torch.float32
        want = ((stream + gates[0] * one) + two) + gates[1] * three
        assert torch.equal(x.value, want) and sums == [3]
        # a sum that somebody has looked at is where the next begins
        y = Pending(stream) + fused_sums.not_run(one)
        assert torch.equal(y.value, stream + one)
        z = y + fused_sums.not_run(two)
        assert torch.equal(z.value, stream + one + two) and sums == [3, 1, 1]


def test_what_the_sum_cannot_take_is_worked_out_by_torch(sums):
    torch.manual_seed(0)
    stream, output, gate = (torch.randn(2, 6, 8) for _ in range(3))
    with torch.no_grad(), fused_rows.computed_by("triton"):
        by_token = Pending(stream) + gate * fused_sums.not_run(output)
        assert torch.equal(by_token.value, stream + gate * output)
        broadcast = Pending(stream) + fused_sums.not_run(output[:, :1])
        assert torch.equal(broadcast.value, stream + output[:, :1])
        across = torch.randn(2, 8, 6).mT
        laid = Pending(stream) + fused_sums.not_run(across)
        assert torch.equal(laid.value, stream + across)
        number = 2.0 * fused_sums.not_run(output)
        assert torch.equal(number.value, 2.0 * output)
        twice = gate[:, :1] * (gate[:, :1] * fused_sums.not_run(output))
        assert torch.equal(twice.value, gate[:, :1] * (gate[:, :1] * output))
        assert torch.equal(fused_sums.not_run(output).sum(), output.sum())
        assert sums == []
        low, factor = stream.bfloat16(), torch.randn(2, 1, 8)  # as Wan's blocks do, in float32
        x = (Pending(low).float() + fused_sums.not_run(output.bfloat16()) * factor).type_as(low)
        x = (x.float() + fused_sums.not_run(output.bfloat16()).float() * factor).type_as(low)
        assert x.dtype == torch.bfloat16 and x.value.dtype == torch.bfloat16 and sums == [2]
    assert (
        fused_sums.not_run(output) is output
    )  # by torch's operations there is nothing to wait for
    rows = Pending(stream)
    with torch.no_grad(), fused_rows.computed_by("triton"):
        assert fused_sums.not_run((output, rows)) == (output, rows)  # some of it was computed


def test_rows_and_outputs_are_added_by_kernels_whichever_comes_first(sums, monkeypatch):
    calls = []

    def put(kept, times, order, new, now, first, gate, stream):
        calls.append("rows")
        kept.scatter_(1, at(order[:, : new.shape[1]], kept.shape[-1]), new)
        return stream + (kept if gate is None else gate * kept)

    monkeypatch.setattr(fused_rows, "put_and_added", put)
    gate = torch.randn(2, 1, 8)
    with torch.no_grad(), fused_rows.computed_by("triton"):
        for rows_first in (True, False):
            given, output = pending_rows(gate), torch.randn(2, 6, 8)
            first, then = given.gated, gate * fused_sums.not_run(output)
            if not rows_first:
                first, then = then, first
            x = (Pending(given.stream) + first) + then
            want = given.stream + (gate * given.whole if rows_first else gate * output)
            want = want + (gate * output if rows_first else gate * given.whole)
            assert torch.equal(x.value, want)
        # two sub-layers that compute some rows, in one block
        a, b = pending_rows(gate), pending_rows(gate)
        x = (Pending(a.stream) + a.gated) + b.gated
        assert torch.equal(x.value, a.stream + gate * a.whole + gate * b.whole)
    assert calls == ["rows"] * 4 and sums == [1, 1]
