"""Every method keeps the contract on all four architectures, and the contract notices a method that does not."""

from functools import cache
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from test_stack import TESTS

from ditbench.method import METHODS, Stage, method
from ditbench.plugins import load_plugin
from ditbench.stack import Stack
from ditbench.testing import KINDS, check_method, check_models, tiny

STACKS = (
    "fewer_steps",
    "fewer_steps(steps=1)",
    "fora",
    "int8",
    "firstblock(threshold=0.9)",
    "int8+fora",
    "taylorseer(interval=2)",
    "taylorseer(interval=3,order=2,first=2)",
    "teacache(threshold=5.0)",
    "delta_dit(interval=2)",
    "l2c(threshold=1.0)",
    "toca",
    "toca(selector='change',ratio=0.5)",
    "duca",
    "duca(selector='shuffle',attend=True)",
    "pab",
    "pab(interval=3,cross_interval=2)",
    "fastercache",
    "rerun",
    "rerun(attention='math')",
    "rerun(seed=1)",
    "diffsparse(allocator='uniform',keep=0.5)",
    "diffsparse(allocator='random',keep=0.6,selector='similarity')",
    "int8+diffsparse(allocator='uniform',selector='norm')",
)
PASSES = "pab: diffusers' pab keeps one output per module, and Wan's guidance passes, run one after the other, would share it"
HALVES = (
    "fastercache: diffusers' fastercache needs unconditional and conditional halves of a batch, in this order and by keyword, "
    "or guidance in one pass; {}Pipeline has neither"
)
UNCACHED = "firstblock: diffusers {} has no cache for {} (it is no CacheMixin)"
REFUSED = {
    ("firstblock(threshold=0.9)", "dit"): UNCACHED.format(diffusers.__version__, "DiTTransformer2DModel"),
    ("firstblock(threshold=0.9)", "pixart"): UNCACHED.format(diffusers.__version__, "PixArtTransformer2DModel"),
    ("pab", "wan"): PASSES,
    ("pab(interval=3,cross_interval=2)", "wan"): PASSES,
    ("fastercache", "dit"): HALVES.format("DiT"),
    ("fastercache", "pixart"): HALVES.format("PixArtAlpha"),
    ("fastercache", "wan"): HALVES.format("Wan"),
    ("fewer_steps(steps=1)", "pixart"): "fewer_steps: diffusers' PixArtAlphaPipeline cannot take a single step "
    "with DPMSolverMultistepScheduler",
}


@cache
def subject(kind):
    return tiny(kind, steps=4)


def failed(text, kind):
    return {check.name for check in check_method(text, subject(kind)) if not check.passed}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", STACKS)
def test_the_contract_holds(text, kind):
    checks = check_method(text, subject(kind))
    assert not [f"{c.name}: {c.note}" for c in checks if not c.passed]
    refused = [c.note for c in checks if c.name == "refused"]
    assert refused == ([REFUSED[text, kind]] if (text, kind) in REFUSED else [])
    assert len(checks) == (2 if refused else 9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_for_method_authors_keeps_the_contract(kind):
    load_plugin(TESTS / "example_step_reuse.py")
    assert not failed("step_reuse", kind)
    assert not failed("int8+step_reuse(every=3)", kind)


def declare(**parts):
    """A throw-away method of one's own making; returns its name."""
    METHODS.pop("broken_test", None)
    method("broken_test", family="test", stage=Stage.OPERATOR)(type("Broken", (), parts | {"__module__": __name__}))
    return "broken_test"


def test_a_method_that_does_nothing_does_not_engage():
    assert failed(declare(attach=lambda self, pipeline, at: at.count("looked", idle=True)), "flux") == {"it engages"}


def test_a_patch_behind_the_attachments_back_is_found():
    def attach(self: Any, pipeline: Any, at: Any) -> None:
        pipeline.transformer.forward = pipeline.transformer.forward
        at.count("patched")

    name = declare(attach=attach)
    assert failed(name, "pixart") == {"detached, nothing stays behind"}
    del subject("pixart").pipeline.transformer.forward


def test_a_changed_weight_is_found():
    def attach(self: Any, pipeline: Any, at: Any) -> None:
        with torch.no_grad():
            pipeline.transformer.proj_out.weight.mul_(1.5)
        at.undo(pipeline.transformer.proj_out.weight.data.div_, 1.5)  # back, but for rounding
        at.count("scaled")

    assert "detached, the weights are bit-identical" in failed(declare(attach=attach), "wan")
    subject.cache_clear()


def test_a_leak_from_one_generation_to_the_next_is_found():
    def attach(self: Any, pipeline: Any, at: Any) -> None:
        kept: list[Any] = []

        def forward(*args: Any, **kwargs: Any) -> Any:
            at.count("reused")
            kept.append(run(*args, **kwargs)[0])
            return (sum(kept[-6:]),)  # reaches back beyond this generation

        run = at.patch(pipeline.transformer, "forward", forward)

    broken = failed(declare(attach=attach), "flux")
    assert "a generation leaves nothing for the next" in broken


def test_mixing_the_samples_of_a_batch_is_found():
    def attach(self: Any, pipeline: Any, at: Any) -> None:
        def forward(*args: Any, **kwargs: Any) -> Any:
            at.count("mixed")
            return (run(*args, **kwargs)[0].mean(0, keepdim=True).expand_as(kwargs["hidden_states"]),)

        run = at.patch(pipeline.transformer, "forward", forward)

    assert failed(declare(attach=attach), "flux") == {"a batch of two is two of one"}


def test_an_off_switch_that_does_not_is_found():
    class Parts:
        off: ClassVar[dict[str, object]] = {}

        def attach(self, pipeline: Any, at: Any) -> None:
            at.reroute(at.sublayers[-1], lambda run, hidden: (at.count("scaled"), run() * 0.5)[1])

    parts = {key: value for key, value in vars(Parts).items() if key in ("attach", "off", "__annotations__")}
    parts["off"] = {"strength": 0.0}
    parts["__annotations__"] = {"strength": float}
    parts["strength"] = 1.0
    assert failed(declare(**parts), "dit") == {"knobs at off change nothing"}


def test_checking_models_gives_a_row_for_every_clause(monkeypatch):
    from ditbench import models

    monkeypatch.setattr(models, "load", lambda model, **_: tiny(model.family).pipeline)
    rows = check_models(Stack.parse("firstblock"), models.select("pixart-tiny"))
    assert [(row["model"], row["result"]) for row in rows] == [("pixart-tiny", "passed"), ("pixart-tiny", "refused")]
    rows = check_models(Stack.parse(declare(attach=lambda self, pipeline, at: None)), models.select("pixart-tiny"))
    assert {row["clause"]: row["result"] for row in rows if row["result"] != "passed"} == {"it engages": "failed"}
    assert len(rows) == 9
