"""The caches of 2025 and 2026 on untrained pipelines: few steps, batches, what they keep, what they
cost, and that they change nothing when they are off."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ditbench.method import find
from ditbench.method.stack import Stack
from ditbench.models.table import models
from ditbench.profiling.counting import count_generation, count_model
from ditbench.testing import tiny

ADAPTIVE = {
    "seacache": "seacache(threshold=1.0)",
    "easycache": "easycache(threshold=99.0, retain=0.0)",
    "dicache": "dicache(threshold=2.0, retain=0.0)",
    "speca": "speca(least=1, first=1)",
}
FIXED = {
    "hicache": "hicache(interval=2, first=1)",
    "clusca": "clusca(interval=2, first=1, clusters=4)",
    "freqca": "freqca(interval=2, first=1)",
    "barycache": "barycache(interval=2, first=1)",
    "meancache": "meancache(interval=2, first=1)",
    "l2p": "l2p(interval=2, first=1)",
}
CACHES = ADAPTIVE | FIXED


@pytest.fixture
def prepared(tmp_path):
    """f(steps) -> folders of what has to be prepared."""

    def made(steps):
        x = torch.randn(steps, 99, generator=torch.Generator().manual_seed(0)).cumsum(0)
        save_file({"gram": x @ x.T / 99}, tmp_path / "gram.safetensors")
        return {"l2p": tmp_path}

    return made


def generate(text, tried, which=(0,), prepared=None, guidance=3.0):
    """Samples, and counters."""
    stack, sampling = Stack.parse(text), replace(tried.sampling, guidance=guidance)
    if stack.refusal(tried.pipeline):
        pytest.skip("refused")
    with stack.attached(tried.pipeline, prepared) as attached:
        attached.start(sampling.steps, len(which))
        return tried.generate(sampling, which), attached.counters()


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize(("kind", "guidance"), [("dit", 3.0), ("dit", 1.0), ("wan", 1.0), ("flux", 3.0)])  # fmt: skip
def test_one_two_and_three_steps_run_with_and_without_guidance(name, kind, guidance, prepared):
    for steps in (1, 2, 3):
        tried = tiny(kind, steps=steps)
        if find(name)().check(tried.pipeline):
            continue
        folders = prepared(steps)
        made, counters = generate(CACHES[name], tried, (0,), folders, guidance)
        plain = tried.generate(replace(tried.sampling, guidance=guidance), [0])
        assert torch.isfinite(made).all()
        if steps == 1:
            assert torch.equal(made, plain)
            assert not [e for e in counters if e.endswith(("reused", "extrapolated"))]


@pytest.mark.parametrize("name", FIXED)
def test_a_sample_of_four_is_the_sample_alone(name, prepared):
    """Those that decide for a batch are not among these."""
    tried = tiny("flux", steps=5)
    folders = prepared(5)
    four, _ = generate(CACHES[name], tried, (0, 1, 2, 0), folders)
    alone, counters = generate(CACHES[name], tried, (0,), folders)
    assert [n for e, n in counters.items() if e.endswith(("reused", "extrapolated")) and n]
    for row in (0, 3):
        assert torch.allclose(four[row], alone[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_four_of_one_sample_are_decided_as_it_is_alone(name):
    tried = tiny("pixart", steps=6)
    four, of_four = generate(ADAPTIVE[name], tried, (0, 0, 0, 0))
    alone, counters = generate(ADAPTIVE[name], tried, (0,))
    assert of_four == counters and counters[f"{name}.passes_reused"] > 0
    assert torch.allclose(four[2], alone[0], rtol=1e-3, atol=1e-4)


def test_a_check_of_speca_costs_a_run_of_the_last_block():
    """Drafts cost nothing of the sub-layers; a checked one the last of the two blocks."""
    tried = tiny("dit", steps=12)

    def flops(text):
        with Stack.parse(text).attached(tried.pipeline) as attached:
            attached.start(12, 1)
            count = count_generation(
                tried.pipeline, lambda: tried.generate(tried.sampling, [0]), allow_uncounted=True
            )
            return count.flops, attached.counters()

    whole, _ = flops("none")
    drafts, unchecked = flops("speca(least=9, most=5, first=1)")
    checked, counters = flops("speca(threshold=1e9, decay=1.0, least=1, most=5, first=1)")
    assert "speca.passes_verified" not in unchecked
    assert counters["speca.passes_computed"] == unchecked["speca.passes_computed"] == 2
    verified = counters["speca.passes_verified"]
    assert verified == counters["speca.passes_reused"] - 2  # not the first after a computed one
    blocks = (whole - drafts) / 10  # of a step: both blocks
    # beside sub-layers the modulation of the last block runs once more
    assert checked - drafts == pytest.approx(verified * blocks / 2, rel=0.05)


LEDGER = {
    "seacache(threshold=9.0)": (2, 1),
    "dicache(threshold=9.0, retain=0.3)": (5, 0),
    "freqca(interval=3, order=1)": (3, 0),
    "barycache(interval=3, history=3)": (3, 0),
}
"""Stack: image streams [B,N,D] that it keeps, and text streams where blocks change the text."""


@pytest.mark.parametrize("kind", ["dit", "flux", "wan"])
@pytest.mark.parametrize("text", LEDGER)
def test_the_ledger_has_a_stream_for_each_that_is_kept(text, kind):
    tried = tiny(kind, steps=8)
    with Stack.parse(text).attached(tried.pipeline) as attached:
        attached.start(8, 2)
        tried.generate(tried.sampling, [0, 1])
        at = next(iter(attached.attachments.values()))
        width = at.sublayers[0].linears[0].in_features
        image = int(np.prod(at.now.grid)) * width
        rows = {"dit": 4, "flux": 2, "wan": 4}[kind]  # of all guidance passes
        images, texts = LEDGER[text]
        numbers = images * image + (kind == "flux") * texts * at.now.text_tokens * width
        assert attached.cache_bytes() == 4 * rows * numbers


@pytest.mark.parametrize("model", ["flux-1-dev", "wan-2.1-1.3b"])
def test_fixed_ones_are_counted_without_weights_and_adaptive_ones_are_refused_there(model):
    row = replace(models()[model], steps=4)
    changes = {"transformer.num_layers": 2}
    if model == "flux-1-dev":
        changes["transformer.num_single_layers"] = 1
    sizes = {"height": 64, "width": 64, "steps": 4, "changes": changes}
    if model != "flux-1-dev":
        sizes["frames"] = 5
    whole = count_model(row, **sizes)["flops"]
    for name, text in CACHES.items():
        counted = count_model(row, stack=Stack.parse(text), **sizes)
        if name in ADAPTIVE:
            assert (counted["status"], "goes by values" in counted["note"]) == ("refused", True)
        elif name == "l2p":
            assert "l2p has to be prepared" in counted["note"]
        else:
            assert counted["status"] == "ok" and counted["flops"] < 0.75 * whole, (text, counted)
