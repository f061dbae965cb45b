"""The simulated device: what is counted on it, that no method makes the host wait in the sampler
loop, and what `estimate` makes of it."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from command import ours
from narrow import NAMES, narrow
from torch import nn

from ditbench.cli.commands import main
from ditbench.method.stack import Stack
from ditbench.models.requests import make_requests
from ditbench.models.sampling import sampling_of
from ditbench.models.table import select
from ditbench.profiling.gpus import TABLE, Gpu, gpu_named
from ditbench.quiet import quiet
from ditbench.simulation import estimate as estimating
from ditbench.simulation.costs import Kernel
from ditbench.simulation.device import NAME, GoesByValues, simulated
from ditbench.simulation.rehearsal import Stand
from ditbench.simulation.replay import Replay
from ditbench.simulation.roofline import seconds
from ditbench.simulation.simulate import Simulator, costs_of

GPU = Gpu(
    title="a GPU", memory=1e9, bandwidth=1e12, flops={"bfloat16": 1e15}, launch=1e-6, source="none"
)
BY_VALUE = {
    "seacache": "as TeaCache, by another signal",
    "easycache": "as TeaCache, by the transformer's input and output",
    "dicache": "as TeaCache, by the first block's output",
    "speca": "it computes a step when the last block shows the draft to be off, which is a value",
    "teacache": "it skips a step when the input has moved too far, which is a value",
    "firstblock": "as TeaCache, by the first block's output; diffusers reads it",
    "adaptive_guidance": "it ends guidance where both passes predict alike, which is a value",
    "pab": "diffusers asks for the time step as a number, and its pipelines keep that on the GPU",
    "fastercache": "as pab",
}
"""Methods that need values of the device in the sampler loop by their nature, and why."""


def new(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype, device=NAME)


def test_kernels_and_bytes_of_a_linear_layer():
    with simulated() as device, torch.no_grad():
        layer = nn.Linear(64, 128, device=NAME, dtype=torch.bfloat16)
        assert device.ledger.live == 2 * (64 * 128 + 128)
        device.work.kernels.clear()
        layer(new(32, 64))
        (kernel,) = device.work.kernels
        bytes_ = 2 * (64 * 128 + 128 + 32 * 64 + 32 * 128)
        assert kernel == Kernel("addmm", "bfloat16", 2 * 32 * 64 * 128, bytes_)


def test_attention_is_one_kernel_without_a_map_unless_it_is_asked_for_by_products():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as attend

    with simulated() as device, torch.no_grad():
        q = new(1, 2, 256, 32)
        device.ledger.mark()
        before = device.ledger.live
        attend(query=q, key=q, value=q)
        assert device.ledger.peak - before == q.nbytes
        assert device.work.kernels == {
            Kernel(
                "scaled_dot_product_attention", "bfloat16", 4 * 2 * 256 * 256 * 32, 4 * q.nbytes
            ): 1
        }
        with sdpa_kernel(SDPBackend.MATH):
            attend(q, q, q)
        assert device.ledger.peak - before > 2 * 2 * 256 * 256


def test_the_ledger_follows_what_is_freed_and_names_the_peak():
    with simulated() as device:
        a = new(1000)
        device.ledger.rename(a, "transformer")
        b = new(500)
        device.ledger.method_tensors = lambda: [b]
        c = new(250)
        del c
        assert (device.ledger.live, device.ledger.close()) == (
            3000,
            (3500, {"transformer": 2000, "kept outputs": 1000, "activations": 500}),
        )
        device.ledger.mark()
        assert device.ledger.close()[0] == 3000


def test_views_take_no_memory_and_no_kernel():
    with simulated() as device:
        a = new(8, 8)
        device.work.kernels.clear()
        b = a.t().unflatten(0, (2, 4))[:1].expand(3, -1, -1)
        assert (device.ledger.live, device.work.kernels.total()) == (128, 0)
        b.contiguous()  # reads what it is expanded from
        assert [k.moved for k in device.work.kernels] == [64 + 2 * 3 * 4 * 8]


def test_reads_and_copies_are_noted_by_line_and_wrong_devices_raise():
    with simulated() as device:
        a = new(4)
        assert (a.sum().item(), a.tolist(), a.float().cpu().numpy().tolist()) == (
            0.0,
            [0.0] * 4,
            [0.0] * 4,
        )
        assert a.device.type in repr(a)
        assert sum(device.work.syncs.values()) == 7  # one, four, one and one
        assert all(line.startswith(__name__) for line in device.work.syncs)
        torch.ones(2).to(NAME)
        torch.ones(2).to(NAME, non_blocking=True)
        torch.tensor([1.0], device=NAME)
        assert sum(device.work.copies.values()) == 2
        assert (a * torch.tensor(2.0)).device.type == NAME  # a number, as on a GPU
        with pytest.raises(RuntimeError, match="same device"):
            a + torch.ones(4)
        with pytest.raises(GoesByValues, match="values"):
            a[a > 0]


def test_a_network_can_be_trained_in_the_process_that_had_the_device():
    """Checkpoints of activations ask every device that is registered what it casts to."""
    from torch.utils.checkpoint import checkpoint

    with simulated():
        pass
    layer = nn.Linear(4, 4)
    checkpoint(layer, torch.ones(2, 4), use_reentrant=False).sum().backward()
    assert layer.weight.grad is not None


def test_the_hosts_tensors_keep_their_values():
    with simulated():
        assert torch.linspace(0, 1, 3).tolist() == [0.0, 0.5, 1.0]
    assert (torch.ones(2) + 1).tolist() == [2.0, 2.0]


def test_what_comes_after_on_the_cpu_is_as_it_was():
    """torch takes a registered device for the process's accelerator: checkpoints ask it."""
    from torch.utils.checkpoint import checkpoint

    with simulated():
        pass
    layer, x = nn.Linear(4, 4), torch.ones(2, 4, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert torch.equal(x.grad, layer.weight.sum(0).expand(2, 4))


def test_a_replayed_module_does_what_a_run_one_does():
    def mlp():
        return nn.Sequential(
            nn.Linear(64, 256, device=NAME), nn.GELU(), nn.Linear(256, 64, device=NAME)
        )

    with simulated() as device, torch.no_grad():
        blocks, x = [mlp() for _ in range(3)], torch.empty(2, 64, device=NAME)
        seen = []
        for replay in (False, True):
            device.ledger.mark()
            before, began = device.work.copy(), device.ledger.live
            runs = Replay(device)
            with runs.over(blocks if replay else []):
                outs = [block(x) for block in blocks]
            seen.append(
                (
                    device.work.minus(before),
                    device.ledger.close()[0] - began,
                    device.ledger.live - began,
                )
            )
            del outs
        assert seen[0] == seen[1] and runs.replayed == 2
        # a hook that is no library's may do anything
        blocks[1].register_forward_hook(lambda *_: None)
        runs = Replay(device)
        with runs.over(blocks):
            [block(x) for block in blocks]
        assert runs.replayed == 1


@pytest.fixture(scope="module", params=NAMES)
def stand(request):
    row, changes = narrow(request.param)
    with simulated() as device, quiet():
        stand = Stand(device, replace(row, steps=8), "bfloat16", changes)
    return stand


def rehearse(stand, stack, num=2, **more):
    sampling = stack.adapt(sampling_of(stand.model))
    with quiet():
        return stand.rehearse(stack, sampling, make_requests(stand.model, num, 0), **more)


LAYOUTS = "ditbench.acceleration.attention.sparse_attention"
MASKED = {"tile_window": 3, "radial": 3, "top_tiles": 3, "lazy_queries": 3, "fpsattention": 9}
"""Methods whose tiles and masks are made on the host, where the grid is known: at the first step of
a phase, of which fpsattention has three, each with a table of tiles, their sizes and a mask."""


def test_no_method_makes_the_host_wait_in_the_sampler_loop(stand):
    """No read of a value, no copy from the host and no tensor on a wrong device but where the
    method's nature or diffusers' samplers want one."""
    tried = []
    with simulated(stand.device):
        for text in (
            "none",
            "diffsparse(allocator='uniform')",
            "duca(selector='shuffle')",
            *ours(),
        ):
            stack = Stack.parse(text)
            if stack.refusal(stand.pipe) or any(m.recipe() is not None for m in stack.methods):
                continue
            tried.append(text)
            if text in BY_VALUE:
                with pytest.raises(GoesByValues) as reason:
                    rehearse(stand, stack)
                assert reason.value.syncs
                continue
            loop = rehearse(stand, stack).stages["denoise"].work
            assert (text, dict(loop.syncs)) == (text, {})
            copies = {line: n for line, n in loop.copies.items() if line.startswith("ditbench")}
            if text in MASKED:
                assert sum(copies.values()) <= MASKED[text], (text, copies)
                assert {line.partition(":")[0] for line in copies} <= {LAYOUTS}, (text, copies)
                continue
            assert not copies, text
    assert {"none", "fora", "int8", "int8wo", "rerun", "taylorseer", "teacache", "toca"} < set(
        tried
    )


@pytest.mark.parametrize(
    ("model", "texts"),
    [
        ("dit-tiny", ("distill", "distill+diffsparse", "l2c")),
        ("flux-tiny", ("distill+diffsparse", "magcache")),
    ],
)
def test_what_was_prepared_for_a_tiny_model_makes_no_host_wait_either(model, texts):
    rows = list(
        estimating.estimate(select(model), [Stack.parse(t) for t in texts], gpu_named("a100"))
    )
    assert [(r["status"], r["note"]) for r in rows] == [("ok", "")] * len(texts)
    assert not [line for r in rows for line in r["copies_by_line"] if line.startswith("ditbench")]


@pytest.mark.parametrize(
    ("name", "row_kernels"), [*((name, "auto") for name in NAMES), (NAMES[0], "torch")]
)
def test_what_a_reused_step_leaves_out_is_left_out_in_simulation(name, row_kernels):
    model, changes = narrow(name)
    simulator = Simulator(model, "bfloat16", row_kernels=row_kernels, changes=changes)

    def step(stack):
        """Kernels of the last of four steps: how often each runs more than in three."""
        counts = Counter()
        for steps, sign in ((4, 1), (3, -1)):
            costs = simulator.costs(stack, replace(sampling_of(model), steps=steps))
            for kernel, n in costs.single["denoise"].kernels(1).items():
                counts[kernel.name] += sign * n
        return counts

    dense, reused = step(Stack()), step(Stack.parse("fora(interval=20)"))
    assert dense["native_layer_norm"] > 4 and dense["scaled_dot_product_attention"] > 1
    # the last layer has a norm of its own in each pass of guidance
    assert reused["native_layer_norm"] <= 2 and not reused["scaled_dot_product_attention"]
    assert bool(reused["ditbench.outputs_added"]) == (row_kernels == "auto")
    assert reused.total() < dense.total()


def test_memory_grows_by_as_much_for_each_sample():
    """What `Costs` takes for granted, at full size."""
    stack = Stack.parse("fora(interval=2)")
    with simulated() as device, quiet():
        stand = Stand(device, replace(select("dit-xl-2-256")[0], steps=3), "bfloat16")
        one, two, three, five = (rehearse(stand, stack, num) for num in (1, 2, 3, 5))
    transformer = stand.pipe.transformer
    weights = sum(t.nbytes for t in (*transformer.parameters(), *transformer.buffers()))
    kept = 2 * 28 * 2 * 256 * 1152 * 2  # two sub-layers in 28 blocks, two passes, 256 tokens, bf16
    at_peak = one.stages["denoise"].at_peak
    assert (at_peak["transformer"], at_peak["kept outputs"]) == (weights, kept)
    assert two.stages["denoise"].at_peak["kept outputs"] == 2 * kept
    for name in ("denoise", "decode"):
        peaks = [r.stages[name].peak for r in (one, two, five)]
        assert peaks[2] - peaks[1] == pytest.approx(3 * (peaks[1] - peaks[0]), rel=0.01)
    costs = costs_of(one, two, three, sampling_of(stand.model))
    place = {"once": False, "offload": "none"}
    assert costs.largest_batch(five.peak + 1e6, **place) == 5
    assert costs.largest_batch(one.peak + 1e3, **place) == 1
    assert costs.largest_batch(1e6, **place) == 0


def test_the_least_time_is_that_of_the_rate_the_memory_or_a_launch():
    product = Kernel("mm", "bfloat16", 10**13, 10**6)
    copy = Kernel("clone", "float32", 0, 10**10)
    small = Kernel("add", "float32", 0, 10)
    assert seconds({product: 2, copy: 1, small: 3}, GPU) == pytest.approx(0.02 + 0.01 + 3e-6)
    with pytest.raises(ValueError, match="a GPU has no rate for products in float8"):
        seconds({Kernel("mm", "float8_e4m3fn", 1, 1): 1}, GPU)


def test_every_gpu_says_where_its_figures_are_from():
    import tomllib

    for name in tomllib.loads(TABLE.read_text()):
        gpu = gpu_named(name)
        assert "/" in gpu.source and gpu.flops["bfloat16"] > gpu.flops["float32"] > 1e13


FILES = [
    ("memory = 1", "it does not say title, bandwidth"),
    ("memroy = 1", "no key 'memroy'; did you mean memory"),
    ("memory = [", "Invalid value"),
]


@pytest.mark.parametrize(("text", "sentence"), FILES)
def test_a_file_that_describes_no_gpu_is_refused_in_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"--gpu: .*mine\.toml: ") as error:
        gpu_named(str(path))
    assert sentence in str(error.value)


def test_numbers_of_a_file_are_checked(tmp_path):
    good = (
        'title="x"\nsource="y"\nmemory=8e10\nbandwidth=1e12\nlaunch=5e-6\nflops={bfloat16=1e15}\n'
    )
    (tmp_path / "mine.toml").write_text(good)
    assert gpu_named(str(tmp_path / "mine.toml")).rate("bfloat16") == 1e15
    (tmp_path / "mine.toml").write_text(good.replace("8e10", "-1"))
    with pytest.raises(ValueError, match="memory: -1 is no number above 0"):
        gpu_named(str(tmp_path / "mine.toml"))


TRANSFERRED = "diffsparse(allocator='transferred')"


def test_what_goes_by_anothers_preparation_is_refused_on_full_size_models():
    row, changes = narrow("flux-1-dev")
    stack = Stack.parse("distill(joint=0.46)+diffsparse(allocator='joint')")
    (made,) = estimating.estimate([row], [stack], gpu_named("h100"), steps=4, changes=changes)
    assert made["status"] == "refused"
    assert made["note"].startswith("diffsparse goes by what another method of the stack")


def test_estimate_has_a_row_for_every_stack_and_a_reason_where_it_has_no_numbers(stand):
    row, changes = narrow(stand.model.name)
    texts = "none", "fora(interval=2)", "teacache", "diffsparse", "toca"
    rows = list(
        estimating.estimate(
            [row], [Stack.parse(t) for t in texts], gpu_named("h100"), steps=4, changes=changes
        )
    )
    sd3 = row.family == "sd3"  # which has no tiny model that a schedule could be transferred from
    stacks = [text if text != "diffsparse" or sd3 else TRANSFERRED for text in texts]
    assert [r["stack"] for r in rows] == stacks
    states = ["ok", "ok", "at most", "refused" if sd3 else "ok", "ok"]
    assert [r["status"] for r in rows] == states
    none, fora, teacache, diffsparse, _ = rows
    assert "read from the device at ditbench.methods.teacache:" in teacache["note"]
    # the kernels of skipping nothing, and the memory that it keeps
    assert (teacache["call_s"], teacache["kept_gb"] > 0) == (none["call_s"], True)
    assert sum(teacache["syncs_by_line"].values()) >= 3
    assert ("has to be prepared" in diffsparse["note"]) == sd3
    assert none["weights_gb"] == fora["weights_gb"] > 0 == none["kept_gb"] < fora["kept_gb"]
    assert fora["kernels"] < none["kernels"] and fora["step_ms"] < none["step_ms"]
    assert none["call_s"] == pytest.approx(sum(none["seconds"].values()))
    assert none["peaks"][none["peak_in"]]["bytes"] / 1e9 == none["peak_gb"]
    assert all(sum(p["of"].values()) == p["bytes"] for p in fora["peaks"].values())
    assert all(r.keys() == none.keys() for r in rows)


def test_a_pipeline_that_is_sampled_knows_its_tokens_without_reading_them(stand):
    from ditbench.models.family import family_of, grid_of
    from ditbench.profiling.latency import Sampler

    sampling = sampling_of(stand.model)
    with simulated(stand.device), Stack.parse("fora").attached(stand.pipe) as attached:
        Sampler(stand.pipe, stand.model, sampling, attached, NAME)
        by_value = family_of(stand.pipe.transformer).grid_by_value
        assert attached.grid == (grid_of(stand.pipe, sampling) if by_value else None)
        assert by_value == (stand.model.family == "flux")


def test_what_does_not_fit_is_said_in_its_row(tmp_path, capsys):
    (tmp_path / "small.toml").write_text(
        'title="x"\nsource="y"\nmemory=1e5\nbandwidth=1e12\nlaunch=5e-6\nflops={bfloat16=1e15}\n'
    )
    words = ["estimate", "--models", "dit-tiny", "--steps", "2", "--json"]
    assert main([*words, "--gpu", str(tmp_path / "small.toml")]) == 3  # nothing does
    *lines, document = capsys.readouterr().out.splitlines()
    (row,) = json.loads(document)
    assert row["status"] == "does not fit" and any("does not fit" in line for line in lines)
    assert [row["hours"] for row in json.loads(document)] == [None]
