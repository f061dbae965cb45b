"""Blocks none of whose sub-layers is run are repeated from a list of operations: the samples are the same
bits, and whatever is not as it was when the list was made runs without it."""

import gc
import sys
import weakref
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import wraps
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from narrow import NAMES, generate, narrow
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ditbench.acceleration.caching.budget import DENSE
from ditbench.acceleration.caching.schedule import LEVELS, Schedule
from ditbench.method.attachment import Attachment
from ditbench.method.generation import Now
from ditbench.method.stack import Stack
from ditbench.models import deferred, operation_list, recorded
from ditbench.models.blocks import blocks
from ditbench.models.fused_rows import computed_by
from ditbench.models.fused_sums import AT_ONCE
from ditbench.models.loading import load
from ditbench.models.operation_list import DIRECT
from ditbench.models.recorded import NOTHING, Call
from ditbench.models.sublayers import sublayers
from ditbench.quiet import quiet

STACKS = (
    "fora(interval=3)", "fora(interval=2,gates='kept')", "taylorseer(interval=3,order=2,first=1)",
    "hicache(interval=3,order=2,first=1)", "speca(most=2,first=1)",
    "diffsparse(allocator='uniform',keep=0.3)", "diffsparse(allocator='random',selector='norm',keep=0.3)",
    "sparsecast(learns='coefficients',coefficients='one',keep=0.4)", "fora(interval=3)+lazy_queries",
    "fora(interval=3)+int8",
)  # fmt: skip
STEPS = 6


def pipeline(name, dtype="float32"):
    model, changes = narrow(name)
    with quiet():
        pipe = load(model, weights="random", device="cpu", dtype=dtype, changes=changes)
    return replace(model, steps=STEPS), pipe


@pytest.fixture
def calls(monkeypatch):
    """How often a block was repeated by a list, and how often it was run."""
    seen = {"repeated": 0, "run": 0}
    repeated = Call.repeated

    def counting(self):
        out = repeated(self)
        seen["run" if out is NOTHING else "repeated"] += 1
        return out

    monkeypatch.setattr(Call, "repeated", counting)
    return seen


def samples(model, pipe, stack, num=2):
    with stack.attached(pipe) as attached, quiet():
        attached.start(STEPS, num)
        return torch.as_tensor(generate(pipe, model, num))


def without(monkeypatch):
    """As it was before there were lists."""
    monkeypatch.setattr(deferred, "may_be_recorded", lambda: False)


def schedule(pipe, folder):
    """Every second step reuses all, the others some rows of some sub-layers."""
    names = [s.name for s in sublayers(pipe.transformer)]
    chosen = np.random.default_rng(0).integers(0, len(LEVELS), (STEPS, len(names)))
    chosen[0], chosen[1::2] = DENSE, 0
    path = folder / "schedule.json"
    Schedule(sublayers=tuple(names), chosen=chosen).write(path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_the_same_bits_as_without_lists(name, dtype, calls, monkeypatch, tmp_path):
    model, pipe = pipeline(name, dtype)
    by_list = set()
    for text in (*STACKS, f"diffsparse(schedule='{schedule(pipe, tmp_path)}')"):
        stack = Stack.parse(text)
        if (
            stack.problems(model.family)
            or any(m.check(pipe) for m in stack.methods)
            or (dtype == "bfloat16" and "int8" in text)
        ):
            continue
        before = calls["repeated"]
        now = samples(model, pipe, stack)
        if calls["repeated"] > before:
            by_list.add(text)
        with monkeypatch.context() as patched:
            without(patched)
            assert torch.equal(samples(model, pipe, stack), now), text
    assert {"fora(interval=3)", "taylorseer(interval=3,order=2,first=1)"} <= by_list
    assert any(text.startswith("diffsparse") for text in by_list)
    assert any(text.startswith("sparsecast") for text in by_list)


@pytest.mark.parametrize("name", NAMES)
def test_a_block_that_is_reused_runs_its_own_python_once(name, calls):
    model, pipe = pipeline(name)
    with Stack.parse("fora(interval=3)").attached(pipe) as attached, quiet():
        attached.start(STEPS, 2)
        generate(pipe, model, 2)
    (at,) = attached.attachments.values()
    many, passes = len(at.blocks), 1 + attached.now.branch
    reused = at.counters["reused"] * many // len(at.sublayers)
    assert reused >= 3 * many * passes
    assert calls == {"run": many, "repeated": reused - many}


def reused_block(name, dtype="float32"):
    """A pipeline, a block of it that reuses everything under `fora`, and the arguments it is given."""
    model, pipe = pipeline(name, dtype)
    block = blocks(pipe.transformer)[-1].module
    given = []
    handle = block.register_forward_pre_hook(
        lambda _, args, kwargs: given.append((args, dict(kwargs))), with_kwargs=True
    )
    with torch.inference_mode(), quiet():
        generate(pipe, model, 2)
    handle.remove()
    args, kwargs = given[0]
    return model, pipe, block, (copied(args), copied(kwargs))


def strided_as(x, change):
    """change(x) with the strides of x, some of which may be 0."""
    own = x[tuple(slice(0, 1) if step == 0 else slice(None) for step in x.stride())]
    fresh = torch.empty_strided(own.shape, own.stride(), dtype=x.dtype)
    return fresh.copy_(change(own)).expand(x.shape)


def copied(given):
    """With tensors that are no longer of inference mode, of the same strides."""
    if isinstance(given, torch.Tensor):
        return strided_as(given, lambda x: x)
    if isinstance(given, tuple):
        return tuple(map(copied, given))
    return {k: copied(v) for k, v in given.items()} if isinstance(given, dict) else given


def leaves(out):
    return [t for t in (out if isinstance(out, tuple) else (out,)) if t is not None]


def same(one, other):
    return all(map(torch.equal, leaves(one), leaves(other)))


@pytest.fixture(params=NAMES)
def reused(request, calls, monkeypatch):
    """f(change of a call, calls) of a block whose list is made: what the block gives then, with and
    without lists, and how many of them it was repeated by."""
    model, pipe, block, (args, kwargs) = reused_block(request.param)
    stack = Stack.parse("fora(interval=100)")
    with stack.attached(pipe) as attached, torch.no_grad(), quiet():
        attached.start(200, 2)
        attached.now.step, attached.now.num_steps = 100, 200
        block(*args, **kwargs)  # computed
        attached.now.step = 101
        block(*args, **kwargs)  # noted
        assert calls == {"repeated": 0, "run": 1}
        yield_ = Reused(block, args, kwargs, calls, monkeypatch, attached, pipe, model)
        assert yield_.repeats()
        yield yield_


class Reused:
    """A block with a list, and what is asked of it."""

    def __init__(self, block, args, kwargs, calls, monkeypatch, attached, pipe, model):
        self.block, self.args, self.kwargs, self.calls = block, args, kwargs, calls
        self.monkeypatch, self.attached, self.pipe, self.model = monkeypatch, attached, pipe, model

    def call(self, change=lambda x: x):
        def changed(given):
            if isinstance(given, torch.Tensor):
                return change(given)
            return type(given)(map(changed, given)) if isinstance(given, tuple) else given

        return self.block(
            *map(changed, self.args), **{k: changed(v) for k, v in self.kwargs.items()}
        )

    def repeats(self, change=lambda x: x):
        """Whether a call is repeated by the list; either way what it gives is what it gives
        without."""
        before = self.calls["repeated"]
        out = self.call(change)
        by_list = self.calls["repeated"] > before
        with self.monkeypatch.context() as patched:
            without(patched)
            assert same(out, self.call(change))
        return by_list


def test_other_numbers_are_not_those_of_the_call_that_was_noted(reused):
    def change(x):
        if not x.is_floating_point():
            return x
        return strided_as(x, lambda x: x + 0.5)

    assert reused.repeats(change)
    assert not same(reused.call(), reused.call(change))


def test_other_types_and_strides_are_noted_anew(reused):
    def strided(x):
        return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() == 3 else x

    assert not reused.repeats(strided)
    assert reused.repeats(strided)  # a list of its own
    assert reused.repeats()


def test_whoever_looks_at_operations_sees_those_of_the_block(reused):
    class Seen(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    expected = reused.call()
    before = dict(reused.calls)
    with Seen() as seen:
        assert same(reused.call(), expected)
    assert seen.count and reused.calls == before
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reused.call()
    with torch.device("cpu"):
        assert same(reused.call(), expected)
    assert reused.calls == before


def test_gradients_run_the_block(reused):
    before = dict(reused.calls)
    with torch.enable_grad():
        out = reused.call(lambda x: x.clone().requires_grad_(x.is_floating_point()))
    assert reused.calls == before and all(t.requires_grad for t in leaves(out))


def parts_of(block):
    return [m for m in block.modules() if m is not block and isinstance(m, nn.LayerNorm | nn.SiLU)]


def test_a_hook_on_a_part_is_called(reused):
    if not (parts := [m for m in parts_of(reused.block) if not list(m.parameters())]):
        parts = parts_of(reused.block)
    seen = []
    handle = parts[0].register_forward_hook(lambda *_: seen.append(1))
    assert not reused.repeats() and seen
    handle.remove()


def test_another_forward_of_a_part_is_called(reused):
    part, seen = parts_of(reused.block)[0], []
    part.forward = lambda *args: seen.append(1) or type(part).forward(part, *args)
    assert not reused.repeats() and seen
    del part.forward


def test_another_forward_of_a_class_is_called(reused, monkeypatch):
    kind, seen = type(parts_of(reused.block)[0]), []
    own = kind.forward
    monkeypatch.setattr(kind, "forward", lambda *args: seen.append(1) or own(*args))
    assert not reused.repeats() and seen


def test_a_part_that_is_of_another_class_is_called(reused):
    part, seen = parts_of(reused.block)[0], []
    kind = type(part)
    own = {"forward": lambda *args: seen.append(1) or kind.forward(*args)}
    part.__class__ = type(kind.__name__, (kind,), {**own, "__module__": kind.__module__})
    assert not reused.repeats() and seen
    part.__class__ = kind
    reused.call()
    assert reused.repeats()


@pytest.mark.parametrize("name", NAMES)
def test_another_forward_of_the_blocks_own_class_is_called(name, calls, monkeypatch):
    """Of a library that somebody patches between two methods."""
    model, pipe = pipeline(name)
    stack = Stack.parse("fora(interval=3)")
    before = samples(model, pipe, stack)
    assert calls["repeated"]
    for kind in {type(b.module) for b in blocks(pipe.transformer)}:

        @wraps(kind.forward)
        def forward(self, *args, own=kind.forward, **kwargs):
            out = own(self, *args, **kwargs)
            changed = [
                t if t is None else t * 1.25 for t in (out if isinstance(out, tuple) else (out,))
            ]
            return tuple(changed) if isinstance(out, tuple) else changed[0]

        monkeypatch.setattr(kind, "forward", forward)
    now = samples(model, pipe, stack)
    with monkeypatch.context() as patched:
        without(patched)
        assert torch.equal(samples(model, pipe, stack), now)
    assert not torch.equal(now, before)


def test_an_attribute_that_hides_one_of_the_class_is_gone_by(reused):
    part = parts_of(reused.block)[0]
    part.extra_repr = lambda: ""
    assert not reused.repeats()
    del part.extra_repr


def test_parameters_of_other_strides_are_noted_anew(reused):
    own = [p for p in reused.block.parameters()]
    kept = [p.data for p in own]
    for p in own:
        p.data = torch.stack([p.data, p.data], -1)[..., 0]
    assert not reused.repeats()
    assert reused.repeats()
    for p, data in zip(own, kept, strict=True):
        p.data = data


def test_constants_go_by_the_default_type(reused):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert not reused.repeats()
    finally:
        torch.set_default_dtype(before)


def test_a_setting_of_a_part_that_changes_is_gone_by(reused):
    reused.block.training = True  # of the block alone: nothing drops out
    assert not reused.repeats()


def test_parameters_are_those_of_the_call(reused):
    own = [p for p in reused.block.parameters()]
    before, kept = reused.call(), [p.data for p in own]
    for p in own:
        p.data = p.data + 0.25
    assert reused.repeats()
    changed = reused.call()
    for p, data in zip(own, kept, strict=True):
        p.data = data
    assert not same(changed, before) and same(reused.call(), before)


def test_parameters_of_another_type_are_noted_anew(reused):
    own = [p for p in reused.block.parameters()]
    kept = [p.data for p in own]
    for p in own:
        p.data = p.data.double()
    before = reused.calls["repeated"]
    with suppress(RuntimeError):  # as without a list: some layers refuse inputs of another type
        reused.call()
    assert reused.calls["repeated"] == before
    for p, data in zip(own, kept, strict=True):
        p.data = data
    reused.call()
    assert reused.repeats()


def test_another_set_of_sublayers_that_are_run_is_no_list(reused):
    attachment = next(iter(reused.attached.attachments.values()))
    block = next(b for b in attachment.blocks if b.module is reused.block)
    own = [s for s in attachment.sublayers if s.block == block.index]
    ran = []

    def route(run, hidden):
        ran.append(1)
        return run()

    attachment.reroute(own[0], route)  # a second method stands round it
    assert not reused.repeats() and ran


@pytest.mark.parametrize("name", NAMES)
def test_sums_by_the_kernel_are_calls_of_it(name, calls, monkeypatch):
    """The kernel, whose arithmetic torch does here, is called as often and with the same."""
    seen = []

    def added(stream, outputs, gates):
        seen.append(len(outputs))
        assert len(outputs) <= AT_ONCE
        out = stream.clone()
        for output, gate in zip(outputs, gates, strict=True):
            out = out + (output if gate is None else gate * output)
        return out

    fake = SimpleNamespace(added=added)
    monkeypatch.setitem(sys.modules, "ditbench.models.row_kernels", fake)
    model, pipe = pipeline(name)
    for text in ("fora(interval=3)", "taylorseer(interval=3,order=1,first=1)"):
        stack = Stack.parse(text)
        before = calls["repeated"]
        with computed_by("triton"):
            now, by_list = samples(model, pipe, stack), [*seen]
            seen.clear()
            with monkeypatch.context() as patched:
                without(patched)
                assert torch.equal(samples(model, pipe, stack), now)
        assert calls["repeated"] > before and {*by_list} == {*seen}
        # once more for each list that is tried when it has been made
        assert len(seen) <= len(by_list) <= len(seen) * 2
        seen.clear()


def test_a_method_that_is_detached_leaves_no_list_behind(calls):
    model, pipe = pipeline("pixart-alpha-256")
    plain = samples(model, pipe, Stack())
    one = samples(model, pipe, Stack.parse("fora(interval=3)"))
    other = samples(model, pipe, Stack.parse("taylorseer(interval=3,order=1,first=1)"))
    assert calls["repeated"]
    before = dict(calls)
    assert torch.equal(samples(model, pipe, Stack()), plain) and calls == before
    assert not torch.equal(one, other)
    assert torch.equal(samples(model, pipe, Stack.parse("fora(interval=3)")), one)


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_another_size_and_other_prompts_are_their_own(name, monkeypatch, calls):
    model, pipe = pipeline(name)
    stack = Stack.parse("fora(interval=3)")

    def generations():
        with stack.attached(pipe) as attached, quiet():
            made = []
            for num, steps in ((3, STEPS), (1, STEPS), (3, STEPS), (2, 4)):
                attached.start(steps, num)
                made.append(torch.as_tensor(generate(pipe, replace(model, steps=steps), num)))
            return made

    made = generations()
    assert calls["repeated"]
    with monkeypatch.context() as patched:
        without(patched)
        for with_, expected in zip(made, generations(), strict=True):
            assert torch.equal(with_, expected)
    assert torch.equal(made[0], made[2])
    assert not torch.equal(made[0][0], made[0][1])


def test_a_list_keeps_no_tensor_of_a_call(reused):
    made = []

    def change(x):
        y = x.clone()
        made.append(weakref.ref(y))
        return y

    out = reused.call(change)
    made += [weakref.ref(t) for t in leaves(out)]
    del out
    gc.collect()
    assert reused.repeats() and not any(ref() is not None for ref in made)


def test_a_route_that_runs_what_it_said_it_does_not_is_an_error():
    model, pipe = pipeline("dit-xl-2-256")
    with ExitStack() as stack:
        at = Attachment(pipe, Now(), stack)
        for sublayer in at.sublayers:
            at.reroute_deferred(sublayer, lambda run, hidden: run(), idle=lambda: True)
        with pytest.raises(RuntimeError, match="said it computes nothing"), torch.inference_mode():
            generate(pipe, model, 1)


@pytest.mark.parametrize(
    "look",
    [lambda x: x, lambda x: x.clone(), torch.zeros_like, lambda x: x * 0, lambda x: x[:1], len],
)
def test_a_route_that_looks_at_an_input_it_said_it_does_not_is_an_error(look):
    model, pipe = pipeline("dit-xl-2-256")
    with ExitStack() as stack:
        at = Attachment(pipe, Now(), stack)
        for sublayer in at.sublayers:
            at.reroute_deferred(sublayer, lambda run, hidden: look(hidden), idle=lambda: True)
        with pytest.raises((RuntimeError, TypeError)) as error, torch.inference_mode():
            generate(pipe, model, 1)
    assert "looks at its input" in str(error.value) or "_Unseen" in str(error.value)


def test_a_list_that_gives_something_else_is_not_used(reused, monkeypatch):
    recorded._LISTS[reused.block].clear()
    made = operation_list.function_of

    def off(*args):
        run = made(*args)
        return lambda i, p: run([x + 1 if x.is_floating_point() else x for x in i], p)

    monkeypatch.setattr(recorded, "function_of", off)
    before = dict(reused.calls)
    for _ in range(3):
        assert not reused.repeats()
    assert not recorded._LISTS[reused.block] and reused.calls["repeated"] == before["repeated"]


def test_a_list_that_cannot_be_tried_is_not_used(reused, monkeypatch):
    """No memory for it, say: the sample goes on."""
    recorded._LISTS[reused.block].clear()

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(recorded, "function_of", lambda *_: out_of_memory)
    assert not reused.repeats() and not reused.repeats()
    assert not recorded._LISTS[reused.block]


def test_no_list_is_made_in_a_cuda_graph(reused, monkeypatch):
    """Trying it compares numbers, which waits for the device."""
    recorded._LISTS[reused.block].clear()
    with monkeypatch.context() as capturing:
        capturing.setattr(recorded, "_captured", lambda device: True)
        assert not reused.repeats() and not recorded._LISTS[reused.block]
    reused.call()
    assert reused.repeats()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_numbers_that_the_host_reads_are_not_noted(mode):
    for read in (
        Tensor.tolist,
        Tensor.numpy,
        np.asarray,
        np.from_dlpack,
        lambda x: x.cpu().numpy(),
    ):
        x = torch.randn(3)
        operations = operation_list.Operations(nn.Identity(), [x])
        with mode(), operations, operation_list.HostReads(operations):
            x * 2 + float(sum(read(x)))
        assert "reads numbers" in operations.why


def test_random_numbers_and_values_are_not_noted(monkeypatch):
    for function, why in (
        (lambda x: torch.nn.functional.dropout(x, 0.5), "random"),
        (lambda x: x * float(x.sum()), ""),
        (lambda x: x[x > 0], ""),
        (lambda x: x.add_(1), "writes"),
        (lambda x: x + torch.ones(3), None),
        (lambda x: x * 2 + x.relu(), None),
    ):
        x = torch.randn(3)
        operations = operation_list.Operations(nn.Identity(), [x])
        with torch.no_grad(), operations:
            function(x)
        assert (operations.why == "") == (why is None) and (why or "") in operations.why


def test_functions_called_directly_do_the_operation_they_stand_for():
    x, w, b = torch.randn(2, 4), torch.randn(6, 4), torch.randn(6)
    table, at = torch.randn(5, 4), torch.tensor([1, 2])
    arguments = {
        "aten.add.Tensor": (x, x), "aten.mul.Tensor": (x, x), "aten.addmm.default": (b, x, w.t()),
        "aten.linear.default": (x, w, b), "aten.silu.default": (x,), "aten.t.default": (x,),
        "aten.to.dtype": (x, torch.float64), "aten.chunk.default": (x, 2, 1),
        "aten.reshape.default": (x, [4, 2]), "aten.view.default": (x, [8]),
        "aten.unsqueeze.default": (x, 1), "aten.select.int": (x, 0, 1),
        "aten.cat.default": ([x, x], 1), "aten.sin.default": (x,), "aten.cos.default": (x,),
        "aten.embedding.default": (table, at), "aten.split_with_sizes.default": (x, [1, 3], 1),
        "aten.layer_norm.default": (x, [4], None, None, 1e-6),
        "aten.native_layer_norm.default": (x, [4], None, None, 1e-6),
    }  # fmt: skip

    class Seen(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    names = {str(func): function for func, function in DIRECT.items() if str(func)[:4] == "aten"}
    assert names.keys() == arguments.keys()
    with torch.inference_mode():
        for name, function in names.items():
            with Seen() as mode:
                function(*arguments[name])
            assert mode.seen == [name]


def test_lists_of_a_block_are_bounded(reused):
    lists = recorded._LISTS[reused.block]
    for width in range(2 * recorded.MOST_LISTS):
        reused.call(
            lambda x, w=width: (
                nn.functional.pad(x, (0, w))[..., : x.shape[-1]] if x.dim() == 3 else x
            )
        )
    assert len(lists) <= recorded.MOST_LISTS


def test_a_part_that_is_another_module_is_called(reused):
    parts = [m for m in parts_of(reused.block) if not list(m.parameters())]
    if not parts:
        return
    path = next(p for p, m in reused.block.named_modules() if m is parts[0])
    owner, _, name = path.rpartition(".")
    seen = []

    class Other(nn.Identity):
        def forward(self, *args):
            seen.append(1)
            return parts[0](*args)

    setattr(reused.block.get_submodule(owner), name, Other())
    assert not reused.repeats() and seen
    setattr(reused.block.get_submodule(owner), name, parts[0])
    assert reused.repeats()


def test_a_list_serves_the_next_method_and_dies_with_its_block(calls):
    model, pipe = pipeline("pixart-alpha-256")
    fora, other = (
        Stack.parse(t) for t in ("fora(interval=3)", "taylorseer(interval=3,order=1,first=1)")
    )
    samples(model, pipe, fora)
    run = calls["run"]
    assert run == len(blocks(pipe.transformer))
    samples(model, pipe, other)
    assert calls["run"] == run
    lists = weakref.ref(next(iter(recorded._LISTS[blocks(pipe.transformer)[0].module].values())))
    del pipe
    gc.collect()
    assert lists() is None


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_stack_repeats_what_is_reused_and_compiles_what_is_computed(name, calls):
    model, pipe = pipeline(name)
    usual = samples(model, pipe, Stack.parse("fora(interval=2)"))
    repeated = calls["repeated"]
    calls["repeated"] = 0
    stack = Stack.parse("fora(interval=2)+compile(backend='aot_eager')")
    with stack.attached(pipe) as attached, quiet():
        attached.start(STEPS, 2)
        compiled = torch.as_tensor(generate(pipe, model, 2))
        regions = attached.counters()["compile.regions"]
    # lists are the block's: the one that was noted before serves here too
    assert calls["repeated"] > repeated > 0 and regions > 0
    assert torch.allclose(compiled, usual, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_lists_of_blocks_that_are_offloaded_die_with_them(name, calls):
    """accelerate keeps a block's own forward among its attributes."""
    model, pipe = pipeline(name)
    cpu_offload(pipe.transformer, torch.device("cpu"))
    samples(model, pipe, Stack.parse("fora(interval=3)"))
    alive = [weakref.ref(b.module) for b in blocks(pipe.transformer)]
    del pipe
    gc.collect()
    assert not any(ref() is not None for ref in alive)
