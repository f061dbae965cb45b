"""Blocks that compute all of their sub-layers, or some of them and nothing of the others, as one compiled
region that hands out what these gave.

That samples stay the same bits under every stack and that nothing is compiled later: `test_compile.py`,
whose stacks run through these regions.
"""

from contextlib import ExitStack

import pytest
import torch
from narrow import NAMES
from test_compile import compiled, generations, subject
from test_recorded import pipeline, samples
from torch._dynamo.utils import counters

from ditbench.acceleration import compiling
from ditbench.acceleration.caching.forecast import parts_of
from ditbench.acceleration.caching.output_cache import reuse_outputs
from ditbench.acceleration.caching.token_settings import SELECTORS, selector_class
from ditbench.acceleration.compiling import EAGER
from ditbench.method import Stage, method
from ditbench.method.registry import METHODS
from ditbench.method.stack import Stack
from ditbench.models import deferred
from ditbench.models.block_region import BlockRegion
from ditbench.models.blocks import blocks
from ditbench.models.pending import worked_out
from ditbench.models.regions import compute_by
from ditbench.models.sublayers import sublayers
from ditbench.profiling.compiling import compiled_graphs
from ditbench.testing import KINDS

STEPS = 4


@pytest.fixture
def regions_run(monkeypatch):
    """The blocks that were computed by one region, and those that were refused, as they come."""
    run, refused = [], []
    compute = BlockRegion.compute

    def noted(self, *args):
        done = compute(self, *args)
        (refused if done is None else run).append(self.block)
        return done

    monkeypatch.setattr(BlockRegion, "compute", noted)
    return run, refused


def rerouting(name, route, **says):
    """A stack of a method that sends every sub-layer through `route(sublayer)`, compiled."""

    @method(name, family="test", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="none")
    class Reroutes:
        def attach(self, pipeline, at):
            for sublayer in at.sublayers:
                at.reroute_deferred(sublayer, route(sublayer), **says)

    return compiled(name)


@pytest.fixture
def of_one_test():
    compiled("none")  # registers `compile`, which stays
    before = {*METHODS}
    yield
    for name in {*METHODS} - before:
        METHODS.pop(name)


SAY_SO = (
    "fora(interval=2)", "taylorseer(interval=2,order=1,first=1)", "hicache(interval=2,order=1,first=1)",
    "speca(most=2,first=1)", "clusca", "toca(selector='shuffle')", "duca(selector='shuffle')",
    "diffsparse(allocator='random',keep=0.5,selector='shuffle')",
    "sparsecast(learns='coefficients',coefficients='one',keep=0.5)", "fora(interval=2)+int8",
)  # fmt: skip
"""Stacks of methods whose routes go by outputs alone where they compute everything."""
ALL = {"dense": lambda: True, "outputs_only": lambda: True}


@pytest.mark.parametrize("kind", KINDS)
def test_a_computed_block_is_one_region_and_its_sub_layers_none(kind, regions_run):
    tried = subject(kind)
    *_, counts = generations(compiled("fora(interval=2)"), tried, 1)
    transformer = tried.pipeline.transformer
    calls = counts["fora.computed"] / len(sublayers(transformer))
    run, refused = regions_run
    assert calls > 0 and not refused
    assert counts["compile.regions"] == len(run) == calls * len(blocks(transformer))


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_of_whose_routes_nothing_is_kept_gives_what_it_gives_alone(
    kind, of_one_test, regions_run
):
    tried = subject(kind)
    plain, *_ = generations(Stack(), tried, 2)
    stack = rerouting("only_runs", lambda sublayer: lambda run, hidden: run(), **ALL)
    made, *_ = generations(stack, tried, 2)
    assert torch.equal(made[0], plain[0]) and regions_run[0] and not regions_run[1]


def in_turn():
    """A stack of a method that computes every second sub-layer of a block, at the next step the others."""

    @method("in_turn", family="test", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="none")
    class InTurn:
        def attach(self, pipeline, at):
            reuse_outputs(at, lambda step, sublayer: step > 0 and (step + sublayer.index) % 2 == 0)

    return Stack.parse("in_turn"), compiled("in_turn")


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_that_computes_some_sub_layers_wholly_is_one_region(kind, of_one_test, regions_run):
    tried = subject(kind)
    alone, stack = in_turn()
    torch._dynamo.reset()
    plain, *_ = generations(alone, tried, 2, 1)
    made, graphs, notes, counts = generations(stack, tried, 2, 2, 1, 1)
    run, refused = regions_run
    assert counts["in_turn.computed"] > counts["in_turn.reused"] > 0 and not refused
    assert counts["compile.regions"] == len(run)
    assert graphs[0] == graphs[1] and graphs[2] == graphs[3] and not notes
    assert not counters["graph_break"]
    for mine, theirs in zip(made, (plain[0], plain[0], plain[1], plain[1]), strict=True):
        assert torch.equal(mine, theirs)


def test_the_regions_of_blocks_are_by_what_is_computed(of_one_test):
    """Of each of the two sub-layers of DiT's blocks, and of both: three graphs for all blocks."""
    tried = subject("dit")
    torch._dynamo.reset()
    _, graphs, *_ = generations(in_turn()[1], tried, 2, 2)
    assert graphs == [3, 3]


def test_graphs_of_what_is_computed_are_not_in_each_others_limit(of_one_test, monkeypatch):
    """Nor are those of several classes of blocks, and so of one model after the other."""
    tried = subject("dit")
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "LIMIT", 1)
    with torch._dynamo.config.patch(recompile_limit=1):
        _, graphs, notes, _ = generations(in_turn()[1], tried, 1)
    assert graphs == [3] and f"compile.{EAGER}" not in notes


def test_what_stands_for_an_output_is_let_go(of_one_test, monkeypatch):
    tried, kept, compute = subject("pixart"), [], BlockRegion.compute

    def noted(self, *args):
        done = compute(self, *args)
        kept.append([*self._standing])
        return done

    monkeypatch.setattr(BlockRegion, "compute", noted)
    generations(in_turn()[1], tried, 1)
    assert kept and not any(one is not None for standing in kept for one in standing)


@pytest.mark.parametrize("kind", ["dit", "flux"])
def test_an_output_that_cannot_stand_is_given_to_the_block(kind, of_one_test, monkeypatch):
    """As one with a gate of its own: the routes are asked once."""
    tried = subject(kind)
    alone, stack = in_turn()
    plain, _, _, before = generations(alone, tried, 2)
    monkeypatch.setattr(deferred, "may_stand", lambda output: False)
    made, _, _, counts = generations(stack, tried, 2)
    assert torch.equal(made[0], plain[0])
    assert [counts[f"in_turn.{k}"] for k in ("computed", "reused")] == [
        before[f"in_turn.{k}"] for k in ("computed", "reused")
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_route_is_given_what_its_sub_layer_gives(kind, of_one_test):
    """What was handed out, set against a forward hook of the module it is of."""
    tried, handed, seen = subject(kind), [], []

    def route(sublayer):
        def handed_out(run, hidden):
            handed.append((sublayer.name, run()))
            return handed[-1][1]

        return handed_out

    generations(rerouting("looks_on", route, **ALL), tried, 1)
    listed = sublayers(tried.pipeline.transformer)

    def hook(sublayer):
        return lambda module, args, out: seen.append((sublayer.name, out))

    hooks = [s.giving.register_forward_hook(hook(s)) for s in listed]
    generations(Stack(), tried, 1)
    for handle in hooks:
        handle.remove()
    assert [name for name, _ in handed] == [name for name, _ in seen] != []
    for (_, mine), (_, plain) in zip(handed, seen, strict=True):
        for one, other in zip(*map(parts_of, (mine, plain)), strict=True):
            assert torch.equal(one, other)


class AsItIs:
    """Computes regions as they are: nothing is traced, whatever is asked of the routes."""

    def __call__(self, function, *args, **kwargs):
        return function(*args, **kwargs)

    def work_out(self, pending):
        return worked_out(pending)

    def takes_block(self, routed):
        return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", SAY_SO)
def test_what_our_methods_say_of_their_routes_is_so(text, kind, regions_run):
    """Or `Standing.hand` would have raised. The same bits."""
    tried, stack = subject(kind), Stack.parse(text)
    if stack.refusal(tried.pipeline):
        pytest.skip("the family has no settings")
    plain, *_ = generations(stack, tried, 2, 1)
    made = []
    with ExitStack() as undo:
        attached = undo.enter_context(stack.attached(tried.pipeline))
        for block in blocks(tried.pipeline.transformer):
            undo.callback(compute_by(block.module, AsItIs()))
        for size in (2, 1):
            attached.start(tried.sampling.steps, size)
            made.append(tried.generate(tried.sampling, range(size)))
    assert regions_run[0] and not regions_run[1]
    assert all(map(torch.equal, made, plain))


def first_rows_zeroed(output):
    output[:, :1] = 0
    return output


@pytest.mark.parametrize(
    ("route", "why"),
    [
        (lambda run, hidden: run() * 2, "returns something else than that"),
        (lambda run, hidden: run(torch.zeros(1, 1, dtype=torch.long)), "asks for a part of it"),
        (lambda run, hidden: run() if hidden.mean() else None, "looks at its input"),
        (lambda run, hidden: torch.add(hidden, run()), "looks at its input"),
        (lambda run, hidden: run().mul_(2), "writes into it"),
        (lambda run, hidden: torch.add(run(), 1, out=run()), "writes into it"),
        (lambda run, hidden: first_rows_zeroed(run()), "writes into it"),
    ],
)
def test_a_route_that_does_otherwise_than_it_said_is_a_mistake(route, why, of_one_test):
    tried = subject("dit")
    stack = rerouting("mistaken", lambda sublayer: route, **ALL)
    with pytest.raises(RuntimeError, match=f"a route that said it .*{why}"):
        generations(stack, tried, 1)
    block = blocks(tried.pipeline.transformer)[0].module
    assert not any("forward" in vars(module) for module in block.modules())


def test_a_pair_may_be_put_together_anew(of_one_test, regions_run):
    def route(run, hidden):
        out = run()
        return tuple([*out]) if isinstance(out, tuple) else out  # the same tensors

    tried, anew = subject("flux"), rerouting("anew", lambda sublayer: route, **ALL)
    plain, *_ = generations(Stack(), tried, 1)
    made, *_ = generations(anew, tried, 1)
    assert torch.equal(made[0], plain[0]) and regions_run[0]


@pytest.mark.parametrize("says", [{"dense": lambda: True}, {"outputs_only": lambda: True}, {}])
def test_a_route_that_does_not_say_all_may_look_at_its_input(says, of_one_test, regions_run):
    tried, stack = (
        subject("dit"),
        rerouting("looks", lambda sublayer: lambda run, hidden: run() + 0 * hidden, **says),
    )
    plain, *_ = generations(Stack(), tried, 1)
    made, *_ = generations(stack, tried, 1)
    assert torch.equal(made[0], plain[0]) and not any(regions_run)


@pytest.mark.parametrize(
    "text",
    [
        "toca",
        "fora(interval=2,gates='kept')",
        "fora(interval=2)+lazy_queries",
        "w4a4+fora(interval=2)",
    ],
)
def test_what_needs_more_than_outputs_runs_as_before(text, regions_run):
    """Attention that a ranking looks at, products that the block makes, attention and linear layers
    that somebody else has replaced."""
    generations(compiled(text), subject("dit"), 1)
    assert not regions_run[0]


def test_a_ranking_that_looks_at_nothing_is_asked_afterwards(regions_run):
    generations(compiled("toca(selector='shuffle')"), subject("dit"), 1)
    assert regions_run[0] and not regions_run[1]


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_a_selector_that_looks_at_nothing_has_nothing_to_see(name):
    """Whoever says so has neither `run` nor `computed` of its own."""
    from ditbench.acceleration.caching.selectors import Selector
    from ditbench.acceleration.caching.token_settings import TOCA

    cls = selector_class(name)
    ranks = cls(None, TOCA["dit"])
    looks = [ranks.looks(s) for s in sublayers(subject("dit").pipeline.transformer)]
    sees = cls.run is not Selector.run or cls.computed is not Selector.computed
    assert any(looks) or not sees
    assert any(looks) is (name != "shuffle")


def test_a_hook_that_comes_later_sees_its_module(regions_run):
    tried, called = subject("dit"), []
    with compiled("fora(interval=2)").attached(tried.pipeline) as attached:
        for kept in (True, False):
            handle = blocks(tried.pipeline.transformer)[0].module.ff.register_forward_hook(
                lambda *_: called.append(1)
            )
            if not kept:
                handle.remove()
            attached.start(STEPS, 1)
            before = len(regions_run[0])
            tried.generate(tried.sampling, [0])
            assert bool(called) is True
            ran = {id(block) for block in regions_run[0][before:]}
            assert (id(blocks(tried.pipeline.transformer)[0].module) in ran) is not kept
            handle.remove()


@pytest.mark.parametrize("text", ["fora(interval=2)", "in_turn"])
def test_a_block_that_calls_a_sub_layer_in_chunks_runs_as_before(text, of_one_test, regions_run):
    in_turn()
    tried = subject("dit")
    chunked = [block.module for block in blocks(tried.pipeline.transformer)]
    for block in chunked:
        block.set_chunk_feed_forward(4, 1)
    try:
        plain, *_ = generations(Stack.parse(text), tried, 1)
        made, *_ = generations(compiled(text), tried, 1)
    finally:
        for block in chunked:
            block.set_chunk_feed_forward(None, 0)
    assert torch.equal(made[0], plain[0])
    assert not regions_run[0] and regions_run[1]


def test_routes_are_back_after_an_error_inside(monkeypatch):
    tried = subject("dit")
    block = blocks(tried.pipeline.transformer)[0].module
    with compiled("fora(interval=2)").attached(tried.pipeline) as attached:
        before = {id(m): vars(m).get("forward") for m in block.modules()}
        with monkeypatch.context() as patched:

            def fails(*_, **__):
                raise OSError("no more")

            patched.setattr(torch._dynamo.config, "recompile_limit", 64)
            patched.setattr(type(block.ff), "forward", fails)
            torch._dynamo.reset()
            attached.start(STEPS, 1)
            with pytest.raises(OSError, match="no more"):
                tried.generate(tried.sampling, [0])
        assert {id(m): vars(m).get("forward") for m in block.modules()} == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["fora(interval=2)", "taylorseer(interval=2,order=1,first=1)"])
def test_samples_are_the_same_bits_in_every_format(name, text, dtype, regions_run):
    model, pipe = pipeline(name, dtype)
    plain, mine = (samples(model, pipe, stack) for stack in (Stack.parse(text), compiled(text)))
    assert regions_run[0] and torch.equal(plain, mine)


@pytest.mark.parametrize(
    "knobs",
    [
        "backend='aot_eager'",
        "backend='eager',dynamic=True",
        pytest.param("backend='inductor'", marks=pytest.mark.slow),
    ],
)
def test_torch_takes_one_graph_for_all_computed_blocks(knobs):
    tried = subject("dit")
    torch._dynamo.reset()
    plain, *_ = generations(Stack.parse("fora(interval=2)"), tried, 2)
    counters.clear()
    text = f"compile({knobs})"
    made, graphs, notes, _ = generations(compiled("fora(interval=2)", text), tried, 2, 2, 2)
    assert graphs == [1, 1, 1] and not counters["graph_break"] and not notes
    assert compiled_graphs() == 1
    for sample in made:
        torch.testing.assert_close(sample, plain[0], rtol=0, atol=1e-4)
