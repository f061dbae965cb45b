"""Answers from records: which stack to use, what moved between two runs, how to see a row again."""

import html
import json
import re
import shlex
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from report_runs import ENVIRONMENT, STACKS, WORLDS, key_of, write_run
from scipy import stats

from ditbench import reports
from ditbench.cli.commands import main
from ditbench.cli.parser import GATE, OK, USAGE
from ditbench.method import METHODS
from ditbench.records.allocator import keep_freed_memory
from ditbench.records.environment import describe
from ditbench.records.files import write_json
from ditbench.records.scores import read_file, write_file
from ditbench.reports.answers.compare import Gates, compare
from ditbench.reports.answers.recommend import Limits, recommend
from ditbench.reports.sections.section import read_sections
from ditbench.runner.assembling import record_of
from ditbench.runner.plan import plan, rebuild
from ditbench.runner.resume import open_folder
from ditbench.runner.spec import Spec, from_table
from ditbench.statistics import times


def change_record(folder, key, **told):
    path = folder / "cells" / key / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))


def advice(folder, **limits):
    (section,) = read_sections([folder])
    rows, sentences = recommend(section, Limits(**limits))
    return {row["stack"]: row for row in rows}, sentences


@pytest.fixture(autouse=True, scope="module")
def memory_kept():
    """As in every process that loads a model, so that what `describe` says is what a run records."""
    keep_freed_memory()


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", models=("pixart-tiny",), n=64)


ANY = {"min_alignment": -1.0}
"""A limit that every alignment keeps to; at this n there is no change of the distance."""


def test_without_limits_nothing_is_recommended_that_is_worse_by_its_verdict(run):
    (section,) = read_sections([run])
    worse = {
        row["stack"]
        for row in section.rows
        if any(e["primary"] and e["verdict"] == "worse" for e in row["quality"].values())
    }
    rows, (sentence,) = advice(run)
    assert len(worse) == 3 and {rows[stack]["qualifies"] for stack in worse} == {"no"}
    assert all(
        " is worse: " in rows[stack]["reason"]
        and " says how much may be lost" in rows[stack]["reason"]
        for stack in worse
    )
    assert not any(sentence.startswith(f"pixart-tiny: use {stack}:") for stack in worse)


def test_the_fastest_stack_within_the_limits_is_recommended_and_the_unusable_say_why(run):
    rows, (sentence,) = advice(run, **ANY)
    usable = [row for row in rows.values() if row["qualifies"] == "yes"]
    factors = [float(row["speedup_call"].split()[0]) for row in usable]
    assert factors == sorted(factors, reverse=True) and len(usable) == 4
    assert sentence.startswith(f"pixart-tiny: use {usable[0]['stack']}: ")
    assert rows["firstblock"]["reason"].startswith(
        "refused: DiTTransformer2DModel has no first block"
    )
    assert rows["noop"]["reason"].startswith("inert") and rows["fora(interval=9)"][
        "reason"
    ].startswith("oom")
    assert "none" not in rows


def test_quality_limits_hold_for_the_whole_interval(run):
    (section,) = read_sections([run])
    change = next(r for r in section.rows if r["stack"] == "int8")["quality"]["align.shapes_v1"][
        "delta"
    ]
    between = (change["low"] + change["value"]) / 2  # the middle is above it, the interval is not
    rows, _ = advice(run, min_alignment=between)
    assert rows["int8"]["qualifies"] == "no" and "it may be below" in rows["int8"]["reason"]
    rows, _ = advice(run, min_alignment=change["low"] - 1e-9)
    assert rows["int8"]["qualifies"] == "yes"


def test_limits_of_memory_and_time_are_told_with_their_figures(run):
    rows, (sentence,) = advice(run, max_memory_gb=0.6)
    assert rows["int8"]["reason"] == "peak memory 612 MB is above 0.600 GB"
    assert sentence == "pixart-tiny: no stack qualifies"
    rows, _ = advice(run, max_seconds=1e-9)
    assert rows["int8"]["reason"].endswith("is above 1.00e-09 s")
    rows, _ = advice(run, max_frechet=-1e9)
    assert "fd.shapes_v1" in rows["int8"]["reason"]


def test_a_speed_up_is_asked_for_by_its_whole_interval(run):
    (section,) = read_sections([run])
    speed = next(r for r in section.rows if r["stack"] == "int8")["speedup_call"]
    between = (speed["low"] + speed["value"]) / 2
    rows, _ = advice(run, min_speedup=between, **ANY)
    assert rows["int8"]["qualifies"] == "no"
    assert rows["int8"]["reason"].endswith(f"it may be below {between:.2f}x")
    rows, _ = advice(run, min_speedup=speed["low"], **ANY)
    assert rows["int8"]["qualifies"] == "yes"


def test_recommend_speaks_of_the_models_that_are_asked_for(tmp_path, capsys):
    folder = write_run(tmp_path / "run", models=("dit-tiny", "pixart-tiny"), n=64)
    assert main(["recommend", str(folder), "--models", "pixart-tiny", "--json"]) == OK
    out = capsys.readouterr().out.strip()
    assert {row["model"] for row in json.loads(out.splitlines()[-1])} == {"pixart-tiny"}
    assert "dit-tiny" not in out
    assert main(["recommend", str(folder), "--models", "pixart"]) == USAGE
    assert "no model 'pixart' in run; did you mean pixart-tiny" in capsys.readouterr().err


def test_a_stack_that_is_not_shown_to_be_faster_does_not_qualify(tmp_path):
    folder = write_run(tmp_path / "run", n=16)
    timing = json.loads(
        (folder / "cells" / key_of("dit-tiny", "none") / "record.json").read_text()
    )["timing"]
    change_record(folder, key_of("dit-tiny", "int8"), timing=timing)
    rows, _ = advice(folder)
    assert rows["int8"]["reason"].startswith("not shown to be faster than none: 1.00x [1.00, 1.00]")


def slow_last_round(folder, stack, factor):
    """Make a stack's last round take `factor` times as long."""
    path = folder / "cells" / key_of("pixart-tiny", stack) / "record.json"
    timing = json.loads(path.read_text())["timing"]
    last = max(t["round"] for t in timing)
    slowed = [t | {"call_s": (factor if t["round"] == last else 1) * t["call_s"]} for t in timing]
    change_record(folder, key_of("pixart-tiny", stack), timing=slowed)


SLOWED = {"before": {"slowed_by": ["hw_thermal_slowdown"]}, "after": {}, "probe": {}}


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda folder: slow_last_round(folder, "none", 1.3), "idle machine, into another --out"),
        (
            lambda folder: change_record(folder, key_of("pixart-tiny", "none"), host=[SLOWED]),
            "the GPU was slowed down (hw_thermal_slowdown); run it again on an idle machine",
        ),
    ],
)
def test_suspect_times_neither_qualify_nor_disqualify_and_say_what_to_do(run, capsys, make, remedy):
    before, _ = advice(run, **ANY)
    make(run)
    rows, (sentence,) = advice(run, **ANY)
    assert {before[s]["qualifies"] for s, row in rows.items() if row["qualifies"] == "suspect"} == {
        "yes"
    }
    assert all(
        rows[s]["qualifies"] == ("suspect" if row["qualifies"] == "yes" else "no")
        for s, row in before.items()
    )
    assert remedy in rows["int8"]["reason"] and remedy in sentence
    assert sentence.startswith("pixart-tiny: no stack is known to qualify; the times of 4 stacks")
    rows, _ = advice(run, **ANY, max_seconds=1e-9)  # a limit of time is not broken by such times
    assert rows["int8"]["qualifies"] == "suspect"
    rows, _ = advice(run, **ANY, max_memory_gb=0.6)  # one of memory is
    assert rows["int8"]["qualifies"] == "no" and "peak memory" in rows["int8"]["reason"]
    assert main(["recommend", str(run), "--min-alignment", "-1"]) == GATE


def test_one_round_is_suspect_and_more_rounds_are_advised(tmp_path):
    folder = write_run(tmp_path / "run", stacks=STACKS[:3], n=16, rounds=1)
    rows, (sentence,) = advice(folder, **ANY)
    assert {row["qualifies"] for row in rows.values()} == {"suspect"}
    assert all(row["reason"].endswith("run it with --rounds 3") for row in rows.values())
    assert "fewer_steps(steps=10), fora(interval=3) are suspect, which settles" in sentence


def test_a_run_of_one_stack_is_told_by_its_name(tmp_path, capsys):
    one = write_run(tmp_path / "one", stacks=(STACKS[0], ("firstblock", "refused")))
    _, (sentence,) = advice(one)
    assert sentence == "dit-tiny: firstblock does not qualify"
    alone = write_run(tmp_path / "alone", stacks=STACKS[:1])
    assert main(["recommend", str(alone)]) == GATE
    assert "dit-tiny: nothing but the un-accelerated model was run" in capsys.readouterr().out


def test_recommend_leaves_with_the_gates_code_when_nothing_qualifies(run, capsys):
    assert main(["recommend", str(run)]) == OK
    assert main(["recommend", str(run), "--max-memory-gb", "0.1", "--json"]) == GATE
    for flag, value in (("min-speedup", "nan"), ("min-speedup", "-1"), ("max-seconds", "0")):
        assert main(["recommend", str(run), f"--{flag}={value}"]) == USAGE
    assert main(["recommend", str(run), "--max-frechet=inf"]) == USAGE
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {row["qualifies"] for row in rows} == {"no"}


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def verdicts(a, b, **gates):
    rows = compare(*read_sections([a, b]), Gates(**gates))
    return {(row["stack"], row["quantity"]): row["verdict"] for row in rows}


def test_a_run_against_its_copy_has_not_moved(run, copy, capsys):
    found = verdicts(run, copy)
    few = "not compared: a difference of Fréchet distances needs 1.25 times as many samples as their 64 features, got 64"
    assert set(found.values()) == {"identical", "inconclusive", few}
    assert found["int8", "align.shapes_v1"] == found["none", "mmd.shapes_v1"] == "identical"
    assert found["none", "fd.shapes_v1"] == few
    assert found["int8", "speedup_call"] == "inconclusive"
    assert main(["compare", str(run), str(copy)]) == OK
    assert "regressions past the gates: 0" in capsys.readouterr().out


def test_a_loss_of_alignment_beyond_noise_and_past_the_gate_is_a_regression(run, copy, capsys):
    path = copy / "scores" / f"{key_of('pixart-tiny', 'int8')}.safetensors"
    scores = read_file(path)
    lower = scores.arrays["align.shapes_v1"] - 0.05 - 0.01 * np.random.default_rng(0).random(64)
    write_file(path, scores.having("align.shapes_v1", "", "", {"align.shapes_v1": lower}))
    assert verdicts(run, copy)["int8", "align.shapes_v1"] == "regression"
    assert verdicts(run, copy, alignment=0.1)["int8", "align.shapes_v1"] == "worse"
    assert verdicts(copy, run)["int8", "align.shapes_v1"] == "better"
    assert main(["compare", str(run), str(copy)]) == GATE
    assert main(["compare", str(run), str(copy), "--max-alignment-loss", "0.1"]) == OK
    capsys.readouterr()


def test_lost_speed_memory_and_flops_are_held_against_their_gates(run, copy):
    key = key_of("pixart-tiny", "int8")
    record = json.loads((copy / "cells" / key / "record.json").read_text())
    slower = [t | {"call_s": 1.5 * t["call_s"]} for t in record["timing"]]
    flops = record["flops"] | {"flops": 1.02 * record["flops"]["flops"]}
    memory = record["memory"] | {"peak_bytes": int(1.2 * record["memory"]["peak_bytes"])}
    change_record(copy, key, timing=slower, flops=flops, memory=memory)
    found = verdicts(run, copy)
    assert [found["int8", q] for q in ("speedup_call", "peak_bytes", "flops")] == ["regression"] * 3
    found = verdicts(run, copy, slowdown=0.6, memory=0.3, flops=0.05)
    assert [found["int8", q] for q in ("speedup_call", "peak_bytes", "flops")] == [
        "worse",
        "inconclusive",
        "inconclusive",
    ]


def test_what_ran_then_and_fails_now_is_a_regression(run, copy):
    change_record(
        copy, key_of("pixart-tiny", "int8"), status="failed", reason="RuntimeError: no kernel"
    )
    rows = compare(*read_sections([run, copy]), Gates())
    (row,) = [r for r in rows if r["stack"] == "int8"]
    assert row["verdict"] == "regression" and row["after"] == "failed: RuntimeError: no kernel"
    assert verdicts(copy, run)["int8", "status"] == "better"


def test_other_requests_or_another_machine_are_not_compared(run, copy, tmp_path):
    key = key_of("pixart-tiny", "int8")
    record = json.loads((copy / "cells" / key / "record.json").read_text())
    change_record(copy, key, run=record["run"] | {"requests_sha256": "other"})
    assert verdicts(run, copy)["int8", "quality"] == "not compared: not the same requests"
    other = write_run(
        tmp_path / "other", models=("pixart-tiny",), n=64, environment=ENVIRONMENT | {"cores": 64}
    )
    found = verdicts(run, other)
    assert found["int8", "times and memory"] == "not compared: not the same cores"
    assert ("int8", "speedup_call") not in found and ("int8", "flops") in found
    with pytest.raises(ValueError, match="no model and stack in common"):
        compare(*read_sections([run, write_run(tmp_path / "dit")]), Gates())


def test_times_and_memory_of_another_batch_size_are_not_compared(run, copy):
    for path in (copy / "cells").glob("*/record.json"):
        record = json.loads(path.read_text())
        record["run"]["batch_size"] //= 2
        record["memory"] = record.get("memory") and record["memory"] | {"peak_bytes": 1}
        path.write_text(json.dumps(record))
    found = verdicts(run, copy)
    assert found["int8", "times and memory"] == "not compared: not the same batch size"
    assert not [name for _, name in found if name in ("speedup_call", "peak_bytes")]


def test_suspect_times_pass_and_fail_no_gate(run, copy, capsys):
    slow_last_round(copy, "none", 1.3)
    slow_last_round(copy, "int8", 2.0)
    assert verdicts(run, copy)["int8", "speedup_call"].startswith("not compared: times that are")
    assert main(["compare", str(run), str(copy)]) == OK
    out = capsys.readouterr().out
    assert "not compared:" in out and "speedup_call" in out


def test_a_comparison_that_saw_no_quality_is_no_success(run, copy, capsys):
    for path in (copy / "cells").glob("*/record.json"):
        record = json.loads(path.read_text())
        record["run"]["requests_sha256"] = "other"
        path.write_text(json.dumps(record))
    assert main(["compare", str(run), str(copy)]) == GATE
    out = " ".join(capsys.readouterr().out.split())
    assert "quality was compared nowhere, which is no success" in out


def test_recommend_says_that_there_is_nothing_to_recommend(run, capsys):
    shutil.rmtree(run / "cells")
    assert main(["recommend", str(run)]) == GATE
    assert "has no finished cell that could be recommended" in " ".join(
        capsys.readouterr().out.split()
    )


def test_rows_that_only_one_run_has_are_listed(tmp_path, run, capsys):
    fewer = write_run(
        tmp_path / "fewer", models=("pixart-tiny", "dit-tiny"), stacks=STACKS[:3], n=64
    )
    found = verdicts(run, fewer)
    mine = {stack for stack, _ in STACKS[3:]}
    assert {
        stack for (stack, quantity), verdict in found.items() if verdict == "only before"
    } == mine
    rows = compare(*read_sections([run, fewer]), Gates())
    added = {
        (r["model"], r["stack"]): (r["before"], r["after"])
        for r in rows
        if r["verdict"] == "only after"
    }
    assert added == {("dit-tiny", stack): ("", "ok") for stack, _ in STACKS[:3]}
    gone = {r["stack"]: (r["before"], r["after"]) for r in rows if r["verdict"] == "only before"}
    assert gone["firstblock"] == ("refused", "") and gone["int8"] == ("ok", "")
    assert main(["compare", str(run), str(fewer)]) == OK
    out = capsys.readouterr().out
    assert f"rows that only one run has: {len(mine) + 3}" in out and "only before" in out


def test_the_quotient_of_two_speed_ups_covers_as_welch_says():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        logs = rng.normal(np.log(2), 0.05, 3), rng.normal(np.log(1.6), 0.15, 5)
        told = [
            {
                "value": np.exp(x.mean()),
                "se": np.exp(x.mean()) * x.std(ddof=1) / np.sqrt(len(x)),
                "n": len(x),
            }
            for x in logs
        ]
        found = times.quotient(*told)
        hits += found.low <= 2 / 1.6 <= found.high
        welch = stats.ttest_ind(*logs, equal_var=False).confidence_interval()
        assert np.allclose([found.low, found.high], np.exp([welch.low, welch.high]))
    assert hits / 400 >= 0.93
    assert times.quotient(told[0], told[1] | {"se": None}) is None


@pytest.mark.parametrize("process", ["round", "cell"])
def test_what_the_command_itself_sets_is_no_difference(tmp_path, capsys, process):
    here = json.loads(json.dumps(describe())) | {"process": "round"}
    folder = write_run(tmp_path / "run", stacks=STACKS[:2], n=12, environment=here)
    document = json.loads((folder / "spec.json").read_text())
    document["spec"]["process"] = process
    write_json(folder / "spec.json", document)
    code = main(["reproduce", str(folder), key_of("dit-tiny", "none"), "--json"])
    differs = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["differs"]
    assert [row["field"] for row in differs] == ([] if process == "round" else ["process"])
    assert code == (OK if process == "round" else GATE)


def test_settings_of_a_gpu_are_no_difference_where_there_is_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    here = json.loads(json.dumps(describe()))
    on_gpu = here | {"device": "NVIDIA H100", "gpu": {"driver": "1"}, "process": "round"}
    folder = write_run(tmp_path / "run", stacks=STACKS[:1], n=12, environment=on_gpu)
    key = key_of("dit-tiny", "none")
    record = json.loads((folder / "cells" / key / "record.json").read_text())
    change_record(folder, key, run=record["run"] | {"device": "cuda"})
    main(["reproduce", str(folder), key, "--json"])
    differs = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["differs"]
    assert [row["field"] for row in differs] == ["device"]


def test_a_row_can_be_reproduced_by_key_or_stack(tmp_path, capsys):
    here = json.loads(json.dumps(describe()))
    folder = write_run(tmp_path / "run", stacks=STACKS[:4], n=12, environment=here)
    assert main(["reproduce", str(folder), "fora(interval=3)"]) == OK
    told = capsys.readouterr().out
    assert "all as it was when the record was made" in told
    assert (
        "python run_bench.py run --models dit-tiny --methods 'fora(interval=3)' --num-samples 12 "
        "--batch-size 4 --rounds 3" in told
    )
    assert main(["reproduce", str(folder), key_of("dit-tiny", "none"), "--json"]) == OK
    command = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["command"]
    assert "--methods none " in command
    assert main(["reproduce", str(folder), "toca"]) == USAGE
    assert "no row 'toca' in run" in capsys.readouterr().err


def test_prompts_references_plugins_and_other_margins_are_not_forgotten(tmp_path, capsys):
    here = json.loads(json.dumps(describe()))
    folder = write_run(tmp_path / "run", stacks=STACKS[:2], n=12, environment=here)
    document = json.loads((folder / "spec.json").read_text())
    change_record(folder, key_of("dit-tiny", "none"), world="", family="flux")
    told = {"prompts": "mine.txt", "references": ["coco.safetensors"], "plugins": ["mine.py"]}
    document["spec"] = told | {"margins": {"align.shapes_v1": 0.5}}
    (folder / "spec.json").write_text(json.dumps(document))
    assert main(["reproduce", str(folder), key_of("dit-tiny", "none"), "--json"]) == GATE
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert "--prompts mine.txt --reference coco.safetensors --plugin mine.py" in found["command"]
    assert [row["field"] for row in found["differs"]] == ["margins"]


def test_another_machine_is_named_field_by_field(tmp_path, capsys):
    folder = write_run(tmp_path / "run", models=("dit-tiny", "pixart-tiny"), n=12)
    assert main(["reproduce", str(folder), key_of("dit-tiny", "int8"), "--json"]) == GATE
    differs = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["differs"]
    assert {
        "field": "processor",
        "record": "Imaginary 3000",
        "here": describe()["processor"],
    } in differs
    assert main(["reproduce", str(folder), "int8"]) == USAGE
    assert "run on several models; say which by key" in capsys.readouterr().err


PLUGIN = '''
from ditbench.method import Stage, method

@method("again_test", family="test", stage=Stage.SCHEDULE, claims={"scheduler"})
class Again:
    """Does nothing."""
    def attach(self, pipeline, at):
        pass
'''


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Records of every cell of a run of all four models, with odd counts; none was run. The run
    folder, and the cells."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    spec = Spec(
        models=("tiny",),
        methods=("distill(steps=2, objective='trajectory')", "fewer_steps(share=0.2)+int8", "again_test", "fp8"),
        num_samples=66, batch_size=23, rounds=2, seed=3, dtype="bfloat16", plugins=("mine.py",),
        out="a run",
    )  # fmt: skip
    cells = plan(spec)
    folder = open_folder(cells, "a command").path
    for cell in cells:
        at = folder / "cells" / cell.key
        at.mkdir(parents=True)
        sampling = {
            "sampling": asdict(cell.sampling),
            "environment": json.loads(json.dumps(describe())),
        }
        record = record_of(
            cell,
            [
                {"status": "refused" if cell.refusal else "failed", "reason": "x", "seconds": 0.0}
                | sampling
            ],
        )
        write_json(at / "record.json", record)
    yield folder, cells
    METHODS.pop("again_test", None)


def replanned(command, capsys):
    """Key by stack of what a printed command would run."""
    words = shlex.split(command)
    assert words[:3] == ["python", "run_bench.py", "run"]
    capsys.readouterr()
    assert main(["plan", *words[3:], "--json"]) == OK
    return {
        row["stack"]: row["key"] for row in json.loads(capsys.readouterr().out.splitlines()[-1])
    }


def test_the_printed_command_plans_the_same_cell_on_all_four_models(planned, capsys):
    folder, cells = planned
    assert {cell.model.name for cell in cells if str(cell.stack) == "none"} == set(map(str, WORLDS))
    for cell in cells:
        assert main(["reproduce", str(folder), cell.key, "--json"]) in (OK, GATE)
        command = json.loads(capsys.readouterr().out.splitlines()[-1])["command"]
        assert replanned(command, capsys)[str(cell.stack)] == cell.key
        videos = cell.model.name == "wan-tiny"
        assert (
            cell.num_samples == (16 if videos else 66)
            and "--num-samples 66 --batch-size 23" in command
        )


def test_the_pages_command_of_every_row_does_too(planned, capsys):
    folder, cells = planned
    page = reports.build([folder]).page.read_text()
    commands = [
        html.unescape(text) for text in re.findall(r'<code class="command">(.*?)</code>', page)
    ]
    assert len(commands) == len(cells)
    assert [
        replanned(command, capsys)[str(cell.stack)]
        for command, cell in zip(commands, cells, strict=True)
    ] == [cell.key for cell in cells]


def test_records_of_runs_that_did_not_keep_their_spec_count_a_video_as_four(planned, capsys):
    folder, cells = planned
    document = json.loads((folder / "spec.json").read_text())
    document["spec"] = {"plugins": ["mine.py"]}
    write_json(folder / "spec.json", document)
    for cell in (c for c in cells if str(c.stack) == "none"):
        assert main(["reproduce", str(folder), cell.key, "--json"]) in (OK, GATE)
        command = json.loads(capsys.readouterr().out.splitlines()[-1])["command"]
        again = rebuild(from_table(_asked(command), Spec()), cell.model.name, "none")
        assert (again.num_samples, again.batch_size) == (cell.num_samples, cell.batch_size)


def _asked(command):
    words = shlex.split(command)
    return {
        name: int(words[words.index(f"--{name.replace('_', '-')}") + 1])
        for name in ("num_samples", "batch_size")
    }


def test_rows_of_earlier_commands_keep_their_plugin(planned, capsys):
    folder, cells = planned
    later = plan(replace(cells[0].spec, methods=("fora",), plugins=()))
    open_folder(later, "a later command")
    (mine,) = [c for c in cells if str(c.stack) == "again_test" and c.model.name == "dit-tiny"]
    assert main(["reproduce", str(folder), mine.key]) == OK
    command = capsys.readouterr().out.splitlines()[-1]
    assert "--plugin mine.py" in command and replanned(command, capsys)["again_test"] == mine.key


def test_an_edited_plugin_and_one_that_is_gone_are_told_by_reproduce(planned, capsys, tmp_path):
    folder, cells = planned
    (mine,) = [c for c in cells if str(c.stack) == "again_test" and c.model.name == "wan-tiny"]
    assert main(["reproduce", str(folder), mine.key]) == OK
    (tmp_path / "mine.py").write_text(PLUGIN + "# edited\n")
    capsys.readouterr()
    assert main(["reproduce", str(folder), mine.key, "--json"]) == GATE
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["differs"]
    assert row["field"] == "sources" and row["record"] != row["here"]
    (tmp_path / "mine.py").unlink()
    assert main(["reproduce", str(folder), mine.key, "--json"]) == GATE
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["differs"]
    assert row == {"field": "command", "record": "", "here": "plugins: there is no file 'mine.py'"}


def test_a_record_of_a_gpu_is_told_apart_on_a_machine_without_one(planned, capsys, monkeypatch):
    folder, cells = planned
    key = cells[0].key
    record = json.loads((folder / "cells" / key / "record.json").read_text())
    change_record(
        folder,
        key,
        run=record["run"] | {"device": "cuda:7"},
        environment=record["environment"] | {"device": "H100"},
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["reproduce", str(folder), key, "--json"]) == GATE
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["differs"]
    assert {"field": "device", "record": "H100", "here": "cpu"} in rows
