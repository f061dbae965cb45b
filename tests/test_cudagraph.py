"""Calls of the transformer that are captured once and replayed, with operations done again in place of
CUDA graphs (`ditbench.testing.captured`)."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import HeunDiscreteScheduler

from ditbench.acceleration import call_graphs
from ditbench.cli import main
from ditbench.method import METHODS, Stage, method
from ditbench.method.stack import Stack
from ditbench.profiling.compiling import Compilation, compiled_graphs
from ditbench.testing import KINDS, check_method, tiny
from ditbench.testing.captured import OperationCapture

STACKS = [
    "none", "fora(interval=2)", "taylorseer(interval=2,first=1)",
    "diffsparse(allocator='uniform',selector='change')", "toca(interval=2)", "duca(interval=3)",
    "freqca", "delta_dit", "clusca", "radial", "frequency_tokens", "w4a4+fora(interval=2)",
    "fewer_steps(steps=3)+fora(interval=2)", "compile(backend='eager')+fora(interval=2)",
]  # fmt: skip


@pytest.fixture(autouse=True)
def captured_here(monkeypatch):
    monkeypatch.setattr(call_graphs, "CudaCapture", OperationCapture)


@cache
def subject(kind):
    return tiny(kind, steps=6)


def captured(text):
    return Stack.parse("cudagraph" if text == "none" else f"{text}+cudagraph")


def generations(stack, tried, *wanted):
    """What generations of these samples give, and what is recorded of each."""
    made = []
    with torch.inference_mode(), stack.attached(tried.pipeline) as attached:
        sampling = stack.adapt(tried.sampling)
        for which in wanted:
            attached.start(sampling.steps, len(which))
            samples = tried.generate(sampling, which)
            made.append((samples, attached.schedule(), attached.cache_bytes()))
        counters = attached.counters()
    return made, counters


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", STACKS)
def test_replayed_generations_are_those_of_the_stack(kind, text):
    stack, tried = Stack.parse(text), subject(kind)
    if refusal := stack.refusal(tried.pipeline):
        pytest.skip(refusal)
    wanted = [0, 1], [1, 2], [2, 0], [0], [1, 0]
    plain, counted = generations(stack, tried, *wanted)
    replayed, counters = generations(captured(text), tried, *wanted)
    for (samples, schedule, held), (again, same_schedule, same_held) in zip(
        plain, replayed, strict=True
    ):
        assert torch.equal(samples, again)
        assert schedule == same_schedule and held == same_held
    calls = counters.pop("cudagraph.captured")
    assert counters.pop("cudagraph.replayed") == 2 * calls and calls >= 3
    # the regions that are compiled are not those where operations are watched
    assert {n: v for n, v in counters.items() if n != "compile.regions"} == {
        n: v for n, v in counted.items() if n != "compile.regions"
    }


@pytest.mark.parametrize(
    "text", ["guidance_interval+fora(interval=2)", "cfg_cache+fora(interval=2)"]
)
@pytest.mark.parametrize("kind", ["dit", "pixart", "wan"])
def test_passes_that_are_left_out_are_left_out_again(kind, text):
    if refusal := Stack.parse(text).refusal(subject(kind).pipeline):
        pytest.skip(refusal)
    wanted = [[0, 1]] * 4
    plain, counted = generations(Stack.parse(text), subject(kind), *wanted)
    replayed, counters = generations(captured(text), subject(kind), *wanted)
    assert all(
        torch.equal(a[0], b[0]) and a[2] == b[2] for a, b in zip(plain, replayed, strict=True)
    )
    assert counters.items() >= counted.items()


def test_what_chooses_by_values_is_refused_before_anything_runs():
    chooses = ("teacache(threshold=0.2)", "firstblock", "rapid3", "top_tiles", "adaptive_guidance")
    for text in chooses:
        assert "chooses by computed values" in captured(text).problems("flux")[0]
    for text in ("meancache", "schedule(between='meanvelocity')"):
        assert "between the transformer's calls" in captured(text).problems("flux")[0]
    assert "of its own" in captured("compile(mode='reduce-overhead')").problems("dit")[0]
    assert captured("rerun").problems("dit") == ["cudagraph and rerun both claim launches"]
    assert "noise level" in captured("schedule(target='x0')").problems("flux")[0]
    assert not captured("compile").problems("dit")


def test_weights_that_are_moved_are_refused_in_the_plan_and_flops_are_those_without(capsys):
    assert "--offload model" in captured("fora").kept_away("model")
    assert "--offload sequential" in captured("fora").kept_away("sequential")
    assert not captured("fora").kept_away("text") and not Stack.parse("fora").kept_away("model")
    words = [
        "count",
        "--models",
        "dit-tiny",
        "--methods",
        "fora,fora+cudagraph,cudagraph",
        "--json",
    ]
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    none, fora, both, alone = (row["flops"] for row in rows)
    assert fora == both < alone == none


def test_it_needs_a_gpu_and_weights_that_stay_there(monkeypatch):
    pipeline = subject("dit").pipeline
    assert "CUDA" in captured("fora").refusal(pipeline)
    assert captured("fora").refusal(pipeline, ("cuda",)) is None
    block = pipeline.transformer.transformer_blocks[0]
    monkeypatch.setattr(block, "_hf_hook", object(), raising=False)
    assert "--offload" in captured("fora").refusal(pipeline, ("cuda",))


@pytest.fixture
def own_method():
    """Declares a method for one test."""
    names = []

    def declare(name, attach):
        made = type(name, (), {"attach": attach, "__doc__": "For a test."})
        method(
            name, family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"},
        )(made)  # fmt: skip
        names.append(name)

    yield declare
    for name in names:
        METHODS.pop(name)


def test_waiting_for_a_number_fails_with_a_reason(own_method):
    def attach(self, pipeline, at):
        forward = pipeline.transformer.forward

        def looking(*args, **kwargs):
            at.count("looked", int((args or (kwargs["hidden_states"],))[0].sum().item() > 0))
            return forward(*args, **kwargs)

        at.patch(pipeline.transformer, "forward", looking)

    own_method("looking_test", attach)
    with pytest.raises(RuntimeError, match="while capturing"):
        generations(captured("looking_test"), subject("dit"), [0], [0])


def test_tensors_that_are_made_between_the_calls_are_no_part_of_a_graph(own_method):
    def attach(self, pipeline, at):
        kept, forward, step = {}, pipeline.transformer.forward, pipeline.scheduler.step
        at.keeps(kept)

        def stepped(output, *args, **kwargs):
            kept["last"] = output * 0.5
            return step(output, *args, **kwargs)

        at.patch(pipeline.scheduler, "step", stepped)
        at.patch(pipeline.transformer, "forward", lambda *a, **k: forward(*a, **k))
        at.count("attached")

    own_method("between_test", attach)
    with pytest.raises(
        RuntimeError, match="between_test keeps tensors that are made between the calls"
    ):
        generations(captured("between_test"), subject("dit"), [0], [0])


def test_what_a_call_was_given_may_be_kept(own_method):
    def attach(self, pipeline, at):
        kept, forward = {}, pipeline.transformer.forward
        at.keeps(kept)

        def mixing(hidden, *args, **kwargs):
            before = kept.get("before", hidden)
            kept["before"] = hidden
            at.count("mixed")
            return forward(hidden + 0.1 * before, *args, **kwargs)

        at.patch(pipeline.transformer, "forward", mixing)

    own_method("mixing_test", attach)
    wanted = [0, 1], [1, 2], [2, 0], [1, 0]
    plain, _ = generations(Stack.parse("mixing_test"), subject("dit"), *wanted)
    again, _ = generations(captured("mixing_test"), subject("dit"), *wanted)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain, again, strict=True))


def test_graphs_are_given_tensors_of_the_strides_they_were_warmed_up_with():
    seen = []

    class Seeing:
        def __call__(self, run):
            return run(), lambda: None

    class Now:
        step, branch, num_steps, samples, passes = 0, 0, 1, 2, 1
        grid, text_tokens = (1, 1, 3), 0

    class At:
        now, beside, counters, blocks = Now(), {}, {}, []

        def count(self, event):
            self.counters[event] = self.counters.get(event, 0) + 1

    def forward(*tensors, timestep):
        seen.append([(t.stride(), t.clone()) for t in (*tensors, timestep)])
        return tensors[0] * 2

    graphs = call_graphs.CallGraphs(At(), forward, Seeing)
    across = torch.randn(4, 3).t()
    with torch.inference_mode():
        for _ in range(2):
            graphs.start()
            graphs(across, across, timestep=torch.tensor(7).expand(3))
            graphs.end()
        graphs.start()
    assert len(seen) == 2 and graphs._plan is None
    for (stride, value), (other_stride, other) in zip(*seen, strict=True):
        assert stride == other_stride and torch.equal(value, other)


def test_nothing_is_compiled_while_capturing(monkeypatch):
    class Running:  # watches nothing, so that regions are compiled as on a GPU
        def __call__(self, run):
            return run(), lambda: None

    monkeypatch.setattr(call_graphs, "CudaCapture", Running)
    for text in ("none", "fora(interval=2)", "diffsparse(allocator='uniform',selector='change')"):
        stack, tried = (
            captured(f"compile(backend='eager')+{text}".replace("+none", "")),
            subject("dit"),
        )
        torch._dynamo.reset()
        with torch.inference_mode(), stack.attached(tried.pipeline) as attached:
            made = []
            for _ in range(2):
                before = compiled_graphs()
                attached.start(6, 2)
                tried.generate(tried.sampling, [0, 1])
                made.append(compiled_graphs() - before)
            assert made[0] > 0 and made[1] == 0
            assert attached.counters()["cudagraph.captured"] == 6


def test_a_generation_that_ends_early_is_neither_captured_nor_counted_as_the_first():
    tried, stack = subject("dit"), captured("fora(interval=2)")
    plain, _ = generations(Stack.parse("fora(interval=2)"), tried, [0])
    with torch.inference_mode(), stack.attached(tried.pipeline) as attached:
        scheduler = tried.pipeline.scheduler

        def generate(steps=99):
            step = scheduler.step
            left = iter(range(steps))

            def ending(*args, **kwargs):
                if next(left, None) is None:
                    raise KeyError("enough")
                return step(*args, **kwargs)

            scheduler.step = ending
            attached.start(6, 1)
            try:
                return tried.generate(tried.sampling, [0])
            except KeyError:
                return None
            finally:
                scheduler.step = step

        assert generate(2) is None and generate(2) is None  # cold
        assert torch.equal(generate(), plain[0][0])  # runs as it is
        assert "cudagraph.captured" not in attached.counters()
        assert generate(2) is None  # captured in part, and let go
        assert torch.equal(generate(), plain[0][0])  # captured
        assert generate(3) is None  # replayed as far as it goes
        assert torch.equal(generate(), plain[0][0])
        assert attached.counters()["cudagraph.replayed"] == 4 + 6


def test_an_error_in_the_last_call_of_a_capture_leaves_no_part_of_it():
    tried, stack = subject("dit"), captured("fora(interval=2)")
    plain, _ = generations(Stack.parse("fora(interval=2)"), tried, [0])
    block = tried.pipeline.transformer.transformer_blocks[-1]
    with torch.inference_mode(), stack.attached(tried.pipeline) as attached:

        def generate(fails=False):
            attached.start(6, 1)

            def stop(*_):
                if attached.now.step == 5:
                    raise KeyError("last")

            hook = block.register_forward_pre_hook(stop) if fails else None
            try:
                return tried.generate(tried.sampling, [0])
            finally:
                if hook is not None:
                    hook.remove()

        with pytest.raises(KeyError):
            generate(fails=True)
        generate()
        assert attached.counters().get("cudagraph.captured", 0) == 0  # the first was not whole
        with pytest.raises(KeyError):
            generate(fails=True)  # while capturing
        made = [generate() for _ in range(2)]
        assert all(torch.equal(samples, plain[0][0]) for samples in made)
        assert attached.counters()["cudagraph.replayed"] == 6


def same(text, tried, wanted):
    """Generations, each of (samples, what of the sampling is another), give the same with graphs; the
    counters of these."""
    made = []
    for stack in (Stack.parse(text), captured(text)):
        with torch.inference_mode(), stack.attached(tried.pipeline) as attached:
            outputs = []
            for which, other in wanted:
                sampling = replace(tried.sampling, **other)
                attached.start(sampling.steps, len(which))
                outputs.append(tried.generate(sampling, which))
            made.append(outputs)
            counters = attached.counters()
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    return counters["cudagraph.captured"], counters["cudagraph.replayed"]


def test_generations_that_differ_in_what_no_argument_shows_are_of_different_kinds():
    # the second pass is a call of its own
    wanted = [([0], {}), ([0], {"guidance": 1.0})] * 4
    assert same("fora(interval=2)", subject("wan"), wanted) == (12 + 6, 24 + 12)
    # as many tokens, in other rows and columns
    wanted = [([0], {})] * 3 + [([0], {"height": 48, "width": 32})] * 3
    assert same("tile_window", subject("flux"), wanted) == (12, 12)
    wanted = [([0], {}), ([0], {"steps": 4})] * 3
    assert same("fora(interval=2)", subject("dit"), wanted) == (6 + 4, 6 + 4)


def test_a_sampler_that_makes_other_steps_than_it_is_asked_for_is_captured():
    tried = tiny("pixart", steps=6)
    tried.pipeline.scheduler = HeunDiscreteScheduler.from_config(tried.pipeline.scheduler.config)
    assert same("fora(interval=2)", tried, [([0], {})] * 4) == (11, 22)


@pytest.mark.parametrize(("kind", "calls"), [("dit", 6), ("wan", 12)])
def test_a_call_that_fails_while_it_is_captured_leaves_no_graphs(kind, calls):
    tried, stack = subject(kind), captured("fora(interval=2)")
    plain, _ = generations(Stack.parse("fora(interval=2)"), tried, [0])
    with torch.inference_mode(), stack.attached(tried.pipeline) as attached:

        def generate(fails_at=0):
            left = iter(range(fails_at - 1))

            def failing(*_):
                if fails_at and next(left, None) is None:
                    raise KeyError("in the middle")

            hook = tried.pipeline.transformer.register_forward_pre_hook(failing)
            attached.start(6, 1)
            try:
                return tried.generate(tried.sampling, [0])
            finally:
                hook.remove()

        generate()
        for fails_at in (calls, calls - 1, 1):  # in the last step, and before anything is captured
            with pytest.raises(KeyError):
                generate(fails_at)
        for _ in range(2):
            assert torch.equal(generate(), plain[0][0])
        assert attached.counters()["cudagraph.replayed"] == calls


def test_hooks_that_were_put_on_later_are_called():
    tried, called = subject("dit"), []
    with torch.inference_mode(), captured("none").attached(tried.pipeline) as attached:
        for hooked in (False, False, False, True, False):
            block = tried.pipeline.transformer.transformer_blocks[0]
            hook = block.register_forward_hook(lambda *_: called.append(1)) if hooked else None
            attached.start(6, 1)
            tried.generate(tried.sampling, [0])
            if hook:
                hook.remove()
        assert len(called) == 6 and attached.counters()["cudagraph.replayed"] == 12


def test_tensors_that_are_made_before_a_generation_are_no_part_of_a_graph(own_method):
    def attach(self, pipeline, at):
        kept, forward, made = {}, pipeline.transformer.forward, []

        def begin():
            made.append(torch.full((1,), 0.01 * len(made)))  # so that no address comes again
            kept["shift"] = made[-1]

        def shifted(hidden, *args, **kwargs):
            at.count("shifted")
            return forward(hidden + kept["shift"], *args, **kwargs)

        at.keeps(kept)
        at.on_start(begin)
        at.patch(pipeline.transformer, "forward", shifted)

    own_method("begin_test", attach)
    with pytest.raises(RuntimeError, match="made anew before every generation"):
        generations(captured("begin_test"), subject("dit"), [0], [0], [0])


def test_another_type_of_autocast_is_another_kind_of_generation():
    tried, made = subject("dit"), []
    for stack in (Stack.parse("fora(interval=2)"), captured("fora(interval=2)")):
        with torch.inference_mode(), stack.attached(tried.pipeline) as attached:
            for kind in [torch.bfloat16] * 3 + [torch.float16] * 3:
                attached.start(6, 1)
                with torch.autocast("cpu", dtype=kind):
                    made.append(tried.generate(tried.sampling, [0]))
    assert all(torch.equal(a, b) for a, b in zip(made[:6], made[6:], strict=True))
    assert attached.counters()["cudagraph.captured"] == 12


def test_what_broke_a_capture_off_is_what_is_raised(monkeypatch):
    monkeypatch.undo()
    streams = []

    class Graph:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            streams.append("capturing")

        def __exit__(self, *error):  # as torch's: its stream is left after a capture that ended
            if error[0] is not None:
                raise RuntimeError("operation failed due to a previous error during capture")
            streams.append("ended")

        def replay(self):
            streams.append("replayed")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "own")
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    capture = call_graphs.CudaCapture()

    def short_of_memory():
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        capture(short_of_memory)
    assert streams == ["capturing", "own"]
    assert capture(lambda: 3)[0] == 3 and streams[2:] == ["capturing", "ended", "replayed"]


def test_what_is_watched_runs_as_it_is():
    tried, stack = subject("dit"), captured("fora(interval=2)")
    wanted = [[0, 1]] * 3
    with torch.inference_mode(), stack.attached(tried.pipeline) as attached:
        made = []
        for which in (*wanted, None, *wanted[:1]):
            attached.start(6, 2)
            if which is None:
                before = attached.counters()["cudagraph.replayed"]
                with torch.utils.flop_counter.FlopCounterMode(display=False) as flops:
                    made.append(tried.generate(tried.sampling, [0, 1]))
                assert flops.get_total_flops() > 0
                assert attached.counters()["cudagraph.replayed"] == before
            else:
                made.append(tried.generate(tried.sampling, which))
        assert all(torch.equal(made[0], again) for again in made[1:])
        assert attached.counters()["cudagraph.replayed"] == 12


HOST_COPIES = """
import torch
from ditbench.acceleration import call_graphs
from ditbench.method.stack import Stack
from ditbench.testing import tiny, valued_device
from ditbench.testing.valued_device import NAME, with_values

run, capturing, waited, later = valued_device._run, [False], [], []

def seeing(func, types, args, kwargs):
    if capturing[0] and func.overloadpacket in valued_device._COPIES:
        to = kwargs.get("device")
        into_host = to is not None and torch.device(to).type != NAME
        from_host = not into_host and type(args[-1 if func.overloadpacket is torch.ops.aten.copy_ else 0]) is torch.Tensor
        if into_host or from_host and not kwargs.get("non_blocking"):
            waited.append(str(func))
        elif from_host:
            later.append(args[0].untyped_storage()._cdata)
    return run(func, types, args, kwargs)

class Capture:
    def __call__(self, do):
        capturing[0] = True
        try:
            return do(), lambda: None
        finally:
            capturing[0] = False

valued_device._run = seeing
call_graphs.CudaCapture, call_graphs.watched = Capture, torch.is_grad_enabled
call_graphs.form_of = lambda leaves, tree: len(leaves)
with with_values(), torch.no_grad():
    tried = tiny("wan", steps=6)
    tried.pipeline.to(NAME)
    for text in ("none", "radial", "tile_window", "fpsattention", "diffsparse(allocator='uniform')",
                 "clusca(interval=2)", "duca(interval=3,selector='shuffle')"):
        stack = Stack.parse((text + "+cudagraph").removeprefix("none+"))
        with stack.attached(tried.pipeline) as attached:
            for _ in range(2):
                attached.start(6, 1)
                tried.pipeline(**tried.arguments(tried.sampling, [0]))
            assert attached.counters()["cudagraph.captured"] == 12, text
            assert not waited, (text, waited)
            if later:  # a graph reads what it copies when it is replayed: that has to be there
                kept = {
                    made.untyped_storage()._cdata
                    for end in attached.attachments[text.partition("(")[0]].ends
                    for _, made in end.__self__.tables
                }
                assert set(later) <= kept, text
                later.clear()
"""


def test_nothing_is_copied_from_the_host_while_capturing():
    done = subprocess.run(
        [sys.executable, "-c", HOST_COPIES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_few_kinds_of_generations_keep_their_graphs(monkeypatch):
    monkeypatch.setattr(call_graphs, "MOST_PLANS", 1)
    tried = subject("dit")
    wanted = [[0], [0], [0, 1], [0], [0], [0]]
    made, counters = generations(captured("fora(interval=2)"), tried, *wanted)
    assert counters["cudagraph.captured"] == 12 and counters["cudagraph.replayed"] == 6
    assert torch.equal(made[0][0], made[-1][0])


def test_both_first_calls_of_a_size_are_before_the_times():
    calls = []

    class Took:
        def __init__(self, size):
            self.size, self.call_s = size, 1.0

    def sampler(batch):
        calls.append(len(batch))
        return None, Took(len(batch))

    done = Compilation(sampler, [[1, 2], [3, 4], [5]], captured("compile"))
    assert calls == [2, 2, 1, 1]
    assert done.as_dict([Took(2), Took(1)])["seconds"] == 0
    assert [m.name for m in captured("fora+compile").compiled_alone().methods] == [
        "compile",
        "cudagraph",
    ]


def test_the_contract_passes_what_cannot_be_captured_and_not_what_breaks(own_method):
    def failing(reason):
        def attach(self, pipeline, at):
            forward = pipeline.transformer.forward

            def run(hidden, *args, **kwargs):
                at.count("ran")
                if at.is_captured:
                    raise reason
                return forward(hidden + 0.1, *args, **kwargs)

            at.patch(pipeline.transformer, "forward", run)

        return attach

    own_method("refusing_test", failing(call_graphs.CannotCaptureError("it waits")))
    own_method("breaking_test", failing(RuntimeError("shapes differ")))
    clause = "captured calls give the same samples"
    for name, passed, note in (
        ("refusing_test", True, "not with cudagraph: it waits"),
        ("breaking_test", False, "shapes differ"),
    ):
        (check,) = [c for c in check_method(name, subject("dit")) if c.name == clause]
        assert check.passed == passed and note in check.note
