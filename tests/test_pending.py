"""Blocks that run on pending tensors: what a sub-layer that is reused no longer costs, and that nothing
else changes."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from narrow import NAMES, generate, narrow
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ditbench.method.stack import Stack
from ditbench.models import sublayers as sublayers_module
from ditbench.models.blocks import blocks
from ditbench.models.deferred import defer
from ditbench.models.loading import load
from ditbench.models.pending import Pending, real
from ditbench.models.regions import compute_by
from ditbench.models.sublayers import sublayers
from ditbench.models.token_rows import take
from ditbench.quiet import quiet

STACKS = (
    "fora(interval=2)", "taylorseer(interval=2)", "hicache", "toca", "duca", "clusca", "speca",
    "frequency_tokens", "diffsparse(allocator='uniform')",
    "diffsparse(allocator='random',selector='change')",
    "diffsparse(allocator='random',selector='norm')",
    "diffsparse(allocator='random',selector='similarity')",
    "sparsecast(learns='coefficients',coefficients='one')", "fora(interval=2)+lazy_queries",
    "fora(interval=2)+int8",
)  # fmt: skip
"""Every method that reuses sub-layers or some of their rows, and two on top of another's route and
layers."""
STEPS = 6


def pipeline(name, dtype="float32"):
    model, changes = narrow(name)
    with quiet():
        pipe = load(model, weights="random", device="cpu", dtype=dtype, changes=changes)
    return replace(model, steps=STEPS), pipe


def samples(model, pipe, stack):
    with stack.attached(pipe) as attached, quiet():
        attached.start(STEPS, 2)
        out = generate(pipe, model, 2)
    return torch.as_tensor(out)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_the_same_bits_as_without(name, dtype, monkeypatch):
    model, pipe = pipeline(name, dtype)
    plain = samples(model, pipe, Stack())
    changed = 0
    for text in STACKS:
        stack = Stack.parse(text)
        if (
            stack.problems(model.family)
            or any(m.check(pipe) for m in stack.methods)
            or (dtype == "bfloat16" and "int8" in text)
        ):
            continue
        with monkeypatch.context() as patched:
            patched.setattr(sublayers_module, "defer", lambda *_, **__: False)
            before = samples(model, pipe, stack)
        with monkeypatch.context() as patched:
            deferred = []
            patched.setattr(
                sublayers_module,
                "defer",
                lambda *a, d=deferred, **k: d.append(defer(*a, **k)) or d[-1],
            )
            after = samples(model, pipe, stack)
        assert deferred and all(deferred) and torch.equal(after, before), text
        changed += not torch.equal(after, plain)
    assert changed > 8  # or the methods did nothing that could go wrong


class Operations(TorchDispatchMode):
    """Counts what runs, but for views and memory that is not written."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if not function.is_view and name not in ("aten::empty", "aten::new_empty", "aten::view"):
            self.names[name] += 1
        return function(*args, **(kwargs or {}))


def operations_by_step(model, pipe, stack):
    """(step, block) -> what ran inside the block."""
    ran = {}
    with stack.attached(pipe) as attached:
        attached.start(STEPS, 2)
        for block in blocks(pipe.transformer):
            run = block.module.forward

            def counted(*args, _run=run, _index=block.index, **kwargs):
                with Operations() as operations:
                    out = _run(*args, **kwargs)
                ran[attached.now.step, _index] = operations.names
                return out

            attached.attachments["fora"].patch(block.module, "forward", counted)
        generate(pipe, model, 2)
    return ran


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_reused_sublayer_is_its_gate_and_an_addition(name, dtype):
    model, pipe = pipeline(name, dtype)
    ran = operations_by_step(model, pipe, Stack.parse("fora(interval=2)"))
    reused = 2 if model.family == "dit" else 1  # DiT's rule counts from the last step
    for block in blocks(pipe.transformer):
        own = [s for s in sublayers(pipe.transformer) if s.block == block.index]
        streams = sum(2 if s.spec.pair else 1 for s in own)
        if model.family == "sd3" and block.index == 1:
            streams -= 1  # the last block has no text to add to
        names = ran[reused, block.index]
        products = {n for n in names if n.endswith(("norm", "attention", "gelu", "gather"))}
        assert not products, names
        # PixArt's and Wan's cross-attention have no gate
        gates = streams - sum(s.kind == "cross" for s in own)
        assert (names["aten::mul"], names["aten::add"]) >= (gates, 0)
        modulation = Counter(names) - Counter({"aten::mul": gates, "aten::add": streams})
        assert modulation.total() <= MODULATION[model.family], modulation
        assert ran[0, block.index].total() > 3 * (names.total() - modulation.total())


MODULATION = {"dit": 17, "pixart": 1, "flux": 4, "sd3": 4, "wan": 1}
"""What gates are made of, once a block: a table and the time embedding, or SiLU and a linear layer
for each stream; FLUX's single blocks join text and image besides, and each of DiT's blocks has its own
embedding of time and class."""


def modulated(x, scale, shift):
    pending = F.layer_norm(Pending(x), (x.shape[-1],)) * (1 + Pending(scale)[:, None])
    return pending + Pending(shift)[:, None]


def test_rows_of_what_is_pending_are_the_rows_of_its_value():
    torch.manual_seed(0)
    x, scale, shift = torch.randn(2, 9, 8), torch.randn(2, 8), torch.randn(2, 8)
    rows = torch.tensor([[4, 1, 7], [0, 8, 2]])
    for dtype in (torch.float32, torch.bfloat16):
        some = modulated(x.to(dtype), scale, shift)
        assert (some.shape, some.ndim, len(some)) == ((2, 9, 8), 3, 2)
        assert some.waits and some.device == x.device
        chosen, value = take(some, rows), modulated(x.to(dtype), scale, shift).value
        assert some.waits and some.dtype == value.dtype == torch.float32
        assert torch.equal(chosen, take(value, rows))
        assert torch.equal(value, F.layer_norm(x.to(dtype), (8,)) * (1 + scale[:, None]) + shift[:, None])  # fmt: skip


def test_shapes_and_types_are_those_of_the_value():
    x, table, layer = torch.randn(2, 6, 4), torch.randn(1, 6, 4), nn.Linear(4, 12)
    half = Pending(torch.randn(2, 3, 4, dtype=torch.bfloat16))
    cases = [
        Pending(x).chunk(6, dim=1)[2], table + Pending(x), Pending(x).float() * table,
        layer(F.silu(Pending(x))), torch.cat([Pending(x), Pending(x)], dim=1),
        torch.cat([Pending(x), half], dim=1), Pending(x)[:, None], Pending(x).unsqueeze(1),
        Pending(x).reshape(2, -1), half.float() * x[:, :1], half * torch.tensor(2.0),
        (half.float() + x[:, :3]).type_as(half), Pending(x).to(torch.float64), 3 * half,
        torch.sin(Pending(x)), torch.chunk(Pending(x), 2, dim=-1)[1],
    ]  # fmt: skip
    for case in cases:
        shape, dtype = tuple(case.shape), case.dtype
        assert (shape, dtype) == (tuple(case.value.shape), case.value.dtype)
    with pytest.raises(ValueError, match="has no 4 parts along dimension 1"):
        Pending(x).chunk(4, 1)[0].value  # noqa: B018


def test_casts_that_arithmetic_does_by_itself_change_no_bit():
    torch.manual_seed(0)
    stream = torch.randn(2, 5, 8).bfloat16()
    gate, kept = torch.randn(2, 1, 8), torch.randn(2, 5, 8).bfloat16()
    pending = (Pending(stream).float() + Pending(kept).float() * gate).type_as(stream)
    with Operations() as operations, torch.no_grad():
        value = pending.value
    assert operations.names == {"aten::mul": 1, "aten::add": 1}
    assert torch.equal(value, (stream.float() + kept.float() * gate).type_as(stream))


def test_what_is_pending_is_a_tensor_to_whoever_looks_at_it():
    x = torch.randn(2, 3, 4)
    assert torch.equal(torch.norm(Pending(x), dim=-1), x.norm(dim=-1))
    assert torch.equal(Pending(x).square(), x.square())
    given = {"a": [Pending(x), 1], "b": (None, Pending(x))}
    assert real(given)["a"][0] is x and real(given)["b"][1] is x and real(x) is x


def test_a_block_that_somebody_has_replaced_is_left_alone():
    class Block(nn.Module):
        def forward(self, hidden_states, temb=None):
            return hidden_states * temb, type(hidden_states).__name__

    block, x = Block(), torch.ones(1, 2, 3)
    block.forward = block.forward
    assert not defer(block, ("hidden_states", "temb"), setattr)
    del block.forward
    assert defer(block, ("hidden_states", "temb"), setattr)
    assert defer(block, ("hidden_states", "temb"), setattr)  # and is not wrapped twice
    out, seen = block(x, temb=2 * x)
    assert torch.equal(out, 2 * x) and seen == "Pending"


def test_a_block_whose_routes_all_compute_everything_runs_as_it_is():
    class Block(nn.Module):
        def forward(self, hidden_states, temb=None):
            return type(hidden_states).__name__

    x, dense, names = torch.ones(1, 2, 3), {"a": True, "b": True}, ("hidden_states", "temb")
    block = Block()
    assert defer(block, names, setattr, lambda: dense["a"])
    assert defer(block, names, setattr, lambda: dense["b"])
    assert block(x) == "Tensor"
    dense["b"] = False
    assert block(x) == "Pending"
    dense["b"] = True
    undo = compute_by(block, lambda function, *args, **kwargs: function(*args, **kwargs))
    assert block(x) == "Pending"  # whoever computes its regions gets them
    undo()
    assert block(x) == "Tensor"
    assert defer(block, names, setattr)  # a route that does not know what it will do
    assert block(x) == "Pending"
    casting = Block()
    assert defer(casting, names, setattr, lambda: True, casts=True)
    assert (casting(x), casting(x.bfloat16())) == ("Tensor", "Pending")


@pytest.mark.parametrize("stack", ["fora(interval=2)", "toca", "sparsecast(learns='coefficients')"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_computes_everything_notes_nothing(name, stack, monkeypatch):
    model, pipe = pipeline(name)
    stack = Stack.parse(stack.replace("')", "',coefficients='one')"))
    if any(m.check(pipe) for m in stack.methods):
        pytest.skip("the family has no settings")
    noted, make = Counter(), Pending.__init__
    with stack.attached(pipe) as attached:

        def counted(self, *args, **kwargs):
            noted[attached.now.step] += 1
            make(self, *args, **kwargs)

        monkeypatch.setattr(Pending, "__init__", counted)
        attached.start(STEPS, 2)
        generate(pipe, model, 2)
    assert not noted[0] and noted.total() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_route_that_knows_nothing_of_it_is_given_tensors(name):
    model, pipe = pipeline(name)
    seen = set()

    def look(run, hidden):
        seen.add(type(hidden))
        return run()

    with Stack.parse("fora(interval=2)").attached(pipe) as attached:
        at = attached.attachments["fora"]
        for sublayer in at.sublayers:
            at.reroute(sublayer, look)
        attached.start(STEPS, 2)
        generate(pipe, model, 2)
    assert seen == {torch.Tensor}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_with_its_gate_kept_a_reused_sublayer_is_one_addition(name, dtype):
    model, pipe = pipeline(name, dtype)
    ran = operations_by_step(model, pipe, Stack.parse("fora(interval=2,gates='kept')"))
    reused = 2 if model.family == "dit" else 1
    for block in blocks(pipe.transformer):
        own = [s for s in sublayers(pipe.transformer) if s.block == block.index]
        streams = sum(2 if s.spec.pair else 1 for s in own)
        if model.family == "sd3" and block.index == 1:
            streams -= 1
        joined = {"aten::cat": 1} if own[0].kind == "single" else {}
        # what is made of integers is made at once: DiT's frequencies and class
        outside = {"aten::arange", "aten::exp", "aten::embedding", "aten::div"}
        made = {n: c for n, c in ran[reused, block.index].items() if n not in outside}
        if model.family == "dit":
            assert made.pop("aten::mul", 0) <= 1  # the frequencies' exponent
        assert made == {"aten::add": streams, **joined}


@pytest.mark.parametrize("name", NAMES)
def test_a_block_reused_with_its_gates_adds_what_it_added(name):
    model, pipe = pipeline(name)
    added = {}
    with Stack.parse("fora(interval=2,gates='kept')").attached(pipe) as attached:
        at = attached.attachments["fora"]

        def look(run, streams):
            out = run(streams)
            added[at.now.step] = [b - a for a, b in zip(streams, out, strict=True)]
            return out

        at.reroute(at.blocks[0], look)
        attached.start(STEPS, 2)
        generate(pipe, model, 2)
    computed, reused = (1, 2) if model.family == "dit" else (0, 1)
    for before, after in zip(added[computed], added[reused], strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    # and a step that computes adds something else
    assert not torch.allclose(added[computed][0], added[computed + 2][0], rtol=1e-4, atol=1e-5)
