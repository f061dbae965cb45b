"""Whatever a result depends on is in its key: after an edit the same command redoes the cell, or
refuses the artefact by name."""

import json
import os
import shlex
import shutil
from dataclasses import replace

import pytest

from ditbench import ZOO
from ditbench.cli.commands import COMMANDS
from ditbench.cli.parser import parsers
from ditbench.method import METHODS, artifact
from ditbench.method.needs import needs_of
from ditbench.method.stack import Stack
from ditbench.models import table as models
from ditbench.models import weights
from ditbench.models.requests import fingerprint, make_requests
from ditbench.models.table import select
from ditbench.records.files import read_json, write_json
from ditbench.records.record import SCHEMA
from ditbench.records.run_folder import RunFolder
from ditbench.runner import plan, resume
from ditbench.runner.plan import missing_device
from ditbench.runner.spec import Spec
from ditbench.runner.worker import Job, run_round
from ditbench.testing import tiny

PLUGIN = """
from ditbench.method import Stage, method

@method("edited_test", family="test", stage=Stage.SCHEDULE, claims={"scheduler"})
class Edited:
    factor = 2
    def recipe(self):
        return RECIPE
    def prepare(self, folder, room):
        (folder / "table.txt").write_text("x")
        return {}
    def attach(self, pipeline, at):
        at.count("calls", self.factor)
"""


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    METHODS.pop("edited_test", None)  # each test has a file of its own that declares it


def keys(*methods, model="dit-tiny", **settings):
    cells = plan.plan(Spec(models=(model,), methods=methods, num_samples=4, **settings))
    assert not any(cell.refusal for cell in cells), [cell.refusal for cell in cells]
    return {str(cell.stack): cell.key for cell in cells}


def edit_json(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"edited": 1}))


@pytest.mark.parametrize("name", [model.name for model in select("tiny")])
def test_every_json_file_of_a_weights_folder_is_in_the_key_and_its_card_is_not(tmp_path, name):
    shutil.copytree(ZOO / name, tmp_path / name)
    (tmp_path / name / "tokenizer").mkdir(exist_ok=True)
    (tmp_path / name / "tokenizer" / "spiece.model").write_bytes(b"pieces")
    seen = {keys("fora", model=name, weights=name)["fora"]}
    (tmp_path / name / "README.md").write_text("another card")
    assert keys("fora", model=name, weights=name)["fora"] in seen
    files = sorted((tmp_path / name).rglob("*.json"))
    assert {"model_index.json", "scheduler_config.json", "config.json"} <= {
        path.name for path in files
    }
    for i, path in enumerate(files, start=2):
        edit_json(path)
        seen.add(keys("fora", model=name, weights=name)["fora"])
        assert len(seen) == i, path
    (tmp_path / name / "tokenizer" / "spiece.model").write_bytes(b"Pieces")
    assert keys("fora", model=name, weights=name)["fora"] not in seen


def test_a_key_is_the_same_wherever_the_package_lies(tmp_path, monkeypatch):
    before = (
        weights.weights_sha256(models.models()["flux-tiny"], "random"),
        keys("fora", model="flux-tiny"),
    )
    shutil.copytree(ZOO / "flux-tiny", tmp_path / "zoo" / "flux-tiny")
    monkeypatch.setattr("ditbench.models.weights.ZOO", tmp_path / "zoo")
    monkeypatch.setattr("ditbench.models.architecture.ZOO", tmp_path / "zoo")
    assert before == (
        weights.weights_sha256(models.models()["flux-tiny"], "random"),
        keys("fora", model="flux-tiny"),
    )


def test_the_text_of_a_prompt_file_is_in_the_key_of_the_models_that_read_it(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_machine_refusal", lambda *_: "")  # full size, and no GPU
    (tmp_path / "p.txt").write_text("a red kite\na blue boat\n")
    first = keys(model="flux-1-dev", weights="random", prompts="p.txt")["none"]
    (tmp_path / "p.txt").write_text("a red kite\na blue goat\n")
    second = keys(model="flux-1-dev", weights="random", prompts="p.txt")["none"]
    (tmp_path / "p.txt").write_text("a red kite\na blue boat\n")
    assert (
        first != second
        and keys(model="flux-1-dev", weights="random", prompts="p.txt")["none"] == first
    )


def test_so_is_that_of_the_prompts_that_come_along(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_machine_refusal", lambda *_: "")  # full size, and no GPU
    before = keys(model="flux-1-dev", weights="random")
    scenes = keys(model="pixart-tiny")
    monkeypatch.setattr("ditbench.models.prompts.datasets", lambda: tmp_path)
    (tmp_path / "prompts.txt").write_text("other\n")
    assert (
        keys(model="flux-1-dev", weights="random") != before and keys(model="pixart-tiny") == scenes
    )


def test_the_text_of_a_plugin_is_in_the_keys_of_its_methods_and_no_others(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.replace("RECIPE", "None"))
    stat = path.stat()
    first = keys("edited_test", "fora", plugins=(str(path),))
    path.write_text(PLUGIN.replace("RECIPE", "None").replace("factor = 2", "factor = 3"))
    # as long, and in the same second: bytecode would be old
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = keys("edited_test", "fora", plugins=(str(path),))
    assert first["edited_test"] != second["edited_test"]
    assert (first["none"], first["fora"]) == (second["none"], second["fora"])
    assert Stack.parse("edited_test").methods[0].factor == 3


def make(text, model="dit-tiny", weights="bundled", content="x", plugins=()):
    """An artefact of nothing but `content` for the topmost method of a stack."""
    need = needs_of(models.models()[model], Stack.parse(text), weights, plugins)[-1]

    def write(folder):
        (folder / "table.txt").write_text(content)
        return {}

    return artifact.create(need, write)


@pytest.fixture
def nothing_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "BUNDLED", tmp_path / "bundled")


def refusals(*methods, model="dit-tiny", **settings):
    cells = plan.plan(Spec(models=(model,), methods=methods, num_samples=4, **settings))
    return {str(cell.stack): cell.refusal for cell in cells}


def test_a_schedule_belongs_to_the_very_student_below_it(nothing_shipped):
    make("distill")
    make("distill+diffsparse")
    make("diffsparse")
    before = keys(
        "distill", "distill+diffsparse", "diffsparse", "distill+diffsparse(tuned='alone')"
    )
    make("distill", content="another student under the same key")
    told = refusals(
        "distill", "distill+diffsparse", "diffsparse", "distill+diffsparse(tuned='alone')"
    )
    assert told["distill+diffsparse"] == (
        "diffsparse has not been prepared for dit-tiny with 4 steps under distill; "
        "python run_bench.py prepare 'distill+diffsparse' --models dit-tiny does it"
    )
    assert (
        not told["distill"]
        and not told["diffsparse"]
        and not told["distill+diffsparse(tuned='alone')"]
    )
    make("distill+diffsparse")
    after = keys("distill", "distill+diffsparse", "diffsparse", "distill+diffsparse(tuned='alone')")
    assert [stack for stack in before if before[stack] == after[stack]] == ["none", "diffsparse"]


def test_an_artefact_made_again_is_another_cell(nothing_shipped):
    make("teacache(saved=0.43)")
    before = keys("teacache(saved=0.43)")
    make("teacache(saved=0.43)", content="y")
    assert keys("teacache(saved=0.43)") != before


@pytest.mark.parametrize(
    "change", [{"guidance": 4.5}, {"height": 128}, {"text_tokens": 3}, {"steps": 10}]
)
def test_guidance_and_the_rest_of_the_sampling_are_in_the_keys_of_cells_and_artefacts(
    nothing_shipped, monkeypatch, change
):
    make("diffsparse")
    before = keys("diffsparse", "fora")
    table = models.models() | {"dit-tiny": replace(models.models()["dit-tiny"], **change)}
    monkeypatch.setattr(models, "models", lambda: table)
    assert (
        "python run_bench.py prepare 'diffsparse' --models dit-tiny does it"
        in refusals("diffsparse")["diffsparse"]
    )
    make("diffsparse")
    after = keys("diffsparse", "fora")
    assert all(before[stack] != after[stack] for stack in before)


def test_a_file_that_a_knob_below_names_is_in_the_key_of_the_artefact(tmp_path):
    at = tmp_path / "student"
    at.mkdir()
    for name in ("student.json", "student.safetensors"):
        (at / name).write_text("x")
    text = f"distill(student={str(at)!r})+diffsparse"
    make(text)
    keys(text)
    (at / "student.json").write_text("y")
    assert (
        "diffsparse has not been prepared for dit-tiny with 4 steps under distill(student="
        in refusals(text)[text]
    )


def test_an_edited_weights_folder_or_plugin_refuses_the_artefact_with_a_command_that_names_them(
    tmp_path,
):
    shutil.copytree(ZOO / "dit-tiny", tmp_path / "my weights")
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.replace("RECIPE", "{'version': 1}"))
    told = {"weights": "my weights", "plugins": (str(path),)}
    command = (
        f"prepare 'edited_test' --models dit-tiny --weights 'my weights' --plugin {path} does it"
    )
    for change in (
        lambda: None,
        lambda: edit_json(tmp_path / "my weights" / "scheduler" / "scheduler_config.json"),
        lambda: path.write_text(path.read_text().replace("factor = 2", "factor = 5")),
    ):
        change()
        assert refusals("edited_test", **told)["edited_test"].endswith(command)
        make("edited_test", **told)
        assert not refusals("edited_test", **told)["edited_test"]


@pytest.mark.parametrize("model", [model.name for model in select("tiny")])
def test_printed_prepare_commands_make_what_was_missing(nothing_shipped, tmp_path, model):
    shutil.copytree(ZOO / model, tmp_path / "folder of mine")
    (tmp_path / "mine.py").write_text(PLUGIN.replace("RECIPE", "{'version': 1}"))
    stacks = [
        "diffsparse", "diffsparse(keep=0.57)", "distill(steps=2, objective='lcm')",
        "distill+diffsparse", "int8+teacache(saved=0.3)",
        "distill+diffsparse(tuned='alone')", "fewer_steps(steps=9)+edited_test", "l2c(price=1e-05)",
        "magcache", "edited_test",
    ]  # fmt: skip
    for settings in ({}, {"weights": "folder of mine"}):
        spec = Spec(models=(model,), methods=tuple(stacks), plugins=("mine.py",), **settings)
        for cell in plan.plan(spec)[1:]:
            while sentence := cell.refusal:
                if "works on flux and wan" in sentence:
                    assert str(cell.stack) == "magcache" and model in ("dit-tiny", "pixart-tiny")
                    break
                words = shlex.split(sentence.partition("; ")[2].removesuffix(" does it"))
                assert words[:3] == ["python", "run_bench.py", "prepare"]
                args = parsers({name: None for name in COMMANDS})[0].parse_args(words[2:])
                needs = needs_of(
                    select(args.models)[0], Stack.parse(args.method), args.weights, args.plugin
                )
                for need in needs:
                    if artifact.find(need) is None:
                        made = make(need.stack, model, args.weights, plugins=args.plugin)
                        assert (
                            made.folder.name
                            == needs_of(select(model)[0], Stack.parse(need.stack), args.weights)[
                                -1
                            ].key
                        )
                (again,) = [c for c in plan.plan(spec) if c.stack == cell.stack]
                assert again.refusal != sentence
                cell = again


def test_what_cannot_be_prepared_is_said_without_a_command(nothing_shipped):
    told = refusals("distill(steps=20)", "diffsparse(keep=0.04)")
    assert told["distill(steps=20)"].endswith(
        "and cannot be: a student of 20 steps is no shorter than its teacher's 20"
    )
    assert (
        "and cannot be: keep=0.04 of 20 steps does not pay for the first step"
        in told["diffsparse(keep=0.04)"]
    )
    told = refusals("distill", model="flux-1-dev", weights="random")["distill"]
    assert "and cannot be: all weights are trained of" in told and "run_bench" not in told
    assert "distill(rank=32)" in told and "distill(checkpoint='hyper-flux')" in told


def test_what_a_full_size_model_lacks_is_refused_with_the_command_that_makes_it(nothing_shipped):
    settings = {"model": "flux-1-dev", "weights": "random", "device": "cuda", "dtype": "bfloat16"}
    assert refusals("diffsparse", **settings)["diffsparse"].endswith(
        "python run_bench.py prepare 'diffsparse' --models flux-1-dev --weights random "
        "--device cuda --dtype bfloat16 does it"
    )


@pytest.mark.parametrize(
    "text",
    [
        "l2c(price=0.5)", "distill(steps=2, objective='lcm')", "diffsparse(keep=0.3)", "teacache(saved=0.25)", "magcache(threshold=0.1)",
        "int8(down='smoothed')",
    ],
)  # fmt: skip
def test_a_method_attached_without_its_artefact_names_the_command_that_makes_this_one(text):
    kind = "flux" if text.startswith("magcache") else "dit"
    subject = tiny(kind)
    with (
        pytest.raises(ValueError) as error,
        Stack.parse(text).attached(subject.pipeline) as attached,
    ):
        attached.start(4, 2)
        subject.pipeline(**subject.arguments(Stack.parse(text).adapt(subject.sampling), [0]))
    words = shlex.split(str(error.value).partition("; ")[2].removesuffix(" does it"))
    assert words[:3] == ["python", "run_bench.py", "prepare"]
    assert Stack.parse(words[3]) == Stack.parse(text)


def finished(cell, folder, model_sha256, requests_sha256, rounds=1):
    """A cell as a finished run leaves it, without samples worth a look."""
    import numpy as np
    from safetensors.numpy import save_file

    at = folder / "cells" / cell.key
    at.mkdir(parents=True, exist_ok=True)
    facts = {
        "status": "ok",
        "reason": "",
        "model_sha256": model_sha256,
        "requests_sha256": requests_sha256,
    }
    empty = ("sampling", "environment", "memory", "flops", "counters")
    measured: dict[str, object] = {name: {} for name in empty} | {"timing": []}
    for i in range(rounds):
        write_json(at / f"round-{i}.json", facts | measured | {"round": i, "seconds": 1.0})
    record = measured | {
        "schema": SCHEMA, "key": cell.key, "model": cell.model.name, "family": "dit",
        "stack": str(cell.stack), "methods": [], "run": facts,
    }  # fmt: skip
    write_json(at / "record.json", record | {"status": "ok", "reason": ""})
    save_file(
        {"samples": np.zeros((cell.num_samples, 2, 2, 3), np.uint8)}, at / "samples.safetensors"
    )
    (folder / "scores").mkdir(exist_ok=True)
    (folder / "scores" / f"{cell.key}.safetensors").write_bytes(b"scores")


@pytest.fixture
def run(tmp_path):
    """Two cells of a run in one folder, finished: the baseline and a plug-in's."""
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.replace("RECIPE", "None"))
    spec = Spec(
        models=("dit-tiny",),
        methods=("edited_test",),
        plugins=("mine.py",),
        num_samples=4,
        out="run",
    )
    cells = plan.plan(spec)
    folder = resume.open_folder(cells, "command").path
    model = models.models()["dit-tiny"]
    told = weights.weights_sha256(model, "bundled"), fingerprint(make_requests(model, 4, 0))
    for cell in cells:
        finished(cell, folder, *told)
    return spec, folder, told[1]


def test_a_cell_of_an_edited_plugin_is_set_aside_and_the_baseline_stays(run, tmp_path):
    spec, folder, asked = run
    old = {str(cell.stack): cell.key for cell in plan.plan(spec)}
    (tmp_path / "mine.py").write_text(
        (tmp_path / "mine.py").read_text().replace("factor = 2", "factor = 4")
    )
    cells = plan.plan(spec)
    resume.open_folder(cells, "command")
    for cell in cells:
        resume.take_up(cell, RunFolder(folder), asked)
    new = {str(cell.stack): cell.key for cell in cells}
    assert new["none"] == old["none"] and (folder / "cells" / new["none"] / "record.json").exists()
    assert not (folder / "cells" / old["edited_test"]).exists()
    assert (folder / "superseded" / old["edited_test"] / "record.json").exists()
    assert not list((folder / "scores").glob(f"{old['edited_test']}*"))
    assert read_json(folder / "spec.json")["cells"] == [new["none"], new["edited_test"]]


def test_cells_of_a_run_without_labels_are_told_by_their_records(run, tmp_path):
    spec, folder, _ = run
    document = read_json(folder / "spec.json")
    del document["labels"]
    write_json(folder / "spec.json", document)
    (tmp_path / "mine.py").write_text(
        (tmp_path / "mine.py").read_text().replace("factor = 2", "factor = 4")
    )
    cells = plan.plan(spec)
    resume.open_folder(cells, "command")
    assert read_json(folder / "spec.json")["cells"] == [cell.key for cell in cells]


def test_a_model_that_is_asked_for_something_else_begins_anew(run):
    spec, folder, asked = run
    path = folder / "requests" / "dit-tiny.json"
    requests = read_json(path)
    requests[0]["seed"] += 1  # as another version of the stream of scenes would have it
    write_json(path, requests)
    (baseline,) = plan.plan(replace(spec, methods=()))
    resume.open_folder([baseline], "command")
    assert read_json(path)[0]["seed"] == requests[0]["seed"] - 1
    # the other one can no longer be paired
    assert read_json(folder / "spec.json")["cells"] == [baseline.key]
    at = folder / "cells" / baseline.key
    resume.take_up(baseline, RunFolder(folder), asked)
    assert (at / "record.json").exists()
    resume.take_up(baseline, RunFolder(folder), "of other requests")
    assert not (at / "record.json").exists() and not list(at.glob("round-*"))


def test_rounds_of_other_weights_are_not_put_together_with_those_to_come(run):
    spec, folder, asked = run
    cell = plan.plan(spec)[0]
    at = folder / "cells" / cell.key
    (at / "record.json").unlink()
    resume.take_up(cell, RunFolder(folder), asked)
    assert (at / "round-0.json").exists()
    write_json(
        at / "round-0.json", read_json(at / "round-0.json") | {"model_sha256": "other weights"}
    )
    resume.take_up(cell, RunFolder(folder), asked)
    assert not (at / "round-0.json").exists()


def test_a_machine_without_the_device_neither_renames_a_cell_nor_takes_its_record_away(
    run, monkeypatch
):
    spec, folder, asked = run
    before = plan.plan(spec)
    monkeypatch.setattr(plan, "missing_device", lambda device: f"no {device} here")
    cells = plan.plan(spec)
    assert [cell.key for cell in cells] == [cell.key for cell in before]
    assert {cell.refusal for cell in cells} == {"no cpu here"}
    resume.open_folder(cells, "command")
    resume.take_up(cells[1], RunFolder(folder), asked)
    assert read_json(folder / "cells" / cells[1].key / "record.json")["status"] == "ok"
    assert missing_device("cpu") == ""


def test_what_is_edited_while_the_run_is_going_fails_its_cell_by_name(tmp_path):
    spec = Spec(models=("dit-tiny",), methods=("fora",), num_samples=4)
    cell = plan.plan(spec)[1]
    folder = RunFolder(tmp_path)
    folder.requests("dit-tiny").parent.mkdir()
    write_json(folder.requests("dit-tiny"), [])
    told = cell.depends | {"weights": "before", "sources": {"fora": "before"}}
    job = Job(model="dit-tiny", stack="fora", round=0, key=cell.key, depends=told)
    run_round(spec, job, folder)
    found = read_json(folder.round(cell.key, 0))
    assert (found["status"], found["reason"]) == (
        "failed",
        "sources and weights changed after the run was planned; the same command runs it again"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stack", "models", "reason"),
    [
        (
            "fewer_steps(steps=2)+diffsparse(allocator='uniform')",
            "dit-tiny",
            "keep=0.46 of 2 steps",
        ),
        ("fewer_steps(steps=2)+diffsparse(allocator='random')", "wan-tiny", "keep=0.46 of 2 steps"),
        ("fewer_steps(steps=2)+diffsparse(allocator='transferred')", "flux-1-dev", "of 2 steps"),
        ("fewer_steps(steps=2)+diffsparse", "flux-1-dev", "of 2 steps"),
        ("distill(steps=1)+diffsparse(allocator='uniform')", "pixart-tiny", "keep=0.46 of 1 step "),
        ("distill(steps=1)+diffsparse", "pixart-tiny", "keep=0.46 of 1 steps"),
        ("diffsparse(allocator='uniform',keep=0.04)", "dit-tiny", "keep=0.04 of 20 steps"),
        ("diffsparse(keep=0.04,learned_at=0.46)", "dit-tiny", "keep=0.04 of 20 steps"),
    ],
)
def test_a_budget_that_does_not_pay_for_the_first_step_is_refused_in_the_plan(
    stack, models, reason
):
    weights = "bundled" if models.endswith("tiny") else "random"
    cell = plan.plan(Spec(models=(models,), methods=(stack,), weights=weights))[1]
    assert reason in cell.refusal and "does not pay for the first step, which is dense" in (
        cell.refusal
    )


@pytest.mark.parametrize(
    "stack",
    [
        "diffsparse(allocator='uniform',keep=0.05)",  # of 20 steps the first alone
        "fewer_steps(steps=3)+diffsparse(allocator='uniform')",
        "fewer_steps(steps=1)+diffsparse(keep=1.0)",
    ],
)
def test_a_budget_that_does_is_not(stack):
    assert not plan.plan(Spec(models=("dit-tiny",), methods=(stack,)))[1].refusal


def test_a_sampler_that_makes_more_steps_than_asked_for_is_not_judged_by_them():
    stack = "fewer_steps(steps=2)+diffsparse(allocator='uniform')"
    spec = Spec(models=("dit-tiny",), methods=(stack,), scheduler="HeunDiscreteScheduler")
    assert not plan.plan(spec)[1].refusal


def test_a_schedule_of_another_length_is_refused_in_the_plan(tmp_path):
    import numpy as np

    from ditbench.acceleration.caching.schedule import Schedule

    path = tmp_path / "schedule.json"
    Schedule(sublayers=("0.self",), chosen=np.full((20, 1), 4)).write(path)
    for stack, reason in (
        (f"fewer_steps(steps=10)+diffsparse(schedule={str(path)!r})", "for 20 sampler steps, and"),
        (f"fewer_steps(steps=10)+diffsparse(schedule={str(path)!r},tuned='alone')", ""),
        (f"diffsparse(schedule={str(path)!r})", ""),
    ):
        refusal = plan.plan(Spec(models=("dit-tiny",), methods=(stack,)))[1].refusal
        assert reason in refusal if reason else not refusal
