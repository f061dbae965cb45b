"""FLOPs: published figures, closed forms, PyTorch's own counter, and what must never be counted as
nothing."""

import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from narrow import NAMES, generate, narrow
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ditbench.acceleration.caching.token_settings import DUCA, TOCA
from ditbench.method import METHODS, Stage, method
from ditbench.method.stack import Stack
from ditbench.method.traits import Traits
from ditbench.models.architecture import build
from ditbench.models.sampling import sampling_of
from ditbench.models.table import select
from ditbench.profiling import counting, flop_counter, flops
from ditbench.profiling.conventions import counted
from ditbench.profiling.flop_counter import Counter, looks_like_a_product
from ditbench.quiet import quiet
from ditbench.testing import KINDS, tiny

# GMACs of one pass, batch 1 (DiT's authors: 118.64 and 524.60, cache-dit for FLUX 3726.87 TFLOPs in
# 50 steps)
GOLDEN = {
    "dit-xl-2-256": 118.67,
    "dit-xl-2-512": 524.58,
    "pixart-alpha-256": 149.05,
    "pixart-alpha-512": 617.99,
    "flux-1-dev": 74385 / 2,
    "wan-2.1-1.3b": 283.0e3 / 2,
    "wan-2.1-14b": 1678.4e3 / 2,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_full_size_models_cost_what_is_published(name):
    steps = 50 if name == "dit-xl-2-256" else 2
    row = counting.count_table(select(name), [Stack()], steps=steps)[0]
    assert row["macs_per_pass"] / 1e9 == pytest.approx(GOLDEN[name], rel=2e-3)
    passes = steps if name.startswith("flux") else 2 * steps  # guidance but for FLUX
    assert row["passes"] == passes and row["forwards"] == (
        passes if name.startswith("wan") else steps
    )
    assert (
        row["flops"]
        == 2 * passes * row["macs_per_pass"]
        == 2 * sum(row[f"macs_{k}"] for k in ("linear", "attention", "conv"))
    )
    if name == "dit-xl-2-256":
        # what the caching papers give for 50 steps with guidance
        assert row["flops"] / 1e12 == pytest.approx(23.74, rel=2e-3)
    if name == "pixart-alpha-256":
        assert row["macs_linear"] / passes / 1e9 == pytest.approx(142.84, rel=2e-3)


@pytest.mark.parametrize(
    "name, size, convention, published",
    [
        ("pixart-alpha-256", {}, "linear-macs-one-pass", 2.86),
        (
            "flux-1-schnell",
            {"height": 256, "width": 256, "text_tokens": 256},
            "linear-macs-one-pass",
            13.247,
        ),
        (
            "wan-2.1-1.3b",
            {"steps": 25, "height": 128, "width": 128, "frames": 37},
            "linear-macs",
            43.866,
        ),
    ],
)
def test_the_baselines_of_diffsparse_are_reproduced_as_its_authors_count(
    name, size, convention, published
):
    """TMACs of the un-accelerated rows of its tables (arXiv:2604.03674)."""
    row = counting.count_model(select(name)[0], **size)
    assert counted(row, convention) / 1e12 == pytest.approx(published, rel=5e-3)


@pytest.mark.parametrize(
    "stack, published",
    [
        ("fora(interval=2)", 1.429),
        ("taylorseer(interval=2, first=2)", 1.571),
        ("toca(quirk=False)", 1.6433),
        ("toca(ratio=0.4, quirk=False)", 1.7693),
    ],
)
def test_the_rivals_in_diffsparses_table_cost_what_it_says(stack, published):
    """TMACs on PixArt, 20 steps (arXiv:2604.03674): 10 full steps, 11, ToCa's N=3 with R=70 %; and
    with R=60 %."""
    row = counting.count_model(select("pixart-alpha-256")[0], stack=Stack.parse(stack))
    assert counted(row, "linear-macs-one-pass") / 1e12 == pytest.approx(published, rel=5e-3)


PROMPT = 22
"""Tokens of ToCa's prompts, which it does not publish: by these its un-accelerated row is 11.18 T,
and all others must follow."""


@pytest.mark.parametrize(
    ("steps", "keep", "published"),
    [
        (20, lambda *_: 1.0, 11.18),
        (20, lambda step, *_: float(step % 3 == 0), 4.01),  # FORA, N=3
        (20, ("pixart", 3, 0.4, True), 6.33),
        (20, ("pixart", 3, 0.3, True), 5.78),
    ],
)
def test_tocas_rows_on_pixart_are_counted_as_published(steps, keep, published):
    """TFLOPs of arXiv:2410.05317, table 1: N=3 with R=60 % and 70 %, full steps tested block by
    block as its code does."""
    keep = toca(*keep, steps) if isinstance(keep, tuple) else keep
    told = work("pixart-alpha-256", steps, keep) | {"flops": 0}
    assert counted(told, "toca") / 1e12 == pytest.approx(published, rel=5e-3)


def test_tocas_rows_on_pixart_follow_from_a_count():
    model, stacks = (
        select("pixart-alpha-256"),
        [Stack.parse("toca(quirk=True)"), Stack.parse("toca(ratio=0.4, quirk=True)")],
    )
    rows = counting.count_table(model, stacks, text_tokens=PROMPT)
    assert [counted(row, "toca") / 1e12 for row in rows] == [
        pytest.approx(x, rel=5e-3) for x in (5.78, 6.33)
    ]


def work(model, steps, keep, stack="none"):
    """What `count` hands to conventions, for a function `keep(step, block's share of the depth,
    kind)`."""
    sizes = {
        "dit-xl-2-256": {
            "family": "dit",
            "width": 1152,
            "heads": 16,
            "image": 256,
            "text": 0,
            "passes": 2,
        },
        "pixart-alpha-256": {
            "family": "pixart",
            "width": 1152,
            "heads": 16,
            "image": 256,
            "text": PROMPT,
            "passes": 2,
        },
        "flux-1-dev": {
            "family": "flux",
            "width": 3072,
            "heads": 24,
            "image": 4096,
            "text": 512,
            "passes": 1,
        },
    }
    parts = {
        "dit-xl-2-256": [(28, ("self", "mlp"))],
        "pixart-alpha-256": [(28, ("self", "cross", "mlp"))],
        "flux-1-dev": [(19, ("joint", "mlp", "context_mlp")), (38, ("single",))],
    }[model]
    rows = [
        (block, block / (num - 1), kind)
        for num, kinds in parts
        for block in range(num)
        for kind in kinds
    ]
    asked = [
        [keep(step, block, place, kind) for block, place, kind in rows] for step in range(steps)
    ]
    told = {
        "sublayers": [f"{b}.{kind}" for b, _, kind in rows],
        "keep": [[share or 0.0 for share in step] for step in asked],
        "skipped": [
            (t, i) for t, step in enumerate(asked) for i, share in enumerate(step) if share is None
        ],
    }
    return {"stack": stack, "work": told | sizes[model]}


def every(interval):
    return lambda step, *_: float(step % interval == 0)


def every_from_the_end(interval, steps):
    """As DiT's code counts, and the first."""
    return lambda step, *_: float(step == 0 or (steps - 1 - step) % interval == 0)


def toca(family, interval, ratio, quirk, steps=50, image=256, skips=False):
    """By the rules; `skips`: as DuCa, None where a block does not run."""
    rules = (DUCA if skips else TOCA)[family]
    phases = rules.phases(interval, steps)
    tokens = {
        "dit": {"mlp": image},
        "pixart": dict.fromkeys(("self", "cross", "mlp"), image),
        "flux": {"mlp": 4096, "context_mlp": 512, "single": 4608},
    }[family]

    def keep(step, block, place, kind):
        phase = phases[step][quirk and block > 0]
        if phase == 0:
            return 1.0
        if skips and phase % 2 == 0:
            return None
        return (
            rules.rows(ratio, step, steps, place, kind, tokens[kind]) / tokens[kind]
            if kind in tokens
            else 0.0
        )

    return keep


@pytest.mark.parametrize(
    "model, steps, keep, published",
    [
        ("dit-xl-2-256", 50, every(1), 23.74),
        ("dit-xl-2-256", 25, every(1), 11.868),
        ("dit-xl-2-256", 50, every_from_the_end(3, 50), 8.56),  # FORA and TaylorSeer, N=3
        ("dit-xl-2-256", 50, toca("dit", 3, 0.07, True), 10.23),
        (
            "dit-xl-2-256",
            50,
            toca("dit", 3, 0.07, False),
            11.125,
        ),  # without the quirk; not published
        ("dit-xl-2-256", 50, toca("dit", 3, 0.05, True, skips=True), 9.575),  # DuCa
        ("flux-1-dev", 50, every(1), 3719.5),
        ("flux-1-dev", 50, every(3), 1320.07),
        ("flux-1-dev", 50, toca("flux", 4, 0.1, False), 1263.22),
    ],
)
def test_the_toca_family_counts_as_published(model, steps, keep, published):
    """TFLOPs of arXiv:2410.05317's and 2503.06923's tables and README, as their code counts."""
    assert counted(work(model, steps, keep) | {"flops": 0}, "toca") / 1e12 == pytest.approx(
        published, rel=5e-3
    )


def taylorseer(interval, first):
    return lambda step, *_: float(step < first or (step - first + 1) % interval == 0)


@pytest.mark.parametrize(
    ("interval", "first", "published"), [(5, 3, 893.54), (6, 3, 744.81), (4, 1, 967.91)]
)
def test_taylorseer_on_flux_counts_as_published(interval, first, published):
    """TFLOPs of arXiv:2503.06923's table for N = 5 and 6; of N = 4 as HyCa and others collected it,
    which is 13 full steps. What it extrapolates costs nothing, where ToCa's code runs the output
    projection of a joint attention that it reuses."""
    rows = [
        work("flux-1-dev", 50, taylorseer(interval, first), stack)
        for stack in ("taylorseer", "fora")
    ]
    ours, others = (counted(row | {"flops": 0}, "toca") / 1e12 for row in rows)
    assert ours == pytest.approx(published, rel=2e-3) and others > 1.05 * ours


def test_what_is_counted_of_taylorseer_on_flux_by_the_convention_is_its_full_steps():
    model, changes = narrow("flux-1-dev")
    rows = [
        counting.count_model(model, stack=Stack.parse(text), steps=8, changes=changes)
        for text in ("none", "taylorseer(interval=5)")
    ]
    dense, ours = (counted(row, "toca") for row in rows)
    assert ours * 8 == dense * 4  # steps 0, 1, 2 and 7


def test_what_conventions_need_is_told_by_the_run():
    model, changes = narrow("dit-xl-2-256")
    rows = {
        text: counting.count_model(model, stack=Stack.parse(text), steps=12, changes=changes)
        for text in ("none", "toca", "duca", "teacache")
    }
    assert rows["teacache"]["work"] is None and counted(rows["teacache"], "toca") is None
    assert {h for step in rows["none"]["work"]["keep"] for h in step} == {1.0}
    blocks = changes["transformer.num_layers"]
    for text, ratio in (("toca", 0.07), ("duca", 0.05)):
        told = rows[text]["work"]
        keep = toca("dit", 3, ratio, True, 12, told["image"], skips=text == "duca")
        assert len(told["keep"]) == rows[text]["steps"] == 12 and told["passes"] == 2
        skipped = []
        for step, shares in enumerate(told["keep"]):
            for i, (name, share) in enumerate(zip(told["sublayers"], shares, strict=True)):
                block, kind = int(name.split(".")[0]), name.split(".")[1]
                asked = keep(step, block, block / (blocks - 1), kind)
                assert share == pytest.approx(asked or 0.0, abs=1e-4)
                skipped += [[step, i]] if asked is None else []
        assert told.get("skipped", []) == skipped and (text == "duca") is bool(skipped)
    assert (
        counted(rows["duca"], "toca")
        < counted(rows["toca"], "toca")
        < counted(rows["none"], "toca")
    )


def test_dit_agrees_with_its_closed_form_at_any_size():
    for side in (128, 384):
        row = counting.count_model(
            select("dit-xl-2-256")[0],
            height=side,
            width=side,
            steps=1,
            changes={"transformer.num_layers": 4},
        )
        n, d = (side // 16) ** 2, 1152
        # of the time step: in every block, and once more before the last projection
        embed = 256 * d + d**2
        blocks = 4 * (12 * n * d**2 + 2 * n**2 * d + 6 * d**2 + embed)
        assert row["macs_per_pass"] == blocks + n * 16 * d + embed + 2 * d**2 + n * 32 * d
        assert row["macs_attention"] == 2 * 4 * 2 * n**2 * d  # two passes of 4 blocks, exactly


def test_wan_agrees_with_its_closed_form_at_any_size():
    size = {"height": 240, "width": 416, "frames": 17, "steps": 1, "text_tokens": 256}
    row = counting.count_model(
        select("wan-2.1-1.3b")[0], **size, changes={"transformer.num_layers": 4}
    )
    n, d, f, text = 5 * 15 * 26, 1536, 8960, 256
    assert row["macs_attention"] == 2 * 4 * (2 * n**2 * d + 2 * n * text * d)
    blocks = 4 * (n * (6 * d**2 + 2 * d * f) + 2 * text * d**2 + 2 * n**2 * d + 2 * n * text * d)
    embedders = n * 64 * d + text * (4096 * d + d**2) + 256 * d + d**2 + 6 * d**2
    assert row["macs_per_pass"] == blocks + embedders + n * 64 * d


class Block(nn.Module):
    """A transformer block of width 64 whose linear layers have no bias and get inputs that are not
    contiguous."""

    def __init__(self, explicit: bool) -> None:
        super().__init__()
        self.explicit = explicit
        self.qkv, self.out, self.up, self.down = (
            nn.Linear(64, n * 64, bias=False) for n in (3, 1, 4, 1)
        )
        self.down = nn.Linear(256, 64)

    def forward(self, x):  # [B, N, 64]
        q, k, v = self.qkv(x.mT.contiguous().mT).view(*x.shape[:2], 3, 4, 16).permute(2, 0, 3, 1, 4)
        y = (
            (q @ k.mT / 4).softmax(-1) @ v
            if self.explicit
            else functional.scaled_dot_product_attention(q, k, v)
        )
        return self.down(self.up(self.out(y.transpose(1, 2).reshape(x.shape))))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, nullcontext])
def test_a_block_is_split_into_linear_and_attention_however_it_is_carried_out(
    batch, explicit, device, mode
):
    x = torch.randn(batch, 32, 64, device=device)
    block = Block(explicit).to(device)
    for kernel in (nullcontext(), sdpa_kernel(SDPBackend.MATH)):
        counter = Counter()
        with mode(), kernel, counter.counting():
            block(x)
        assert counter.of("elsewhere", "linear") == 2 * batch * 32 * 12 * 64**2
        assert counter.of("elsewhere", "attention") == 2 * batch * 2 * 32**2 * 64
        assert not counter.uncounted


def test_convolutions_and_products_with_vectors_are_counted():
    counter = Counter()
    with counter.counting():
        functional.conv2d(torch.zeros(1, 3, 8, 8), torch.zeros(5, 3, 2, 2), stride=2)
        functional.conv3d(torch.zeros(1, 2, 4, 4, 4), torch.zeros(3, 2, 1, 2, 2))
        torch.zeros(7, 6) @ torch.zeros(6)
        torch.addmv(torch.zeros(7), torch.zeros(7, 6), torch.zeros(6))
        torch.dot(torch.zeros(5), torch.zeros(5))
        torch.addbmm(torch.zeros(2, 4), torch.zeros(3, 2, 5), torch.zeros(3, 5, 4))
    assert counter.of("elsewhere", "conv") == 2 * (5 * 3 * 4 * 16 + 3 * 2 * 4 * 4 * 9)
    assert counter.of("elsewhere") - counter.of("elsewhere", "conv") == 2 * (42 + 42 + 5 + 120)


def some_of_everything(x):
    """Views, copies, writes, several results, numbers of every type, and the same shapes again."""
    layer = nn.Linear(8, 8, device="meta")
    made = [
        x,
        x.T,
        x.reshape(2, -1),
        x.contiguous(),
        x.T.contiguous(),
        x.to(torch.float64),
        x.to(x.dtype),
    ]
    for value in (1, 1.0, True):
        made += [x + value, (x > 0) * value, torch.full_like(x, value)]
    for _ in range(2):
        made += [*x.chunk(2), *x.unbind(), *x.topk(2), *torch.var_mean(x, 1), layer(x), x @ x]
        y = x.clone()
        y[0] = 1
        made += [y, y.mul_(2), y.transpose(0, 1).add_(1), functional.dropout(x, training=False)]
        made += [functional.scaled_dot_product_attention(*[x.view(1, 1, 8, 8)] * 3)]
        made += [x.half() @ x.half(), torch.bmm(x[None], x[None]), functional.silu(x).softmax(-1)]
    return made


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_not_run_again_on_the_meta_device_returns_and_counts_the_same(monkeypatch, mode):
    results = []
    for again in (False, True):
        if again:
            monkeypatch.setattr(flop_counter, "signature", lambda _: None)
        counter = Counter()
        with mode(), counter.counting():
            made = some_of_everything(torch.empty(8, 8, device="meta"))
        described = [(t.shape, t.stride(), t.dtype, t.device) for t in made]
        # the same of them share memory
        memory = [t.untyped_storage()._cdata for t in made]
        results.append((described, [memory.index(m) for m in memory], counter.flops))
        assert bool(counter._operations) != again
    assert results[0] == results[1] and results[0][2].total() > 0


def test_a_tensor_with_values_is_never_taken_for_another_of_its_shape():
    with torch.no_grad(), Counter().counting():
        one, two = (torch.full((2, 2), value) @ torch.eye(2) for value in (1.0, 2.0))
    assert (one.tolist(), two.tolist()) == ([[1.0] * 2] * 2, [[2.0] * 2] * 2)


@pytest.mark.parametrize("name", NAMES)
def test_a_real_run_counts_what_the_meta_device_and_pytorch_count(name):
    model, changes = narrow(name)
    with quiet():
        pipe = build(model, device="cpu", changes=changes)
    found = counting.count_generation(pipe, lambda: generate(pipe, model))
    row = counting.count_model(model, changes=changes)
    assert {k: row[k] for k in ("flops", "forwards", "passes")} == {
        k: getattr(found, k) for k in ("flops", "forwards", "passes")
    }
    assert [row[f"macs_{k}"] for k in ("linear", "attention", "conv")] == [
        found.linear_macs,
        found.attention_macs,
        found.conv_macs,
    ]
    assert (
        found.decoder_flops > 0
        and (found.text_flops > 0) == (model.family != "dit")
        and not found.uncounted
    )
    assert found.forwards == model.steps * (2 if model.family == "wan" else 1)

    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    theirs, forward = [], pipe.transformer.forward

    def counted(*args, **kwargs):
        with FlopCounterMode(
            display=False,
            custom_mapping={
                cpu_attention: lambda q, k, v, *a, out_shape=None, **kw: sdpa_flop_count(q, k, v)
            },
        ) as c:
            out = forward(*args, **kwargs)
        theirs.append(c.get_total_flops())
        return out

    pipe.transformer.forward = counted
    generate(pipe, model)
    assert found.flops == sum(theirs)


def test_sd3_has_its_published_parameters_and_the_products_its_sizes_say():
    """2.03e9 (Stability AI 2024); per pass, the 24 blocks' linear layers by hand, and attention of
    4096 image tokens with 77 + 256 of the text."""
    model = select("sd3-medium")[0]
    with quiet():
        transformer = build(model, device="meta", parts=("transformer", "vae")).transformer
    assert sum(p.numel() for p in transformer.parameters()) == pytest.approx(2.03e9, rel=2e-3)
    row, d, image, text = counting.count_model(model, steps=2), 1536, 4096, 333
    assert row["macs_attention"] == 4 * 24 * 2 * (image + text) ** 2 * d
    blocks = 24 * 12 * image * d**2 + (23 * 12 + 3) * text * d**2
    assert row["macs_linear"] / 4 == pytest.approx(blocks, rel=2e-3)
    with pytest.raises(ValueError, match="height: sd3-medium makes at most 3072 pixels, not 4096"):
        counting.count_model(model, height=4096)


def test_two_samples_cost_twice_one():
    model, changes = narrow("flux-1-dev")
    with quiet():
        pipe = build(model, device="cpu", changes=changes)
    one, two = (
        counting.count_generation(pipe, lambda n=n: generate(pipe, model, n)) for n in (1, 2)
    )
    assert (
        two.attention_macs == 2 * one.attention_macs
        and two.forwards == one.forwards
        and two.passes == 2 * one.passes
    )
    assert two.flops == 2 * one.flops


@pytest.mark.parametrize("name", NAMES)
def test_int8_multiplies_as_much_as_the_dense_model(name):
    model, changes = narrow(name)
    stack = Stack.parse("int8")
    with quiet():
        pipe = build(model, device="cpu", changes=changes)
        dense = counting.count_generation(pipe, lambda: generate(pipe, model))
        with stack.attached(pipe) as attached:
            quantised = counting.count_generation(pipe, lambda: generate(pipe, model))
            assert attached.counters()["int8.linears"] > 0
        row = counting.count_model(model, stack=stack, changes=changes)
    assert quantised == dense and row["flops"] == dense.flops and row["note"] == ""


@pytest.mark.parametrize("name", NAMES)
def test_reused_work_is_not_counted_in_a_run_nor_on_the_meta_device(name):
    model, changes = narrow(name)
    stack = Stack.parse("fora(interval=3)")
    with quiet():
        pipe = build(model, device="cpu", changes=changes)
        dense = counting.count_generation(pipe, lambda: generate(pipe, model))
        with stack.attached(pipe):
            reused = counting.count_generation(pipe, lambda: generate(pipe, model))
        row = counting.count_model(model, stack=stack, changes=changes)
    # of three steps; DiT's code counts down to 0, and the first has nothing to reuse
    full = 2 if model.family == "dit" else 1
    assert row["flops"] == reused.flops < (0.9 if full == 2 else 0.6) * dense.flops
    assert reused.attention_macs * 3 == full * dense.attention_macs
    assert row["stack"] == "fora" and row["forwards"] == dense.forwards


def test_fewer_steps_cost_fewer_forwards():
    model, changes = narrow("flux-1-dev")
    none, half = (
        counting.count_model(model, stack=Stack.parse(text), steps=8, changes=changes)
        for text in ("none", "fewer_steps")
    )
    assert (none["steps"], half["steps"]) == (8, 4) and none["flops"] == 2 * half["flops"]


def test_a_stack_that_cannot_be_counted_is_a_row_with_its_reason():
    model, changes = narrow("flux-1-dev")
    row = counting.count_model(model, stack=Stack.parse("firstblock"), changes=changes)
    assert row["flops"] is None and row["forwards"] is None and "it goes by values" in row["note"]
    assert row["status"] == "refused"
    model, changes = narrow("dit-xl-2-256")
    row = counting.count_model(model, stack=Stack.parse("firstblock"), changes=changes)
    assert row["flops"] is None and row["note"].startswith("firstblock: ")


@pytest.mark.parametrize(
    ("name", "size", "complaint"),
    [
        (
            "dit-xl-2-256",
            {"height": 250},
            "height: dit-xl-2-256 makes multiples of 16 pixels, not 250",
        ),
        ("dit-xl-2-256", {"height": 512}, "makes square pictures, not 512x256"),
        ("flux-1-dev", {"width": 1000}, "width: flux-1-dev makes multiples of 16 pixels"),
        (
            "wan-2.1-1.3b",
            {"frames": 80},
            "frames: wan-2.1-1.3b makes a multiple of 4 and one, not 80",
        ),
    ],
)
def test_a_size_the_model_cannot_make_is_refused(name, size, complaint):
    with pytest.raises(ValueError, match=complaint):
        counting.count_model(select(name)[0], **size)


def test_a_product_without_a_formula_is_an_error_that_names_it():
    @torch.library.custom_op("ditbench_test::fancy_matmul", mutates_args=())
    def fancy_matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x @ w

    model, changes = narrow("dit-xl-2-256")
    with quiet():
        pipe = build(model, device="cpu", changes=changes)
    linear = pipe.transformer.transformer_blocks[0].attn1.to_q
    linear.forward = lambda x: fancy_matmul(
        x.flatten(0, 1), linear.weight.detach().mT.contiguous()
    ).unflatten(0, x.shape[:2])
    with pytest.raises(
        ValueError, match=r"no formula is known for ditbench_test\.fancy_matmul \(3 times\)"
    ):
        counting.count_generation(pipe, lambda: generate(pipe, model))
    found = counting.count_generation(pipe, lambda: generate(pipe, model), allow_uncounted=True)
    assert found.uncounted == {"ditbench_test.fancy_matmul": 3}
    assert not pipe.transformer._forward_hooks and not pipe.transformer._forward_pre_hooks


def test_products_are_known_by_the_words_in_their_names():
    products = "mm bmm _scaled_mm _int_mm _grouped_mm addmm baddbmm matmul _scaled_grouped_mm _weight_int8pack_mm conv3d mkldnn_linear"
    products += " _cslt_sparse_mm convolution _flash_attention_forward _flash_attn_forward qlinear int_scaled_matmul fp8_gemm einsum"
    products += " f8f8bf16_rowwise f8f8bf16 f4f4bf16"  # of mslk, which torchao takes where it is
    others = "gamma lgamma digamma hamming_window convert_element_type upsample_linear1d upsample_bilinear2d linspace add mul_ sum "
    others += "comm layer_norm softmax copy_ linalg_solve"
    assert [n for n in products.split() if not looks_like_a_product(n)] == []
    assert [n for n in others.split() if looks_like_a_product(n)] == []


def test_a_failing_run_leaves_no_hooks_behind():
    model, changes = narrow("dit-xl-2-256")
    with quiet():
        pipe = build(model, device="cpu", changes=changes)

    def fails():
        generate(pipe, model)
        raise KeyError

    with pytest.raises(KeyError):
        counting.count_generation(pipe, fails)
    assert not any(
        m._forward_hooks or m._forward_pre_hooks
        for part in (pipe.transformer, pipe.vae)
        for m in part.modules()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_costs_its_samples(kind):
    subject = tiny(kind, steps=2)
    with torch.no_grad():
        one, two = (
            counting.count_generation(
                subject.pipeline, lambda w=w: subject.generate(subject.sampling, w)
            )
            for w in ([0], [0, 1])
        )
    assert two.divided(2) == one and two.flops == 2 * one.flops


@pytest.mark.parametrize(
    ("stack", "total", "batch", "expected"),
    [
        ("fora+int8", 512, 16, [1]),
        ("teacache", 512, 16, [16] * 4),
        ("zipr1", 512, 16, [16] * 4),
        ("rapid3", 320, 16, [16] * 3),
        ("top_tiles", 20, 16, [16]),
        ("easycache", 4, 1, [1]),
        ("stitch+int8", 64, 4, [4, 4]),
        ("lazy_queries", 4096, 30, [30, 30, 30]),
    ],
)
def test_what_costs_otherwise_for_every_sample_is_counted_over_many(stack, total, batch, expected):
    parts = [list(range(i, min(i + batch, total))) for i in range(0, total, batch)]
    chosen = flops.counted_parts(Stack.parse(stack), parts)
    assert [len(part) for part in chosen] == expected
    assert chosen[1:] == parts[1 : len(chosen)]


def test_a_mean_is_over_samples_and_calls_are_of_a_generation():
    whole = flops.Flops(
        flops=1200, linear_macs=480, attention_macs=120, conv_macs=0, forwards=30, passes=60,
        text_flops=12, decoder_flops=24, uncounted={},
    )  # fmt: skip
    mean = whole.divided(12, 3)
    assert (mean.flops, mean.linear_macs, mean.passes, mean.text_flops) == (100, 40, 5, 1)
    assert mean.forwards == 10 and whole.divided(12).forwards == 30


def test_what_decides_per_batch_is_known_from_its_traits():
    assert [
        flops.decides_per_batch(Stack.parse(text))
        for text in ("none", "fora+int8", "teacache+int8")
    ] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("name", "size"),
    [("flux-1-dev", (1, 16, 8)), ("pixart-alpha-256", (1, 16, 8)), ("wan-2.1-1.3b", (2, 16, 8))],
)
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_tokens_of_a_picture_that_is_no_square_are_counted_as_they_are(name, size, device):
    """What methods are told of rows and columns, against the rows that reach the first sub-layer;
    and what conventions go by."""
    model, changes = narrow(name)
    cell = 16 if model.family == "wan" else 4
    height, width = size[1] * cell, size[2] * cell
    seen = []

    def attach(pipeline, at):
        at.reroute(
            at.sublayers[0],
            lambda run, hidden: (seen.append((at.now.grid, hidden.shape[1])), run())[1],
        )

    traits = Traits(
        family="test", stage=Stage.OPERATOR, claims=frozenset(), needs=frozenset(),
        conflicts=frozenset(), reversible=True,
        decides_per_batch=False, paper="",
    )  # fmt: skip
    probe = SimpleNamespace(
        name="probe",
        attach=attach,
        adapt=lambda s: s,
        traits=traits,
        check=lambda p: None,
        recipe=lambda: None,
    )
    stack = Stack((probe,))
    with quiet():
        if device == "meta":
            with_methods = counting._count_on_meta(
                model, sampling_at(model, height, width), stack, changes
            )[0]
            row = counting.count_model(model, height=height, width=width, changes=changes)
            assert row["work"]["image"] == math.prod(size) and with_methods.flops == row["flops"]
        else:
            pipe = build(model, device="cpu", changes=changes)
            with stack.attached(pipe):
                generate(pipe, replace(model, height=height, width=width))
    assert set(seen) == {(size, math.prod(size))}


def sampling_at(model, height, width):
    return replace(sampling_of(model), height=height, width=width)


def test_a_schedule_spends_its_share_of_a_picture_that_is_no_square():
    model, changes = narrow("flux-1-dev")
    stack = Stack.parse("diffsparse(allocator='uniform', keep=0.5, selector='norm')")
    rows = [
        counting.count_model(model, stack=s, height=64, width=32, steps=10, changes=changes)
        for s in (Stack(), stack)
    ]
    # embedders run at every step
    assert rows[1]["note"] == "" and 0.5 < rows[1]["flops"] / rows[0]["flops"] < 0.6


def test_pixart_cannot_take_one_step_and_says_so():
    rows = counting.count_table(select("pixart-alpha-1024,dit-xl-2-256"), [Stack()], steps=1)
    assert [row["status"] for row in rows] == ["refused", "ok"]
    assert (
        rows[0]["note"]
        == "diffusers' PixArtAlphaPipeline cannot take a single step with DPMSolverMultistepScheduler"
    )
    stacks = [Stack.parse(f"distill(checkpoint='lcm-pixart', steps={steps})") for steps in (1, 2)]
    one, two = (
        counting.count_model(select("pixart-alpha-1024")[0], stack=stack) for stack in stacks
    )
    assert one["note"].startswith(
        "without weights distill's sampler is not there, and diffusers' PixArtAlphaPipeline"
    )
    assert two["status"] == "ok" and two["passes"] == 2


BREAKS = {
    "weights": ("attach", lambda self, pipeline, at: float(pipeline.transformer.proj_out.weight.norm()), "refused"),
    "values": ("attach", lambda self, pipeline, at: at.on_start(lambda: bool(pipeline.transformer.proj_out.weight.sum() > 0)), "refused"),
    "attach": ("attach", lambda self, pipeline, at: at.sublayers[1000], "failed"),
    "check": ("check", lambda self, pipeline: {}["x"], "failed"),
    "adapt": ("adapt", lambda self, sampling: sampling.nothing, "failed"),
}  # fmt: skip


def test_count_says_what_it_counts_next():
    steps = []
    stacks = [Stack(), Stack.parse("fora")]
    counting.count_table(select("dit-tiny"), stacks, lambda *step: steps.append(step), steps=2)
    assert steps == [("dit-tiny none", 0, 2), ("dit-tiny fora", 1, 2)]


@pytest.mark.parametrize("where", BREAKS)
def test_a_method_that_breaks_down_is_a_row_and_the_others_stay(where):
    part, act, status = BREAKS[where]
    METHODS.pop("breaks_test", None)
    parts = {"attach": lambda self, pipeline, at: None, part: act, "__module__": __name__}
    method("breaks_test", family="test", stage=Stage.OPERATOR)(type("Breaks", (), parts))
    stacks = [Stack.parse(text) for text in ("none", "breaks_test", "fora")]
    rows = counting.count_table(select("flux-tiny"), stacks, steps=4)
    assert [row["status"] for row in rows] == ["ok", status, "ok"]
    assert rows[0]["flops"] > rows[2]["flops"] > 0 and rows[1]["flops"] is None
    assert ("the meta device has none" in rows[1]["note"]) == (status == "refused") and rows[1][
        "note"
    ]


def test_a_size_one_model_cannot_make_is_its_own_row():
    models = select("dit-tiny,flux-tiny")
    rows = counting.count_table(models, [Stack()], height=64, width=32, steps=2)
    assert [row["status"] for row in rows] == ["refused", "ok"] and "square pictures" in rows[0][
        "note"
    ]
    with pytest.raises(ValueError, match="square pictures"):
        counting.count_table(models[:1], [Stack()], height=64, width=32)


def test_what_has_to_be_prepared_is_counted_as_what_runs_in_its_place():
    rows = counting.count_table(
        select("dit-xl-2-256,dit-tiny"), [Stack.parse("diffsparse")], steps=4
    )
    shown = Stack.parse("diffsparse(allocator='transferred')")
    alone = counting.count_model(select("dit-xl-2-256")[0], stack=shown, steps=4)
    assert rows[0] == alone | {
        "note": "in place of diffsparse, which is prepared for tiny models only"
    }
    assert rows[1]["status"] == "refused" and rows[1]["stack"] == "diffsparse"
