"""The built-in methods do what their papers and their knobs say."""

import json
import logging
import math
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_stack import TESTS
from torch import nn

from ditbench.acceleration.caching.selectors import Attention
from ditbench.acceleration.caching.token_cache import TokenCache
from ditbench.acceleration.quantization import down_projections, share_of_linear_macs, smooth
from ditbench.method import Attachment, Now, find
from ditbench.method.prepare import Workroom
from ditbench.method.stack import Stack
from ditbench.models.loading import load
from ditbench.models.sampling import sampling_of
from ditbench.models.sublayers import sublayers
from ditbench.models.table import models
from ditbench.testing import KINDS, check_method, tiny


@cache
def subject(kind):
    return tiny(kind, steps=5)


def generate(text, kind, which=(0,), counters=None, tried=None):
    stack, tried = Stack.parse(text), tried or subject(kind)
    sampling = stack.adapt(tried.sampling)
    with stack.attached(tried.pipeline) as attached:
        attached.start(sampling.steps)
        samples = tried.generate(sampling, which)
        if counters is not None:
            counters |= attached.counters() | {"cache_bytes": attached.cache_bytes()}
    return samples


# fewer_steps


@pytest.mark.parametrize(
    ("knobs", "steps", "expected"),
    [
        ({}, 20, 10),
        ({}, 5, 2),
        ({}, 1, 1),
        ({"share": 0.2}, 20, 4),
        ({"share": 0.01}, 20, 1),
        ({"share": 1}, 7, 7),
    ]
    + [({"steps": 4}, 20, 4), ({"steps": 50}, 20, 20)],
)
def test_fewer_steps_takes_its_share_or_its_number(knobs, steps, expected):
    sampling = replace(subject("dit").sampling, steps=steps)
    assert find("fewer_steps")(**knobs).adapt(sampling) == replace(sampling, steps=expected)


def test_fewer_steps_is_the_plain_pipeline_with_fewer_steps():
    tried = subject("pixart")
    assert torch.equal(
        generate("fewer_steps(steps=2)", "pixart"),
        tried.generate(replace(tried.sampling, steps=2), [0]),
    )


# fora


def test_a_share_that_comes_to_one_step_is_one_sentence_on_pixart():
    with (
        Stack.parse("fewer_steps(share=0.1)").attached(subject("pixart").pipeline) as attached,
        pytest.raises(
            ValueError,
            match="fewer_steps: diffusers' PixArtAlphaPipeline cannot take a single step with DPMSolver",
        ),
    ):
        attached.start(1)


def slow_fora(kind, interval):
    """FORA once more, by forward hooks that count their own calls: a module's output is replaced by
    the one kept for its pass."""
    tried = subject(kind)
    passes, steps = 2 if kind == "wan" else 1, tried.sampling.steps
    with ExitStack() as undo:
        for sublayer in sublayers(tried.pipeline.transformer):
            calls, kept = [0], {}

            def reuse(_module, _inputs, out, calls=calls, kept=kept):
                step, branch = divmod(calls[0], passes)
                calls[0] += 1
                count = steps - 1 - step if kind == "dit" else step
                if count % interval == 0 or branch not in kept:
                    kept[branch] = out
                return kept[branch]

            # a single block ends in its projection
            undo.callback(sublayer.modules[-1].register_forward_hook(reuse).remove)
        return tried.generate(tried.sampling, [0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interval", [2, 3])
def test_fora_equals_a_slow_version_made_of_hooks(kind, interval):
    fast, slow = generate(f"fora(interval={interval})", kind), slow_fora(kind, interval)
    assert torch.equal(fast, slow)
    assert not torch.equal(fast, subject(kind).generate(subject(kind).sampling, [0]))


@pytest.mark.parametrize("kind", KINDS)
def test_fora_computes_at_every_interval_th_step_and_reuses_in_between(kind):
    tried, computed, step = subject(kind), [], []
    with Stack.parse("fora(interval=3)").attached(tried.pipeline) as attached, ExitStack() as undo:
        inner = sublayers(tried.pipeline.transformer)[0].linears[0]
        undo.callback(
            inner.register_forward_pre_hook(lambda *_: computed.append(attached.now.step)).remove
        )
        every = tried.pipeline.transformer.register_forward_pre_hook(
            lambda *_: step.append(attached.now.step)
        )
        undo.callback(every.remove)
        attached.start(5)
        tried.generate(tried.sampling, [0])
        num, passes = len(sublayers(tried.pipeline.transformer)), 2 if kind == "wan" else 1
        # DiT's code counts down, and the first step has nothing to reuse
        expected = [0, 1, 4] if kind == "dit" else [0, 3]
        assert sorted(set(step)) == [0, 1, 2, 3, 4]
        assert computed == [at for at in expected for _ in range(passes)]
        full = len(expected) * passes * num
        assert attached.counters() == {
            "fora.computed": full,
            "fora.reused": 5 * passes * num - full,
        }


@pytest.mark.parametrize(
    ("kind", "full"), [("pixart", [0, 3, 5, 8, 10]), ("dit", [0, 1, 3, 6, 8, 11])]
)
def test_fora_takes_an_interval_between_whole_numbers(kind, full):
    tried = tiny(kind, steps=12)
    with Stack.parse("fora(interval=2.5)").attached(tried.pipeline) as attached:
        attached.start(12, 1)
        tried.generate(tried.sampling, [0])
        keep = attached.schedule()["keep"]
    assert [step for step, shares in enumerate(keep) if shares[0] == 1] == full


def test_foras_cache_is_counted_in_bytes():
    counters = {}
    generate("fora", "dit", which=(0, 1), counters=counters)
    batch_with_guidance, tokens, width, layers = 4, 16, 128, 4
    assert counters["cache_bytes"] == layers * batch_with_guidance * tokens * width * 4
    generate("fora(interval=1)", "dit", counters=(off := {}))
    assert off["cache_bytes"] == 0


# taylorseer


@pytest.mark.parametrize(
    ("kind", "full"),
    [
        ("dit", [0, 1, 5, 9]),
        ("pixart", [0, 4, 8]),
        ("flux", [0, 1, 2, 8]),
        ("wan", [0, 5, 10]),
        ("sd3", [0, 1, 2, 8]),
    ],
)
def test_taylorseer_is_the_authors_for_the_family_by_default(kind, full):
    """Interval, first steps and order: DiT 4, 2, 4; FLUX 6, 3, 1; Wan 5, 1, 1; PixArt, ours, 4, 1,
    1."""
    tried = tiny(kind, steps=12)
    with Stack.parse("taylorseer").attached(tried.pipeline) as attached:
        attached.start(12, 1)
        tried.generate(tried.sampling, [0])
        keep, cached = attached.schedule()["keep"], attached.cache_bytes()
        assert [step for step, shares in enumerate(keep) if shares[0] == 1] == full
        # Differences taken: one more at every full step from the last of the first steps on, up to
        # the order.
        kept = 1 + {"dit": 3, "pixart": 1, "flux": 1, "wan": 1, "sd3": 1}[kind]
        assert cached == kept * (2 if kind == "wan" else 1) * sum(
            out for out, _ in outputs(attached).values()
        )


# int8


def third_call(tried):
    """What the transformer is called with the third time."""
    calls = []
    hook = tried.pipeline.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    tried.generate(tried.sampling, [0])
    hook.remove()
    return calls[2]


@pytest.mark.parametrize("kind", KINDS)
def test_int8_covers_most_linear_multiplications_at_a_small_error(kind):
    tried = subject(kind)
    share = share_of_linear_macs(tried.pipeline, lambda: tried.generate(tried.sampling, [0]))
    assert 0.8 <= share < 1
    transformer, (args, kwargs) = tried.pipeline.transformer, third_call(tried)
    with torch.no_grad():
        exact = transformer(*args, **kwargs)[0]
        with Stack.parse("int8").attached(tried.pipeline):
            rounded = transformer(*args, **kwargs)[0]
            assert share == share_of_linear_macs(
                tried.pipeline, lambda: tried.generate(tried.sampling, [0])
            )
    error = float((exact - rounded).norm() / exact.norm())
    assert 1e-5 < error < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_int8_leaves_embedders_modulation_and_the_last_projection_alone(kind):
    pipeline = subject(kind).pipeline
    linears = {
        name: m for name, m in pipeline.transformer.named_modules() if isinstance(m, nn.Linear)
    }
    originals = {name: m.weight for name, m in linears.items()}
    with Stack.parse("int8").attached(pipeline) as attached:
        quantised = {
            name for name, m in linears.items() if type(m.weight.data).__name__ == "Int8Tensor"
        }
        assert attached.counters() == {"int8.linears": len(quantised)}
        assert all(linears[name].weight.qdata.dtype == torch.int8 for name in quantised)
    spared = linears.keys() - quantised
    assert all(
        "embed" in n
        or "norm" in n
        or "adaln" in n
        or "caption" in n
        or n.startswith(("proj_out", "condition"))
        for n in spared
    )
    assert not [n for n in quantised if "embed" in n or "norm" in n]
    assert sum(n.startswith(("proj_out", "proj_out_1")) for n in spared) >= 1
    assert all(m.weight is originals[name] for name, m in linears.items())


ERRORS = {
    "int8": (1e-5, 0.05),
    "int8(down='spared')": (1e-5, 0.05),
    "int8wo": (1e-6, 0.02),
    "int4wo": (1e-4, 0.3),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ERRORS)
def test_quantised_layers_err_as_their_format_does_and_the_share_is_noted(text, kind):
    tried = subject(kind)
    low, high = ERRORS[text]
    transformer, (args, kwargs) = tried.pipeline.transformer, third_call(tried)
    with torch.no_grad():
        exact = transformer(*args, **kwargs)[0]
        with Stack.parse(text).attached(tried.pipeline) as attached:
            assert attached.notes() == {}
            seen = []
            hooks = [
                m.register_forward_hook(lambda *told: seen.append(told))
                for s in sublayers(transformer)
                for m in s.linears
            ]
            rounded = transformer(*args, **kwargs)[0]
            for hook in hooks:
                hook.remove()
            assert attached.notes() == {}
            with attached.inspected():
                assert torch.equal(rounded, transformer(*args, **kwargs)[0])
            share, noted = attached.notes().values()
            seen = [told for told in seen if type(told[0].weight.data).__name__.startswith("Int")]
    assert low < float((exact - rounded).norm() / exact.norm()) < high
    # with the stack taken back: the layers as they were, on the inputs they had inside it
    with torch.no_grad():
        pairs = [(found, linear(*inputs)) for linear, inputs, found in seen]
    squares = [
        sum(float(x.square().sum()) for x in xs)
        for xs in ([a - b for a, b in pairs], [b for _, b in pairs])
    ]
    assert pairs and noted == pytest.approx(math.sqrt(squares[0] / squares[1]), rel=1e-3)
    whole = share_of_linear_macs(tried.pipeline, lambda: tried.generate(tried.sampling, [0]))
    assert share < whole - 0.1 if "spared" in text else share == pytest.approx(whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "cache",
    ["fora", "toca", "duca", "teacache", "taylorseer", "diffsparse(allocator='uniform')"]
    + ["speca(least=1)", "clusca", "freqca", "dicache(threshold=9.0,retain=0.0)"],
)
def test_caches_run_over_quantised_layers_as_over_others(cache, kind):
    both, alone = generate(f"int8+{cache}", kind), generate(cache, kind)
    assert 0 < float((both - alone).norm() / alone.norm()) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_smoothed_down_projections_are_the_same_function_before_rounding(kind, tmp_path):
    tried, found = subject(kind), {}
    linears = down_projections(sublayers(tried.pipeline.transformer))
    inputs = [
        torch.randn(2, 5, m.in_features) * torch.linspace(0.1, 9, m.in_features) for m in linears
    ]
    save_file(
        {str(i): x.abs().amax((0, 1)) for i, x in enumerate(inputs)},
        tmp_path / "ranges.safetensors",
    )
    exact = [m(x) for m, x in zip(linears, inputs, strict=True)]
    with ExitStack() as undo:
        smooth(Attachment(tried.pipeline, Now(), undo), tmp_path)
        assert all(
            torch.allclose(m(x), y, atol=1e-4)
            for m, x, y in zip(linears, inputs, exact, strict=True)
        )
    for text in ("int8", "int8(down='smoothed')"):
        with torch.no_grad(), Stack.parse(text).attached(tried.pipeline, {"int8": tmp_path}):
            errors = [
                (m(x) - y).norm() / y.norm() for m, x, y in zip(linears, inputs, exact, strict=True)
            ]
        found[text] = sum(map(float, errors)) / len(errors)
    assert found["int8(down='smoothed')"] < found["int8"]
    assert all(torch.equal(m(x), y) for m, x, y in zip(linears, inputs, exact, strict=True))


def test_smoothing_is_calibrated_by_sampling(tmp_path):
    model = models()["dit-tiny"]
    pipe = load(model, weights="bundled", device="cpu", dtype="float32")
    sampling = replace(sampling_of(model), steps=2)
    room = Workroom(pipe=pipe, model=model, below=Stack(), sampling=sampling, tell=lambda row: None)
    notes = Stack.parse("int8(down='smoothed')").methods[0].prepare(tmp_path, room)
    assert notes["largest_over_median"] > 1
    ranges = load_file(tmp_path / "ranges.safetensors")
    assert len(ranges) == 6 and all((r > 0).all() and r.shape == (512,) for r in ranges.values())


def test_fp8_is_refused_without_its_hardware():
    assert (
        Stack.parse("fp8").refusal(subject("flux").pipeline)
        == "fp8: needs a CUDA device, but the model is on cpu"
    )


def test_fp8_rowwise_products_err_as_e4m3_does():
    """What the method's scheme computes, through the very operation it runs on: scales per token
    and per row."""
    from torchao.quantization import Float8WeightOnlyConfig, quantize_

    layer, x = (
        nn.Linear(128, 256, bias=False),
        torch.randn(64, 128) * torch.logspace(-1, 1, 64)[:, None],
    )
    exact, ours = layer(x), layer.weight.detach().abs().amax(1, keepdim=True) / 448
    by_token = x.abs().amax(1, keepdim=True) / 448
    a, b = (
        (x / by_token).to(torch.float8_e4m3fn),
        (layer.weight.detach() / ours).to(torch.float8_e4m3fn),
    )
    rounded = torch._scaled_mm(
        a, b.t(), scale_a=by_token, scale_b=ours.t().contiguous(), out_dtype=torch.bfloat16
    )
    assert 0.005 < float((rounded - exact).norm() / exact.norm()) < 0.05
    quantize_(layer, Float8WeightOnlyConfig())
    assert torch.allclose(layer.weight.scale, ours, rtol=1e-3)
    assert (layer.weight.qdata.float() == b.float()).float().mean() > 0.99


def test_padding_of_the_packed_kernel_is_the_share_it_adds():
    from ditbench.methods.int4wo import padding

    assert padding([nn.Linear(1152, 8)]) == round(2048 / 1152 - 1, 4)
    assert padding([nn.Linear(1024, 8), nn.Linear(3072, 8)]) == 0
    assert padding([nn.Linear(1152, 8), nn.Linear(2048, 8)]) == round(4096 / 3200 - 1, 4)


def test_int4_groups_must_divide():
    assert "groups of 48 do not divide" in Stack.parse("int4wo(group=48)").refusal(
        subject("dit").pipeline
    )


def test_torchaos_import_says_nothing_and_changes_no_setting():
    code = "import torch; from ditbench.quiet import quiet\nwith quiet():\n    import torchao.quantization"
    done = subprocess.run(
        [sys.executable, "-c", f"import run_bench; {code}"],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    before = logging.root.manager.disable, torch.get_float32_matmul_precision()
    generate("int8", "dit")
    assert (logging.root.manager.disable, torch.get_float32_matmul_precision()) == before


# memory


def outputs(attached):
    """Bytes of every sub-layer's output, and of every row's score, in fp32: {index: (output,
    scores)}, of one guidance pass."""
    at = next(iter(attached.attachments.values()))
    now, width = at.now, at.sublayers[0].linears[0].in_features
    image, text, batch = int(np.prod(now.grid)), now.text_tokens, now.passes * now.samples
    rows = {"image": image, "text": text, "both": image + text}
    sizes = {}
    for s in at.sublayers:
        scored = rows["image" if s.kind == "joint" else s.stream]
        sizes[s.index] = (
            4 * batch * width * (image + text if s.kind == "joint" else rows[s.stream]),
            4 * batch * scored,
        )
    return sizes


def maps(attached, names):
    """Bytes of the attention signals: received, one per key of every self-, joint or single-stream
    attention; entropy, per image token."""
    at = next(iter(attached.attachments.values()))
    image, text, batch = (
        int(np.prod(at.now.grid)),
        at.now.text_tokens,
        at.now.passes * at.now.samples,
    )
    keys = {"self": image, "joint": image + text, "single": image + text}
    received = sum(keys.get(s.kind, 0) for s in at.sublayers) if "received" in names else 0
    return (
        4
        * batch
        * (received + sum(image for s in at.sublayers if s.kind == "cross" and "entropy" in names))
    )


def mixed(attached):
    """Bytes of the attention of FLUX's single blocks: text and image tokens."""
    at = next(iter(attached.attachments.values()))
    return sum(outputs(attached)[s.index][0] for s in at.sublayers if s.kind == "single")


def stream_of_the_last(attached):
    """Bytes of what enters the last norm before a sub-layer: its tokens."""
    at = next(iter(attached.attachments.values()))
    return list(outputs(attached).values())[-1][1] * at.sublayers[0].linears[0].in_features


def streams(attached):
    """Bytes of what blocks hand on: image tokens, and FLUX's text."""
    at = next(iter(attached.attachments.values()))
    tokens = int(np.prod(at.now.grid)) + (at.now.text_tokens if at.blocks[0].pair else 0)
    return 4 * at.now.passes * at.now.samples * tokens * at.sublayers[0].linears[0].in_features


def shuffles(attached):
    """Bytes of a permutation for every sub-layer and step that recomputes some of its tokens."""
    at = next(iter(attached.attachments.values()))
    orders = [outputs(attached)[i][1] for (_, i), share in at.shares.items() if 0 < share < 1]
    return sum(orders) // (at.now.passes * at.now.samples)


class Rankings:
    """Bytes of what tokens are ranked by, from what is done with each sub-layer: in fp32 the age of
    every token where some were computed last and some not, and the scores that the sub-layers of a
    block share until its attention runs again."""

    def __init__(self, monkeypatch, attends):
        """`attends`: whether single-stream attention runs again where some tokens are computed."""
        self.ages, self.scores, self.attends = {}, {}, attends
        for owner, name in (
            (TokenCache, "compute"),
            (TokenCache, "refresh"),
            (Attention, "run"),
            (Attention, "score"),
        ):
            monkeypatch.setattr(
                owner, name, self._seen(getattr(owner, name), getattr(self, f"_{name}"))
            )

    @property
    def bytes(self):
        return 4 * (sum(self.ages.values()) + sum(self.scores.values()))

    @staticmethod
    def _seen(original, note):
        def seen(self, *args, **kwargs):
            note(self, *args)
            return original(self, *args, **kwargs)

        return seen

    def _compute(self, cache, sublayer, run, hidden):
        self.ages.pop(cache.selector.key(sublayer), None)

    def _refresh(self, cache, sublayer, run, hidden, num):
        batch, n = hidden.shape[:2]
        if 0 < num < n:  # where it computes all after all, that is noted after this
            self.ages[cache.selector.key(sublayer)] = batch * n

    def _run(self, selector, sublayer, run, rows):
        if sublayer.kind == "single" and rows is not None and not self.attends:
            return
        signal = "entropy" if sublayer.kind == "cross" else "received"
        if sublayer.kind not in ("mlp", "context_mlp") and signal in selector.rules.signals:
            at = sublayer.block, selector.now.branch
            self.scores = {key: n for key, n in self.scores.items() if key[:2] != at}

    def _score(self, selector, sublayer, hidden, *_):
        batch, n = hidden.shape[:2]
        self.scores[sublayer.block, selector.now.branch, sublayer.stream, n] = batch * n


LEDGER = {
    "fora": lambda a, kind: sum(out for out, _ in outputs(a).values()),
    "l2c(threshold=1.0)": lambda a, kind: sum(out for out, _ in outputs(a).values()),
    "taylorseer(interval=2, order=1)": lambda a, kind: (
        2 * sum(out for out, _ in outputs(a).values())
    ),
    "taylorseer(interval=2, order=0)": lambda a, kind: sum(out for out, _ in outputs(a).values()),
    "sparsecast(learns='coefficients', coefficients='zero', keep=0.5)": lambda a, kind: sum(
        out for out, _ in outputs(a).values()
    ),
    "sparsecast(learns='coefficients', coefficients='one', keep=0.5)": lambda a, kind: (
        2 * sum(out for out, _ in outputs(a).values())
    ),
    "sparsecast(learns='coefficients', coefficients='one', keep=0.5, order=2)": lambda a, kind: (
        3 * sum(out for out, _ in outputs(a).values())
    ),
    "toca": lambda a, kind: (
        sum(out for out, _ in outputs(a).values())
        + maps(a, ("entropy",) if kind in ("pixart", "wan") else ("received",))
        + mixed(a)
    ),
    "toca(attend=True)": lambda a, kind: (
        sum(out for out, _ in outputs(a).values())
        + maps(a, ("entropy",) if kind in ("pixart", "wan") else ("received",))
    ),
    "duca": lambda a, kind: (
        sum(out for out, _ in outputs(a).values())
        + streams(a)
        + maps(a, ("entropy",) if kind in ("pixart", "wan") else ("received",))
        + mixed(a)
    ),
    "duca(selector='shuffle')": lambda a, kind: (
        sum(out for out, _ in outputs(a).values())
        + streams(a)
        + mixed(a)
        + shuffles(a) // (2 if kind == "wan" else 1)  # both passes have the same
    ),
    "teacache(threshold=1e9)": lambda a, kind: (
        streams(a) + (time_embedding(a) if kind == "wan" else outputs_of_the_first(a))
    ),
    "pab": lambda a, kind: attentions(a),
    "fastercache": lambda a, kind: 2 * attentions(a),
    "delta_dit(share=0.5, switch=0.5)": lambda a, kind: 2 * streams(a),
    "diffsparse(allocator='uniform')": lambda a, kind: (
        sum(out for out, _ in outputs(a).values()) + maps(a, ("received", "entropy"))
    ),
    "diffsparse(allocator='uniform', selector='norm')": lambda a, kind: (
        sum(out for out, _ in outputs(a).values())
        + stream_of_the_last(a) // (2 if kind == "wan" else 1)
    ),
    "diffsparse(allocator='uniform', selector='change')": lambda a, kind: sum(
        out + inputs for (out, _), inputs in zip(outputs(a).values(), entered(a), strict=True)
    ),
}


def outputs_of_the_first(attached):
    """Bytes of the first sub-layer's input: image tokens."""
    at = next(iter(attached.attachments.values()))
    return (
        4
        * at.now.passes
        * at.now.samples
        * int(np.prod(at.now.grid))
        * at.sublayers[0].linears[0].in_features
    )


def time_embedding(attached):
    """Bytes of the embedding of one time for every sample."""
    at = next(iter(attached.attachments.values()))
    return 4 * at.now.passes * at.now.samples * at.sublayers[0].linears[0].in_features


def attentions(attached):
    """Bytes of every attention's output."""
    at = next(iter(attached.attachments.values()))
    kinds = ("self", "cross", "joint", "single")
    return sum(outputs(attached)[s.index][0] for s in at.sublayers if s.kind in kinds)


def entered(attached):
    """Bytes of every sub-layer's input; of a joint one the image's."""
    width = next(iter(attached.attachments.values())).sublayers[0].linears[0].in_features
    return [scores * width for _, scores in outputs(attached).values()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", LEDGER)
def test_the_memory_ledger_is_the_analytic_count(text, kind, monkeypatch):
    tried, rankings = tiny(kind, steps=6), Rankings(monkeypatch, text not in ("toca", "duca"))
    if Stack.parse(text).refusal(tried.pipeline):
        assert kind == "wan" or text == "fastercache"
        return
    with Stack.parse(text).attached(tried.pipeline) as attached:
        attached.start(6, 2)
        tried.generate(tried.sampling, [0, 1])
        branches = 2 if kind == "wan" else 1
        expected = branches * LEDGER[text](attached, kind) + rankings.bytes
        assert attached.cache_bytes() == expected


# other caches of diffusers


@pytest.mark.parametrize("kind", ["dit", "pixart", "flux", "sd3"])
def test_pab_runs_attention_at_every_second_step_of_the_middle(kind):
    """Of 8 steps those between timesteps 800 and 100, counted from the first call; cross-attention
    every fourth."""
    tried, counters = tiny(kind, steps=8), {}
    generate("pab(cross_interval=4)", kind, counters=counters, tried=tried)
    parts = [
        s
        for s in sublayers(tried.pipeline.transformer)
        if s.kind in ("self", "cross", "joint", "single")
    ]
    middle = [i for i, t in enumerate(tried.pipeline.scheduler.timesteps.tolist()) if 100 < t < 800]
    spared = sum(sum(i % (4 if part.kind == "cross" else 2) > 0 for i in middle) for part in parts)
    assert counters["pab.attentions_reused"] == spared > 0
    assert counters["pab.attentions_computed"] == 8 * len(parts) - spared


def test_fastercache_extrapolates_what_attention_gave():
    """By its weight; and not at all where no timestep is below the first."""
    tried = tiny("flux", steps=8)
    plain, held, further = (
        generate(text, "flux", tried=tried)
        for text in ("none", "fastercache(weight=0)", "fastercache")
    )
    assert not torch.equal(plain, held) and not torch.equal(held, further)
    assert torch.equal(generate("fastercache(first=0)", "flux", tried=tried), plain)


def room_of(tried, kind, below=()):
    """What a method is prepared with, for an untrained pipeline."""
    room = SimpleNamespace(
        pipe=tried.pipeline, sampling=tried.sampling, draw=lambda seed,
        num: tried.arguments(tried.sampling, range(num)),
        attached=lambda trainee: Stack((*below, trainee)).attached(tried.pipeline),
        tell=lambda row: None,
        model=SimpleNamespace(family=kind), at_once=lambda num: num,
    )  # fmt: skip
    room.generate = lambda trainee, num: Workroom.generate(room, trainee, num)
    return room


@pytest.mark.parametrize("kind", KINDS)
def test_teacache_finds_the_threshold_that_skips_a_share_alone_or_over_what_is_below(
    kind, tmp_path
):
    tried, told = tiny(kind, steps=8), {}
    for name, below in (("alone", ()), ("stack", Stack.parse("int8").methods)):
        (tmp_path / name).mkdir()
        told[name] = (
            Stack.parse("teacache(saved=0.5)")
            .methods[0]
            .prepare(tmp_path / name, room_of(tried, kind, below))
        )
        stack = Stack((*below, *Stack.parse("teacache(saved=0.5)").methods))
        with stack.attached(tried.pipeline, {"teacache": tmp_path / name}) as attached:
            attached.start(8, 8)
            tried.generate(tried.sampling, range(8))
            counters = attached.counters()
        passes = 2 if kind == "wan" else 1
        assert counters["teacache.passes_reused"] == told[name]["skipped"] * 8 * passes
        assert abs(told[name]["skipped"] - 0.5) <= 0.125
    by_hand = Stack.parse(f"teacache(threshold={told['alone']['threshold']})")
    with by_hand.attached(tried.pipeline):
        plain = tried.generate(tried.sampling, range(8))
    with Stack.parse("teacache(saved=0.5)").attached(
        tried.pipeline, {"teacache": tmp_path / "alone"}
    ):
        assert torch.equal(plain, tried.generate(tried.sampling, range(8)))
    checks = check_method("teacache(saved=0.5)", tried, {"teacache": tmp_path / "alone"})
    assert not [f"{c.name}: {c.note}" for c in checks if not c.passed] and len(checks) == 13


def test_teacache_without_the_threshold_it_is_asked_for_names_the_command():
    with (
        pytest.raises(ValueError, match=r"prepare 'teacache\(saved"),
        Stack.parse("teacache(saved=0.5)").attached(subject("dit").pipeline),
    ):
        pass


@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_magcache_is_calibrated_and_skips_by_its_ratios(kind, tmp_path):
    tried, reused = tiny(kind, steps=8), []
    find("magcache")().prepare(tmp_path, room_of(tried, kind))
    ratios = json.loads((tmp_path / "ratios.json").read_text())
    assert (
        len(ratios) == 8
        and ratios[0] == 1
        and len(set(ratios)) == 8
        and all(0.1 < r < 10 for r in ratios)
    )
    for threshold in (1e-9, 0.2, 1e9):
        stack = Stack.parse(f"magcache(threshold={threshold}, most=2)")
        with stack.attached(tried.pipeline, {"magcache": tmp_path}) as attached:
            attached.start(8, 1)
            tried.generate(tried.sampling, [0])
            reused.append(attached.counters().get("magcache.passes_reused", 0))
    passes = 2 if kind == "wan" else 1
    assert reused == sorted(reused) and reused[0] == 0
    # of 8 steps the first two are kept, then two of every three are skipped
    assert reused[2] == 4 * passes
    checks = check_method("magcache(threshold=1e9)", tried, {"magcache": tmp_path})
    assert not [f"{c.name}: {c.note}" for c in checks if not c.passed] and len(checks) == 13


# firstblock


@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_firstblock_skips_the_other_blocks_when_little_has_changed(kind):
    tried, ran = subject(kind), {"first": 0, "last": 0}
    found = sublayers(tried.pipeline.transformer)

    def seen(name):
        return lambda *_: ran.update({name: ran[name] + 1})

    with (
        Stack.parse("firstblock(threshold=0.9)").attached(tried.pipeline) as attached,
        ExitStack() as undo,
    ):
        undo.callback(found[0].modules[0].register_forward_pre_hook(seen("first")).remove)
        undo.callback(found[-1].linears[0].register_forward_pre_hook(seen("last")).remove)
        attached.start(5)
        tried.generate(tried.sampling, [0])
        counters, passes = attached.counters(), 10 if kind == "wan" else 5
        assert ran == {"first": passes, "last": counters["firstblock.passes_computed"]}
        assert (
            counters["firstblock.passes_computed"] + counters["firstblock.passes_reused"] == passes
        )
        assert attached.cache_bytes() > 0


def test_firstblock_skips_more_at_a_higher_threshold_and_nothing_at_zero():
    reused = []
    for threshold in (0.0, 0.05, 0.9):
        counters = {}
        generate(f"firstblock(threshold={threshold})", "wan", counters=counters)
        reused.append(counters.get("firstblock.passes_reused", 0))
    assert reused == sorted(reused)
    assert reused[0] == 0 < reused[-1]


@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_firstblock_that_never_skips_is_idle(kind):
    stack, tried = Stack.parse("firstblock(threshold=0.0)"), subject(kind)
    with stack.attached(tried.pipeline) as attached:
        attached.start(5)
        tried.generate(tried.sampling, [0])
        assert stack.idle(tried.sampling, attached) == ["firstblock"]


# rerun


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    ["rerun", "rerun(split=3)", "rerun(attention='math')", "rerun(split=2,attention='math')"],
)
def test_the_noise_floor_is_the_plain_sample_up_to_rounding(text, kind):
    tried = subject(kind)
    plain, again = tried.generate(tried.sampling, [0, 1, 2]), generate(text, kind, [0, 1, 2])
    assert (again - plain).norm() <= 1e-3 * plain.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_the_transformer_sees_the_parts_of_a_batch_and_a_lone_sample_twice(kind):
    tried, seen, passes = subject(kind), [], 2 if kind in ("dit", "pixart", "sd3") else 1
    hook = tried.pipeline.transformer.register_forward_pre_hook(lambda *_: seen.append("whole"))
    first = sublayers(tried.pipeline.transformer)[0].modules[0]
    inner = first.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs.get("hidden_states", *args[:1]))),
        with_kwargs=True,
    )
    counted = {}
    generate("rerun", kind, [0, 1, 2], counted)
    size = -(-3 * passes // 2)
    assert seen[:3] == ["whole", size, 3 * passes - size]
    assert counted["rerun.passes_split"] == seen.count("whole")
    seen.clear()
    generate("rerun", kind, [0])
    hook.remove(), inner.remove()
    # a sample's two guidance passes are two rows already
    assert seen[:2] == [
        "whole",
        2 if passes == 1 else 1,
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_ceiling_starts_from_other_noise_the_same_every_time(kind):
    tried, counted = subject(kind), {}
    plain = tried.generate(tried.sampling, [0])
    one, again, two = (
        generate("rerun(seed=1)", kind, counters=counted),
        generate("rerun(seed=1)", kind),
        generate("rerun(seed=2)", kind),
    )
    assert torch.equal(one, again) and not torch.equal(one, two)
    assert (one - plain).norm() > 0.1 * plain.norm() and counted["rerun.draws_exchanged"] == 1
    assert torch.equal(tried.generate(tried.sampling, [0]), plain)


def test_rerun_says_what_its_row_is_for_and_mixes_with_nothing():
    assert (
        Stack.parse("rerun").describe()[0]["label"]
        == Stack.parse("rerun(attention='math')").methods[0].label
        == "noise floor"
    )
    assert Stack.parse("rerun(seed=1)").methods[0].label == "ceiling"
    assert "label" not in Stack.parse("fora").describe()[0]
    assert Stack.parse("fora+rerun").problems() and Stack.parse("int8+rerun").problems()
    with pytest.raises(ValueError, match="rerun knows the attention 'math', not 'sage'"):
        Stack.parse("rerun(attention='sage')")
