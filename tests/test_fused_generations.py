"""Generations that take the way of the kernels, whose arithmetic torch's operations do here: the same
bits as without kernels, and nothing that outlives the generation."""

import gc
from dataclasses import replace

import pytest
import torch
from test_zipr1 import TABLE, Scripted, Shared
from torch.nn import functional as F

from ditbench.acceleration.caching import attention_map, fused_ranking
from ditbench.acceleration.caching.token_cache import _with_bonus
from ditbench.method.stack import Stack
from ditbench.models import fused_rows, fused_sums
from ditbench.models.pending import Pending
from ditbench.testing import KINDS, tiny

STACKS = (
    "diffsparse(allocator='random',keep=0.5)",
    "diffsparse(allocator='random',keep=0.5)+cfg_cache",  # passes of a batch are left out, and come back
    "toca(attend=True,ratio=0.3)+adaptive_guidance",
    "duca(selector='change')",
)


def places(rows, x):
    return rows[..., None].expand(-1, -1, x.shape[-1])


def modulated(x, rows, weight=None, bias=None, eps=1e-6, scale=None, shift=None):
    x = x if rows is None else x.gather(1, places(rows, x))
    y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    y = y if scale is None else y * (1 + scale)
    return y if shift is None else y + shift


def put_and_added(kept, times, order, new, now, first, gate, stream):
    if first:
        times.zero_()
    rows = order[:, : new.shape[1]]
    kept.scatter_(1, places(rows, kept), new)
    times.scatter_(1, rows, now)
    return stream + (kept if gate is None else gate * kept)


def added(stream, outputs, gates):
    for output, gate in zip(outputs, gates, strict=True):
        stream = stream + (output if gate is None else gate * output)
    return stream


def scores(signals, raised, passes, times, clock, weight, grid, window, bonus):
    # as selectors have it: one is added to an entropy, and then what passes gain together
    means = (s.unflatten(0, (passes, -1)).mean(0) for s in signals)
    whole = [
        F.normalize(1 + m + (r - 1) if r > 1 else m + r, dim=1)
        for m, r in zip(means, raised, strict=True)
    ]
    out = sum(whole[1:], whole[0]).repeat(passes, 1)
    out = out + weight * (clock - (0 if times is None else times))
    return _with_bonus(out, grid, window, bonus) if window else out


def entropy_into(out, rows, q, k, mask):
    out.scatter_(1, rows, attention_map.entropy_of(q, k, mask))


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(fused_rows, "modulated", modulated)
    monkeypatch.setattr(fused_rows, "put_and_added", put_and_added)
    monkeypatch.setattr(fused_sums, "added", added)
    monkeypatch.setattr(fused_ranking, "scores", scores)
    monkeypatch.setattr(fused_ranking, "received", attention_map.received_by)
    monkeypatch.setattr(fused_ranking, "entropy", attention_map.entropy_of)
    monkeypatch.setattr(fused_ranking, "entropy_into", entropy_into)


def generations(subject, stack, kernel, sizes):
    """Samples of generations one after the other, (number, changes of the sampling) each; what the
    notes say of rows, and the pending tensors that are left."""
    made = []
    with stack.attached(subject.pipeline) as attached, fused_rows.computed_by(kernel):
        for num, changes in sizes:
            attached.start(subject.sampling.steps, num)
            made.append(subject.generate(replace(subject.sampling, **changes), range(num)))
        left = [o for o in gc.get_objects() if isinstance(o, Pending)]
        rows = {value for name, value in attached.notes().items() if name.endswith(".rows")}
    return made, rows, left


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_same_bits_and_nothing_is_left(stand_ins, kind, stack):
    subject, parsed = tiny(kind, steps=6), Stack.parse(stack)
    wide = {} if kind == "dit" else {"height": 48, "width": 80}  # a grid of odd sides
    sizes = ((3, {}), (1, wide), (2, {}))
    plain, by_torch, _ = generations(subject, parsed, "torch", sizes)
    fused, by_kernel, left = generations(subject, parsed, "triton", sizes)
    assert (by_torch, by_kernel) == ({"torch"}, {"triton"})
    assert all(map(torch.equal, plain, fused))
    assert not left


SUMS = (
    "fora(interval=3)", "speca", "fora(interval=2)+int8wo", "taylorseer(interval=2)+lazy_queries",
    "sparsecast(keep=0.5,learns='coefficients',coefficients='one')",
)  # fmt: skip


@pytest.mark.parametrize("stack", SUMS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_run_is_added_by_kernels_to_the_same_bits(stand_ins, monkeypatch, kind, stack):
    subject, parsed, calls = tiny(kind, steps=6), Stack.parse(stack), []

    def counted(stream, outputs, gates):
        calls.append(len(outputs))
        return added(stream, outputs, gates)

    monkeypatch.setattr(fused_sums, "added", counted)
    if any(m.check(subject.pipeline) for m in parsed.methods):
        pytest.skip("the family has no settings")
    plain, _, _ = generations(subject, parsed, "torch", ((3, {}), (1, {})))
    assert not calls
    fused, _, left = generations(subject, parsed, "triton", ((3, {}), (1, {})))
    assert all(map(torch.equal, plain, fused)) and not left
    assert max(calls) > 1 or kind == "flux"  # FLUX's last blocks are one sub-layer each


@pytest.mark.parametrize("kind", KINDS)
def test_samples_that_choose_apart_have_their_rows_by_kernels_too(stand_ins, kind):
    subject, made = tiny(kind, steps=5), {}
    for kernel in ("torch", "triton"):
        stack = Stack((Shared(Scripted(TABLE), "attention"),))
        made[kernel], rows, left = generations(subject, stack, kernel, ((3, {}),))
        assert rows == {kernel} and not left
    assert torch.equal(made["torch"][0], made["triton"][0])


def test_a_generation_that_breaks_off_leaves_no_rows_to_the_next(stand_ins):
    subject, stack = tiny("pixart", steps=5), Stack.parse(STACKS[0])
    (whole,), _, _ = generations(subject, stack, "triton", ((2, {}),))

    def break_off(*_):
        if attached.now.step == 3:
            raise RuntimeError("broken off")

    with stack.attached(subject.pipeline) as attached, fused_rows.computed_by("triton"):
        # between two sub-layers of the last block, so that rows wait to be written
        hook = subject.pipeline.transformer.transformer_blocks[-1].ff.register_forward_pre_hook(
            break_off
        )
        attached.start(5, 3)
        with pytest.raises(RuntimeError, match="broken off"):
            subject.generate(subject.sampling, [0, 1, 2])
        hook.remove()
        attached.start(5, 2)
        assert torch.equal(subject.generate(subject.sampling, [0, 1]), whole)


def test_what_was_made_with_gradients_is_not_written_into():
    """A cache that owned a sub-layer's output owns none that a gradient may want."""
    from test_tokens import cache_of

    cache, part = cache_of("norm")
    x = torch.arange(16.0).view(1, 4, 4)
    with torch.no_grad():
        cache.compute(part, part.run(x), x)
    wanted = x.clone().requires_grad_()
    out = cache.compute(part, part.run(wanted), wanted)
    before = out.detach().clone()
    loss = out.square().sum()
    with torch.no_grad():
        cache.refresh(part, part.run(x + 1), x + 1, 2)
    assert torch.equal(out, before)
    loss.backward()
    assert torch.equal(wanted.grad, 2 * before)
