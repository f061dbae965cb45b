"""Tokens ranked by the attention of one query in so many (`query_stride`)."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from ditbench.acceleration import call_graphs
from ditbench.acceleration.caching import attention_map, selectors
from ditbench.acceleration.caching.token_settings import DIFFSPARSE
from ditbench.method import Stack, find
from ditbench.method.generation import Now
from ditbench.models import models
from ditbench.models.sublayers import sublayers
from ditbench.profiling.counting import count_model
from ditbench.testing import KINDS, check_method, tiny
from ditbench.testing.captured import OperationCapture

UNIFORM = "diffsparse(allocator='uniform',keep=0.6"


def looked(kind, stride, q, k, mask=None, step=0, block=0):
    """The signal of a sub-layer whose attention is of these."""
    now = Now(step=step, num_steps=4, grid=(1, 1, k.shape[2]), text_tokens=0)
    chosen = selectors.Attention(now, replace(DIFFSPARSE[kind], query_stride=stride))
    pipeline = tiny(kind).pipeline
    part = next(s for s in sublayers(pipeline.transformer) if s.kind == "self")
    part = replace(part, block=block)

    def run(*_):
        torch.nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=mask)
        return q

    chosen.run(part, run, None, every=True)
    return chosen.signals["received", block, 0]


@pytest.mark.parametrize(("step", "block", "first"), [(0, 0, 0), (1, 1, 2), (4, 1, 0)])
def test_it_is_the_mean_over_those_queries(step, block, first):
    q, k = torch.randn(2, 3, 14, 8), torch.randn(2, 3, 14, 8)
    mask = torch.rand(2, 1, 14, 14) < 0.8
    for given in (None, mask):
        signal = looked("dit", 5, q, k, given, step, block)
        some = None if given is None else given[:, :, first::5]
        assert torch.equal(signal, attention_map.received_by(q[:, :, first::5], k, some))


@pytest.mark.parametrize("stride", [14, 15, 64])
@pytest.mark.parametrize("step", [0, 13, 40])
def test_there_is_always_a_query(stride, step):
    q, k = torch.randn(2, 3, 14, 8), torch.randn(2, 3, 14, 8)
    signal = looked("dit", stride, q, k, step=step)
    torch.testing.assert_close(signal.sum(1), torch.ones(2))


def test_a_stride_of_one_is_all_of_them():
    q, k = torch.randn(2, 3, 14, 8), torch.randn(2, 3, 14, 8)
    assert torch.equal(looked("dit", 1, q, k, step=3), attention_map.received_by(q, k, None))


def test_the_kernels_take_every_so_many_queries():
    """In Triton's interpreter."""
    script = """
import torch
from ditbench.acceleration.caching import attention_map, fused_ranking
q, k = torch.randn(2, 3, 50, 16), torch.randn(2, 3, 70, 16)
for given in (q[:, :, 3::7], q.transpose(1, 2).contiguous().transpose(1, 2)[:, :, 1::3]):
    torch.testing.assert_close(
        fused_ranking.received(given, k, None), attention_map.received_by(given, k, None),
        rtol=1e-4, atol=1e-6,
    )
"""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_rankings_of_fewer_queries_are_others_and_the_rows_are_as_many(kind):
    made, counted = [], []
    tried = tiny(kind)
    for text in (f"{UNIFORM})", f"{UNIFORM},query_stride=5)"):
        with torch.inference_mode(), Stack.parse(text).attached(tried.pipeline) as attached:
            attached.start(tried.sampling.steps, 2)
            made.append(tried.generate(tried.sampling, [0, 1]))
            counted.append(attached.counters())
    assert not torch.equal(*made) and counted[0] == counted[1]


@pytest.mark.parametrize("kind", ["dit", "wan"])
def test_the_contract_of_methods_holds(kind):
    checks = check_method(f"{UNIFORM},query_stride=3)", tiny(kind))
    assert len(checks) == 13 and all(check.passed for check in checks), checks


def test_captured_calls_rank_as_they_would(monkeypatch):
    monkeypatch.setattr(call_graphs, "CudaCapture", OperationCapture)
    tried, made = tiny("dit"), []
    for text in (f"{UNIFORM},query_stride=3)", f"{UNIFORM},query_stride=3)+cudagraph"):
        with torch.inference_mode(), Stack.parse(text).attached(tried.pipeline) as attached:
            for _ in range(3):
                attached.start(tried.sampling.steps, 2)
                out = tried.generate(tried.sampling, [0, 1])
            made.append(out)
    assert torch.equal(*made)


def test_ranking_costs_less_the_fewer_queries_are_looked_at():
    model = models()["pixart-alpha-1024"]
    flops = {}
    for more in ("", ",query_stride=7", ",selector='shuffle'"):
        stack = Stack.parse(f"diffsparse(allocator='transferred',keep=0.5{more})")
        flops[more] = count_model(model, stack=stack, steps=6)["flops"]
    ranking = {more: total - flops[",selector='shuffle'"] for more, total in flops.items()}
    assert 0 < ranking[",query_stride=7"] < ranking[""] / 4


def test_what_was_learned_with_all_queries_is_used():
    DiffSparse = find("diffsparse")
    assert DiffSparse(query_stride=7).recipe() == DiffSparse().recipe()


@pytest.mark.parametrize("name", ["diffsparse", "toca", "duca"])
def test_it_is_refused_where_it_means_nothing(name):
    with pytest.raises(ValueError, match="query_stride is of selector='attention'"):
        find(name)(query_stride=3, selector="change")
    with pytest.raises(ValueError, match="query_stride"):
        find(name)(query_stride=0)
    if name != "diffsparse":  # it looks at both signals in every family
        refusal = find(name)(query_stride=3).check(tiny("pixart").pipeline)
        assert "by how widely they attend to the text" in refusal
        assert find(name)(query_stride=3).check(tiny("dit").pipeline) is None
