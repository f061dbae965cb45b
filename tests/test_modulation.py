"""Scale, shift and gate of blocks that are worked out for all steps at once (`modulation_ahead`)."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, HeunDiscreteScheduler
from safetensors.torch import save_file

from ditbench.acceleration import call_graphs
from ditbench.acceleration.distillation.interval_embedding import NAME, Intervals
from ditbench.acceleration.distillation.student_files import NOTES, WEIGHTS, fingerprint
from ditbench.method import Stack
from ditbench.method.needs import below_of
from ditbench.models.modulation import modulating_norms
from ditbench.models.recorded import lists_of
from ditbench.profiling.memory import ledger
from ditbench.testing import check_method, tiny
from ditbench.testing.captured import OperationCapture

MADE = ("dit", "flux", "sd3")
BESIDE = [
    "", "fora(interval=2)", "taylorseer(interval=2)", "diffsparse(allocator='uniform')", "toca(interval=2)",
    "w4a4", "int8", "fewer_steps(steps=3)", "cfg_cache", "guidance_interval", "adaptive_guidance",
    "fora(interval=2,gates='kept')", "compile(backend='eager')+fora(interval=2)", "easycache",
    "delta_dit", "clusca",
]  # fmt: skip


@cache
def subject(kind):
    return tiny(kind, steps=6)


def with_table(text):
    return Stack.parse(f"modulation_ahead+{text}" if text else "modulation_ahead")


def generations(stack, tried, wanted=([0, 1], [1, 2], [2], [1, 0])):
    """What generations of these samples give, and the counters."""
    made = []
    with torch.inference_mode(), stack.attached(tried.pipeline) as attached:
        sampling = stack.adapt(tried.sampling)
        for which in wanted:
            attached.start(sampling.steps, len(which))
            made.append(tried.generate(sampling, which))
        return made, attached.counters(), attached.cache_bytes()


def assert_alike(one, other, by=2e-5):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=by, rtol=0)


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("text", BESIDE)
def test_samples_are_those_without_it(kind, text):
    stack, tried = with_table(text), subject(kind)
    if refusal := stack.refusal(tried.pipeline):
        pytest.skip(refusal)
    plain, counted, _ = generations(Stack.parse(text or "none"), tried)
    ahead, counters, _ = generations(stack, tried)
    # what is rounded to few bits goes over an edge for the last bits of its input
    assert_alike(ahead, plain, 5e-3 if text in ("w4a4", "int8") else 2e-5)
    steps = counters.pop("modulation_ahead.steps_looked_up")
    assert steps >= 4 * 3 and counters == counted


@pytest.mark.parametrize("kind", ["pixart", "wan"])
def test_families_with_one_modulation_for_all_blocks_are_refused(kind):
    refusal = with_table("fora").refusal(subject(kind).pipeline)
    assert refusal == "modulation_ahead: works on dit and flux and sd3, not on " + kind


@pytest.mark.parametrize("kind", MADE)
def test_the_weights_are_read_once_a_generation_and_come_back(kind):
    tried = subject(kind)
    transformer = tried.pipeline.transformer
    norms = modulating_norms(transformer)
    layers = [norm.linear for norm in norms]
    assert len(norms) >= 2
    rows = []
    hooks = [one.register_forward_pre_hook(lambda _, x: rows.append(len(x[0]))) for one in layers]
    names = [name for name, _ in transformer.named_modules()]
    _, _, held = generations(with_table(""), tried, [[0, 1]])
    made = len(rows)
    assert made == len(layers) and {*rows} == {6 * 2 * (1 if kind == "flux" else 2)}
    # of all six steps, and of the one under way
    assert held == rows[0] * 7 // 6 * sum(one.out_features for one in layers) * 4
    generations(with_table(""), tried, [[0, 1], [1]])
    assert len(rows) == 3 * made
    for hook in hooks:
        hook.remove()
    assert [norm.linear for norm in norms] == layers
    assert [name for name, _ in transformer.named_modules()] == names


def test_blocks_are_still_repeated_from_lists():
    for kind in MADE:
        tried, stack = tiny(kind, steps=6), with_table("fora(interval=2)")
        with torch.inference_mode(), stack.attached(tried.pipeline) as attached:
            attached.start(6, 2)
            tried.generate(tried.sampling, [0, 1])
            blocks = [block.module for block in attached.attachments["fora"].blocks]
            assert all(map(lists_of, blocks))


@pytest.mark.parametrize(
    ("kind", "scheduler"), [("dit", HeunDiscreteScheduler), ("sd3", FlowMatchHeunDiscreteScheduler)]
)
def test_samplers_that_ask_twice_for_a_time(kind, scheduler, monkeypatch):
    tried = subject(kind)
    monkeypatch.setattr(tried.pipeline, "scheduler", scheduler())
    for text in ("", "fora(interval=2)"):
        plain, _, _ = generations(Stack.parse(text or "none"), tried)
        assert_alike(generations(with_table(text), tried)[0], plain)


def test_other_numbers_of_steps_and_sizes_follow_each_other():
    for kind in MADE:
        tried = subject(kind)
        for stack in (with_table(""), with_table("fora(interval=2)")):
            plain = Stack(tuple(m for m in stack.methods if m.name != "modulation_ahead"))
            made = []
            for one in (stack, plain):
                out = []
                with torch.inference_mode(), one.attached(tried.pipeline) as attached:
                    for steps, which in ((6, [0]), (3, [0]), (6, [0, 1]), (4, [2, 1, 0])):
                        attached.start(steps, len(which))
                        out.append(tried.generate(replace(tried.sampling, steps=steps), which))
                made.append(out)
            assert_alike(*made)


@pytest.mark.parametrize("kind", MADE)
def test_a_time_that_the_scheduler_did_not_set_is_an_error(kind, monkeypatch):
    tried = subject(kind)
    transformer, stack = tried.pipeline.transformer, with_table("")
    with torch.inference_mode(), stack.attached(tried.pipeline) as attached:
        inner = transformer.forward

        def later(*args, timestep, **kwargs):
            return inner(*args, timestep=timestep * 0.99 + 1e-3, **kwargs)

        monkeypatch.setattr(transformer, "forward", later)
        attached.start(6, 2)
        with pytest.raises(RuntimeError, match="a time or a condition that was not there"):
            tried.generate(tried.sampling, [0, 1])
        monkeypatch.undo()
        attached.start(6, 2)
        again = tried.generate(tried.sampling, [0, 1])
    assert_alike([again], generations(Stack(), tried, [[0, 1]])[0])


def test_another_condition_in_the_middle_is_an_error(monkeypatch):
    tried, calls = subject("dit"), []
    transformer = tried.pipeline.transformer
    with torch.inference_mode(), with_table("").attached(tried.pipeline) as attached:
        inner = transformer.forward

        def other(*args, class_labels, **kwargs):
            calls.append(1)
            return inner(
                *args,
                class_labels=class_labels.clamp(max=999 if len(calls) > 2 else 1000),
                **kwargs,
            )

        monkeypatch.setattr(transformer, "forward", other)
        attached.start(6, 2)
        with pytest.raises(RuntimeError, match="condition"):
            tried.generate(tried.sampling, [0, 1])


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("text", ["", "fora(interval=2)", "diffsparse(allocator='uniform')"])
def test_captured_calls_read_the_times_and_conditions_of_their_generation(kind, text, monkeypatch):
    monkeypatch.setattr(call_graphs, "CudaCapture", OperationCapture)
    tried, stack = subject(kind), with_table(text)
    graphs = Stack.parse(f"{stack}+cudagraph")
    wanted = [0, 1], [1, 2], [2, 0], [0], [1, 0]
    plain, _, _ = generations(stack, tried, wanted)
    replayed, counters, _ = generations(graphs, tried, wanted)
    assert all(map(torch.equal, plain, replayed))
    assert counters["cudagraph.replayed"] and counters["cudagraph.captured"]


def test_captured_calls_follow_a_scheduler_whose_times_change(monkeypatch):
    monkeypatch.setattr(call_graphs, "CudaCapture", OperationCapture)
    tried = subject("flux")
    made = []
    for text in ("modulation_ahead+cudagraph", "none"):
        out = []
        with torch.inference_mode(), Stack.parse(text).attached(tried.pipeline) as attached:
            for shift in (1.0, 1.0, 1.0, 2.5, 1.0):
                config = tried.pipeline.scheduler.config
                monkeypatch.setitem(config, "base_shift", 0.5 * shift)
                monkeypatch.setitem(config, "use_dynamic_shifting", False)
                monkeypatch.setattr(tried.pipeline.scheduler, "_shift", shift)
                attached.start(6, 2)
                out.append(tried.generate(tried.sampling, [0, 1]))
        made.append(out)
    assert_alike(*made)
    assert not torch.equal(made[0][2], made[0][3])


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("text", ["", "fora(interval=2)"])
def test_a_student_with_a_second_time_is_told_it_at_every_step(kind, text, tmp_path):
    """MeanFlow's, whose interval is no argument of the transformer."""
    tried = tiny(kind, steps=3)
    transformer = tried.pipeline.transformer
    sampler = {
        "timesteps": [950.0, 700.0, 250.0],
        "levels": [0.95, 0.8, 0.3, 0.0],
        "noise": kind == "dit",
    }
    notes = {"teacher": fingerprint(transformer), "sampler": sampler}
    intervals = Intervals(transformer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for own in intervals.parameters():
            own.data.normal_(0, 0.05)
    own = {name: x for name, x in transformer.state_dict().items() if name.startswith(NAME)}
    save_file(own, tmp_path / WEIGHTS)
    intervals.remove(transformer)
    (tmp_path / NOTES).write_text(json.dumps(notes))
    student = f"distill(steps=3,student='{tmp_path}')" + (f"+{text}" if text else "")
    plain, _, _ = generations(Stack.parse(student), tried)
    assert_alike(generations(with_table(student), tried)[0], plain)


def test_a_generation_that_was_broken_off_is_not_held_against_the_next(monkeypatch):
    tried, calls = subject("flux"), []
    transformer = tried.pipeline.transformer
    with torch.inference_mode(), with_table("").attached(tried.pipeline) as attached:
        inner = transformer.forward

        def later(*args, timestep, **kwargs):
            calls.append(1)
            if len(calls) == 4:
                raise KeyError("broken off")
            return inner(*args, timestep=timestep * (1 if len(calls) == 1 else 0.99), **kwargs)

        monkeypatch.setattr(transformer, "forward", later)
        attached.start(6, 2)
        with pytest.raises(KeyError, match="broken off"):
            tried.generate(tried.sampling, [0, 1])
        monkeypatch.undo()
        attached.start(6, 1)
        assert not attached.cache_bytes()
        again = tried.generate(tried.sampling, [0])
    assert_alike([again], generations(Stack(), tried, [[0]])[0])


@pytest.mark.parametrize("kind", MADE)
def test_autocast_may_change_types_between_steps(kind):
    tried = subject(kind)
    with torch.autocast("cpu", torch.bfloat16):
        plain, _, _ = generations(Stack(), tried, [[0, 1], [2]])
        ahead, counters, _ = generations(with_table(""), tried, [[0, 1], [2]])
    assert_alike(ahead, plain, 0.1)
    assert counters["modulation_ahead.steps_looked_up"] == 12


def test_a_block_can_be_run_after_a_generation():
    tried = subject("dit")
    block = tried.pipeline.transformer.transformer_blocks[0]
    given = torch.randn(1, 4, block.norm1.linear.in_features)
    more = {"timestep": torch.tensor([17]), "class_labels": torch.tensor([1])}
    with torch.inference_mode():
        plain = block(given, **more)
        with with_table("").attached(tried.pipeline) as attached:
            attached.start(6, 1)
            tried.generate(tried.sampling, [0])
            assert torch.equal(block(given, **more), plain)


def test_the_share_that_is_quantised_is_about_what_it_is_without():
    tried, shares = subject("flux"), []
    for stack in (Stack.parse("w4a4"), with_table("w4a4")):
        with torch.inference_mode(), stack.attached(tried.pipeline) as attached:
            attached.start(6, 1)
            with attached.inspected():
                tried.generate(tried.sampling, [0])
            shares.append(attached.notes()["w4a4.share_of_linear_macs"])
    assert shares[1] == pytest.approx(shares[0], abs=0.01)


def test_what_captured_calls_look_up_is_no_weight(monkeypatch):
    monkeypatch.setattr(call_graphs, "CudaCapture", OperationCapture)
    tried = subject("flux")
    alone = ledger(tried.pipeline, None, "cpu")["weights_bytes"]
    with (
        torch.inference_mode(),
        with_table("cudagraph").attached(tried.pipeline) as attached,
    ):
        for _ in range(3):
            attached.start(6, 2)
            tried.generate(tried.sampling, [0, 1])
        assert ledger(tried.pipeline, attached, "cpu")["weights_bytes"] == alone


def test_training_goes_through_the_layers():
    tried = subject("dit")
    transformer = tried.pipeline.transformer
    linear = modulating_norms(transformer)[0].linear
    with with_table("").attached(tried.pipeline) as attached:
        attached.start(6, 1)
        linear.weight.requires_grad_(True)
        with torch.enable_grad():
            out = transformer(
                torch.randn(1, 4, 8, 8), timestep=torch.tensor([17]),
                class_labels=torch.tensor([1]),
            ).sample  # fmt: skip
            out.square().mean().backward()
    assert linear.weight.grad is not None and linear.weight.grad.abs().sum() > 0
    linear.weight.requires_grad_(False)
    linear.weight.grad = None


def test_calls_outside_of_a_generation_go_through_the_layers():
    tried = subject("dit")
    transformer = tried.pipeline.transformer
    given = {"timestep": torch.tensor([17]), "class_labels": torch.tensor([1])}
    hidden = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        plain = transformer(hidden, **given).sample
        with with_table("").attached(tried.pipeline) as attached:
            attached.start(6, 2)
            tried.generate(tried.sampling, [0, 1])
            assert torch.equal(transformer(hidden, **given).sample, plain)


def test_nothing_is_prepared_anew_on_top_of_it():
    stack = Stack.parse("modulation_ahead+int8+diffsparse")
    assert str(below_of(stack, stack.methods[-1])) == "none"
    stack = Stack.parse("modulation_ahead+distill+sparsecast")
    assert str(below_of(stack, stack.methods[-1])) == "distill"


@pytest.mark.parametrize("kind", MADE)
def test_the_contract_of_methods_holds(kind):
    checks = check_method("modulation_ahead", subject(kind))
    assert len(checks) == 13 and all(check.passed for check in checks), checks
