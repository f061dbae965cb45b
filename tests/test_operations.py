"""Where the time of the loop goes, by kind of operation."""

import json

import pytest
import torch
from command import command
from report_runs import edit, write_run

from ditbench import reports
from ditbench.profiling import operations
from ditbench.profiling.operations import KINDS, kind_of, profile_loop
from ditbench.reports.figures import bars, speed_memory
from ditbench.runner.spec import Spec, from_table
from ditbench.testing import tiny


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("products", "aten::mm aten::addmm aten::bmm aten::baddbmm aten::_int_mm aten::_scaled_mm"),
        ("products", "mkldnn::_linear_pointwise aten::_weight_int4pack_mm aten::mkldnn_linear"),
        ("attention", "aten::_scaled_dot_product_flash_attention_for_cpu aten::_flash_attention_forward"),
        ("attention", "aten::_scaled_dot_product_efficient_attention"),
        ("convolutions", "aten::mkldnn_convolution aten::_slow_conv2d_forward aten::cudnn_convolution"),
        ("elementwise", "aten::native_layer_norm aten::mul aten::gelu aten::silu aten::add aten::_softmax"),
        ("copies", "aten::copy_ aten::cat aten::gather aten::scatter_ aten::index_select aten::index"),
        ("host", "aten::linear aten::view aten::as_strided aten::empty aten::scaled_dot_product_attention"),
        ("host", "ProfilerStep* cudaLaunchKernel aten::conv2d"),
    ],
)  # fmt: skip
def test_operations_have_kinds(kind, names):
    assert {kind_of(name) for name in names.split()} == {kind}


@pytest.mark.parametrize("family", ["dit", "flux", "wan"])
def test_the_kinds_add_up_to_the_loop_and_nothing_is_left(family):
    tried = tiny(family, steps=4)
    pipe = tried.pipeline
    hooks, own = dict(pipe.transformer._forward_pre_hooks), dict(vars(pipe.vae))
    spent = profile_loop(pipe, lambda: tried.generate(tried.sampling, [0]), "cpu")
    assert set(spent) == {"wall_s", *(f"{kind}_s" for kind in KINDS)}
    assert sum(spent[f"{kind}_s"] for kind in KINDS) == pytest.approx(spent["wall_s"])
    assert spent["wall_s"] > 0
    assert min(spent[f"{kind}_s"] for kind in ("products", "attention", "elementwise")) > 0
    assert pipe.transformer._forward_pre_hooks == hooks and vars(pipe.vae).keys() == own.keys()


def test_the_loop_is_between_the_first_transformer_run_and_the_decoder(monkeypatch):
    """By a clock that is made up; what no operation took is the host's."""
    tried = tiny("dit", steps=4)
    pipe, events, readings = tried.pipeline, [], iter((100.0, 110.0))
    decode = pipe.vae.decode

    def clock():
        events.append("clock")
        return next(readings)

    def decoding(*args, **kwargs):
        events.append("decoder")
        return decode(*args, **kwargs)

    hook = pipe.transformer.register_forward_hook(lambda *_: events.append("transformer"))
    monkeypatch.setattr(operations, "now", clock)
    pipe.vae.decode = decoding
    arguments = tried.arguments(tried.sampling, [0]) | {"output_type": "np"}
    with torch.no_grad():
        spent = profile_loop(pipe, lambda: pipe(**arguments), "cpu")
    hook.remove()
    assert events == ["clock", *["transformer"] * 4, "clock", "decoder"]
    assert spent["wall_s"] == 10.0
    assert spent["host_s"] == pytest.approx(
        10.0 - sum(spent[f"{kind}_s"] for kind in KINDS if kind != "host")
    )
    assert pipe.vae.decode is decoding  # which was there before


def test_an_error_in_the_call_ends_the_profile():
    tried = tiny("dit", steps=4)

    def failing():
        tried.generate(tried.sampling, [0])
        raise RuntimeError("over")

    with pytest.raises(RuntimeError, match="over"):
        profile_loop(tried.pipeline, failing, "cpu")
    assert profile_loop(tried.pipeline, lambda: tried.generate(tried.sampling, [0]), "cpu")[
        "wall_s"
    ]


def test_a_run_profiles_where_it_is_asked_to_and_its_samples_are_the_same(tmp_path):
    words = [
        "run",
        "--models",
        "dit-tiny",
        "--methods",
        "fora",
        "--steps",
        "4",
        "--num-samples",
        "2",
    ]
    words += ["--rounds", "1", "--batch-size", "2"]
    for flag, out in (("", "plain"), ("--profile", "profiled")):
        done = command(*words, *filter(None, [flag]), "--out", tmp_path / out)
        assert done.returncode == 0, done.stderr
    records = {
        out: [
            json.loads(p.read_text()) for p in sorted((tmp_path / out).glob("cells/*/record.json"))
        ]
        for out in ("plain", "profiled")
    }
    for plain, profiled in zip(records["plain"], records["profiled"], strict=True):
        assert plain["key"] == profiled["key"] and not plain["operations"]
        assert profiled["operations"]["samples"] == 2 and profiled["operations"]["wall_s"] > 0
        assert plain["sample_files"] == profiled["sample_files"]
        assert plain["counters"] == profiled["counters"]


def test_the_report_draws_it_where_it_was_profiled(tmp_path):
    run = write_run(tmp_path / "run")
    spent = {f"{kind}_s": 0.01 * (i + 1) for i, kind in enumerate(KINDS)}
    edit(run, lambda r: r.update(operations={**spent, "wall_s": 0.21, "samples": 4}), stack="none")
    report = reports.build([run])
    assert (report.out / "plots" / "dit-tiny-operations.png").is_file()
    assert "Where the time of the loop goes" in report.page.read_text()
    assert len(speed_memory.OF_TIME) == len(KINDS)


def test_stacks_of_one_plane_keep_apart_when_shortened():
    stacks = [
        f"diffsparse(keep={keep}, allocator='uniform')+fewer_steps(steps={k})"
        for keep in (0.3, 0.5) for k in (2, 4)
    ]  # fmt: skip
    short = [bars._short(stack) for stack in stacks]
    assert len({*short}) == len(stacks) and max(map(len, short)) <= 44


def test_profile_is_true_or_false():
    assert from_table({"profile": True}, Spec()).profile
    with pytest.raises(ValueError, match="profile: expected true or false, got 'yes'"):
        from_table({"profile": "yes"}, Spec())
    with pytest.raises(ValueError, match="rounds: expected a whole number, got True"):
        from_table({"rounds": True}, Spec())
