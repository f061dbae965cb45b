"""What the command line answers, as a table of input and answer: the flag as it was typed, the
nearest names, the usage line of the command."""

import io
import json
import re
import sys

import pytest
import torch
from command import command, ours
from report_runs import write_run

from ditbench.cli.commands import COMMANDS, _scoring, main
from ditbench.cli.parser import parsers
from ditbench.method import METHODS
from ditbench.method.plugins import line_in_plugin
from ditbench.models import models
from ditbench.models.table import GROUPS
from ditbench.runner.plan import plan
from ditbench.runner.progress import Step, counting, plain, progress
from ditbench.runner.spec import DTYPE_NAMES, Spec, from_table
from ditbench.suggest import suggest

QUOTES = "put stacks with knobs in quotes, as in --methods 'fora(interval=3)+int8'"
ALONE = "Several stacks or models are one word with commas, as in fora,int8"

GRAMMAR = [
    # a command that is not there
    ("reprot runs/default", "no command 'reprot'; did you mean report", "ditbench COMMAND"),
    ("diffspars", "no command 'diffspars'; the nearest of 24 names are", "ditbench COMMAND"),
    ("diffsparse", "no command 'diffsparse'; methods are given by a flag: --methods diffsparse", "ditbench COMMAND"),
    ("fora(interval=2)+int8", "a flag: --methods 'fora(interval=2)+int8'", "ditbench COMMAND"),
    ("flux-tiny", "models are given by a flag: --models flux-tiny", "ditbench COMMAND"),
    ("full", "models are given by a flag: --models full", "ditbench COMMAND"),
    # a flag that is not there
    ("run --modles tiny", "--modles: no such flag; did you mean --models", "ditbench run"),
    ("--modles=tiny", "--modles: no such flag; did you mean --models", "ditbench run"),
    ("check fora --model-s x", "--model-s: no such flag; did you mean --models", "ditbench check"),
    # a value of the wrong kind
    ("--num-samples x", "--num-samples: expected a whole number, got 'x'", "ditbench run"),
    ("match --methods fora --saved x", "--saved: expected a number, got 'x'", "ditbench match"),
    ("plan --seed 1.5", "--seed: expected a whole number, got '1.5'", "ditbench plan"),
    ("run --models", "--models: expected one argument", "ditbench run"),
    # something is missing
    (
        "match --methods fora", "one of the arguments --saved --computed-steps is required",
        "ditbench match",
    ),
    ("reproduce run", "are required: ROW", "ditbench reproduce RUN ROW"),
    ("report", "are required: RUN", "ditbench report RUN [RUN ...]"),
    ("list modles", "no 'modles' to list; did you mean models", "ditbench list models|methods"),
    # words a shell split
    ("run diffsparse", "'diffsparse' stands alone: ditbench run takes no such word", "ditbench run"),
    ("run --methods fora diffsparse", ALONE, "ditbench run"),
    ("run --methods fora(interval=2, threshold=3)", QUOTES, "ditbench run"),
    ("count --methods fora, int8", "'int8' stands alone", "ditbench count"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "sentence", "usage"), GRAMMAR)
def test_words_that_do_not_fit_are_answered_by_a_sentence_and_the_usage_line(
    capsys, tmp_path, monkeypatch, words, sentence, usage
):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("ditbench: ") and sentence in first
    assert second.startswith(f"usage: {usage}") and second.endswith("--help")
    assert not list(tmp_path.iterdir())


VALUES = [
    ("--num-samples 0", "--num-samples: 0 is not between 1 and 1000000"),
    ("--num-samples=0", "--num-samples: 0 is not between 1 and 1000000"),
    ("--batch 0", "--batch-size: 0 is not between 1 and 4096"),
    ("--threads -1", "--threads: -1 is not between 0 and 4096"),
    ("--dtype int3", "--dtype: 'int3' is none of float32, bfloat16, float16, fp32, bf16, fp16"),
    ("--device tpu", "--device: 'tpu' is neither cpu, cuda nor cuda:N"),
    ("--plugin nowhere.py", "--plugin: there is no file 'nowhere.py'"),
    ("--reference nowhere", "--reference: there is no file 'nowhere'"),
    ("--weights nowhere", "--weights: 'nowhere' is none of bundled, hub, random and no folder"),
    ("--spec defalt", "--spec: there is no file 'defalt', nor a named spec of that name; did you"),
    ("--methods forra", "no method 'forra'; did you mean fora"),
    ("--methods fora(intervall=2)", "fora has no knob 'intervall'; did you mean interval?"),
    (
        "--methods diffsparse(tuned=alone)",
        "inside those of the shell: \"diffsparse(tuned='alone')\"",
    ),
    ("--methods fora(interval=2", f"do not match; {QUOTES}"),
    ("stack fora(interval=2, int8", f"write it like fora(interval=3)+int8, or none; {QUOTES}"),
    ("estimate --gpu h101", "--gpu: no GPU 'h101' and no FILE.toml; did you mean h100"),
    ("estimate --gpu no.toml", "--gpu: there is no file 'no.toml'"),
    ("estimate --steps 0", "--steps: 0 is less than 1"),
    ("estimate --batch-size 0", "--batch-size: 0 is not between 1 and 4096"),
    ("estimate --dtype int3", "--dtype: 'int3' is none of float32, bfloat16, float16"),
    ("stack none fora", "none is the un-accelerated model, which is run beside every stack"),
    (
        "stack fora int8 --models flux-1-dev --weights random",
        "full-size models run on a GPU only: give --device cuda",
    ),
    ("--models full --weights random", "full-size models run on a GPU only: give --device cuda"),
    ("count --models flux-9", "no model 'flux-9'; did you mean flux-"),
    (
        "count --models zzzz",
        f"no model 'zzzz'; the nearest of {len(models()) + len(GROUPS)} names are ",
    ),
]


@pytest.mark.parametrize(("words", "sentence"), VALUES)
def test_values_that_cannot_be_used_are_answered_by_one_sentence_with_the_flag(
    capsys, tmp_path, monkeypatch, words, sentence
):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ditbench: ") and sentence in line
    assert len(re.findall(r" or |, ", line.partition("; ")[2].partition("; put")[0])) <= 3


def test_a_gpu_that_is_not_there_is_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for text in ("run --methods fora", "stack fora int8"):
        words = [*text.split(), "--models", "dit-tiny,pixart-tiny", "--device", "cuda"]
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"ditbench: {NO_GPU} (what would run: --dry-run)"
        assert not list(tmp_path.iterdir())


def test_keys_of_a_spec_file_keep_their_name(capsys, tmp_path):
    (tmp_path / "a.toml").write_text("num_samples = 0\n")
    assert main(["plan", "--spec", str(tmp_path / "a.toml")]) == 2
    assert "a.toml: num_samples: 0 is not between" in capsys.readouterr().err


def test_at_most_three_names_are_suggested():
    known = [f"method_{i}" for i in range(50)]
    assert suggest("methd_1", known).count(" or ") == 2
    assert suggest("zz", known).startswith("the nearest of 50 names are ")
    assert suggest("zz", known).count(",") == 2
    assert suggest("zz", ["a", "b"]) == "there are a, b"
    assert suggest("zz", []) == "there are none"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import os\n\nraise KeyError('x')\n", "line 3, failed: KeyError: 'x'"),
        ("x = 1\ndef f():\n    return y\n\nf()\n", "line 3, failed: NameError: name 'y'"),
        ("x = 1\nif x\n", "line 2, failed: SyntaxError: expected ':'"),
        ("import sys\nsys.exit(0)\n", "line 2, failed: SystemExit: 0"),
        ("x = 1\n", "declares no method"),
    ],
)
def test_a_plugin_that_fails_is_named_with_file_and_line(capsys, tmp_path, source, complaint):
    path = tmp_path / "mine.py"
    path.write_text(source)
    assert main(["plan", "--models", "dit-tiny", "--plugin", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"plug-in {path}" in err and complaint in err


def test_an_error_inside_a_method_of_a_plugin_is_reported_with_its_line(tmp_path):
    from ditbench.method.plugins import load_plugin
    from ditbench.method.registry import find

    (tmp_path / "mine.py").write_text(
        "from ditbench.method import Stage, method\n\n\n"
        "@method('breaks_inside', family='test', stage=Stage.SCHEDULE)\n"
        "class Breaks:\n"
        "    def attach(self, pipeline, at):\n"
        "        [].pop()\n"
    )
    load_plugin(tmp_path / "mine.py")
    try:
        find("breaks_inside")().attach(None, None)
    except IndexError as error:
        assert line_in_plugin(error) == " (mine.py, line 7)"
    finally:
        METHODS.pop("breaks_inside", None)
    assert line_in_plugin(ValueError("ours")) == ""


@pytest.mark.parametrize(("name", "dtype"), [*DTYPE_NAMES.items(), ("bfloat16", "bfloat16")])
def test_every_name_of_a_dtype_is_one_run(name, dtype):
    spec = from_table({"dtype": name}, Spec())
    assert spec.dtype == dtype and spec == from_table({"dtype": dtype}, Spec())


def test_the_help_of_every_flag_has_its_default():
    _, by_name = parsers(COMMANDS)
    assert by_name.keys() == COMMANDS.keys()
    for name, parser in by_name.items():
        text = " ".join(parser.format_help().split())
        for action in parser._actions:
            if action.option_strings and action.nargs != 0 and not action.required:
                assert "(default: " in action.help % {"default": action.default}, (
                    name,
                    action.option_strings,
                )
        assert "(default: None)" not in text and "(default: [])" not in text, name
    text = " ".join(by_name["run"].format_help().split())
    for part in ("(default: 80)", "(default: float32)", "(default: tiny)", "(default: cpu)"):
        assert part in text


def test_reproduce_takes_model_and_stack(capsys, tmp_path):
    run = write_run(tmp_path / "run", models=("dit-tiny", "flux-tiny"), n=4)
    main(["reproduce", str(run), "flux-tiny/fora"])
    by_name = capsys.readouterr().out.splitlines()[-1]
    assert "--models flux-tiny" in by_name and "--methods 'fora(interval=3)'" in by_name
    main(["reproduce", str(run), "flux-tiny/fora(interval=3)"])
    assert capsys.readouterr().out.splitlines()[-1] == by_name
    assert main(["reproduce", str(run), "flux-tiny/foar"]) == 2
    err = capsys.readouterr().err
    assert (
        "no row 'flux-tiny/foar' in run; did you mean flux-tiny/" in err and err.count(" or ") <= 2
    )
    assert main(["reproduce", str(run), "none"]) == 2
    assert "dit-tiny/none, flux-tiny/none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("plan --models dit-tiny --methods fora", 0),
        ("plan --models dit-tiny --methods fora+firstblock,fora", 0),
        ("plan --models dit-tiny,flux-1-dev --methods fora", 3),  # the baseline of one is refused
        ("plan --models flux-1-dev", 3),
        ("run --dry-run --models flux-1-dev", 3),
    ],
)
def test_plan_leaves_as_run_would_when_a_baseline_is_refused(capsys, words, code):
    assert main(words.split()) == code
    assert "cells, to be written to" in capsys.readouterr().out


NO_GPU = "this machine has no GPU that torch can use, and the device is cuda"


@pytest.mark.parametrize(
    "command", ["plan", "run --dry-run", "stack fora int8 --dry-run", "stack int8 fora --dry-run"]
)
def test_a_plan_for_a_gpu_shows_what_would_be_refused_there_and_that_there_is_none(
    capsys, monkeypatch, tmp_path, command
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [*command.split(), "--models", "dit-xl-2-256", "--weights", "random"]
    words += ["--dtype", "bfloat16"]  # whose costs come along
    if "stack" not in command:
        words += ["--methods", "fora+firstblock,fora,int8,distill"]
    assert main([*words, "--device", "cuda", "--json"]) == 3
    *lines, document = capsys.readouterr().out.splitlines()
    assert f"{NO_GPU}: what is planned is refused here" in " ".join(" ".join(lines).split())
    rows = {row["stack"]: row for row in json.loads(document)}
    for stack in ("none", "fora", "int8"):
        assert (rows[stack]["status"], rows[stack]["reason"]) == ("planned", "")
        assert rows[stack]["lacks"] == NO_GPU and rows[stack]["steps"] == 50
    if "stack" in command:
        assert rows["int8+fora"]["status"] == "planned"
    else:
        assert rows["firstblock+fora"]["reason"].endswith("both claim block-schedule")
        assert rows["distill"]["status"] == "refused" and not rows["distill"]["lacks"]
    assert not list(tmp_path.iterdir())


ONE_ALONE = "diffsparse,distill+diffsparse"


@pytest.mark.parametrize(
    ("methods", "hints"),
    [
        (ONE_ALONE, ["whether distill+diffsparse stacks is not judged without distill alone"]),
        (f"{ONE_ALONE},distill", []),
        ("fora+int8", []),  # nobody asks whether they stack
        ("diffsparse,distill,distill+diffsparse(tuned='alone')", []),
        (
            "fora(interval=2)+int8+distill,fora,distill",
            [
                "whether distill+int8+fora(interval=2) stacks is not judged without int8 and "
                "fora(interval=2) alone"
            ],
        ),
    ],
)
def test_a_plan_says_what_its_stacking_verdicts_would_lack(capsys, methods, hints):
    main(["plan", "--models", "dit-tiny,pixart-tiny", "--methods", methods])
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("not judged without") == len(hints) and all(hint in text for hint in hints)


def test_packages_that_are_not_there_are_refused_without_a_gpu_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        "ditbench.runner.plan.lacking",
        lambda need, *_: "is not there" if need.startswith("package") else None,
    )
    spec = from_table(
        {"models": ["dit-tiny"], "methods": ["fp8", "fora"], "device": "cuda"}, Spec()
    )
    assert [cell.refusal for cell in plan(spec)] == [NO_GPU, "fp8: is not there", NO_GPU]


def progress_lines(monkeypatch, steps):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress() as tell:
        for step in steps:
            tell(step)
    return stream.getvalue().splitlines()


def test_in_a_pipe_every_finished_cell_has_a_line_without_control_characters(monkeypatch):
    steps = []
    for i in range(5):
        steps.append(
            Step(f"dit-tiny fora {i}  round 1/1", i, 5, None if i == 0 else 60.0 * (5 - i))
        )
        steps.append(Step("x", i + 1, 5, 60.0 * (4 - i), f"dit-tiny fora {i}\x1b[31m: ok"))
    lines = progress_lines(monkeypatch, [*steps, Step("", 5, 5, 0.0)])
    assert lines[0] == "[0/5] dit-tiny fora 0  round 1/1  no estimate yet"
    finished = [line for line in lines if ": ok" in line]
    assert len(finished) == 5 and finished[0].endswith("4:00 left")
    assert finished[-1] == "[5/5] dit-tiny fora 4?[31m: ok"
    assert all(line.isprintable() for line in lines)


def test_stages_without_rates_of_their_own_have_an_estimate_once_one_unit_has_ended():
    steps = []
    step = plain(steps.append)
    step("a", 0, 2)
    step("b", 1, 2)
    counting(steps.append, "train")({"done": 1, "of": 4, "loss": 0.5})
    assert steps[0].remaining_s is None and steps[1].remaining_s >= 0
    assert steps[2].label == "train loss 0.50000"


def test_the_progress_of_scoring_is_labelled():
    steps = []
    tell = _scoring(steps.append)
    tell("dit-tiny--fora-1234", 0, 2)
    tell("", 2, 2)
    assert [step.label for step in steps] == ["scoring dit-tiny--fora-1234", ""]


def test_threads_are_in_the_spec_and_in_no_key():
    plain_spec = from_table({"models": ["dit-tiny"], "methods": ["fora"]}, Spec())
    two = from_table({"threads": 2}, plain_spec)
    assert [cell.key for cell in plan(two)] == [cell.key for cell in plan(plain_spec)]
    assert two.folder != plain_spec.folder


def test_a_run_folder_is_taken_up_with_the_thread_count_it_was_made_with(tmp_path, monkeypatch):
    from ditbench.runner.resume import open_folder

    base = {"models": ["dit-tiny"], "num_samples": 1, "out": str(tmp_path / "run")}
    open_folder(plan(from_table(base, Spec())), "")
    assert json.loads((tmp_path / "run/spec.json").read_text())["settings"]["threads"] == 0
    with pytest.raises(ValueError, match="was made with threads 0, not 2"):
        open_folder(plan(from_table(base | {"threads": 2}, Spec())), "")
    other = base | {"threads": 2, "out": str(tmp_path / "two")}
    open_folder(plan(from_table(other, Spec())), "")
    open_folder(plan(from_table(other, Spec())), "")
    with pytest.raises(ValueError, match="was made with threads 2, not 0"):
        open_folder(plan(from_table(other | {"threads": 0}, Spec())), "")


def test_the_thread_count_of_a_run_is_in_the_command_that_makes_it_again(capsys, tmp_path):
    run = write_run(tmp_path / "run", models=("dit-tiny",), n=4)
    document = json.loads((run / "spec.json").read_text())
    document.setdefault("spec", {})["threads"] = 3
    (run / "spec.json").write_text(json.dumps(document))
    main(["reproduce", str(run), "dit-tiny/none", "--json"])
    assert "--threads 3" in json.loads(capsys.readouterr().out.splitlines()[-1])["command"]


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize(
    "words",
    [
        ["list", "models", "-v"],
        ["list", "methods"],
        ["list", "methods", "-v"],
        ["list", "metrics"],
        ["plan", "--methods", "int8+fewer_steps(steps=5)+fora(interval=2),fora+firstblock"],
    ],
)
def test_tables_fit_and_lose_no_text(capsys, monkeypatch, words, width):
    for name in METHODS.keys() - set(ours()):  # declared by other tests
        monkeypatch.delitem(METHODS, name)
    monkeypatch.setenv("COLUMNS", str(width))
    main([*words, "--json"])
    *lines, document = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    text = re.sub(r"\s", "", "".join(lines))
    for row in json.loads(document):
        for head, value in row.items():
            if head in ("key", "reason") or not isinstance(value, str):
                continue
            for word in re.split(r"[\s(+]+", value):
                assert word in text or len(word) > 20, (head, word)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_names_wrap_at_a_plus_and_a_bracket_only(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    stack = "int8+fewer_steps(steps=5)+fora(interval=2)"
    main(["plan", "--models", "pixart-tiny", "--methods", stack])
    out = capsys.readouterr().out
    whole_pieces = r"(int8\+)?(fewer_steps)?(\(steps=5\)\+)?(fora)?(\(interval=2\))?"
    words = [word for word in out.split() if re.fullmatch(whole_pieces, word)]
    assert "".join(words) == stack and (len(words) > 1 or width == 100), out


def test_a_flag_given_twice_joins_what_is_comma_separated():
    done = command(
        "plan", "--models", "dit-tiny", "--methods", "fora", "--methods", "int8", "--json"
    )
    assert [r["stack"] for r in json.loads(done.stdout.splitlines()[-1])] == [
        "none",
        "fora",
        "int8",
    ]
    done = command("plan", "--models", "dit-tiny", "--models", "flux-tiny", "--json")
    rows = json.loads(done.stdout.splitlines()[-1])
    assert {r["model"] for r in rows} == {"dit-tiny", "flux-tiny"}


def test_a_plan_for_another_machine_is_no_failure():
    flags = ["plan", "--models", "dit-xl-2-256", "--methods", "fora", "--weights", "random"]
    assert command(*flags).returncode == 3
    done = command(*flags, "--gpu", "h100", "--json")
    assert done.returncode == 0
    rows = json.loads(done.stdout.splitlines()[-1])
    assert all(r["status"] == "planned" and r["hours"] and "GPU only" in r["lacks"] for r in rows)
