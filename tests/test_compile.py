"""torch.compile below the routes: no graph breaks, nothing is compiled after the first generation of a
size, and what is compiled is what the methods decide to run.

Most tests hand torch's graphs to no code generator (`backend='eager'`): what torch sees, and when it
sees something new, is the same, and then so are the bits."""

import threading
from functools import cache

import pytest
import torch
from test_summary import N, record
from torch._dynamo.utils import counters
from torch._inductor import config

from ditbench.acceleration import compiling
from ditbench.acceleration.compiling import EAGER, Compiler
from ditbench.acceleration.quantization import down_projections
from ditbench.analysis.summary import summarise
from ditbench.method import Stage, method
from ditbench.method.registry import METHODS
from ditbench.method.stack import Stack
from ditbench.models import fusing, regions
from ditbench.models.blocks import blocks
from ditbench.models.pending import Pending, worked_out
from ditbench.profiling.compiling import Compilation, compiled_graphs
from ditbench.profiling.counting import count_generation
from ditbench.profiling.latency import Timing
from ditbench.records import checks
from ditbench.reports.tables import columns
from ditbench.runner.plan import plan
from ditbench.runner.spec import Spec
from ditbench.testing import KINDS, contract, tiny

SEEN = "compile(backend='eager')"
STACKS = (
    "none", "fora(interval=2)", "diffsparse(allocator='random',keep=0.5)", "taylorseer(interval=2)",
    "toca", "clusca", "frequency_tokens", "teacache(threshold=0.2)", "easycache", "delta_dit",
    "int8", "int8+fora(interval=2)", "w4a4", "tile_window", "fora(interval=2)+lazy_queries",
    "cfg_cache(interval=2,first=1000)", "adaptive_guidance(threshold=-1.0)", "pab",
    "firstblock(threshold=0.9)", "zipr1(decide='fixed',ratio=0.5)",
    "rapid3(decide='fixed',stride=2,threshold=0.3,level=2)", "fewer_steps(steps=3)",
    "sparsecast(learns='coefficients',coefficients='one',keep=0.5)",
)  # fmt: skip
"""A stack of every kind: those that decide by call, by block, by sub-layer and by row; other layers,
other attention, fewer passes."""
IN_SHORT = {"dit": ("none", "fora(interval=2)", "toca"), "flux": STACKS[2:3],
            "pixart": STACKS[3:4], "wan": STACKS[2:3], "sd3": STACKS[1:2]}  # fmt: skip
"""Those of the ordinary suite."""
PAIRS = [
    pytest.param(kind, text, marks=() if text in IN_SHORT[kind] else pytest.mark.slow)
    for kind in KINDS
    for text in STACKS
]


@cache
def subject(kind):
    return tiny(kind, steps=4)


def compiled(text, with_=SEEN):
    return Stack.parse(with_ if text == "none" else f"{text}+{with_}")


def generations(stack, tried, *sizes):
    """Samples of generations of so many samples each, the graphs torch had taken after each, and the
    stack's notes and counters."""
    counters.clear()
    sampling, samples, graphs = stack.adapt(tried.sampling), [], []
    with stack.attached(tried.pipeline) as attached:
        for size in sizes:
            attached.start(sampling.steps, size)
            samples.append(tried.generate(sampling, range(size)))
            graphs.append(compiled_graphs())
        return samples, graphs, attached.notes(), attached.counters()


@pytest.mark.parametrize(("kind", "text"), PAIRS)
def test_torch_takes_every_region_whole_and_takes_nothing_new_later(kind, text):
    tried, stack = subject(kind), Stack.parse(text)
    if stack.refusal(tried.pipeline):
        pytest.skip("refused")
    torch._dynamo.reset()
    plain, *_ = generations(stack, tried, 2, 1)
    samples, graphs, notes, counts = generations(compiled(text), tried, 2, 2, 1, 1)
    assert counts["compile.regions"] > 0 and not counters["graph_break"]
    assert f"compile.{EAGER}" not in notes
    # the second size is a graph more of each, and no third
    assert 0 < graphs[0] == graphs[1] <= graphs[2] == graphs[3] <= 2 * graphs[0]
    for mine, other in zip(samples, (0, 0, 1, 1), strict=True):
        assert torch.equal(mine, plain[other])
    # attached again, it is the same code
    assert generations(compiled(text), tried, 2)[1] == [0]


def test_blocks_of_a_class_share_their_graphs():
    """Of FLUX: double blocks one, single blocks two, by how their input lies in memory."""
    torch._dynamo.reset()
    tried = subject("flux")
    assert len(blocks(tried.pipeline.transformer)) == 4
    assert generations(compiled("none"), tried, 1)[1] == [3]


def test_what_is_reused_is_not_called():
    tried = subject("dit")
    of = {
        text: generations(compiled(text), tried, 1)[3]["compile.regions"]
        for text in ("fora(interval=2)", "fora(interval=4)")
    }
    assert of["fora(interval=4)"] < of["fora(interval=2)"]


@pytest.mark.parametrize("text", ["none", "fora(interval=2)"])
def test_flops_are_those_of_the_methods_below(text):
    tried = subject("dit")

    def flops(stack):
        with stack.attached(tried.pipeline) as attached:

            def generate():
                attached.start(tried.sampling.steps, 1)
                return tried.generate(tried.sampling, [0])

            generate()
            return count_generation(tried.pipeline, generate, alike=False, allow_uncounted=True)

    assert flops(compiled(text)) == flops(Stack.parse(text))


@pytest.mark.parametrize(
    ("kind", "text"),
    [pytest.param("dit", "none")]
    + [pytest.param(kind, text, marks=pytest.mark.slow) for kind in KINDS for text in STACKS[:3]],
)
def test_compiled_code_rounds_otherwise_and_no_more(kind, text):
    """By the contract's rule for batches: a change of the last bits of the input moves a sample as
    far."""
    tried, stack = subject(kind), Stack.parse(text)
    (plain,), *_ = generations(stack, tried, 1)
    with contract._shaken(tried.pipeline.transformer):
        (shaken,), *_ = generations(stack, tried, 1)
    samples, graphs, notes, _ = generations(compiled(text, "compile"), tried, 1, 1)
    allowed = max(contract.TOLERANCE, contract.SHAKEN * contract._relative(shaken, plain))
    assert contract._relative(samples[0], plain) <= allowed
    assert torch.equal(*samples) and graphs[0] == graphs[1]
    assert not any(name.endswith(EAGER) for name in notes)  # methods have notes of their own


def graphs_in_one_memory(graph, _inputs):
    """A backend whose outputs lie where those of the last call lay, as those of a CUDA graph do."""
    kept = []

    def replay(*args):
        out = graph(*args)
        if not kept:
            kept.extend(t.clone() for t in out)
        for memory, value in zip(kept, out, strict=True):
            memory.copy_(value)
        return tuple(kept)

    return replay


@pytest.mark.parametrize("copies", [True, False])
def test_outputs_of_a_replayed_graph_are_copied_out(copies):
    """What a cache keeps would be overwritten by the next call."""
    torch._dynamo.reset()

    @method("replays_test", family="test", stage=Stage.COMPILE, claims={"compile"}, paper="none")
    class Replays:
        def attach(self, pipeline, at):
            options = {"backend": graphs_in_one_memory, "fullgraph": True, "dynamic": False}
            Compiler(at, options, copies=copies).install()

    tried, text = subject("dit"), "fora(interval=2)"
    try:
        plain, *_ = generations(Stack.parse(text), tried, 2)
        samples, *_ = generations(Stack.parse(f"{text}+replays_test"), tried, 2, 2)
    finally:
        METHODS.pop("replays_test")
        torch._dynamo.reset()
    assert all(torch.equal(s, plain[0]) for s in samples) is copies


def test_a_region_that_torch_cannot_take_whole_is_run_and_noted(monkeypatch):
    tried = subject("dit")
    forward = type(blocks(tried.pipeline.transformer)[0].module).forward

    def reads(self, hidden_states, *args, **kwargs):
        if hidden_states.sum().item() > 1e30:
            raise ValueError("too large")
        return forward(self, hidden_states, *args, **kwargs)

    plain, *_ = generations(Stack(), tried, 1)
    monkeypatch.setattr(type(blocks(tried.pipeline.transformer)[0].module), "forward", reads)
    samples, _, notes, _ = generations(compiled("none"), tried, 1)
    assert torch.equal(samples[0], plain[0])
    note = notes[f"compile.{EAGER}"]
    assert "reads: " in note and "\n" not in note and note.count("reads") == 1


def test_a_machine_without_a_compiler_is_refused_in_a_sentence(monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    pipe = subject("dit").pipeline
    assert Stack.parse("compile").refusal(pipe) == (
        "compile: torch.compile needs a C++ compiler (g++ or clang++), and there is none"
    )
    assert Stack.parse(SEEN).refusal(pipe) is None


def test_detached_nothing_computes_the_regions():
    tried = subject("dit")
    limit = torch._dynamo.config.recompile_limit
    with compiled("none").attached(tried.pipeline):
        assert all(regions.computer_of(b.module) for b in blocks(tried.pipeline.transformer))
        assert torch._dynamo.config.recompile_limit >= compiling.LIMIT
    assert not any(regions.computer_of(b.module) for b in blocks(tried.pipeline.transformer))
    assert torch._dynamo.config.recompile_limit == limit


def test_what_is_pending_is_one_function_that_gives_the_stream_too():
    from torch.nn import functional as F

    def made():
        torch.manual_seed(0)
        stream, added, scale = (Pending(torch.randn(2, 4, 8)) for _ in range(3))
        total = stream + added * scale
        return total, F.layer_norm(total, (8,), None, None, 1e-6) * (1 + scale)

    calls = []

    def compute(function, arguments):
        calls.append((function, len(arguments)))
        return function(*arguments)

    total, root = made()
    value = fusing.work_out(root, compute)
    assert not total.waits  # worked out beside it
    assert torch.equal(value, worked_out(made()[1])) and torch.equal(total.value, made()[0].value)
    fusing.work_out(made()[1], compute)
    assert [n for _, n in calls] == [3, 3]
    assert calls[0][0] is calls[1][0]  # one region, whatever the tensors


def test_a_plan_has_what_compiles_alone_beside_none_as_it_is_in_the_stack():
    def stacks(*methods):
        return [str(c.stack) for c in plan(Spec(models=("dit-tiny",), methods=methods))]

    assert stacks("fora+compile") == ["none", "compile", "fora+compile"]
    assert stacks("compile", "fora+compile") == ["none", "compile", "fora+compile"]
    assert stacks("compile(dynamic=True)+fora", "int8+compile") == [
        "none", "compile(dynamic=True)", "compile", "fora+compile(dynamic=True)", "int8+compile",
    ]  # fmt: skip
    assert stacks("fora") == ["none", "fora"]
    assert stacks("compile") == ["none", "compile"]
    assert not Stack.parse("rerun").compiling


def test_the_seconds_of_compiling_are_those_of_the_first_call_of_each_size_over_a_later_one():
    calls = iter([9.0, 5.0])
    asked = []

    def sampler(batch):
        asked.append(len(batch))
        return None, timing(len(batch), next(calls))

    def timing(size, seconds):
        return Timing(size=size, call_s=seconds, text_s=0.0, denoise_s=seconds, decode_s=0.0)

    measured = Compilation(sampler, [[1, 2, 3], [1, 2, 3], [1]], Stack.parse("compile"))
    found = measured.as_dict([timing(3, 2.5), timing(3, 2.0), timing(1, 1.0)])
    assert asked == [3, 1]
    assert found == {"seconds": 11.0, "graphs": 0, "later_graphs": 0}
    assert not checks.wrong(found, checks.COMPILATION)


def compiling_records(later=0):
    compile_ = {"name": "compile", "knobs": {}, "stage": "compile"}
    fora = {"name": "fora", "knobs": {}, "stage": "schedule"}
    spent = {"compilation": {"seconds": 30.0, "graphs": 4, "later_graphs": later}}
    return [
        record("none"),
        record("fora", denoise_s=0.4, methods=[fora]),
        record("compile", denoise_s=0.6, methods=[compile_], **spent),
        record("fora+compile", denoise_s=0.3, methods=[fora, compile_], **spent),
        record("fora+compile", model="other", methods=[fora, compile_], **spent),
    ]


def test_both_ratios_of_a_compiled_stack_are_in_its_row():
    none, fora, alone, both, elsewhere = summarise(compiling_records(), {})
    assert both["speedup_call"]["value"] == pytest.approx(1.0 / 0.5)
    assert both["speedup_over_compile"]["value"] == pytest.approx(0.8 / 0.5)
    assert both["compile_s"] == alone["compile_s"] == 30.0
    assert none["compile_s"] is fora["compile_s"] is None
    for row in (none, fora, alone, elsewhere):
        assert row["speedup_over_compile"] is None
    assert not both["warnings"] and N


def test_graphs_that_were_compiled_in_timed_calls_are_said():
    rows = summarise(compiling_records(later=2), {})
    assert any("2 graphs were compiled after the warm-up" in text for text in rows[3]["warnings"])


def test_its_columns_are_there_only_where_something_was_compiled():
    optional = {"speedup_over_compile", "compile_s"}
    none, fora, *compiled_rows = summarise(compiling_records(), {})

    def names(rows):
        return {c.name for c in columns.without_unused(columns.COLUMNS, rows)}

    shared = {"run": "r"}
    assert not optional & names([none | shared, fora | shared])
    assert optional <= names([row | shared for row in (none, *compiled_rows)])


def test_the_threads_that_inductor_compiles_with_end_with_the_stack():
    from torch._inductor.async_compile import AsyncCompile

    before = set(threading.enumerate())
    tried = subject("dit")
    with Stack.parse(SEEN).attached(tried.pipeline), config.patch(compile_threads=2):
        AsyncCompile.pool.cache_clear()
        assert AsyncCompile.pool().submit(int, "7").result() == 7
        assert set(threading.enumerate()) - before
    assert not set(threading.enumerate()) - before
    assert not AsyncCompile.pool.cache_info().currsize


@pytest.mark.parametrize("below", ["none", "fora(interval=2)"])
def test_hooks_that_a_method_puts_on_are_those_of_each_module(below):
    """As of `int8(down='smoothed')`: a graph without them, or with those of another block, gives other
    samples, and torch does not look at hooks unless it is told to."""

    @method("hooked", family="test", stage=Stage.WEIGHTS, claims=set(), paper="none")
    class Hooked:
        def attach(self, pipeline, at):
            for i, linear in enumerate(down_projections(at.sublayers)):

                def divide(module, inputs, by=1.5 + i):
                    return (inputs[0] / by,)

                at.undo(linear.register_forward_pre_hook(divide).remove)

    try:
        tried, text = subject("dit"), "hooked" if below == "none" else f"{below}+hooked"
        unhooked, *_ = generations(compiled(below), tried, 1)
        plain, *_ = generations(Stack.parse(text), tried, 1)
        made, graphs, notes, _ = generations(compiled(text), tried, 1, 1)
        again, *_ = generations(compiled(below), tried, 1)
    finally:
        METHODS.pop("hooked")
    assert torch.equal(made[0], plain[0]) and torch.equal(made[1], plain[0])
    assert not torch.equal(made[0], unhooked[0]) and torch.equal(again[0], unhooked[0])
    assert graphs[0] == graphs[1] and f"compile.{EAGER}" not in notes
