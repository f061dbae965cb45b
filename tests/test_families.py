"""Families of transformers: ours are complete, and a sixth comes from one file outside the
package."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from ditbench import declarations
from ditbench.cli import main
from ditbench.method.dependencies import depends_on
from ditbench.method.plugins import load_plugin
from ditbench.method.stack import Stack
from ditbench.metrics import Metric, metrics, register_metric
from ditbench.models import models, register_family, register_model, select
from ditbench.models.family import Family, families, family_named
from ditbench.models.table import Model
from ditbench.records.record import read_run
from ditbench.testing import KINDS

TESTS = Path(__file__).resolve().parent
PLUGIN = TESTS / "example_family.py"


@pytest.fixture
def ltx():
    """The sixth family, and afterwards none of it."""
    assert load_plugin(PLUGIN) == ["ltx", "ltx-small"]
    yield select("ltx-small")[0]
    forget()


def forget():
    for registry in declarations.Registry.ALL:
        for name in list(registry._declared):
            registry.forget(registry.module_of(name))
    for name in [name for name in sys.modules if name.startswith("ditbench_plugin_")]:
        del sys.modules[name]


def test_ours_are_listed_in_order_and_each_has_a_model_and_a_pipeline_to_try_methods_on():
    assert tuple(families()) == KINDS == ("dit", "pixart", "flux", "wan", "sd3")
    assert {model.family for model in models().values()} == set(families())
    assert [family.guidance for family in families().values()] == [
        "batched, conditional first",
        "batched, conditional last",
        "embedded",
        "two calls",
        "batched, conditional last",
    ]


def test_families_and_plugins_with_them_are_read_without_torch():
    code = (
        "import sys, run_bench\n"
        "from ditbench.method.plugins import load_plugin\n"
        "from ditbench.models import models\nfrom ditbench.models.family import families\n"
        f"load_plugin({str(PLUGIN)!r})\n"
        "assert 'ltx' in families() and 'ltx-small' in models()\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_flops_of_a_sixth_family_are_counted_as_its_sizes_say(ltx, capsys):
    """By hand, a pass: two blocks of width 32 on 2 x 2 x 3 tokens and 12 of the text."""
    command = ["count", "--plugin", str(PLUGIN), "--models", "ltx-small", "--json"]
    assert main([*command, "--methods", "fora(interval=2)"]) == 0
    plain, fora = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert plain["status"] == fora["status"] == "ok" and plain["passes"] == 2 * plain["forwards"]
    d, n, text = 32, 12, 12
    attention = 2 * 2 * n * (n + text) * d
    assert plain["macs_attention"] == 2 * 4 * attention
    blocks = 2 * (4 * n * d**2 + 2 * n * d**2 + 2 * text * d**2 + 8 * n * d**2)
    assert 0 < plain["macs_linear"] - 2 * 4 * blocks < 0.5 * plain["macs_linear"]
    assert plain["flops"] - fora["flops"] == 2 * 2 * 2 * (blocks + attention)


def test_a_method_runs_on_a_sixth_family_and_what_it_cannot_do_is_said(ltx, tmp_path, capsys):
    methods = "fora(interval=2),toca,taylorseer,taylorseer(interval=2,order=1,first=1),pab"
    methods += ",diffsparse(allocator='uniform'),teacache(threshold=9.0)"
    command = ["run", "--plugin", str(PLUGIN), "--models", "ltx-small", "--methods", methods]
    command += ["--weights", "random", "--num-samples", "4", "--rounds", "1"]
    assert main([*command, "--out", str(tmp_path / "run")]) in (0, 3)
    capsys.readouterr()
    records = {r["stack"]: r for r in read_run(tmp_path / "run").records}
    states = {stack: r["status"] for stack, r in records.items()}
    assert states["none"] == states["fora(interval=2)"] == "ok", records
    assert records["fora(interval=2)"]["family"] == "ltx"
    assert records["fora(interval=2)"]["counters"]["fora.reused"] > 0
    refused = {stack: r["reason"] for stack, r in records.items() if r["status"] == "refused"}
    assert refused.keys() == {"toca", "taylorseer", "diffsparse(allocator='uniform')"}, states
    assert all("has no settings for the family ltx" in reason for reason in refused.values())
    assert {s for s in states.values()} == {"ok", "refused"}, states


def test_a_cell_depends_on_the_file_its_model_and_family_are_from(ltx):
    stack = Stack.parse("none")
    sources = depends_on(ltx, stack, (), weights="random", prompts="")["sources"]
    assert sources.keys() == {"model ltx-small", "family ltx"}
    ours = depends_on(select("dit-xl-2-256")[0], stack, (), weights="random", prompts="")
    assert "sources" not in ours


def test_one_plugin_may_declare_a_metric_and_a_broken_one_names_file_and_line(tmp_path):
    (tmp_path / "metric.py").write_text(
        "import sys\n"
        "from ditbench.metrics import Metric, register_metric\n"
        "refuse = lambda cell, metric: ''\n"
        "fingerprint = lambda cell, metric: '1'\n"
        "extract = lambda cell, metric: {metric.name: cell.samples.mean((1, 2, 3))}\n"
        "register_metric(Metric(name='mine.bright', family='mine', better='neither', unit='',\n"
        "    doc='Mean.', needs='', asked=True), sys.modules[__name__])\n"
    )
    (tmp_path / "twice.py").write_text(
        "from ditbench.models import Model, register_model\n\n"
        "register_model(Model(name='dit-tiny', family='dit', group='full', steps=1, guidance=1.0,\n"
        "    height=8, width=8))\n"
    )
    (tmp_path / "spelled.py").write_text("x = 1\ny = (\n")
    try:
        assert load_plugin(tmp_path / "metric.py") == ["mine.bright"]
        assert metrics()["mine.bright"].module.extract(
            SimpleNamespace(samples=np.ones((2, 4, 4, 3))), metrics()["mine.bright"]
        )["mine.bright"].tolist() == [1, 1]
        with pytest.raises(
            ValueError,
            match=r"twice.py, line 3, failed: ValueError: model 'dit-tiny' is already there, from "
            "ditbench; choose another name",
        ):
            load_plugin(tmp_path / "twice.py")
        with pytest.raises(ValueError, match=r"spelled.py, line 2, failed: SyntaxError"):
            load_plugin(tmp_path / "spelled.py")
    finally:
        forget()
    assert "mine.bright" not in metrics()


def test_a_declaration_that_cannot_be_used_is_refused():
    row = dict(family="mine", better="neither", unit="", doc="", needs="")
    with pytest.raises(ValueError, match="its module has no function 'refuse'"):
        register_metric(Metric(name="mine.bright", **row), ModuleType("mine"))
    with pytest.raises(ValueError, match="metric family 'clip' is ditbench's"):
        register_metric(Metric(name="mine.b", **row | {"family": "clip"}), ModuleType("mine"))
    facts = dict(family="dit", group="full", steps=1, guidance=1.0, height=8, width=8)
    with pytest.raises(ValueError, match="'tiny' is a group of models"):
        register_model(Model(name="tiny", **facts))
    for name in ("", "a b", "x,y", "../x", "x/y"):
        with pytest.raises(ValueError, match=f"'{name}' is no name for a model: letters"):
            register_model(Model(name=name, **facts))
    with pytest.raises(ValueError, match="transformer DiTTransformer2DModel is of the family dit"):
        register_family(
            Family(
                name="other", title="", pipeline="", transformer="DiTTransformer2DModel", stacks=(),
                guidance="embedded", meta_call=lambda *_: {},
            )
        )  # fmt: skip
    with pytest.raises(ValueError, match="no family 'fluks'; did you mean flux"):
        family_named("fluks")


def test_families_of_installed_packages_are_found_by_their_entry_point(monkeypatch):
    made = Family(
        name="elsewhere", title="", pipeline="P", transformer="T", stacks=(), guidance="embedded",
        meta_call=lambda *_: {},
    )  # fmt: skip

    def entries(group):
        entry = SimpleNamespace(name="elsewhere", value="package.module:FAMILY", load=lambda: made)
        return [entry] if group == "ditbench.families" else []

    from ditbench.models.family import REGISTRY

    monkeypatch.setattr("importlib.metadata.entry_points", entries)
    monkeypatch.setattr(REGISTRY, "_installed", False)
    try:
        assert families()["elsewhere"] is made
    finally:
        forget()
    broken = SimpleNamespace(name="gone", value="gone:X", load=lambda: __import__("gone_package"))
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [broken])
    monkeypatch.setattr(REGISTRY, "_installed", False)
    with pytest.raises(ValueError, match=r"entry point 'gone' of ditbench.families \(gone:X\)"):
        families()
