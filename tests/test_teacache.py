"""TeaCache watches and decides what its authors' code does: their logic, written again beside the
pipeline, skips the same passes."""

from contextlib import ExitStack

import pytest
import torch

from ditbench.method.stack import Stack
from ditbench.methods.teacache import PUBLISHED
from ditbench.models.loading import load
from ditbench.models.requests import call_arguments, make_requests
from ditbench.models.sampling import sampling_of
from ditbench.models.table import models
from ditbench.quiet import quiet

STEPS = 25


@pytest.fixture(scope="module")
def wan():
    with quiet():
        return load(models()["wan-tiny"], weights="bundled", device="cpu", dtype="float32")


def generate(pipe, text, watch=None):
    """Counters, and whether each transformer call ran its last block, of one request in `STEPS`
    steps under a stack."""
    model = models()["wan-tiny"]
    asked = call_arguments(model, sampling_of(model), make_requests(model, 1, 0)) | {
        "num_inference_steps": STEPS
    }
    ran = []
    with quiet(), torch.no_grad(), ExitStack() as undo:
        attached = undo.enter_context(Stack.parse(text).attached(pipe))
        for module, hook in (
            (pipe.transformer, lambda *_: ran.append(False)),
            (pipe.transformer.blocks[-1].attn1, lambda *_: ran.__setitem__(-1, True)),
        ):
            undo.callback(module.register_forward_pre_hook(hook).remove)
        if watch:
            undo.callback(pipe.transformer.condition_embedder.register_forward_hook(watch).remove)
        attached.start(STEPS, 1)
        pipe(**asked, output_type="latent")
        return attached.counters(), ran


def authors(embeddings, threshold, polynomial):
    """Whether each call is computed, as their script for Wan2.1 decides (without retention steps):
    even calls have the text."""
    computed, total, before = [], [0.0, 0.0], [None, None]
    for call, embedding in enumerate(embeddings):
        side = call % 2
        if call < 2 or call >= len(embeddings) - 2:
            compute, total[side] = True, 0.0
        else:
            change = ((embedding - before[side]).abs().mean() / before[side].abs().mean()).item()
            total[side] += sum(c * change**i for i, c in enumerate(reversed(polynomial)))
            compute = total[side] >= threshold
            total[side] = 0.0 if compute else total[side]
        before[side] = embedding
        computed.append(compute)
    return computed


@pytest.mark.parametrize(("threshold", "skipped"), [(0.05, 15), (0.07, 15), (0.08, 15)])
def test_on_wan_the_time_embedding_decides_as_in_the_authors_script(wan, threshold, skipped):
    polynomial, embeddings = PUBLISHED["wan", 1536], []
    counters, ran = generate(
        wan,
        f"teacache(threshold={threshold}, polynomial={polynomial})",
        lambda _module, _inputs, out: embeddings.append(out[0].clone()),
    )
    assert ran == authors(embeddings, threshold, polynomial)
    assert counters == {
        "teacache.passes_computed": 2 * (STEPS - skipped),
        "teacache.passes_reused": 2 * skipped,
    }
