"""stitch: which model computes which step, of which sample, and what it costs."""

from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from narrow import narrow

from ditbench import ZOO
from ditbench.method.dependencies import depends_on
from ditbench.method.needs import needs_of
from ditbench.method.registry import find
from ditbench.method.stack import Stack
from ditbench.models.architecture import build, build_transformer
from ditbench.models.blocks import blocks
from ditbench.models.folders import sizes_of
from ditbench.models.requests import make_requests
from ditbench.models.sampling import sampling_of
from ditbench.models.table import models
from ditbench.models.weights import weights_sha256
from ditbench.profiling.counting import count_generation, count_model
from ditbench.profiling.memory import ledger
from ditbench.quiet import quiet
from ditbench.simulation.costs import DENOISE, TRANSFORMER
from ditbench.simulation.device import Device, GoesByValues, simulated
from ditbench.simulation.rehearsal import Stand
from ditbench.testing import KINDS, check_method, tiny
from ditbench.zoo.halving import begin_with_half

STEPS = 6


@cache
def subject(kind):
    return tiny(kind, steps=STEPS)


@pytest.fixture(scope="module")
def smalls(tmp_path_factory):
    """Family -> folder of a transformer of half the width of that of `subject`, untrained."""
    made = {}

    def of(kind):
        if kind not in made:
            own = subject(kind).pipeline.transformer
            heads = {"num_attention_heads": 2}
            for key in ("cross_attention_dim", "caption_projection_dim"):  # as wide as it is
                heads |= {key: 64} if own.config.get(key) else {}
            torch.manual_seed(1)
            small = type(own).from_config({**own.config, **heads})
            made[kind] = tmp_path_factory.mktemp(f"small-{kind}")
            small.save_pretrained(made[kind])
        return made[kind]

    return of


@contextmanager
def calls_of(transformer, small):
    """The rows of each call of both transformers' own code."""
    seen = {"large": [], "small": []}
    hooks = [
        blocks(module)[0].module.register_forward_pre_hook(
            lambda _m, args, kwargs, name=name: seen[name].append(
                len(args[0] if args else kwargs["hidden_states"])
            ),
            with_kwargs=True,
        )
        for name, module in (("large", transformer), ("small", small))
        if module is not None
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def sampled(kind, text, which=(0, 1)):
    """Samples, the rows of each call of both transformers, and what was counted."""
    tried, stack = subject(kind), Stack.parse(text)
    with stack.attached(tried.pipeline) as attached:
        small = attached.networks()[0] if attached.networks() else None
        attached.start(STEPS, len(which))
        with calls_of(tried.pipeline.transformer, small) as seen:
            samples = tried.generate(stack.adapt(tried.sampling), which)
        return samples, seen, attached.counters()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("knobs", ["", ",decide='confidence',threshold=0.2"])
def test_the_contract_holds_beside_a_smaller_model(kind, knobs, smalls):
    checks = check_method(f"stitch(small='{smalls(kind)}'{knobs})", tiny(kind, steps=4))
    assert not [f"{c.name}: {c.note}" for c in checks if not c.passed]
    assert len(checks) == 13 and "refused" not in {c.name for c in checks}


@pytest.mark.parametrize(
    ("knobs", "order"),
    [
        ("share=0.5", "sssLLL"),
        ("share=0.4", "ssLLLL"),
        ("share=0.3,first='large'", "LLLLss"),
        ("share=1.0", "ssssss"),
        ("share=0.0", "LLLLLL"),
    ],
)
def test_the_small_model_takes_its_share_of_the_steps_at_one_end(knobs, order, smalls):
    _, seen, counted = sampled("dit", f"stitch({knobs},small='{smalls('dit')}')")
    small, large = order.count("s"), order.count("L")
    assert seen == {"large": [4] * large, "small": [4] * small}
    if small:  # two samples
        assert counted.get("stitch.small_steps", 0) == 2 * small
        assert counted.get("stitch.large_steps", 0) == 2 * large


@pytest.mark.parametrize("kind", ["dit", "flux", "wan"])
def test_the_states_at_the_switch_are_the_small_models_and_the_rest_the_large_ones(kind, smalls):
    """By hand: the transformer of the pipeline is another from a step on."""
    tried = subject(kind)
    own, pipe = tried.pipeline.transformer, tried.pipeline
    small = type(own).from_pretrained(smalls(kind)).eval()
    step, calls = pipe.scheduler.step, []

    def stepped(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            pipe.transformer = own
        return step(*args, **kwargs)

    pipe.scheduler.step, pipe.transformer = stepped, small
    try:
        by_hand = tried.generate(tried.sampling, (0, 1))
    finally:
        del pipe.scheduler.step
        pipe.transformer = own
    ours, _, _ = sampled(kind, f"stitch(share=0.5,small='{smalls(kind)}')")
    assert torch.equal(ours, by_hand)
    assert not torch.equal(ours, sampled(kind, "none")[0])


@pytest.mark.parametrize("knobs", ["share=0.5", "decide='confidence',threshold=0.6"])
def test_a_small_model_of_the_same_weights_changes_nothing(knobs, tmp_path):
    subject("flux").pipeline.transformer.save_pretrained(tmp_path)
    ours, _, _ = sampled("flux", f"stitch({knobs},small='{tmp_path}')")
    torch.testing.assert_close(ours, sampled("flux", "none")[0])


def ways_of(kind, folder, which):
    """[steps,n]: how far the conditional predictions of the small model alone have gone."""
    tried, predictions = subject(kind), []
    channels = tried.pipeline.transformer.config.in_channels
    with Stack.parse(f"stitch(share=1.0,small='{folder}')").attached(tried.pipeline) as attached:
        attached.start(STEPS, len(which))

        def keep(_module, _args, output):
            now = attached.now
            if now.branch == 0:
                first = output[0][: len(which)] if kind not in LAST else output[0][-len(which) :]
                predictions.append(first if first.dim() == 3 else first[:, :channels])

        hook = tried.pipeline.transformer.register_forward_hook(keep)
        tried.generate(tried.sampling, which)
        hook.remove()
    steps = [torch.zeros(len(which))]
    for before, now in pairwise(predictions):
        moved = [((n - b).norm() / n.norm()).item() for b, n in zip(before, now, strict=True)]
        steps.append(steps[-1] + torch.tensor(moved))
    return torch.stack(steps)


@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_goes_over_where_its_prediction_has_gone_far_enough(kind, smalls):
    which = (0, 1, 2)
    ways = ways_of(kind, smalls(kind), which)
    last = ways[-1].sort().values
    threshold = round(((last[0] + last[1]) / 2).item(), 4)  # two of the three go over
    text = f"stitch(decide='confidence',threshold={threshold},small='{smalls(kind)}')"
    samples, seen, counted = sampled(kind, text, which)
    over = ways > threshold
    rows = 2 if kind in BATCHED else 1
    calls = 2 if kind == "wan" else 1
    large = [rows * int(n) for n in over.sum(1) if n for _ in range(calls)]
    assert over[-1].sum() == 2 and seen["large"] == large
    assert counted["stitch.small_steps"] == (~over).sum()
    assert counted["stitch.large_steps"] == over.sum()
    again = sum(int(over[t, i] and not over[t - 1, i]) for t in range(1, STEPS) for i in range(3))
    assert counted["stitch.small_steps_taken_again"] == again == 2
    for i in which:
        alone, _, _ = sampled(kind, text, (i,))
        torch.testing.assert_close(samples[i : i + 1], alone, atol=2e-4, rtol=2e-4)


BATCHED, LAST = ("dit", "pixart", "sd3"), ("pixart", "sd3")
"""Families whose guidance passes share a call, and those whose conditional pass comes last in it."""


def test_every_generation_begins_with_the_small_model_again(smalls):
    tried = subject("dit")
    stack = Stack.parse(f"stitch(decide='confidence',threshold=0.0,small='{smalls('dit')}')")
    with stack.attached(tried.pipeline) as attached:
        made = []
        for _ in range(2):
            attached.start(STEPS, 2)
            made.append(tried.generate(tried.sampling, (0, 1)))
        assert torch.equal(*made)
        # the first step of both samples in both generations; the others were computed again
        assert attached.counters()["stitch.small_steps"] == 4


@pytest.mark.parametrize(
    "cache",
    [
        "fora(interval=2)",
        "taylorseer(interval=2)",
        "teacache(threshold=9.0)",
        "easycache(threshold=99.0,retain=0.0)",
        "toca(selector='change')",
        "diffsparse(allocator='uniform',keep=0.5)",
    ],
)
def test_a_cache_of_the_large_model_begins_at_the_switch(cache, smalls):
    """Its first step there is computed whole, and what it does afterwards is another prediction."""

    def outputs(text):
        tried, stack, made = subject("flux"), Stack.parse(text), {}
        with stack.attached(tried.pipeline) as attached:
            attached.start(STEPS, 2)

            def keep(_module, _args, output):
                made[attached.now.step] = output[0]

            hook = tried.pipeline.transformer.register_forward_hook(keep)
            tried.generate(tried.sampling, (0, 1))
            hook.remove()
        return made

    stitch = f"stitch(share=0.34,small='{smalls('flux')}')"
    plain, cached = outputs(stitch), outputs(f"{stitch}+{cache}")
    for step in (0, 1, 2):
        torch.testing.assert_close(cached[step], plain[step], atol=1e-5, rtol=1e-5)
    last = STEPS - 1
    assert any(not torch.allclose(cached[s], plain[s], atol=1e-4) for s in range(3, last + 1)) or (
        "easycache" in cache  # two computed steps before its first skipped one
    )


def test_what_cannot_stand_beside_it_is_said():
    problems = Stack.parse("stitch+distill").problems("dit")
    assert problems == ["distill and stitch both claim weights"]
    confident = "stitch(decide='confidence',threshold=0.1)"
    assert Stack.parse(f"{confident}+int8").problems("dit") == []
    assert Stack.parse("stitch+fora+cfg_cache").problems("dit") == []
    for other, claim in (("fora", "block-schedule"), ("cfg_cache", "guidance")):
        (problem,) = Stack.parse(f"{confident}+{other}").problems("dit")
        assert problem.startswith(f"{other} claims {claim}, but stitch runs the samples that went")
    for other in ("fastercache", "magcache", "lazy_queries"):
        assert Stack.parse(f"stitch+{other}").problems("flux")[0].endswith("incompatible")


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ("threshold=0.1", "with decide='share' threshold has no meaning"),
        ("training=1", "with decide='share' training has no meaning"),
        ("decide='confidence',first='large'", "the small model is asked first"),
        ("share=1.5", "share must be at least 0 and at most 1"),
    ],
)
def test_knobs_that_do_not_go_together_are_refused(knobs, told):
    with pytest.raises(ValueError, match="stitch") as error:
        Stack.parse(f"stitch({knobs})")
    assert told in str(error.value)


def refusal(text, pipe):
    return Stack.parse(text).refusal(pipe)


def test_a_model_that_cannot_take_its_steps_is_refused(smalls, tmp_path):
    dit = subject("dit").pipeline
    assert refusal("stitch", dit) == (
        "stitch: no smaller model of this pipeline is known; small='FOLDER' names one"
    )
    assert "small: 'dit-tinny' is no folder, and no model; did you mean" in refusal(
        "stitch(small='dit-tinny')", dit
    )
    assert refusal(f"stitch(small='{smalls('flux')}')", dit) == (
        f"stitch: {smalls('flux')} is a FluxTransformer2DModel, and this model's a "
        "DiTTransformer2DModel"
    )
    assert refusal(f"stitch(small='{tmp_path}')", dit) == (
        f"stitch: small: {tmp_path} holds no transformer: config.json and .safetensors files"
    )
    own = dit.transformer
    type(own).from_config({**own.config, "patch_size": 4}).save_pretrained(tmp_path / "transformer")
    assert refusal(f"stitch(small='{tmp_path}')", dit) == (
        f"stitch: {tmp_path} has patch_size=4, and this model 2"
    )
    own.save_pretrained(tmp_path / "transformer")
    dit.scheduler.save_pretrained(tmp_path / "scheduler")
    assert refusal(f"stitch(small='{tmp_path}')", dit) is None
    type(dit.scheduler)(beta_end=0.5).save_pretrained(tmp_path / "scheduler")
    assert refusal(f"stitch(small='{tmp_path}')", dit) == (
        f"stitch: {tmp_path} has beta_end=0.5, and this model 0.02"
    )


def test_the_files_of_a_folder_are_what_a_cell_depends_on(smalls):
    files = find("stitch")(small=str(smalls("dit"))).inputs()
    assert [file.name for file in files] == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert find("stitch")().inputs() == []
    others = {
        name: [m.name for m in find("stitch")().other_models(models()[name])]
        for name in ("dit-tiny", "flux-tiny", "wan-2.1-14b", "dit-xl-2-256", "pixart-tiny")
    }
    assert others == {
        "dit-tiny": ["dit-mini"], "flux-tiny": ["flux-mini"], "wan-2.1-14b": ["wan-2.1-1.3b"],
        "dit-xl-2-256": [], "pixart-tiny": [],
    }  # fmt: skip


def test_the_weights_of_the_small_model_are_in_a_cells_key_and_in_a_calibrations():
    model, small = models()["dit-tiny"], models()["dit-mini"]
    of = {"dit-mini": weights_sha256(small, "bundled")}
    for text, others in (("stitch", of), ("none", None), ("stitch(small='dit-tiny')+fora", None)):
        parts = depends_on(model, Stack.parse(text), [], weights="bundled", prompts="")
        own = {"dit-tiny": parts["weights"]} if "dit-tiny" in text else others
        assert parts.get("others") == own
    (need,) = needs_of(model, Stack.parse("stitch(decide='confidence')"), "bundled")
    assert need.content["others"] == of
    assert "others" not in needs_of(model, Stack.parse("teacache(saved=0.4)"), "bundled")[0].content


@pytest.mark.parametrize("kind", ["dit", "wan"])
def test_the_flops_of_both_models_are_counted(kind, smalls):
    tried = subject(kind)

    def flops(text):
        stack = Stack.parse(text)
        with stack.attached(tried.pipeline) as attached:
            attached.start(STEPS, 1)
            return count_generation(
                tried.pipeline, lambda: tried.generate(tried.sampling, (0,))
            ).flops

    large, small = flops("none"), flops(f"stitch(share=1.0,small='{smalls(kind)}')")
    assert small < large / 2
    assert flops(f"stitch(share=0.5,small='{smalls(kind)}')") == (large + small) // 2


def test_dit_s_2_beside_dit_xl_2_is_counted_as_published():
    """Peebles & Xie 2023, table 1 (arXiv:2212.09748): 6.06 and 118.64 Gflops, their multiply-adds,
    a pass; T-Stitch's 5 and 114 are other counts of the same."""
    model = models()["dit-xl-2-256"]
    rows = {
        share: count_model(model, steps=10, stack=Stack.parse(f"stitch(share={share})"))
        for share in (0.0, 0.4, 1.0)
    }
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert rows[0.0]["macs_per_pass"] == pytest.approx(118.64e9, rel=0.01)
    assert rows[1.0]["macs_per_pass"] == pytest.approx(6.06e9, rel=0.02)
    assert rows[0.4]["flops"] == (6 * rows[0.0]["flops"] + 4 * rows[1.0]["flops"]) // 10
    by_value = count_model(
        model, steps=4, stack=Stack.parse("stitch(decide='confidence',threshold=0.1)")
    )
    assert by_value["status"] == "refused" and "it goes by values" in by_value["note"]


def test_weights_that_are_not_on_the_hub_are_asked_for():
    pipe = build(models()["pixart-alpha-256"], device="meta", parts=("transformer", "scheduler"))
    assert refusal("stitch", pipe) == (
        "stitch: no smaller model of pixart-alpha-256 is known; small='FOLDER' names one"
    )


def test_the_weights_of_both_are_in_the_memory(smalls):
    pipe = subject("flux").pipeline
    stack = Stack.parse(f"stitch(small='{smalls('flux')}')")
    with stack.attached(pipe) as attached:
        (small,) = attached.networks()
        bytes_ = sum(p.nbytes for p in (*small.parameters(), *small.buffers()))
        both = ledger(pipe, attached, "cpu")["weights_bytes"]
    assert both - ledger(pipe, None, "cpu")["weights_bytes"] == bytes_ > 0


def test_the_simulated_device_holds_and_runs_both():
    """DiT-S/2's width for the narrow DiT-XL/2: larger than it, as only shapes matter here."""
    row, changes = narrow("dit-xl-2-256")
    with simulated(Device()) as device, quiet():
        stand = Stand(device, row, "bfloat16", changes)
        made = {}
        for text in ("none", "stitch(share=0.34)", "stitch(share=0.34)"):  # again: none is left
            stages = stand.rehearse(
                Stack.parse(text), sampling_of(row), make_requests(row, 1, 0)
            ).stages
            made[text] = stages[DENOISE]
        with pytest.raises(GoesByValues):
            stand.rehearse(
                Stack.parse("stitch(decide='confidence',threshold=0.1)"),
                sampling_of(row), make_requests(row, 1, 0),
            )  # fmt: skip
    weights = {text: stage.at_peak[TRANSFORMER] for text, stage in made.items()}
    same = {"transformer.sample_size": changes["transformer.sample_size"]}
    small = build_transformer(
        row, device="meta", dtype=torch.bfloat16, changes=row.small_changes | same
    )
    tensors = (*small.parameters(), *small.buffers())
    more, bytes_ = weights["stitch(share=0.34)"] - weights["none"], sum(t.nbytes for t in tensors)
    # but for the positions of the one before, a view whose base Python's collector frees
    assert bytes_ <= more <= 1.001 * bytes_
    products = [sum(k.flops * n for k, n in s.work.kernels.items()) for s in made.values()]
    assert products[1] > products[0]


@pytest.mark.parametrize("wanted", [0.25, 0.6])
def test_a_threshold_is_looked_for_that_gives_the_mean_share(wanted, tmp_path):
    """Of samples that go over after 4 to 16 of 20 steps at a threshold of 1, and in proportion."""

    def generate(trainee, num):
        steps = [min(20, int(trainee.threshold * n)) for n in range(4, 17)]
        small = sum(steps)
        counters = {"stitch.small_steps": small, "stitch.large_steps": 20 * 13 - small}
        return SimpleNamespace(counters=lambda: counters)

    room = SimpleNamespace(generate=generate, at_once=lambda n: n, tell=lambda row: None)
    stitch = find("stitch")(decide="confidence", share=wanted)
    notes = stitch.prepare(tmp_path, room)
    assert notes["share"] == pytest.approx(wanted, abs=0.02) and notes["samples"] == 16
    assert stitch.recipe() == {"version": 1, "share": wanted, "small": ""}
    with pytest.raises(ValueError, match="has not been prepared"):
        stitch.attach(subject("dit").pipeline, SimpleNamespace(artifact=None))


def test_the_dial_is_the_threshold_where_one_is_given():
    stitch = find("stitch")
    assert stitch.dial == stitch().dial == ("share", 0, 1)
    assert stitch(decide="confidence", threshold=0.5).dial == ("threshold", 0, 4.0)


@pytest.mark.parametrize(("small", "large"), [("dit-mini", "dit-tiny"), ("flux-mini", "flux-tiny")])
def test_the_bundled_pairs_share_all_but_the_transformer(small, large):
    """Every other file is the same, byte by byte; the transformer is half as wide, and each model's
    card is the folder's own."""
    parts = {}
    for name in (small, large):
        files = (ZOO / name).glob("*/*")
        parts[name] = {f"{f.parent.name}/{f.name}": f.read_bytes() for f in files}
    same = {name: data for name, data in parts[small].items() if "transformer/" not in name}
    assert len(same) >= 3
    assert same == {n: data for n, data in parts[large].items() if "transformer/" not in n}
    configs = [sizes_of(ZOO / name / "transformer" / "config.json") for name in (small, large)]
    assert [c.pop("num_attention_heads") for c in configs] == [2, 4] and configs[0] == configs[1]
    assert sum(f.stat().st_size for f in (ZOO / small).rglob("*.safetensors")) < 6e6


@pytest.mark.parametrize("kind", ["dit", "flux"])
def test_half_of_the_channels_are_every_second_one_and_half_of_the_heads(kind):
    large = subject(kind).pipeline.transformer
    small = type(large).from_config({**large.config, "num_attention_heads": 2})
    begin_with_half(small, large)
    first = "transformer_blocks.0"
    big, made = dict(large.named_parameters()), dict(small.named_parameters())
    attn = "attn" if kind == "flux" else "attn1"
    query = big[f"{first}.{attn}.to_q.weight"][:64, ::2] * 2**0.5
    torch.testing.assert_close(made[f"{first}.{attn}.to_q.weight"].data, query)
    out = big[f"{first}.{attn}.to_out.0.weight"][::2, :64] * 2**0.5
    torch.testing.assert_close(made[f"{first}.{attn}.to_out.0.weight"].data, out)
    if kind == "flux":
        name = "single_transformer_blocks.0.proj_out.weight"
        columns = [*range(64), *range(128, 640, 2)]
        torch.testing.assert_close(made[name].data, big[name][::2][:, columns] * 2**0.5)
