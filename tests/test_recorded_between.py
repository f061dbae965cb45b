"""Blocks some of whose sub-layers are run, wholly or in part, are repeated from a list of what is done
round these: the samples are the same bits, routes are asked as often, and what is run is the sub-layer
as it is."""

import gc
import sys
import weakref
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from narrow import NAMES, generate
from test_fused_generations import added, entropy_into, modulated, put_and_added, scores
from test_recorded import STEPS, calls, copied, leaves, pipeline, same, samples  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode

from ditbench.acceleration.caching import attention_map, fused_ranking
from ditbench.acceleration.caching.budget import DENSE
from ditbench.acceleration.caching.schedule import LEVELS, Schedule
from ditbench.method.attachment import Attachment
from ditbench.method.generation import Now
from ditbench.method.stack import Stack
from ditbench.models import recorded
from ditbench.models.blocks import blocks
from ditbench.models.fused_rows import computed_by
from ditbench.models.fused_sums import AT_ONCE
from ditbench.models.gated import Gated
from ditbench.models.recorded import NOTHING, Call
from ditbench.models.standing import IDLE, PART, WHOLE, Standing
from ditbench.models.sublayers import put, sublayers
from ditbench.quiet import quiet


@pytest.fixture
def between(monkeypatch):
    """Which sub-layers were run in every call of a block that was repeated by a list and ran some."""
    seen = []
    repeated = Call.repeated

    def counting(self):
        out = repeated(self)
        if out is not NOTHING and any(self._runs):
            seen.append(self._runs)
        return out

    monkeypatch.setattr(Call, "repeated", counting)
    return seen


def without(monkeypatch):
    """As it was when blocks all of whose sub-layers are idle alone had lists."""
    runs = Standing.runs
    monkeypatch.setattr(Standing, "runs", lambda self: IDLE if runs(self) == IDLE else None)


def schedule(pipe, folder, seed=0, steps=STEPS, rows=False):
    """Some sub-layers whole, some rows of some where `rows`, and the others reused, at every step but
    the first."""
    names = [s.name for s in sublayers(pipe.transformer)]
    draw = np.random.default_rng(seed).integers
    chosen = draw(0, 2, (steps, len(names))) * DENSE
    if rows:
        chosen = np.where(draw(0, 2, chosen.shape), draw(0, len(LEVELS), chosen.shape), chosen)
    chosen[0] = DENSE
    path = folder / f"schedule-{seed}-{steps}-{rows}.json"
    Schedule(sublayers=tuple(names), chosen=chosen).write(path)
    return path


def stacks(path, rows):
    return (
        f"diffsparse(schedule='{rows}')",
        f"diffsparse(schedule='{rows}',selector='change')",
        f"diffsparse(schedule='{path}')",
        f"sparsecast(learns='coefficients',coefficients='zero',schedule='{path}')",
        f"sparsecast(learns='coefficients',coefficients='one',schedule='{path}')",
        f"diffsparse(schedule='{path}')+lazy_queries",
    )


def counted(model, pipe, stack, num=2):
    """Samples, and the counters of every method."""
    with stack.attached(pipe) as attached, quiet():
        attached.start(STEPS, num)
        made = torch.as_tensor(generate(pipe, model, num))
        return made, {name: dict(at.counters) for name, at in attached.attachments.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_samples_and_counters_are_the_same_as_without(name, dtype, between, monkeypatch, tmp_path):
    model, pipe = pipeline(name, dtype)
    for text in stacks(schedule(pipe, tmp_path), schedule(pipe, tmp_path, 2, rows=True)):
        stack = Stack.parse(text)
        if stack.problems(model.family) or any(m.check(pipe) for m in stack.methods):
            continue
        between.clear()
        counted(model, pipe, stack)  # notes
        now, counters = counted(model, pipe, stack)
        assert len({*between}) > 1, text
        assert any(PART in runs for runs in between) == ("-True" in text), text
        with monkeypatch.context() as patched:
            without(patched)
            before = len(between)
            expected, of_before = counted(model, pipe, stack)
            assert len(between) == before
        assert torch.equal(expected, now), text
        assert counters == of_before, text


@pytest.mark.parametrize("name", NAMES)
def test_batches_steps_and_methods_one_after_the_other(name, between, monkeypatch, tmp_path):
    model, pipe = pipeline(name)
    texts = stacks(schedule(pipe, tmp_path), schedule(pipe, tmp_path, rows=True))[:4]
    other = f"diffsparse(schedule='{schedule(pipe, tmp_path, 1, 4)}')"

    def generations():
        made = []
        for text in texts:
            with Stack.parse(text).attached(pipe) as attached, quiet():
                for num in (3, 1, 3):
                    attached.start(STEPS, num)
                    made.append(torch.as_tensor(generate(pipe, model, num)))
            with Stack.parse(other).attached(pipe) as attached, quiet():
                attached.start(4, 2)
                made.append(torch.as_tensor(generate(pipe, replace(model, steps=4), 2)))
        return made

    made = generations()
    assert between
    with monkeypatch.context() as patched:
        without(patched)
        assert all(map(torch.equal, made, generations()))
    assert torch.equal(made[0], made[2]) and not torch.equal(made[0][0], made[0][1])


class Mixed:
    """A block that runs its second sub-layer (or its only other) and reuses the rest, by hand."""

    def __init__(self, name, stack, monkeypatch, between, dtype="float32"):
        self.model, self.pipe = pipeline(name, dtype)
        self.monkeypatch, self.between = monkeypatch, between
        self.block = blocks(self.pipe.transformer)[0].module
        given = []
        handle = self.block.register_forward_pre_hook(
            lambda _, args, kwargs: given.append((args, dict(kwargs))), with_kwargs=True
        )
        with quiet():
            generate(self.pipe, self.model, 2)
        handle.remove()
        self.args, self.kwargs = map(copied, given[0])
        self.at = Attachment(self.pipe, Now(), stack)
        self.own = [s for s in self.at.sublayers if s.owner is self.block]
        self.running = {self.own[1]}
        self.asked, self.kept = [], {}
        self.change = lambda output: output
        self.computed = WHOLE
        for sublayer in self.own:
            self.at.reroute_deferred(
                sublayer,
                self.route_of(sublayer),
                lambda s=sublayer: s in self.running and self.computed == WHOLE,
                lambda s=sublayer: s not in self.running and s in self.kept,
            )

    def route_of(self, sublayer):
        def route(run, hidden):
            self.asked.append(sublayer.kind)
            if sublayer in self.running or sublayer not in self.kept:
                if self.computed == PART:
                    self.kept[sublayer] = self.some_rows(run, hidden, self.kept[sublayer])
                else:
                    self.kept[sublayer] = run()
                return self.change(self.kept[sublayer])
            return self.kept[sublayer]

        return route

    def some_rows(self, run, hidden, kept):
        rows = torch.arange(1, hidden.shape[1], 2).expand(len(hidden), -1)
        if isinstance(kept, tuple):
            new, other = run(rows)
            return put(kept[0], rows, new), other
        return put(kept, rows, run(rows))

    def call(self):
        return self.block(*self.args, **self.kwargs)

    def repeats(self):
        """Whether a call is repeated by the list, and either way what it gives is what it gives
        without, from the same that is kept."""
        before, kept = len(self.between), dict(self.kept)
        out = self.call()
        by_list = len(self.between) > before
        self.kept = kept
        with self.monkeypatch.context() as patched:
            without(patched)
            assert same(out, self.call())
        return by_list


@pytest.fixture(params=[(name, computed) for name in NAMES for computed in (WHOLE, PART)])
def mixed(request, monkeypatch, between):
    name, computed = request.param
    with ExitStack() as stack, torch.no_grad():
        block = Mixed(name, stack, monkeypatch, between)
        everything, block.running = block.running, {*block.own}
        block.call()
        block.running, block.computed = everything, computed
        assert not block.repeats() and block.repeats()
        yield block


def test_each_route_is_asked_once_and_those_that_run_in_their_order(mixed):
    kinds = [s.kind for s in mixed.own]
    mixed.asked.clear()
    mixed.call()
    assert sorted(mixed.asked) == sorted(kinds) and mixed.asked[-1] == kinds[1]
    mixed.running = {mixed.own[0], mixed.own[-1]}
    if len(mixed.own) > 2:
        assert not mixed.repeats() and mixed.repeats()
        mixed.asked.clear()
        mixed.call()
        assert mixed.asked[-2:] == [kinds[0], kinds[-1]] and len(mixed.asked) == len(kinds)


def test_other_weights_of_what_is_run_and_of_what_is_not_are_gone_by(mixed):
    before = mixed.call()
    own = [*mixed.block.parameters()]
    kept = [p.data for p in own]
    for changed in own:
        changed.data = changed.data + 0.25
    assert mixed.repeats()
    assert not same(mixed.call(), before)
    for changed, data in zip(own, kept, strict=True):
        changed.data = data
    assert mixed.repeats() and same(mixed.call(), before)


def test_hooks_on_parts_of_what_is_run_are_called_by_the_list(mixed):
    seen = []
    part = mixed.own[1].linears[0]
    handle = part.register_forward_hook(lambda *_: seen.append(1))
    assert mixed.repeats()
    assert len(seen) == 2
    handle.remove()
    handle = mixed.own[1].module.register_forward_hook(lambda *_: seen.append(1))
    assert not mixed.repeats() and len(seen) == 4
    handle.remove()
    handle = mixed.block.register_forward_hook(lambda *_: seen.append(1))
    assert mixed.repeats() and len(seen) == 6
    handle.remove()


def test_an_exception_in_a_sublayer_leaves_nothing_behind(mixed):
    expected = mixed.call()

    def fail(output):
        raise RuntimeError("out of order")

    mixed.change = fail
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of order"):
            mixed.call()
    recorded._LISTS[mixed.block].clear()
    with pytest.raises(RuntimeError, match="out of order"):  # while it is noted
        mixed.call()
    assert not torch._C._len_torch_dispatch_stack() and not torch._C._len_torch_function_stack()
    mixed.change = lambda output: output
    assert same(mixed.call(), expected) and mixed.repeats()


def test_an_output_of_another_form_has_the_block_run_on_with_what_was_computed(mixed):
    def transposed(output):
        first, *others = leaves(output)
        first = first.transpose(-1, -2).contiguous().transpose(-1, -2)
        return (first, *others) if isinstance(output, tuple) else first

    mixed.change = transposed
    mixed.asked.clear()
    mixed.call()
    assert sorted(mixed.asked) == sorted(s.kind for s in mixed.own)  # once each
    assert not mixed.repeats()
    mixed.change = lambda output: output
    assert not mixed.repeats()  # one that changes its form is not noted again


def test_outputs_that_notice_their_product_are_not_noted(mixed):
    noticed = []

    def gated(output):
        parts = tuple(Gated(part, noticed.append) for part in leaves(output))
        return parts if isinstance(output, tuple) else parts[0]

    mixed.change = gated
    recorded._LISTS[mixed.block].clear()
    for _ in range(3):
        before = len(noticed)
        assert not mixed.repeats() and len(noticed) > before


def test_what_is_run_sees_no_modes_while_the_block_is_noted(mixed):
    recorded._LISTS[mixed.block].clear()
    seen = []

    def look(output):
        seen.append(torch._C._len_torch_dispatch_stack() + torch._C._len_torch_function_stack())
        return output

    mixed.change = look
    assert not mixed.repeats() and mixed.repeats() and not any(seen)


def test_another_route_round_one_is_asked(mixed):
    """It may be asked for less than all: what it is handed is pending."""
    ran = []

    def route(run, hidden):
        ran.append(1)
        return run()

    mixed.at.reroute_deferred(mixed.own[1], route, lambda: True, lambda: False)
    assert not mixed.repeats() or mixed.computed == PART
    assert ran


def test_whoever_looks_at_operations_sees_those_of_the_block(mixed):
    class Seen(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    expected, before = mixed.call(), len(mixed.between)
    with Seen() as seen:
        assert same(mixed.call(), expected)
    assert seen.count and len(mixed.between) == before


def test_a_list_is_of_the_mode_it_was_made_in(mixed):
    before = len(mixed.between)
    with torch.inference_mode():
        mixed.call()
        assert len(mixed.between) == before
        mixed.call()
        assert len(mixed.between) == before + 1
    with torch.enable_grad():
        mixed.call()
    assert len(mixed.between) == before + 1 and mixed.repeats()


def test_a_list_keeps_no_tensor_and_no_route(mixed):
    made = [weakref.ref(t) for t in leaves(mixed.call())]
    made += [weakref.ref(t) for kept in mixed.kept.values() for t in leaves(kept)]
    made.append(weakref.ref(mixed))
    lists = recorded._LISTS[mixed.block]
    assert any(known.forms for known in lists.values())
    mixed.kept.clear()
    gc.collect()
    assert not any(ref() is not None for ref in made[:-1])


def test_a_list_that_gives_a_sublayer_something_else_is_not_used(mixed, monkeypatch):
    recorded._LISTS[mixed.block].clear()
    made = recorded.function_of

    def off(*args):
        run = made(*args)
        return lambda i, p, r: run([x + 1 if x.is_floating_point() else x for x in i], p, r)

    monkeypatch.setattr(recorded, "function_of", off)
    for _ in range(3):
        assert not mixed.repeats()
    assert not recorded._LISTS[mixed.block]


@pytest.fixture
def kernels(monkeypatch):
    """The kernels, whose arithmetic torch does here, with how often each was called."""
    seen = []

    def sums(stream, outputs, gates):
        assert len(outputs) <= AT_ONCE
        seen.append(("added", len(outputs)))
        return added(stream.double(), outputs, gates).to(stream.dtype)

    def rows_put(*args):
        seen.append(("rows put", args[3].shape))
        return put_and_added(*args[:-1], args[-1].double()).to(args[-1].dtype)

    def rows_taken(x, rows, *args):
        seen.append(("rows taken", rows is None))
        return modulated(x, rows, *args)

    fake = SimpleNamespace(added=sums, put_and_added=rows_put, modulated=rows_taken)
    monkeypatch.setitem(sys.modules, "ditbench.models.row_kernels", fake)
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_called_as_often_with_the_same(
    name, between, kernels, stand_ins, monkeypatch, tmp_path
):
    model, pipe = pipeline(name)
    for text in stacks(schedule(pipe, tmp_path), schedule(pipe, tmp_path, 2, rows=True))[:4]:
        stack = Stack.parse(text)
        with computed_by("triton"):
            samples(model, pipe, stack)
            kernels.clear()
            between.clear()
            now, by_list = samples(model, pipe, stack), [*kernels]
            assert any(PART in runs for runs in between) == ("-True" in text), text
            kernels.clear()
            with monkeypatch.context() as patched:
                without(patched)
                assert torch.equal(samples(model, pipe, stack), now)
        assert by_list == kernels
        assert ("-True" in text) == any(kernel == "rows put" for kernel, _ in kernels)


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(fused_ranking, "scores", scores)
    monkeypatch.setattr(fused_ranking, "received", attention_map.received_by)
    monkeypatch.setattr(fused_ranking, "entropy", attention_map.entropy_of)
    monkeypatch.setattr(fused_ranking, "entropy_into", entropy_into)


@pytest.mark.parametrize("name", ["pixart-alpha-256", "flux-1-dev"])
def test_a_compiled_stack_has_its_regions_computed(name, between, tmp_path):
    model, pipe = pipeline(name)
    text = f"diffsparse(schedule='{schedule(pipe, tmp_path)}')"
    usual = samples(model, pipe, Stack.parse(text))
    between.clear()
    compiled = samples(model, pipe, Stack.parse(f"{text}+compile(backend='aot_eager')"))
    assert not between and torch.allclose(compiled, usual, atol=1e-5)
