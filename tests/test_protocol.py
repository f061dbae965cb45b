"""What methods from outside can say: which rows are conditional, guidance dropped, other keys and
values, some samples alone; and the complete examples of each."""

import csv
import gc
import inspect
import json
from collections import namedtuple
from functools import cache

import pytest
import torch
from command import command, ours
from safetensors import safe_open
from safetensors.torch import save_file
from test_families import forget
from test_stack import TESTS

from ditbench.acceleration.caching.prepare_steps import write_steps
from ditbench.method import CLAIMS, METHODS, Attachment, Stack, Stage, method
from ditbench.method.plugins import load_plugin
from ditbench.models.calls import take_rows
from ditbench.models.family import families
from ditbench.models.sublayers import sublayers
from ditbench.profiling.counting import count_generation
from ditbench.records.scores import read_scores
from ditbench.testing import KINDS, check_method, tiny

STEPS = 4
GUIDED = [kind for kind in KINDS if families()[kind].guidance != "embedded"]
CACHES = (
    "fora",
    "toca(interval=3)",
    "duca(interval=4)",
    "teacache(threshold=5.0)",
    "taylorseer(interval=2,order=1,first=1)",
    "delta_dit(interval=2)",
    "seacache(threshold=5.0)",
    "easycache(threshold=99.0,retain=0.0)",
    "schedule(steps='0-2',target='x0')",
    "dicache(threshold=9.0,retain=0.0)",
    "hicache(interval=2)",
    "speca(least=1)",
    "clusca(interval=2)",
    "freqca(interval=2,first=2)",
    "barycache(interval=2,first=2)",
    "diffsparse(allocator='uniform',keep=0.5)",
    "rapid3(decide='fixed',stride=2,threshold=9.0,level=3)",
    "zipr1(decide='fixed',ratio=0.5)",
    "pab(first=1000,last=0)",
    "step_reuse",
)
REFUSED = (
    "drop_guidance: needs a guidance pass to leave out, and FLUX's guidance is embedded in its one"
)


@pytest.fixture(autouse=True, scope="module")
def examples():
    """The methods of the example files, and afterwards none of them."""
    names = ("step_reuse", "drop_guidance", "token_merging", "sample_cache")
    for name in names:
        assert load_plugin(TESTS / f"example_{name}.py") == [name]
    yield
    forget()
    for name in names:
        METHODS.pop(name, None)


@cache
def subject(kind):
    return tiny(kind, steps=STEPS)


def declare(name, attach, **facts):
    """A throw-away method of one's own making; returns its name."""
    METHODS.pop(name, None)
    facts = {"stage": Stage.SCHEDULE, "claims": {"guidance"}} | facts
    method(name, family="test", **facts)(
        type("Thrown", (), {"attach": attach, "__module__": __name__})
    )
    return name


def generate(text, kind, *which, guidance=3.0):
    """Samples under a stack, its counters, and the FLOPs of the generation."""
    tried, made = subject(kind), []
    sampling = tried.sampling.__class__(**vars(tried.sampling) | {"guidance": guidance})
    with Stack.parse(text).attached(tried.pipeline) as attached:

        def run():
            attached.start(STEPS, len(which))
            made.append(tried.generate(sampling, which))

        flops = count_generation(tried.pipeline, run).flops
        return made[0], attached.counters(), flops


def conditioning(args, kwargs):
    text = kwargs.get("encoder_hidden_states")
    return kwargs["class_labels"] if text is None else text


@pytest.mark.parametrize("kind", KINDS)
def test_the_conditional_rows_are_those_that_are_given_the_prompt(kind):
    seen = {}

    def attach(self, pipeline, at):
        def look(module, args, kwargs):
            rows = conditioning(args, kwargs)[at.now.conditional]
            seen.setdefault((at.now.step, at.now.branch), []).append((rows.clone(), at.now.batch))

        at.count("looked")
        # after the harness's own, which is the last to be put in
        at.patch(
            pipeline.transformer,
            "forward",
            lambda *args, **kwargs: (look(None, args, kwargs), run(*args, **kwargs))[1],
        )

    run = subject(kind).pipeline.transformer.forward
    name = declare("looking_test", attach, claims=set())
    generate(name, kind, 0, 1, guidance=1.0)
    alone, guided = seen.copy(), seen.clear()
    assert guided is None and all(len(rows) == batch == 2 for ((rows, batch),) in alone.values())
    generate(name, kind, 0, 1)
    for step in range(STEPS):
        ((rows, batch),) = seen[step, 0]
        assert torch.equal(rows, alone[step, 0][0][0])
        assert batch == (4 if families()[kind].batched else 2)
    calls = {branch for _, branch in seen}
    assert calls == ({0, 1} if kind == "wan" else {0})
    assert kind != "wan" or all(len(seen[step, 1][0][0]) == 0 for step in range(STEPS))


def test_rows_of_a_generation_that_nobody_began_are_an_error():
    name = declare("unbegun_test", lambda self, pipeline, at: at.drop_guidance(lambda: True))
    tried = subject("pixart")
    with (
        Stack.parse(name).attached(tried.pipeline),
        pytest.raises(ValueError, match="a generation begun without start"),
    ):
        tried.generate(tried.sampling, [0])


@pytest.mark.parametrize("kind", GUIDED)
def test_guidance_dropped_from_the_first_step_is_no_guidance(kind):
    plain, _, cost = generate("none", kind, 0, 1, guidance=1.0)
    dropped, counters, same = generate("drop_guidance(share=0.0)", kind, 0, 1)
    torch.testing.assert_close(dropped, plain, rtol=1e-5, atol=1e-5)
    assert same == cost
    assert counters == {"drop_guidance.guidance_passes_dropped": 2 * STEPS}


@pytest.mark.parametrize("kind", GUIDED)
def test_the_steps_without_guidance_cost_half(kind):
    whole = generate("none", kind, 0)[2]
    for share, guided_steps in ((0.25, 1), (0.5, 2), (0.6, 3), (1.0, 4)):
        _, counters, flops = generate(f"drop_guidance(share={share})", kind, 0)
        assert 2 * STEPS * flops == whole * (STEPS + guided_steps)
        dropped = {"drop_guidance.guidance_passes_dropped": STEPS - guided_steps}
        assert counters == (dropped if guided_steps < STEPS else {})


def test_count_knows_what_is_dropped_without_weights():
    plugin = ("--plugin", TESTS / "example_drop_guidance.py", "--json")
    models = "dit-tiny,pixart-tiny,wan-tiny,flux-tiny"
    done = command("count", *plugin, "--models", models, "--methods", "drop_guidance", "--steps", 8)
    load_plugin(TESTS / "example_drop_guidance.py")
    rows = json.loads(done.stdout.splitlines()[-1])
    by = {(row["model"], row["stack"]): row for row in rows}
    for model in models.split(",")[:3]:
        plain, mine = by[model, "none"], by[model, "drop_guidance"]
        assert (plain["passes"], mine["passes"]) == (16, 12)
        assert mine["forwards"] == (12 if "wan" in model else 8)
        assert 4 * mine["flops"] == 3 * plain["flops"]
    assert by["flux-tiny", "drop_guidance"]["note"] == REFUSED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["drop_guidance", "token_merging", "sample_cache(threshold=9.0)"])
def test_the_examples_keep_the_contract(text, kind):
    checks = check_method(text, subject(kind))
    assert not [check for check in checks if not check.passed]
    refused = [check.note for check in checks if check.name == "refused"]
    assert refused == ([REFUSED] if (text, kind) == ("drop_guidance", "flux") else [])


@pytest.mark.parametrize(
    "text, kind",
    [
        pytest.param(text, kind, marks=() if (i + j) % len(GUIDED) == 0 else pytest.mark.slow)
        for i, text in enumerate(CACHES)
        for j, kind in enumerate(GUIDED)
    ],
)  # by turns in the ordinary suite
def test_caches_follow_where_guidance_is_dropped(text, kind):
    stack = f"{text}+drop_guidance"
    checks = check_method(stack, subject(kind))
    assert not [check for check in checks if not check.passed]
    refused = any(check.name == "refused" for check in checks)
    assert refused == (text.startswith("pab") and kind == "wan")
    if not refused:
        made, counters, flops = generate(stack, kind, 0, 1)
        early = declare("early_test", METHODS["drop_guidance"].attach, stage=Stage.WEIGHTS)
        METHODS[early].share = 0.5
        other, counted, same = generate(f"{text}+{early}", kind, 0, 1)
        assert torch.equal(made, other) and flops == same
        assert sum(counted.values()) == sum(counters.values())


@pytest.mark.parametrize("kind", GUIDED)
def test_what_a_cache_keeps_outlives_the_drop(kind):
    """FORA computes as often as it would without, and keeps the conditional rows."""
    alone, both = generate("fora", kind, 0)[1], generate("fora+drop_guidance", kind, 0)[1]
    calls = 2 if kind == "wan" else 1
    layers = len(sublayers(subject(kind).pipeline.transformer))
    assert alone["fora.computed"] + alone["fora.reused"] == calls * STEPS * layers
    assert both["fora.computed"] + both["fora.reused"] == (2 * calls + 2) * layers
    assert both["fora.computed"] == alone["fora.computed"] - (calls - 1) * layers


def test_the_ledger_has_the_rows_that_were_there_before_the_drop():
    tried = subject("pixart")
    held = []
    for text in ("fora", "fora+drop_guidance"):
        with Stack.parse(text).attached(tried.pipeline) as attached:
            attached.start(STEPS, 1)
            after_a_call = []
            hook = tried.pipeline.transformer.register_forward_hook(
                lambda *_, a=attached, n=after_a_call: n.append(a._held_bytes())
            )
            tried.generate(tried.sampling, [0])
            hook.remove()
            held.append(attached.cache_bytes())
            held.append(after_a_call[-1])
            assert attached._held_bytes() == 0
    assert held[0] == held[1] == held[2] == 2 * held[3] > 0


def test_dropping_without_the_claim_and_with_another_that_has_it_is_refused():
    name = declare(
        "unclaimed_test", lambda self, pipeline, at: at.drop_guidance(lambda: True), claims=set()
    )
    with (
        pytest.raises(ValueError, match="unclaimed_test drops guidance, so it has to claim"),
        Stack.parse(name).attached(subject("dit").pipeline),
    ):
        pass
    METHODS.pop(name)
    (problem,) = Stack.parse("distill+drop_guidance").problems()
    assert problem == "distill and drop_guidance both claim guidance"


@pytest.mark.parametrize("text", ["fora", "toca(interval=3,selector='change')", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_tokens_go_with_other_methods(text, kind):
    for more in ("", "" if kind == "flux" else "+drop_guidance"):
        checks = check_method(f"{text}+token_merging{more}", subject(kind))
        assert not [check for check in checks if not check.passed]
        assert len(checks) > 2


def test_a_ranking_by_attention_does_not_take_merged_tokens_for_others():
    with pytest.raises(ValueError, match=r"0.self attends to 8 tokens in place of 16.*another sel"):
        generate("toca(interval=3)+token_merging", "dit", 0)


MERGED = {
    f"token_merging claims {claim}, but " for claim in ("attended-tokens", "attention-operator")
}
BY_ATTENTION = "ranks tokens by how much each of them is attended to; choose another selector, "
WHOLE = "reuses the attention inside FLUX's single blocks, "


@pytest.mark.parametrize(
    ("text", "families_refused", "why"),
    [
        ("toca", {"dit", "flux", "sd3"}, f"toca {BY_ATTENTION}"),
        ("toca(selector='change')", set(), ""),
        ("toca(interval=1)", set(), ""),
        ("duca", {"dit", "flux", "sd3"}, f"duca {BY_ATTENTION}"),
        ("diffsparse(allocator='uniform')", set(KINDS), f"diffsparse {BY_ATTENTION}"),
        ("diffsparse(allocator='uniform',selector='norm')", set(), ""),
        ("pab(first=1000,last=0)", {"flux"}, f"pab {WHOLE}"),
        ("fastercache(first=999)", {"flux"}, f"fastercache {WHOLE}"),
        ("fora", set(), ""),
        ("teacache(threshold=5.0)", set(), ""),
        ("taylorseer(interval=2,order=1,first=1)", set(), ""),
        ("delta_dit(interval=2)", set(), ""),
        ("l2c", set(), ""),
    ],
)
def test_what_does_not_go_with_merged_tokens_is_refused_when_a_run_is_planned(
    text, families_refused, why
):
    """And nothing else is: what is not refused runs on merged tokens."""
    stack = Stack.parse(f"{text}+token_merging")
    assert stack.problems() == []  # without a family nothing can be said
    for kind in KINDS:
        problems = stack.problems(kind)
        assert bool(problems) == (kind in families_refused), kind
        assert {problem.partition(why)[0] for problem in problems} <= MERGED, problems
        reason = stack.refusal(subject(kind).pipeline)
        if problems:
            assert reason == problems[0]
        elif reason is None and not any(m.recipe() for m in stack.methods):
            generate(str(stack), kind, 0)


def test_a_plan_refuses_a_ranking_by_the_attention_of_merged_tokens():
    model, stack = "dit-tiny,pixart-tiny", "toca+token_merging"
    plugin = TESTS / "example_token_merging.py"
    done = command("plan", "--plugin", plugin, "--models", model, "--methods", stack, "--json")
    rows = json.loads(done.stdout.splitlines()[-1])
    dit, pixart = [row for row in rows if row["stack"] != "none"]
    assert (dit["status"], pixart["status"]) == ("refused", "planned")
    assert dit["reason"].partition("toca ranks tokens by how much each")[0] in MERGED


def test_attention_reused_inside_a_rerouted_single_block_is_an_error_in_a_sentence():
    with pytest.raises(ValueError, match="no other method can reuse the attention inside it"):
        generate("pab(first=1000,last=0)+token_merging", "flux", 0)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_saves_the_keys_and_values_it_does_not_make(kind):
    """Two products of width D, and two of attention, for each token that is gone."""
    plain, merged = generate("none", kind, 0), generate("token_merging", kind, 0)
    tried = subject(kind)
    saved = 0
    for sublayer in sublayers(tried.pipeline.transformer):
        if sublayer.takes_context:
            n = {"dit": 16, "wan": 48}.get(kind, 24)
            text = {"flux": 16, "sd3": 32}.get(kind, 0)
            width = sublayer.linears[0].in_features
            saved += 2 * (n // 2) * (2 * width**2 + 2 * (n + text) * width)
    assert plain[2] - merged[2] == STEPS * (1 if kind == "flux" else 2) * saved
    assert not torch.equal(plain[0], merged[0])


@pytest.mark.parametrize("kind", KINDS)
def test_some_samples_alone_are_what_they_are_in_the_batch(kind):
    errors = []

    def attach(self, pipeline, at):
        def forward(*args, **kwargs):
            out, now = run(*args, **kwargs), at.now
            part = at.run_samples(run, [2, 0], args, kwargs)
            rows = now.rows_of([2, 0])
            errors.append(float((part[0] - out[0][rows]).norm() / out[0][rows].norm()))
            assert (now.samples, now.batch) == (3, 3 * now.passes)
            mixed = at.run_samples(run, [1], args, kwargs, into=out)
            errors.append(float((mixed[0] - out[0]).norm() / out[0].norm()))
            assert type(mixed) is type(part) is type(out)
            assert at.run_samples(run, [], args, kwargs, into=out) is out
            return out

        run = at.patch(pipeline.transformer, "forward", forward)

    generate(declare("parts_test", attach, claims={"block-schedule"}), kind, 0, 1, 2)
    assert len(errors) == 2 * STEPS * (2 if kind == "wan" else 1) and max(errors) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_samples_that_are_not_run_cost_nothing(kind):
    """Sample 1 of two is left out at every second step."""

    def attach(self, pipeline, at):
        last = {}
        at.keeps(last)

        def forward(*args, **kwargs):
            samples = [0] if at.now.step % 2 else [0, 1]
            last[at.now.branch] = at.run_samples(
                run, samples, args, kwargs, last.get(at.now.branch)
            )
            return last[at.now.branch]

        run = at.patch(pipeline.transformer, "forward", forward)

    name = declare("half_test", attach, claims={"block-schedule"})
    assert 4 * generate(name, kind, 0, 1)[2] == 3 * generate("none", kind, 0, 1)[2]


@pytest.mark.parametrize("strangers", [[-1], [0, 2]])
def test_samples_that_are_not_there_are_refused(strangers):
    """-1 would be a row of the last pass, and 2 of 2 samples the first of the second pass."""

    def attach(self, pipeline, at):
        def forward(*args, **kwargs):
            return at.run_samples(run, torch.tensor(strangers), args, kwargs)

        run = at.patch(pipeline.transformer, "forward", forward)

    name = declare("strangers_test", attach, claims={"block-schedule"})
    for kind in ("dit", "wan"):
        with pytest.raises(ValueError, match=f"sample {strangers[-1]} is none of 0 to 1"):
            generate(name, kind, 0, 1)


@pytest.mark.parametrize("kind", ["dit", "pixart"])
def test_what_is_kept_beside_rows_outlives_dropped_guidance(kind):
    """Tensors without dimensions stay, and rows in named tuples are sliced."""
    Pair, kept = namedtuple("Pair", "image total"), []

    def attach(self, pipeline, at):
        store = {}
        at.keeps(store)
        at.drop_guidance(lambda: at.now.step >= 2)

        def forward(*args, **kwargs):
            before = store.get("pair")
            kept.append(before and (type(before), len(before.image), before.total))
            out = run(*args, **kwargs)
            store["pair"] = Pair(out[0], torch.tensor(7.0))
            return out

        run = at.patch(pipeline.transformer, "forward", forward)

    generate(declare("pair_test", attach), kind, 0, 1)
    assert kept == [None, (Pair, 4, 7.0), (Pair, 2, 7.0), (Pair, 2, 7.0)]


def test_what_has_no_batch_dimension_is_not_sliced():
    transformer = subject("flux").pipeline.transformer
    kwargs = {
        "hidden_states": torch.zeros(3, 24, 16), "timestep": torch.arange(3.0),
        "txt_ids": torch.arange(9.0).view(3, 3), "guidance": torch.tensor(3.5),
        "joint_attention_kwargs": {"scale": torch.arange(3), "name": "x"}, "return_dict": False,
    }  # fmt: skip
    args, taken = take_rows(transformer, (), kwargs, [2, 0])
    assert args == () and taken["timestep"].tolist() == [2, 0] and len(taken["hidden_states"]) == 2
    assert torch.equal(taken["txt_ids"], kwargs["txt_ids"]) and taken["guidance"] == 3.5
    assert taken["joint_attention_kwargs"]["scale"].tolist() == [2, 0]
    (hidden, ids), _ = take_rows(
        subject("dit").pipeline.transformer, (torch.arange(4.0).view(2, 2), None), {}, slice(1, 2)
    )
    assert hidden.tolist() == [[2, 3]] and ids is None


def test_each_sample_decides_for_itself():
    """Alone and beside others it is run at the same steps, costs the same and is the same."""
    text = "sample_cache(threshold=0.15)"
    alone, together = [generate(text, "wan", i) for i in range(3)], generate(text, "wan", 0, 1, 2)
    counts = [counters["sample_cache.samples_reused"] for _, counters, _ in alone]
    assert counts == [2, 4, 2] and together[1] == {"sample_cache.samples_reused": 8}
    assert together[2] == sum(flops for _, _, flops in alone)
    for i, (sample, _, _) in enumerate(alone):
        torch.testing.assert_close(together[0][i : i + 1], sample, rtol=1e-3, atol=1e-3)


def test_a_metric_from_outside_is_scored_by_score_and_reported(tmp_path):
    out, plugin = tmp_path / "run", ("--plugin", TESTS / "example_metric.py")
    sizes = ("--num-samples", 4, "--rounds", 1, "--models", "dit-tiny", "--methods", "none")
    assert command("run", *sizes, "--out", out).returncode == 0
    assert "unknown metric 'clipped'" in command("score", out, "--metrics", "clipped").stderr
    assert command("score", out, "--metrics", "clipped", *plugin).returncode == 0
    ((cell, scores),) = read_scores(out).items()
    with safe_open(out / "cells" / cell / "samples.safetensors", "np") as file:
        samples = file.get_tensor("samples")
    by_hand = [(sample >= 250).sum() / sample.size for sample in samples]
    assert scores.arrays["clipped.share"].tolist() == by_hand and sum(by_hand) > 0
    assert command("report", out, *plugin).returncode == 0
    with (out / "report/tables/quality.csv").open() as table:
        (row,) = [row for row in csv.DictReader(table) if row["metric"] == "clipped.share"]
    assert (
        float(row["value"]) == pytest.approx(sum(by_hand) / 4, abs=1e-6) and row["value_n"] == "4"
    )


def test_run_scores_a_metric_of_its_plugin(tmp_path):
    sizes = ("--num-samples", 2, "--rounds", 1, "--models", "dit-tiny", "--methods", "none")
    plugin = ("--plugin", TESTS / "example_metric.py")
    assert command("run", *sizes, *plugin, "--out", tmp_path / "run").returncode == 0
    (scores,) = read_scores(tmp_path / "run").values()
    assert scores.arrays["clipped.share"].shape == (2,)


def test_an_example_is_a_page():
    lengths = {path.stem: len(path.read_text().splitlines()) for path in TESTS.glob("example_*.py")}
    assert len(lengths) == 6 and all(
        n < 60 for name, n in lengths.items() if name != "example_family"
    )


def test_contributing_has_all_that_a_method_declares_and_is_given():
    text = (TESTS.parent / "CONTRIBUTING.md").read_text()
    arguments = [name for name in inspect.signature(method).parameters if name != "name"]
    rows = [*arguments, *CLAIMS, *(f"Stage.{stage.name}" for stage in Stage)]
    assert not [name for name in rows if f"| `{name}` |" not in text]
    members = {name for name in vars(Attachment) if not name.startswith("_")}
    members -= {"narrow", "release", "start_anew"}  # for the harness
    assert not [name for name in members | {"now", "notes"} if f"| `at.{name}" not in text]
    asked = (
        "check",
        "adapt",
        "recipe",
        "prepare",
        "unpreparable",
        "caution",
        "unfit",
        "instead",
        "inputs",
        "attach",
    )
    assert not [name for name in asked if f"`{name}(" not in text]


def in_a_list(self, pipeline, at):
    """Keeps outputs of the transformer in a way of its own."""
    outputs = []
    at.on_start(outputs.clear)
    at.holds(lambda: outputs)

    def forward(*args, **kwargs):
        out = run(*args, **kwargs)
        outputs.extend(out if isinstance(out, tuple) else [out.sample])
        return out

    run = at.patch(pipeline.transformer, "forward", forward)


SETTINGS = {
    "compile": "(backend='eager')",
    "diffsparse": "(allocator='uniform',keep=0.5)",
    "fastercache": "(first=999)",
    "firstblock": "(threshold=0.9)",
    "l2c": "(threshold=1.0)",
    "pab": "(first=1000,last=0)",
    "rapid3": "(decide='fixed',stride=2,threshold=9.0)",
    "sparsecast": "(learns='coefficients',coefficients='one',keep=0.5)",
    "teacache": "(threshold=5.0)",
    "zipr1": "(decide='fixed',ratio=0.5)",
}
"""Knobs under which methods keep something in four steps, and without what has to be prepared."""


def live_bytes():
    """Of tensors that came up since `gc.freeze`; those that torch.compile traces with have no
    bytes."""
    gc.collect()
    tensors = (x for x in gc.get_objects() if issubclass(type(x), torch.Tensor))
    storages = (t.untyped_storage() for t in tensors)
    return sum({s._cdata: s.nbytes() for s in storages if s.device.type != "meta"}.values())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_kept_when_the_decoder_begins(kind, tmp_path):
    """By the ledger, and by what Python holds: as many bytes as without a method."""
    (tmp_path / "ratios.json").write_text(json.dumps([1.0] * STEPS))
    write_steps(tmp_path, [(0, 2)], STEPS)
    save_file({"gram": torch.eye(STEPS)}, tmp_path / "gram.safetensors")
    tried, keeping = subject(kind), []
    in_list = declare("in_a_list_test", in_a_list, claims=set())
    examples = ("step_reuse", "sample_cache")
    before_decoding = {}
    gc.freeze()
    pipe, decode = tried.pipeline, tried.pipeline.vae.decode
    try:
        for name in ("none", "none", *ours(), *examples, in_list):  # the scheduler fills up
            stack = Stack.parse(name + SETTINGS.get(name, ""))
            prepared = {m.name: tmp_path for m in stack.methods if m.recipe() is not None}
            # students have to be trained, schedules recorded; rerun doubles a lone sample
            if name in ("distill", "replay", "rerun") or stack.refusal(pipe):
                continue
            with stack.attached(pipe, prepared) as attached:
                weights = live_bytes()

                def decoding(*args, attached=attached, name=name, weights=weights, **kwargs):
                    assert not list(attached.method_tensors()), name
                    before_decoding[name] = live_bytes() - weights
                    return decode(*args, **kwargs)

                sampling = stack.adapt(tried.sampling)
                attached.start(sampling.steps, 1)
                pipe.vae.decode = decoding
                with torch.no_grad():
                    pipe(**tried.arguments(sampling, [0]) | {"output_type": "np"})
                keeping += [name] if attached.cache_bytes() else []
    finally:
        pipe.vae.decode = decode
        METHODS.pop(in_list)
        gc.unfreeze()
    none = before_decoding.pop("none")
    # a number for each sample, or the time embedding, are no outputs
    assert {n: b - none for n, b in before_decoding.items() if abs(b - none) > 2000} == {}
    assert {"fora", "taylorseer", "toca", "duca", "delta_dit", "diffsparse", "l2c", "teacache",
            "seacache", "easycache", "dicache", "hicache", "speca", "clusca", "freqca", "barycache",
            "l2p", "rapid3", "zipr1", "step_reuse", in_list} <= set(keeping)  # fmt: skip
    if kind in ("flux", "wan"):
        assert {"firstblock", "magcache"} <= set(keeping)
