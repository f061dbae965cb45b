"""What models are asked for in place of what their rows say: by flag, by TOML, for one or for all."""

import json
import shlex
from dataclasses import asdict, replace

import pytest
from command import command

from ditbench.method.needs import needs_of
from ditbench.method.stack import Stack
from ditbench.models.requests import call_arguments, make_requests
from ditbench.models.sampling import sampling_of
from ditbench.models.table import models
from ditbench.models.workload import flags_of, with_workload
from ditbench.records.record import read_run
from ditbench.runner.plan import plan, rebuild
from ditbench.runner.spec import Spec, from_table, read_toml


def row(name, **asked):
    return with_workload(models()[name], asked)


def test_a_value_is_of_all_models_or_of_one():
    assert row("flux-1-dev", steps="7").steps == 7
    assert row("flux-1-dev", steps="flux-1-dev=8").steps == 8
    assert row("dit-xl-2-256", steps="flux-1-dev=8") == models()["dit-xl-2-256"]
    assert row("dit-xl-2-256", steps="20,flux-1-dev=8").steps == 20
    assert row("flux-1-dev", steps="20,flux-1-dev=8").steps == 8
    wide = row("wan-2.1-1.3b", height="320", width="wan-2.1-1.3b=512", frames="33", guidance="1.5")
    assert (wide.height, wide.width, wide.frames, wide.guidance) == (320, 512, 33, 1.5)
    text = "blurry, low=quality"
    assert row("pixart-alpha-512", negative_prompt=text).negative_prompt == text
    own = row("pixart-alpha-512", negative_prompt=f"pixart-alpha-512={text}")
    assert own.negative_prompt == text


@pytest.mark.parametrize(
    ("model", "asked", "sentence"),
    [
        ("flux-1-dev", {"steps": "x"}, "steps: expected a whole number, got 'x'"),
        ("flux-1-dev", {"steps": "0"}, "steps: 0 is not between 1 and 1000"),
        ("flux-1-dev", {"guidance": "nan"}, "guidance: nan is not between 0 and 100"),
        ("flux-1-dev", {"guidance": "-1"}, "guidance: -1.0 is not between 0 and 100"),
        ("flux-1-dev", {"steps": "flux=4"}, "steps: no model 'flux' in 'flux=4'"),
        ("flux-1-dev", {"steps": "4,5"}, "steps: two values for all models"),
        ("flux-1-dev", {"height": "1000"}, "height: 1000 is no multiple of 16"),
        ("flux-1-dev", {"frames": "5"}, "frames: flux-1-dev makes 1 of them alone"),
        ("wan-2.1-1.3b", {"frames": "10"}, "frames: 10 is none of 1, 5, 9"),
        ("dit-xl-2-256", {"width": "512"}, "width: dit-xl-2-256 makes samples of 256x256 pixels"),
        ("pixart-tiny", {"height": "128"}, "height: pixart-tiny makes samples of 64x64 pixels"),
        ("flux-1-dev", {"negative_prompt": "bad"}, "negative_prompt: flux-1-dev takes none"),
        ("dit-tiny", {"negative_prompt": "bad"}, "negative_prompt: dit-tiny takes none"),
    ],
)
def test_what_cannot_be_asked_for_is_one_sentence(model, asked, sentence):
    with pytest.raises(ValueError) as error:
        row(model, **asked)
    assert str(error.value).startswith(sentence)


def test_values_of_models_that_are_not_run_wait_for_them():
    """A file names several models, and --models takes one of them."""
    (cell,) = plan(Spec(models=("dit-tiny",), steps="flux-1-dev=4"))
    assert cell.model == models()["dit-tiny"]


def test_keys_follow_what_is_asked_for_and_stay_where_it_is_the_same():
    base = {"models": ["dit-tiny"], "methods": ["fora"]}
    keys = {
        text: [cell.key for cell in plan(from_table(base | {"steps": text}, Spec()))]
        for text in ("", "20", "dit-tiny=20", "10")
    }
    assert keys[""] == keys["20"] == keys["dit-tiny=20"]
    assert not set(keys[""]) & set(keys["10"])
    others = [plan(from_table(base | {"scheduler": "DDPMScheduler"}, Spec()))[0].key]
    others += [plan(from_table(base | {"guidance": "1.5"}, Spec()))[0].key]
    assert len({keys[""][0], *others}) == 3


def test_toml_takes_numbers_texts_and_tables(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'models = ["dit-xl-2-256", "flux-1-dev"]\nweights = "random"\nguidance = 1.5\n'
        'scheduler = "dit-xl-2-256=DDPMScheduler"\n[steps]\ndit-xl-2-256 = 250\nflux-1-dev = 28\n'
    )
    spec = read_toml(str(file))
    cells = {cell.model.name: cell for cell in plan(spec)}
    dit, flux = cells["dit-xl-2-256"], cells["flux-1-dev"]
    assert (dit.model.steps, flux.model.steps) == (250, 28)
    assert (dit.model.scheduler, flux.model.scheduler) == ("DDPMScheduler", "")
    assert dit.sampling.guidance == flux.sampling.guidance == 1.5
    again = rebuild(spec, "dit-xl-2-256", "none")
    assert again == dit and again.key == dit.key
    file.write_text("steps = [4]\n")
    with pytest.raises(ValueError, match="steps: expected a value, or a table of values by model"):
        read_toml(str(file))


def test_a_negative_prompt_reaches_the_pipeline():
    model = row("pixart-alpha-512", negative_prompt="blurry")
    arguments = call_arguments(model, sampling_of(model), make_requests(model, 2, 0))
    assert arguments["negative_prompt"] == ["blurry", "blurry"]
    plain = models()["pixart-alpha-512"]
    assert "negative_prompt" not in call_arguments(
        plain, sampling_of(plain), make_requests(plain, 2, 0)
    )


def test_what_is_prepared_is_prepared_for_what_is_asked_for():
    model = row("dit-tiny", steps="12", scheduler="DDPMScheduler")
    (need,) = needs_of(model, Stack.parse("diffsparse"), "bundled")
    assert need.sampling == asdict(sampling_of(model)) | {"scheduler": "DDPMScheduler"}
    assert flags_of(model) == ("--steps", "12", "--scheduler", "DDPMScheduler")
    assert need.sentence.endswith(
        "prepare 'diffsparse' --models dit-tiny --steps 12 --scheduler DDPMScheduler does it"
    )
    assert flags_of(models()["dit-tiny"]) == ()


def test_a_run_is_made_as_asked_and_can_be_made_again(tmp_path):
    out = tmp_path / "run"
    flags = ["--models", "dit-tiny", "--num-samples", "2", "--rounds", "1", "--methods", "fora"]
    workload = ["--steps", "6", "--guidance", "1.5", "--scheduler", "DDPMScheduler"]
    done = command("run", *flags, *workload, "--out", out)
    assert done.returncode == 0, done.stderr
    for record in read_run(out).records:
        assert record["status"] == "ok", record["reason"]
        sampling = record["sampling"]
        assert (sampling["steps"], sampling["guidance"]) == (6, 1.5)
        assert sampling["scheduler"] == "DDPMScheduler"
    plain = command("run", *flags, "--out", tmp_path / "plain")
    assert plain.returncode == 0
    none, own = (read_run(folder).records[0] for folder in (out, tmp_path / "plain"))
    assert 0.28 < none["flops"]["flops"] / own["flops"]["flops"] < 0.32  # 6 of 20 steps
    again = command("reproduce", out, "fora", "--json")
    printed = json.loads(again.stdout.splitlines()[-1])["command"]
    assert "--steps 6 --guidance 1.5" in printed and "--scheduler DDPMScheduler" in printed
    assert "--height" not in printed and "--process" not in printed
    other = command("run", *flags, "--steps", "8", "--out", out)
    assert other.returncode == 2 and "was made with steps '6', not '8'" in other.stderr


def test_a_sampler_that_diffusers_does_not_have_is_said_before_anything_runs(tmp_path):
    done = command(
        "run", "--models", "dit-tiny", "--num-samples", "1", "--rounds", "1", "--methods", "fora",
        "--scheduler", "DDIMSchedule", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 2 and "did you mean DDIMScheduler" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_command_of_a_refusal_prepares_for_the_workload(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = Spec(
        models=("dit-tiny",), methods=("teacache(saved=0.3)",), weights="random", steps="6",
        guidance="1.5", scheduler="DDIMScheduler",
    )  # fmt: skip
    words = shlex.split(plan(spec)[1].refusal.partition("; ")[2].removesuffix(" does it"))
    assert words[:2] == ["python", "run_bench.py"] and "--steps" in words and "--guidance" in words
    done = command(*words[2:])
    assert done.returncode == 0, done.stderr
    assert not plan(spec)[1].refusal
    assert plan(replace(spec, steps="7"))[1].refusal
