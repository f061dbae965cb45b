"""Blocks of any code on pending tensors: whatever arithmetic a block does with an output that waits,
the value, its shape and its type are those of tensors, and kernels are given what they can take."""

import operator

import pytest
import torch
from test_fused_rows import pending_rows
from torch import nn
from torch.nn import functional as F

from ditbench.models import fused_rows, fused_sums
from ditbench.models.deferred import defer
from ditbench.models.fused_sums import Unadded
from ditbench.models.gated import keeping, reused
from ditbench.models.pending import Pending, real
from ditbench.models.token_rows import take

B, N, D = 2, 6, 8
FORMS = {
    "as blocks do": lambda x, out, gate: x + gate * out,
    "added twice": lambda x, out, gate: (x + gate * out) + gate * out,
    "to two streams": lambda x, out, gate: torch.cat([x + out, 2 * x + out]),
    "two outputs first": lambda x, out, gate: x + (out + gate * out),
    "times a number": lambda x, out, gate: x + gate * (0.5 * out),
    "gated, times a number": lambda x, out, gate: x + 0.5 * (gate * out),
    "gated twice": lambda x, out, gate: x + gate * (gate * out),
    "clamped": lambda x, out, gate: (x + (gate * out).clamp(-1, 1)).clip(-0.5, 0.5),
    "plus a number": lambda x, out, gate: x + (1 + out * gate),
    "plus a bias": lambda x, out, gate: x + (out + torch.ones(D)),
    "gated, plus a bias": lambda x, out, gate: x + (out * gate + torch.ones(1, 1, D)),
    "scaled by channel": lambda x, out, gate: x + out * torch.arange(1.0, D + 1),
    "one number a sample": lambda x, out, gate: x + out * gate[:, :, :1],
    "one number": lambda x, out, gate: x + out * torch.tensor(3.0),
    "gated by token": lambda x, out, gate: x + out * torch.ones(B, N, D),
    "stream of one sample": lambda x, out, gate: x[:1] + gate * out,
    "output of one sample": lambda x, out, gate: x + gate * out[:1],
    "torch.add": lambda x, out, gate: torch.add(x, gate * out, alpha=2),
    "less": lambda x, out, gate: x - gate * out,
    "less the stream": lambda x, out, gate: out - x,
    "negative": lambda x, out, gate: x + -out,
    "divided": lambda x, out, gate: 1 - out / 2 + x**2,
    "compared": lambda x, out, gate: torch.where(x > 0, x + out, x),
    "unpacked": lambda x, out, gate: operator.add(*(x + gate * out)),
    "in another type": lambda x, out, gate: (x + gate * out).to(torch.float64) + 1,
}  # fmt: skip


def added(calls):
    """The kernel's arithmetic by torch, in the type of the stream; notes the gates it is given."""

    def run(stream, outputs, gates):
        calls.extend(gates)
        total = stream
        for output, gate in zip(outputs, gates, strict=True):
            total = total + (output if gate is None else gate * output)
        return total.to(stream.dtype)

    return run


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_an_output_that_waits_is_a_tensor_to_any_arithmetic(monkeypatch, form, waits):
    torch.manual_seed(0)
    calls = []
    monkeypatch.setattr(fused_sums, "added", added(calls))
    low = torch.bfloat16
    for types in (
        [torch.float32] * 3,
        [low] * 3,
        (low, low, torch.float32),
        (low, torch.float32, low),
    ):
        x, out, gate = (
            torch.randn(B, n, D).to(dtype) for n, dtype in zip((N, N, 1), types, strict=True)
        )
        before = out.clone()
        with torch.no_grad():
            want = FORMS[form](x, out, gate)
            wrap = Pending if waits else torch.Tensor
            made = FORMS[form](wrap(x) if waits else x, Unadded(out), wrap(gate) if waits else gate)
            told = tuple(made.shape), made.dtype
            made = real(made)
        assert told == (tuple(made.shape), made.dtype) == (tuple(want.shape), want.dtype)
        exact = {} if types[0] == low else {"rtol": 0, "atol": 0}  # a kernel rounds once
        torch.testing.assert_close(made, want, **exact)
        assert torch.equal(out, before)
    assert all(gate is None or gate.shape in ((B, 1, D), (1, 1, D)) for gate in calls)


@pytest.mark.parametrize("form", FORMS)
def test_an_output_with_new_rows_is_a_tensor_to_any_arithmetic(monkeypatch, form):
    gates = []

    def kernel(kept, times, order, new, now, first, gate, stream):
        gates.append(gate)
        rows = order[:, : new.shape[1], None].expand(-1, -1, kept.shape[-1])
        kept.scatter_(1, rows, new)
        return (stream + (kept if gate is None else gate * kept)).to(stream.dtype)

    monkeypatch.setattr(fused_rows, "put_and_added", kernel)
    given = pending_rows(None)
    gate, x = torch.randn(B, 1, D), given.stream
    want = FORMS[form](x, given.whole, gate)
    made = FORMS[form](Pending(x), given.put, Pending(gate))
    told = tuple(made.shape), made.dtype
    made = real(made)
    assert told == (tuple(made.shape), made.dtype) == (tuple(want.shape), want.dtype)
    assert torch.equal(made, want)
    assert torch.equal(given.kept, given.whole)
    assert all(gate is None or gate.shape in ((B, 1, D), (1, 1, D)) for gate in gates)


def test_a_modulation_that_is_one_number_a_sample_is_left_to_torch(monkeypatch):
    """The kernel would read a whole row of it, beyond where it ends."""
    x, rows = torch.randn(B, N, D), torch.tensor([[4, 1], [0, 5]])
    wide, calls = torch.randn(B, 1, D), []

    def kernel(stream, rows, *given):
        calls.append(given)
        return fused_rows.modulated(stream, rows, *given)

    monkeypatch.setattr(fused_rows, "modulated", kernel)
    with torch.no_grad(), fused_rows.computed_by("triton"):
        for scale, shift in ((wide[:, :, :1], wide), (wide, wide[:, :, :1])):
            normed = F.layer_norm(Pending(x), (D,)) * (1 + Pending(scale)) + Pending(shift)
            some = take(normed, rows)
            want = take(F.layer_norm(x, (D,)) * (1 + scale) + shift, rows)
            assert torch.equal(some, want) and not calls


@pytest.mark.parametrize("form", ["as blocks do", "gated twice", "gated, times a number", "less"])
def test_what_is_kept_with_its_gates_has_all_of_them(form):
    torch.manual_seed(0)
    x, out, gate = torch.randn(B, N, D), torch.randn(B, N, D), torch.randn(B, 1, D)
    store = {}
    with torch.no_grad():
        want = FORMS[form](x, out, gate)
        made = real(FORMS[form](Pending(x), keeping(store, "it", out), Pending(gate)))
        again = real(FORMS[form](Pending(x), reused(store["it"]), Pending(gate)))
    assert torch.equal(made, want)
    torch.testing.assert_close(again, want)


class Block(nn.Module):
    def forward(self, hidden_states):
        return type(hidden_states).__name__


def test_a_route_that_is_taken_back_is_asked_no_more():
    undo, block, x = [], Block(), torch.ones(1, 2, 3)

    def patch(owner, name, value):
        before = getattr(owner, name)
        undo.append(lambda: setattr(owner, name, before))
        setattr(owner, name, value)

    def gone():
        raise AssertionError("it was taken back")

    assert defer(block, ("hidden_states",), patch, lambda: True)
    assert block(x) == "Tensor"
    assert defer(block, ("hidden_states",), patch, gone)
    with pytest.raises(AssertionError, match="it was taken back"):
        block(x)
    undo.pop()()
    assert block(x) == "Tensor"
