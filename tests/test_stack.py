"""Stacks are read, written and refused clearly, and attaching one takes everything back."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from ditbench.method import METHODS, Attachment, Stage, find, knob, method, names
from ditbench.method.knobs import knobs
from ditbench.method.plugins import load_plugin
from ditbench.method.stack import Stack, split_stacks
from ditbench.testing import tiny

TESTS = Path(__file__).parent
log = []


@method("first_test", family="test", stage=Stage.WEIGHTS, claims={"weights"})
class First:
    """Logs what happens to it."""

    ratio: float = knob(0.5, above=0, high=1)
    """How much of it."""
    mode: str = "plain"
    shape: tuple[int, ...] = ()

    def attach(self, pipeline, at):
        log.append("attach first")
        at.undo(log.append, "detach first")
        at.on_start(lambda: log.append("reset first"))


@method("second_test", family="test", stage=Stage.COMPILE, claims={"compile"}, conflicts={"int8"})
class Second:
    """Logs, and fails when told to."""

    fail: bool = False

    def attach(self, pipeline, at):
        log.append("attach second")
        at.undo(log.append, "detach second")
        if self.fail:
            raise RuntimeError("half way")


@method(
    "needy_test", family="test", stage=Stage.PRECISION, needs={"package:no-such-package", "cuda"}
)
class Needy:
    """Needs what is not there."""

    def attach(self, pipeline, at):
        raise AssertionError("never attached")


@cache
def subject(kind="flux"):
    return tiny(kind, steps=3)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("none", "none"),
        (" none ", "none"),
        ("fora", "fora"),
        ("fora()", "fora"),
        ("fora(interval=3)", "fora"),
        ("fora(interval = 4)", "fora(interval=4)"),
        ("fora+int8", "int8+fora"),
        ("int8+fora(interval=3)", "int8+fora"),
        ("fewer_steps(steps=4)+int8", "int8+fewer_steps(steps=4)"),
        ("fewer_steps(share=1)", "fewer_steps(share=1.0)"),
        ("fora+fewer_steps", "fewer_steps+fora"),
        ("first_test(mode='a, b', shape=[1, 2])", "first_test(mode='a, b', shape=(1, 2))"),
    ],
)
def test_every_spelling_of_a_stack_is_one_key(text, canonical):
    assert str(Stack.parse(text)) == canonical
    assert Stack.parse(canonical) == Stack.parse(text)
    assert Stack.restore(Stack.parse(text).describe()) == Stack.parse(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "cannot read the stack ''; write it like fora(interval=3)+int8, or none"),
        ("fora+", "cannot read the stack"),
        ("fora(", "cannot read the stack"),
        ("fora\x00", "cannot read the stack"),
        ("fora*2", "expected a method's name, but got 'fora * 2'"),
        ("fora+(int8+fewer_steps)", "only + joins methods"),
        ("3", "expected a method's name, but got '3'"),
        ("foar", "no method 'foar'; did you mean fora"),
        ("fora+none", "none is the empty stack"),
        ("fora(4)", "knobs are given by name, as in fora(knob=value)"),
        ("fora(intervall=4)", "fora has no knob 'intervall'; did you mean interval?"),
        ("int8wo(bits=4)", "int8wo has no knobs, but was given 'bits'"),
        ("fora(interval=os.x)", "fora: interval must be a plain value, not 'os.x'"),
        ("fora(interval=__import__('os'))", "fora: interval must be a plain value"),
        ("fora(interval=0)", "fora: interval must be at least 1, not 0"),
        ("delta_dit(interval=2.0)", "delta_dit: interval must be int, not 2.0"),
        ("delta_dit(interval=True)", "delta_dit: interval must be int, not True"),
        ("fora(interval=True)", "fora: interval must be int or float, not True"),
        ("fora(interval='2')", "fora: interval must be int or float, not '2'"),
        ("fora(interval=2, interval=3)", "each knob of fora is given once"),
        ("fora(**{'interval': 2})", "each knob of fora is given once, by name"),
        ("fewer_steps(share=1e999)", "fewer_steps: share must be float, not inf"),
        ("fewer_steps(share=0)", "fewer_steps: share must be above 0 and at most 1, not 0.0"),
        ("fewer_steps(steps=2, share=0.25)", "fewer_steps takes steps or share, not both"),
        ("fewer_steps(steps='x')", "fewer_steps: steps must be int or None, not 'x'"),
        ("firstblock(threshold=-1)", "firstblock: threshold must be at least 0"),
        ("fora+fora", "fora appears 2 times, but a method is used once"),
        ("fora+int8+fora(interval=2)", "fora appears 2 times"),
        ("+".join(["fora"] * 20000), "fora"),
    ],
)
def test_a_bad_stack_gets_one_clear_sentence(text, sentence):
    with pytest.raises(ValueError) as error:
        Stack.parse(text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value).replace(text, "")


def test_conflicting_claims_are_read_but_named_as_problems():
    stack = Stack.parse("fora+firstblock")
    assert stack.problems() == ["firstblock and fora both claim block-schedule"]
    assert Stack.parse("int8+second_test").problems() == [
        "int8 and second_test are declared incompatible"
    ]
    assert Stack.parse("int8+fora+fewer_steps").problems() == []
    with (
        pytest.raises(
            ValueError, match=r"cannot attach firstblock\+fora: firstblock and fora both claim"
        ),
        stack.attached(subject().pipeline),
    ):
        pass
    assert stack.refusal(subject().pipeline) == stack.problems()[0]


def test_unmet_needs_refuse_the_stack():
    assert (
        Stack.parse("needy_test").refusal(subject().pipeline)
        == "needy_test: needs a CUDA device, but the model is on cpu"
    )
    assert Stack.parse("int8+fora").refusal(subject().pipeline) is None


def test_commas_separate_stacks_but_not_inside_parentheses():
    assert split_stacks("none, fora(interval=2),first_test(mode='x', shape=(1, 2))+int8") == [
        "none", "fora(interval=2)", "first_test(mode='x', shape=(1, 2))+int8",
    ]  # fmt: skip
    for text, sentence in [
        ("none,,fora", "empty stack"),
        ("", "empty stack"),
        ("fora(interval=2", "do not match"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            split_stacks(text)


def test_methods_attach_in_stage_order_and_detach_in_reverse():
    log.clear()
    with Stack.parse("second_test+first_test").attached(subject().pipeline) as attached:
        attached.start(3)
    assert log == ["attach first", "attach second", "reset first", "detach second", "detach first"]


def test_a_failure_half_way_takes_everything_back():
    log.clear()
    keys = set(vars(subject().pipeline.scheduler))
    with (
        pytest.raises(RuntimeError, match="half way"),
        Stack.parse("first_test+second_test(fail=True)").attached(subject().pipeline),
    ):
        pass
    assert log == ["attach first", "attach second", "detach second", "detach first"]
    assert set(vars(subject().pipeline.scheduler)) == keys


@pytest.mark.parametrize("kind", ["flux", "wan", "pixart"])
def test_step_and_pass_are_told_as_the_sampler_goes(kind):
    seen = []

    @method("watch_test", family="test", stage=Stage.OPERATOR)
    class Watch:
        def attach(self, pipeline, at):
            watch = lambda *_: seen.append((at.now.step, at.now.branch, at.now.num_steps))  # noqa: E731
            at.undo(pipeline.transformer.register_forward_hook(watch).remove)

    del METHODS["watch_test"]
    tried = subject(kind)
    with Stack.of(Watch()).attached(tried.pipeline) as attached:
        attached.start(3)
        tried.generate(tried.sampling, [0])
        told, passes = seen.copy(), 2 if kind == "wan" else 1
        assert told == [(step, branch, 3) for step in range(3) for branch in range(passes)]
        seen.clear()
        tried.generate(tried.sampling, [0])  # start forgotten: noticed by itself
        assert seen == told


def test_the_empty_stack_leaves_the_pipeline_untouched():
    scheduler, transformer = subject().pipeline.scheduler, subject().pipeline.transformer
    with Stack.parse("none").attached(subject().pipeline) as attached:
        attached.start(3)
        assert "step" not in vars(scheduler)
        assert not transformer._forward_pre_hooks
        assert attached.counters() == {}
        assert attached.cache_bytes() == 0


def test_a_method_that_did_nothing_is_idle():
    tried = subject()
    for text, expected in [
        ("fora(interval=1)", ["fora"]),
        ("fewer_steps(share=1.0)+int8", ["fewer_steps"]),
        ("fora(interval=2)", []),
    ]:
        stack = Stack.parse(text)
        with stack.attached(tried.pipeline) as attached:
            attached.start(3)
            tried.generate(stack.adapt(tried.sampling), [0])
            assert stack.idle(tried.sampling, attached) == expected


def test_patch_restores_what_was_there_and_removes_what_was_not():
    from contextlib import ExitStack

    module = torch.nn.Linear(2, 2)
    weight, keys = module.weight, set(vars(module))
    module.own = "before"
    with ExitStack() as undo:
        at = Attachment(subject().pipeline, None, undo)
        at.patch(module, "weight", torch.nn.Parameter(torch.zeros(2, 2)))
        at.patch(module, "own", "during")
        at.patch(module, "forward", lambda x: x)
        at.patch(module, "forward", lambda x: -x)
        assert float(module(torch.ones(1))) == -1
        with pytest.raises(ValueError, match="dunder methods"):
            at.patch(module, "__call__", print)
    assert module.weight is weight
    assert module.own == "before"
    assert set(vars(module)) - {"own"} == keys


def test_knobs_are_described_with_type_range_and_text():
    interval = next(knob for knob in knobs(find("fora")) if knob.name == "interval")
    assert (interval.name, interval.kind, interval.default, interval.span) == (
        "interval",
        "int or float",
        3,
        "at least 1",
    )
    assert (
        interval.doc
        == "Steps from one computation to the next, on average: 2.5 computes steps 0, 3, 5, 8...; 1 changes nothing."
    )
    assert [k.kind for k in knobs(find("fewer_steps"))] == ["int or None", "float"]
    assert all(
        k.doc for name in ("fora", "fewer_steps", "firstblock", "int8") for k in knobs(find(name))
    )


def test_a_bad_declaration_is_refused_when_it_is_made():
    body = {"attach": lambda self, pipeline, at: None}
    for name, claims, sentence in [
        ("Upper", (), "is no name for a method"),
        ("none", (), "is no name for a method"),
        ("with-hyphen", (), "is no name for a method"),
        (
            "other_test",
            {"block-scedule"},
            "which is no part of a pipeline; did you mean block-schedule?",
        ),
        ("fora", (), "method 'fora' is already there, from ditbench.methods.fora"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            method(name, family="test", stage=Stage.OPERATOR, claims=claims)(
                type("Bad", (), dict(body))
            )
    with pytest.raises(ValueError, match="does nothing"):
        method("other_test", family="test", stage=Stage.OPERATOR)(type("Bad", (), {}))


def test_a_plugin_file_brings_methods_and_a_bad_one_a_sentence(tmp_path):
    assert load_plugin(TESTS / "example_step_reuse.py") == ["step_reuse"]
    assert load_plugin(TESTS / "example_step_reuse.py") == ["step_reuse"]  # twice is once
    assert "step_reuse" in names()
    assert str(Stack.parse("step_reuse(every=3)+int8")) == "int8+step_reuse(every=3)"
    (tmp_path / "broken.py").write_text("import no_such_module")
    (tmp_path / "empty.py").write_text("x = 1")
    for name, sentence in [
        ("broken.py", "failed: ModuleNotFoundError"),
        ("empty.py", "declares no method"),
        ("absent.py", "is not a file"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            load_plugin(tmp_path / name)


def test_reading_stacks_does_not_import_torch():
    code = "import sys, run_bench; from ditbench.method import Stack, find, knobs;"
    code += "Stack.parse('fora+fewer_steps'); [knobs(find(n)) for n in ('int8', 'firstblock', 'fewer_steps')];"
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
