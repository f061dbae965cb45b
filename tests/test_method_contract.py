"""Every method keeps the contract on every family, and the contract notices a method that
does not."""

import json
from functools import cache
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from test_stack import TESTS

from ditbench.method import METHODS, Stage, knob, method
from ditbench.method.plugins import load_plugin
from ditbench.method.stack import Stack
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
    "seacache(threshold=5.0)",
    "easycache(threshold=99.0,retain=0.0)",
    "teacache(threshold=5.0,target='x0')",
    "seacache(threshold=5.0,target='epsilon')",
    "easycache(threshold=99.0,retain=0.0,target='v')",
    "schedule(steps='0-2',target='denoised_residual')",
    "dicache(threshold=9.0,retain=0.0)",
    "hicache(interval=2)",
    "speca(least=1)",
    "clusca(interval=2)",
    "freqca(interval=2,first=2)",
    "barycache(interval=2,first=2)",
    "meancache(interval=2,first=2)",
    "schedule(steps='geometric',between='taylor',order=2)",
    "schedule(steps='1011',between='twoanchor')",
    "schedule(between='meanvelocity')",
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
    "adaptive_guidance(threshold=-1.0)",
    "guidance_interval",
    "cfg_cache(interval=2,first=1000)",
    "cfg_cache(interval=2,first=1000)+int8+teacache(threshold=5.0)",
    "w4a4",
    "w6a8",
    "fp8_attention",
    "w4a4(form='nvfp4')+fp8_attention(block=4)+toca(selector='change')+cfg_cache(interval=2,first=1000)",
    "frequency_tokens(stride=3,keep=0.6,begin=0)",
    "frequency_tokens(stride=3,keep=0.8,begin=0,after=0)+int8+cfg_cache(interval=2,first=1000)",
    "diffsparse(allocator='uniform',keep=0.5)",
    "diffsparse(allocator='random',keep=0.6,selector='similarity')",
    "int8+diffsparse(allocator='uniform',selector='norm')",
    "sparsecast(learns='coefficients',coefficients='one',keep=0.5)",
    "int8+sparsecast(learns='coefficients',coefficients='one',order=2,keep=0.75)",
    "rapid3(decide='fixed',stride=2,threshold=0.3,level=2)",
    "int8+rapid3(decide='fixed',threshold=9.0)",
    "zipr1(decide='fixed',ratio=0.5)",
    "tile_window",
    "top_tiles",
    "lazy_queries",
    "radial",
    "fpsattention",
    "compile(backend='eager')",
    "fora(interval=2)+compile(backend='eager')",
    "stitch",  # beside a smaller model: test_stitch.py
)
PASSES = "pab: diffusers' pab keeps one output per module, and Wan's guidance passes, run one after the other, would share it"
HALVES = (
    "fastercache: diffusers' fastercache needs unconditional and conditional halves of a batch, in "
    "this order and by keyword, "
    "or guidance in one pass; {}Pipeline has neither"
)
UNCACHED = "firstblock: diffusers {} has no cache for {} (it is no CacheMixin)"
EMBEDDED = "needs a guidance pass to leave out, and FLUX's guidance is embedded in its one"
VELOCITY = (
    "schedule: between='meanvelocity' is for models that predict the velocity of a flow, and the "
    "sampler here, {}Scheduler, takes no velocity"
)
NO_FLOW = "meancache: it extrapolates the velocity of a flow, and {} does not move along one"
REFUSED = {
    (
        "frequency_tokens(stride=3,keep=0.8,begin=0,after=0)+int8+cfg_cache(interval=2,first=1000)",
        "flux",
    ): "cfg_cache: needs a guidance pass to leave out, and FLUX's guidance is embedded in its one",
    (
        "w4a4(form='nvfp4')+fp8_attention(block=4)+toca(selector='change')+cfg_cache(interval=2,first=1000)",
        "flux",
    ): "cfg_cache: needs a guidance pass to leave out, and FLUX's guidance is embedded in its one",
    ("adaptive_guidance(threshold=-1.0)", "flux"): f"adaptive_guidance: {EMBEDDED}",
    ("guidance_interval", "flux"): f"guidance_interval: {EMBEDDED}",
    ("cfg_cache(interval=2,first=1000)", "flux"): f"cfg_cache: {EMBEDDED}",
    (
        "cfg_cache(interval=2,first=1000)+int8+teacache(threshold=5.0)",
        "flux",
    ): f"cfg_cache: {EMBEDDED}",
    ("meancache(interval=2,first=2)", "dit"): NO_FLOW.format("DDIMScheduler"),
    ("meancache(interval=2,first=2)", "pixart"): NO_FLOW.format("DPMSolverMultistepScheduler"),
    ("schedule(between='meanvelocity')", "dit"): VELOCITY.format("DDIM"),
    ("schedule(between='meanvelocity')", "pixart"): VELOCITY.format("DPMSolverMultistep"),
    ("firstblock(threshold=0.9)", "dit"): UNCACHED.format(
        diffusers.__version__, "DiTTransformer2DModel"
    ),
    ("firstblock(threshold=0.9)", "pixart"): UNCACHED.format(
        diffusers.__version__, "PixArtTransformer2DModel"
    ),
    ("pab", "wan"): PASSES,
    ("pab(interval=3,cross_interval=2)", "wan"): PASSES,
    ("fastercache", "dit"): HALVES.format("DiT"),
    ("fastercache", "pixart"): HALVES.format("PixArtAlpha"),
    ("fastercache", "wan"): HALVES.format("Wan"),
    ("firstblock(threshold=0.9)", "sd3"): UNCACHED.format(
        diffusers.__version__, "SD3Transformer2DModel"
    ),
    (
        "fastercache",
        "sd3",
    ): "fastercache: fastercache would guess the unconditional half of a batch, which is not built "
    "here: it runs where guidance is one pass, and SD3's is two",
    **{
        ("radial", kind): "radial: its mask goes by the distance of frames, and "
        f"{title} makes pictures"
        for kind, title in (("dit", "DiT"), ("pixart", "PixArt"), ("flux", "FLUX"), ("sd3", "SD3"))
    },
    **{
        (
            "stitch",
            kind,
        ): "stitch: no smaller model of this pipeline is known; small='FOLDER' names one"
        for kind in KINDS
    },
    (
        "fewer_steps(steps=1)",
        "pixart",
    ): "fewer_steps: diffusers' PixArtAlphaPipeline cannot take a single step "
    "with DPMSolverMultistepScheduler",
}


@cache
def subject(kind):
    return tiny(kind, steps=4)


def failed(text, kind):
    return {check.name for check in check_method(text, subject(kind)) if not check.passed}


def tries():
    """Every stack on every family: in the ordinary suite the first stack of a method on two of
    them and any other on one, by turns; the rest are of the slow suite."""
    seen = set()
    for i, text in enumerate(STACKS):
        first = text.partition("(")[0] not in seen
        seen.add(text.partition("(")[0])
        ordinary = {(i + turn) % len(KINDS) for turn in ((0, 2) if first else (0,))}
        for j, kind in enumerate(KINDS):
            marks = () if j in ordinary or (text, kind) in REFUSED else pytest.mark.slow
            yield pytest.param(text, kind, marks=marks, id=f"{text}-{kind}")


@pytest.mark.parametrize("text, kind", tries())
def test_the_contract_holds(text, kind):
    checks = check_method(text, subject(kind))
    assert not [f"{c.name}: {c.note}" for c in checks if not c.passed]
    refused = [c.note for c in checks if c.name == "refused"]
    assert refused == ([REFUSED[text, kind]] if (text, kind) in REFUSED else [])
    assert len(checks) == (2 if refused else 13)


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_for_method_authors_keeps_the_contract(kind):
    load_plugin(TESTS / "example_step_reuse.py")
    assert not failed("step_reuse", kind)
    assert not failed("int8+step_reuse(every=3)", kind)


def declare(**parts):
    """A throw-away method of one's own making; returns its name."""
    METHODS.pop("broken_test", None)
    method("broken_test", family="test", stage=Stage.OPERATOR)(
        type("Broken", (), parts | {"__module__": __name__})
    )
    return "broken_test"


def test_a_method_that_does_nothing_does_not_engage():
    assert failed(
        declare(attach=lambda self, pipeline, at: at.count("looked", idle=True)), "flux"
    ) == {"it engages"}


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


def reuse_every_second_output(declare_store):
    """An `attach` that returns every second output of the transformer twice."""

    def attach(self: Any, pipeline: Any, at: Any) -> None:
        last: dict[int, Any] = {}
        declare_store(at, last)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if at.now.step % 2 and at.now.branch in last:
                at.count("reused")
                return last[at.now.branch]
            last[at.now.branch] = run(*args, **kwargs)
            return last[at.now.branch]

        run = at.patch(pipeline.transformer, "forward", forward)

    return attach


KEPT = "nothing it keeps outlives the generation"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("declare_store", "clauses"),
    [
        (lambda at, last: None, {KEPT}),
        (lambda at, last: at.on_start(last.clear), {KEPT}),
        (lambda at, last: at.keeps(last), set()),
        (lambda at, last: (at.on_start(last.clear), at.holds(last.values)), set()),
    ],
)
def test_a_store_that_is_not_declared_is_found(kind, declare_store, clauses):
    name = declare(attach=reuse_every_second_output(declare_store))
    assert failed(name, kind) == clauses
    if clauses:
        assert "declare what keeps them with at.keeps" in notes(name, kind)[KEPT]


DIAL = "its dial can be turned"


@pytest.mark.parametrize(
    ("dial", "knobs", "complaint"),
    [
        (("every", 1, 4), {"every": int}, ""),
        (("every", 1, 4), {"every": int | None}, ""),
        (("every", 0, 4), {"every": int}, "broken_test: every must be at least 1, not 0"),
        (("evry", 1, 4), {"every": int}, "the dial of broken_test is 'evry', which is none of"),
        (("every", 1, 4), {"every": str}, "broken_test: every must be str, not 1"),
        (("every", 1, 5), {"every": float}, "ZeroDivisionError"),
    ],
)
def test_a_dial_is_turned_from_end_to_end(dial, knobs, complaint):
    def attach(self: Any, pipeline: Any, at: Any) -> None:
        at.count("turned")
        at.notes["step"] = 1 / (5 - float(self.every or 1))

    parts = {"every": knob("2" if knobs["every"] is str else 2, low=1), "__annotations__": knobs}
    failures = notes(declare(attach=attach, dial=dial, **parts), "dit")
    assert failures.keys() == ({DIAL} if complaint else set())
    assert complaint in failures.get(DIAL, "")


def test_mixing_the_samples_of_a_batch_is_found():
    def attach(self: Any, pipeline: Any, at: Any) -> None:
        def forward(*args: Any, **kwargs: Any) -> Any:
            at.count("mixed")
            return (
                run(*args, **kwargs)[0].mean(0, keepdim=True).expand_as(kwargs["hidden_states"]),
            )

        run = at.patch(pipeline.transformer, "forward", forward)

    assert failed(declare(attach=attach), "flux") == {"a batch of two is two of one"}


@pytest.mark.parametrize(
    ("mixed", "complaints"), [(0.0, set()), (0.2, {"a batch of two is two of one"})]
)
def test_rounding_enlarges_last_bits_and_hides_no_mixing(mixed, complaints):
    """What rounds is compared with itself where the last bits of its input change."""

    def attach(self: Any, pipeline: Any, at: Any) -> None:
        def forward(*args: Any, **kwargs: Any) -> Any:
            at.count("rounded")
            output = (run(*args, **kwargs)[0] * 2**10).round() / 2**10
            return (output + mixed * (output.mean(0, keepdim=True) - output),)

        run = at.patch(pipeline.transformer, "forward", forward)

    assert failed(declare(attach=attach), "flux") == complaints


def test_an_off_switch_that_does_not_is_found():
    class Parts:
        off: ClassVar[dict[str, object]] = {}

        def attach(self, pipeline: Any, at: Any) -> None:
            at.reroute(at.sublayers[-1], lambda run, hidden: (at.count("scaled"), run() * 0.5)[1])

    parts = {
        key: value
        for key, value in vars(Parts).items()
        if key in ("attach", "off", "__annotations__")
    }
    parts["off"] = {"strength": 0.0}
    parts["__annotations__"] = {"strength": float}
    parts["strength"] = 1.0
    assert failed(declare(**parts), "dit") == {"knobs at off change nothing"}


def notes(text, kind):
    return {
        check.name: check.note for check in check_method(text, subject(kind)) if not check.passed
    }


def test_an_error_inside_the_loop_is_a_failed_clause_and_the_others_are_still_tried():
    def attach(self: Any, pipeline: Any, at: Any) -> None:
        def forward(*args: Any, **kwargs: Any) -> Any:
            at.count("looked_up")
            return run(*args, **kwargs) if at.now.step < 2 else [][at.now.step]

        run = at.patch(pipeline.transformer, "forward", forward)

    name = declare(attach=attach)
    found = notes(name, "flux")
    assert list(found) == ["it runs"]
    assert found["it runs"].startswith(
        "IndexError: list index out of range (test_method_contract.py, line "
    )
    passed = {check.name for check in check_method(name, subject("flux")) if check.passed}
    assert {"detached, the samples are bit-identical", "detached, nothing stays behind"} <= passed


def test_an_error_while_attaching_is_a_failed_clause_and_is_taken_back():
    def attach(self: Any, pipeline: Any, at: Any) -> None:
        at.patch(pipeline.transformer, "forward", None)
        raise KeyError("no such layer")

    assert notes(declare(attach=attach), "dit").keys() == {"it runs"}


def test_an_error_in_one_clause_alone_is_that_clauses():
    def attach(self: Any, pipeline: Any, at: Any) -> None:
        at.on_start(lambda: 1 / (2 - at.now.samples))
        at.count("began")

    found = notes(declare(attach=attach), "wan")
    assert found["a batch of two is two of one"].startswith(
        "ZeroDivisionError: division by zero (test_method_contract.py"
    )
    assert len(found) == 1


def test_an_error_of_what_a_method_says_of_itself_names_the_clause():
    def broken(self: Any, *_: Any) -> Any:
        raise RuntimeError("asked")

    harmless = {"attach": lambda self, pipeline, at: at.count("attached")}
    assert (
        "RuntimeError: asked"
        in notes(declare(**harmless, check=broken), "dit")["it says what it can run on"]
    )
    assert (
        "RuntimeError: asked"
        in notes(declare(**harmless, recipe=broken), "dit")["it says what it can run on"]
    )
    assert "RuntimeError: asked" in notes(declare(**harmless, adapt=broken), "dit")["it runs"]


@pytest.mark.parametrize(
    ("off", "told"),
    [
        ({"evry": 1}, "broken_test has no knob 'evry'; did you mean every?"),
        ({"every": "never"}, "broken_test: every must be int, not 'never'"),
        ({"every": 2}, "broken_test(every=2) says it did something"),
        ("every", "knobs at off change nothing"),
    ],
)
def test_a_wrong_off_is_a_failed_clause(off, told):
    def attach(self: Any, pipeline: Any, at: Any) -> None:
        at.count("worked")

    found = notes(
        declare(attach=attach, off=off, every=1, __annotations__={"every": int}), "pixart"
    )
    assert list(found) == ["knobs at off change nothing"]
    assert told in found["knobs at off change nothing"] or off == "every"


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"stage": "schedule"}, "stage='schedule' is none of Stage.WEIGHTS, Stage.PRECISION"),
        ({"claims": "guidance"}, "claims is a set, {'guidance'}, and not the text 'guidance'"),
        ({"needs": "cuda"}, "needs is a set"),
        ({"needs": {"gpu"}}, "needs 'gpu', which is not something that can be checked"),
    ],
)
def test_a_wrong_fact_is_refused_where_the_method_is_declared(facts, told):
    with pytest.raises(ValueError, match="method broken_test") as error:
        method("broken_test", **({"family": "test", "stage": Stage.OPERATOR} | facts))
    assert told in str(error.value)


def test_a_shortcut_count_that_misses_what_a_method_does_is_found():
    """Attention replaced where no module shows it, from the second half on: what is counted from
    one call is not what is run."""

    def attach(self: Any, pipeline: Any, at: Any) -> None:
        def attention(query: Any, *args: Any, **kwargs: Any) -> Any:
            at.count("seen")
            if at.now.step >= at.now.num_steps / 2:
                run(query, *args, **kwargs)
            return run(query, *args, **kwargs)

        run = at.patch(torch.nn.functional, "scaled_dot_product_attention", attention)

    METHODS.pop("broken_test", None)
    parts = {"attach": attach, "__module__": __name__}
    method("broken_test", family="test", stage=Stage.OPERATOR, claims={"guidance"})(
        type("Broken", (), parts)
    )
    assert "the shortcut count equals the full count" in failed("broken_test", "flux")
    METHODS.pop("broken_test", None)
    method("broken_test", family="test", stage=Stage.OPERATOR, claims={"attention-operator"})(
        type("Broken", (), parts)
    )
    assert not failed("broken_test", "flux")


@pytest.mark.parametrize("kind", ["dit", "flux"])
def test_an_error_is_raised_where_a_cache_leaves_the_first_block_one_run(kind):
    """Two steps of which the second reuses the first one's output."""

    def attach(self: Any, pipeline: Any, at: Any) -> None:
        outputs: dict[int, Any] = {}
        at.keeps(outputs)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if at.now.step:
                at.count("reused")
                return outputs[at.now.branch]
            outputs[at.now.branch] = run(*args, **kwargs)
            return outputs[at.now.branch]

        run = at.patch(pipeline.transformer, "forward", forward)

    text = f"fewer_steps(steps=2)+{declare(attach=attach)}"
    assert not [c for c in check_method(text, tiny(kind)) if not c.passed]


def test_an_error_that_a_method_swallows_at_its_only_run_fails_the_clause():
    def attach(self: Any, pipeline: Any, at: Any) -> None:
        def forward(*args: Any, **kwargs: Any) -> Any:
            at.count("runs")
            if at.now.step:
                return (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0],)
            try:
                return run(*args, **kwargs)
            except Exception:
                return (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0],)

        run = at.patch(pipeline.transformer, "forward", forward)

    checks = check_method(declare(attach=attach), tiny("pixart", steps=2))
    (failed_clause,) = [c for c in checks if c.name == "an error inside a block spoils nothing"]
    assert failed_clause.note == "the error did not come through" and not failed_clause.passed


def test_checking_models_gives_a_row_for_every_clause(monkeypatch):
    from ditbench.models import loading
    from ditbench.models import table as models

    monkeypatch.setattr(loading, "load", lambda model, **_: tiny(model.family).pipeline)
    rows = check_models(Stack.parse("firstblock"), models.select("pixart-tiny"))
    assert [(row["model"], row["result"]) for row in rows] == [
        ("pixart-tiny", "passed"),
        ("pixart-tiny", "refused"),
    ]
    rows = check_models(
        Stack.parse(declare(attach=lambda self, pipeline, at: None)), models.select("pixart-tiny")
    )
    assert {row["clause"]: row["result"] for row in rows if row["result"] != "passed"} == {
        "it engages": "failed"
    }
    assert len(rows) == 13


def test_what_breaks_down_is_a_row_with_model_and_clause_and_never_a_traceback(
    capsys, tmp_path, monkeypatch
):
    from ditbench.cli.commands import main
    from ditbench.models import table as models

    (tmp_path / "bad.py").write_text(
        "from ditbench.method import Stage, method\n\n\n"
        "@method('breaks_down', family='test', stage=Stage.SCHEDULE)\n"
        "class BreaksDown:\n    def attach(self, pipeline, at):\n        at.sublayers[1000]\n"
    )
    monkeypatch.setattr(
        "ditbench.models.loading.load", lambda model, **_: tiny(model.family, steps=2).pipeline
    )
    code = main(
        [
            "check",
            "breaks_down",
            "--plugin",
            str(tmp_path / "bad.py"),
            "--models",
            "dit-tiny,flux-tiny",
            "--json",
        ]
    )
    out, err = capsys.readouterr()
    rows = [row for row in json.loads(out.splitlines()[-1]) if row["result"] == "failed"]
    assert code == 1 and "Traceback" not in out + err
    assert [(row["model"], row["clause"]) for row in rows] == [
        ("dit-tiny", "it runs"),
        ("flux-tiny", "it runs"),
    ]
    assert {row["note"] for row in rows} == {"IndexError: list index out of range (bad.py, line 7)"}

    def broken(*_: Any) -> Any:
        raise TypeError("a pipeline of another sort")

    monkeypatch.setattr("ditbench.testing.trained.check_method", broken)
    (row,) = check_models(Stack.parse("fora"), models.select("dit-tiny"))
    assert (row["clause"], row["result"]) == (
        "the model itself runs",
        "failed",
    ) and "another sort" in row["note"]
    METHODS.pop("breaks_down")
