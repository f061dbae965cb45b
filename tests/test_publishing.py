"""A published run: small, whole enough for every report, and made into the READMEs' tables."""

import contextlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import command
from report_runs import edit, lines_of, write_run

from ditbench.metrics.scoring import score_run
from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder
from ditbench.records.scores import read_scores
from ditbench.reports import build
from ditbench.reports.answers.compare import Gates, compare
from ditbench.reports.answers.recommend import Limits, recommend
from ditbench.reports.publishing.contrasts import against_table, floor_table, matched_table
from ditbench.reports.publishing.records import publish
from ditbench.reports.publishing.run import run_table
from ditbench.reports.publishing.speeds import BLOCKS, blocks_table, speeds_table
from ditbench.reports.publishing.stacking import answer_table, verdict_table
from ditbench.reports.sections.samples import first_samples
from ditbench.reports.sections.section import ONCE_MORE, read_sections
from ditbench.runner.spec import check_writable

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("dit-tiny", "wan-tiny")
N = 90  # enough for differences of the Fréchet distance of 64 features


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two models, videos among them."""
    return write_run(tmp_path_factory.mktemp("whole") / "run", models=MODELS, n=N, resolution=32)


@pytest.fixture(scope="module")
def published(run, tmp_path_factory):
    """The same as a published run, under the same name."""
    folder = tmp_path_factory.mktemp("published") / "run"
    publish(run, folder)
    return folder


def test_a_published_run_is_small_and_has_neither_features_nor_samples(run, published):
    size = sum(path.stat().st_size for path in published.rglob("*") if path.is_file())
    cells = len(list(RunFolder(run).records()))
    assert size / cells <= 20_000  # 2 MB for 100 cells
    assert {path.name for path in published.iterdir()} == {
        "spec.json", "command.txt", "requests", "records.jsonl", "scores.zip", "thumbnails.zip",
    }  # fmt: skip
    for scores in read_scores(published).values():
        assert not [name for name in scores.arrays if name == "feature.shapes_v1"]
        assert scores.shape_of("feature.shapes_v1") == (N, 64)
    assert str(run.parent) not in (published / "spec.json").read_text()


def test_records_come_back_as_they_were(run, published):
    before, after = read_run(run), read_run(published)
    assert after.records == [record | {"traceback": ""} for record in before.records]
    assert after.damaged == []


def test_neither_folders_of_the_machine_nor_tracebacks_are_published(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    edit(copy, lambda record: record.update(traceback=f"File {copy}/method.py"))
    edit(copy, lambda record: record.update(settings={"weights": f"{copy}/my weights"}))
    edit(copy, lambda record: record.update(reason=f"no file ({copy}/a.npz), nor either/or"))
    (copy / "command.txt").write_text(
        f"python run_bench.py --out {copy} --methods 'fora, int8' --plugin {copy}/mine.py "
        f"--reference=dit-tiny={copy}/a.npz\n"
    )
    spec = json.loads((copy / "spec.json").read_text())
    spec["spec"]["plugins"] = [f"{copy}/mine.py", "tests/example_metric.py"]
    spec["spec"]["references"] = [f"dit-tiny={copy}/a.npz"]
    (copy / "spec.json").write_text(json.dumps(spec))
    publish(copy, tmp_path / "out")
    assert (tmp_path / "out/command.txt").read_text() == (
        "python run_bench.py --methods 'fora, int8' --plugin mine.py --reference=dit-tiny=a.npz\n"
    )
    kept = json.loads((tmp_path / "out/spec.json").read_text())["spec"]
    assert kept["plugins"] == ["mine.py", "tests/example_metric.py"]
    assert kept["references"] == ["dit-tiny=a.npz"]
    for record in read_run(tmp_path / "out").records:
        assert record["settings"]["weights"] == "my weights"
        assert record["reason"] == "no file (a.npz), nor either/or"
    for path in (tmp_path / "out").rglob("*.json*"):
        assert str(tmp_path) not in path.read_text(), path


def test_the_same_run_gives_the_same_bytes(run, published, tmp_path):
    again = publish(run, tmp_path / "run")
    for path in again:
        assert path.read_bytes() == (published / path.relative_to(tmp_path / "run")).read_bytes()


def test_its_report_has_the_tables_of_the_whole_run_and_needs_no_torch(run, published, tmp_path):
    build([run], tmp_path / "whole")
    blocked = (
        "import sys; sys.modules['torch'] = None\n"
        "from ditbench.cli.commands import main\n"
        f"sys.exit(main(['report', {str(published)!r}, '--out', {str(tmp_path / 'small')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode in (0, 3), done.stderr[-2000:]  # the run has failed cells
    names = sorted(
        path.relative_to(tmp_path / "whole")
        for path in (tmp_path / "whole").rglob("*")
        if path.is_file()
    )
    assert names == sorted(
        path.relative_to(tmp_path / "small")
        for path in (tmp_path / "small").rglob("*")
        if path.is_file()
    )
    for name in names:
        whole, small = tmp_path / "whole" / name, tmp_path / "small" / name
        if name.suffix == ".md" or name.suffix == ".tex":
            assert small.read_text() == whole.read_text(), name
        elif name.suffix == ".csv" and name.stem != "pairs":  # of the methods of this process too
            pd.testing.assert_frame_equal(
                pd.read_csv(small), pd.read_csv(whole), rtol=1e-5, atol=1e-7
            )


def test_answers_are_those_of_the_whole_run(run, published):
    (whole,), (small,) = read_sections([run]), read_sections([published])
    rows, sentences = recommend(small, Limits())
    assert (rows, sentences) == recommend(whole, Limits())
    lines = compare(whole, small, Gates())
    assert {line["verdict"] for line in lines} <= {"identical", "inconclusive"}
    assert any(line["quantity"] == "fd.shapes_v1" for line in lines)


@pytest.mark.parametrize("damage", [b"", b"PK", b"no archive"])
def test_damaged_archives_cost_their_content_and_nothing_else(published, tmp_path, damage):
    copy = tmp_path / "run"
    shutil.copytree(published, copy)
    for name in ("scores.zip", "thumbnails.zip"):
        (copy / name).write_bytes(damage)
    assert read_scores(copy) == {}
    with pytest.raises(ValueError, match="thumbnails are damaged"):
        first_samples(RunFolder(copy), "dit-tiny--none", lambda *_: 4, lambda frames: (0,))
    (section,) = read_sections([copy])
    assert len(section.rows) == len(read_run(published).records)
    assert section.rows[0]["quality"]["align.shapes_v1"]["reason"] == "not scored yet"
    assert section.left_out == [
        f"scores.zip is missing or damaged: there are no scores; {ONCE_MORE}",
        f"thumbnails.zip is missing or damaged: there are no samples to show; {ONCE_MORE}",
    ]


@pytest.mark.parametrize("name", ["scores.zip", "thumbnails.zip"])
def test_corrupt_bytes_inside_an_archive_are_named_in_a_sentence(published, tmp_path, name):
    """Wherever they are: no reader meets an error it does not expect."""
    copy = shutil.copytree(published, tmp_path / "run")
    whole = (published / name).read_bytes()
    (before,) = read_sections([published])
    assert before.damaged == []
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(published / name) as archive:
        starts = [member.header_offset for member in archive.infolist()]
        directory = archive.start_dir
    inside = [*rng.integers(0, directory, 6), starts[1] + 8, starts[1] + 60]
    for place in [*inside, *rng.integers(directory, len(whole), 12)]:
        damaged = bytearray(whole)
        damaged[place : place + 40] = rng.bytes(len(damaged[place : place + 40]))
        (copy / name).write_bytes(damaged)
        (section,) = read_sections([copy])
        (sentence,) = section.damaged
        assert sentence.startswith(name) and sentence.endswith(ONCE_MORE), sentence
        assert section.left_out == section.damaged and len(section.rows) == len(before.rows)
        for row in section.rows if name == "thumbnails.zip" else ():
            with contextlib.suppress(ValueError):
                first_samples(RunFolder(copy), row["key"], lambda *_: 4, range)


def test_commands_name_damaged_archives_and_report_ends_with_the_code_of_damaged_files(
    published, tmp_path
):
    copy = shutil.copytree(published, tmp_path / "run")
    for path in copy.glob("*.zip"):
        content = bytearray(path.read_bytes())
        content[100:200] = bytes(100)
        path.write_bytes(content)
    lines = [line for line in (copy / "records.jsonl").read_text().splitlines() if '"ok"' in line]
    (copy / "records.jsonl").write_text("\n".join(lines) + "\n")
    done = command("report", copy, "--out", tmp_path / "report")
    text = " ".join(done.stdout.split())
    assert done.returncode == 3 and "thumbnails.zip is damaged: samples of" in text
    assert "scores.zip has no scores of" in text
    for words in (
        ("recommend", copy),
        ("compare", copy, copy),
        ("reproduce", copy, "dit-tiny/none"),
    ):
        done = command(*words)
        assert done.returncode in (0, 1) and "Traceback" not in done.stderr
        assert "ditbench: run: thumbnails.zip is damaged" in done.stderr


def test_files_of_two_runs_in_one_folder_are_noticed(published, tmp_path):
    copy = shutil.copytree(published, tmp_path / "run")
    other = tmp_path / "other"
    publish(write_run(tmp_path / "whole", models=MODELS, n=N, resolution=32, seed=1), other)
    shutil.copy(other / "scores.zip", copy / "scores.zip")
    requests = copy / "requests/dit-tiny.json"
    requests.write_text(requests.read_text() + "\n")
    (section,) = read_sections([copy])
    assert section.damaged == [
        "requests/dit-tiny.json, scores.zip: not as published with spec.json, but changed or of "
        f"another run; {ONCE_MORE}"
    ]
    spec = json.loads((copy / "spec.json").read_text())
    del spec["files"]  # as older versions wrote it
    (copy / "spec.json").write_text(json.dumps(spec))
    assert read_sections([copy])[0].damaged == []


class Killed(BaseException):
    pass


def test_stopped_anywhere_a_folder_holds_the_older_run_or_the_newer_and_never_both(
    tmp_path, monkeypatch
):
    """Stopped before its nth change of the disk, for every n; what is left over beside it the next
    call clears away."""
    old, new = (write_run(tmp_path / str(seed), n=4, seed=seed) for seed in (0, 1))
    folder, published = tmp_path / "published" / "run", {}
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("words")

    def content():
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    for run in (new, old):
        publish(run, folder)
        published[run] = content()
        assert published[run][folder / "README.md"] == b"words"
    assert published[old].keys() == published[new].keys() and published[old] != published[new]
    states = []
    for stop in range(100):
        changes = iter(range(100))

        def killing(change, stop=stop, changes=changes):
            def changed(*args, **more):
                if next(changes) >= stop:  # nothing is put right after a kill either
                    raise Killed
                return change(*args, **more)

            return changed

        with monkeypatch.context() as patch:
            for owner, names in (
                (Path, ("write_bytes", "mkdir", "rename", "unlink")),
                (shutil, ("rmtree", "copytree")),
            ):
                for name in names:
                    patch.setattr(owner, name, killing(getattr(owner, name)))
            try:
                publish(new, folder)
            except Killed:
                states.append([published[old], {}, published[new]].index(content()))
            else:
                break
        publish(old, folder)
        assert content() == published[old]
        assert [path.name for path in folder.parent.iterdir()] == ["run"]
    # between the two renames there is none of that name, and the older one is whole beside it
    assert len(states) > 10 and sorted(states) == states and set(states) == {0, 1, 2}


def test_scores_that_one_cell_has_lost_are_named(published, tmp_path):
    copy = shutil.copytree(published, tmp_path / "run")
    with zipfile.ZipFile(published / "scores.zip") as whole:
        content = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(copy / "scores.zip", "w") as file:
        for name, scores in content.items():
            file.writestr(name, scores[:99] if name == "dit-tiny--none.safetensors" else scores)
    (section,) = read_sections([copy])
    assert section.left_out == [
        f"scores.zip has no scores of dit-tiny--none that can be read; {ONCE_MORE}"
    ]
    assert read_sections([published])[0].left_out == []


def test_a_damaged_line_is_named_and_the_others_are_read(published, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(published, copy)
    lines = (copy / "records.jsonl").read_text().splitlines()
    lines[1], lines[2] = lines[1][:50], json.dumps({"schema": 99})
    text = "\n".join(lines).encode()
    (copy / "records.jsonl").write_bytes(text + b'\n{"key": "\xff"}\n')
    read = read_run(copy)
    assert len(read.records) == len(lines) - 2 and len(read.damaged) == 3
    assert f"line {len(lines) + 1}, is damaged" in read.damaged[2]
    assert "records.jsonl, line 2, is damaged" in read.damaged[0]
    assert "line 3, has schema version 99" in read.damaged[1]


def test_nothing_is_run_scored_or_published_again_there(published, tmp_path):
    for call in (
        lambda: score_run(published),
        lambda: check_writable(published),
        lambda: publish(published, tmp_path / "again"),
    ):
        with pytest.raises(ValueError, match="is a published run, without samples"):
            call()


def test_a_run_that_is_not_scored_is_not_published(tmp_path):
    run = write_run(tmp_path / "run", n=4)
    scores = RunFolder(run).all_scores()
    scores[0].unlink()
    with pytest.raises(ValueError, match=r"dit-tiny--\S+ has no scores; `score .*` makes them"):
        publish(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("requests/dit-tiny.json", r"dit-tiny\.json is missing"),
        ("cells/dit-tiny--none/samples.safetensors", "dit-tiny--none: its samples file is missing"),
    ],
)
def test_a_run_that_lacks_something_leaves_what_is_published_as_it_was(tmp_path, lost, said):
    run, out = write_run(tmp_path / "run", n=4), tmp_path / "out"
    before = {path: path.read_bytes() for path in publish(run, out)}
    edit(run, lambda record: record.update(seconds=1.0))
    (run / lost).unlink()
    with pytest.raises(ValueError, match=said):
        publish(run, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_of_what_was_published_before_under_a_name_nothing_is_left(tmp_path):
    two = write_run(tmp_path / "two", models=MODELS, n=4, resolution=32)
    publish(two, tmp_path / "out")
    files = publish(write_run(tmp_path / "one", n=4), tmp_path / "out")
    assert {path for path in (tmp_path / "out").rglob("*") if path.is_file()} == {*files}


def test_thumbnails_are_the_first_samples(run, published):
    def count(video, side):
        return 2

    for key, frames in (("dit-tiny--none", 1), ("wan-tiny--none", 4)):
        small = first_samples(RunFolder(published), key, count, range)
        whole = first_samples(RunFolder(run), key, count, lambda n: (0, 3, 5, 8))
        assert len(small) == 2 and [len(sample) for sample in small] == [frames] * 2
        for a, b in zip(small[0], whole[0], strict=True):
            assert a.shape == b.shape and np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.8  # lossy
    with zipfile.ZipFile(published / "thumbnails.zip") as file:
        assert not [name for name in file.namelist() if name.startswith("dit-tiny--firstblock")]


def test_a_cell_of_the_run_table_has_both_speed_ups_and_both_changes(published, tmp_path):
    build([published], tmp_path / "out")
    speed = {(s["model"], s["stack"]): s for s in lines_of(tmp_path / "out/tables/speed.csv")}
    (section,) = read_sections([published])
    head, _, *lines = run_table(section).splitlines()
    assert head == "| stack | dit-tiny | wan-tiny |"
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines}
    assert list(cells) == list(dict.fromkeys(stack for _, stack in speed if stack != "none"))
    assert cells["firstblock"] == ["refused"] * 2
    (row,) = [r for r in section.models["wan-tiny"] if r["stack"] == "fora(interval=3)"]
    fora = speed["wan-tiny", "fora(interval=3)"]
    flops, call = (float(fora[name]) for name in ("speedup_flops", "speedup_call"))
    assert cells["fora(interval=3)"][1].startswith(f"{flops:.2f}x, {call:.2f}x; ")
    marks = {"better": "▲", "worse": "▼", "equivalent": "="}
    shown = cells["fora(interval=3)"][1].split("; ")[1:]
    for text, metric, places in zip(
        shown, ("align.shapes_v1", "fd.shapes_v1"), (3, 0), strict=True
    ):
        entry = row["quality"][metric]
        words = [f"{round(entry['delta']['value'], places):+.{places}f}"]
        assert text.split(" ") == words + [marks[entry["verdict"]]] * (entry["verdict"] in marks)


def test_suspect_speed_ups_are_in_brackets(tmp_path):
    (section,) = read_sections([write_run(tmp_path / "run", n=9, drift=0.5)])
    (line,) = [x for x in run_table(section).splitlines() if x.startswith("| fora(interval=3) |")]
    assert "x, (" in line and "x); " in line


def test_stacks_at_a_budget_are_set_against_one_of_them(tmp_path):
    stacks = (
        ("none", "ok"), ("fora(interval=1.7)", "ok"), ("fewer_steps(share=0.5)", "ok"),
        ("diffsparse(keep=0.46)", "ok"), ("diffsparse(allocator='uniform',keep=0.5)", "ok"),
        ("int8", "ok"),
    )  # fmt: skip
    run = write_run(tmp_path / "run", models=MODELS, stacks=stacks, n=N)

    def half(record):
        record["flops"]["flops"] = 4e10 if record["stack"] in ("none", "int8") else 1.9e10

    edit(run, half)
    (section,) = read_sections([run])
    table = matched_table(section, "0.54", "diffsparse").splitlines()
    names = [line.split(" | ")[0].strip("| ") for line in table[2:]]
    assert names == ["diffsparse", "diffsparse(allocator='uniform')", "fewer_steps", "fora"]
    own = table[2].split(" | ")[1]
    assert "▼" not in own and "▲" not in own  # of itself there is no difference
    with pytest.raises(ValueError, match=r"dit-tiny has no toca that saves 0\.54"):
        matched_table(section, "0.54", "toca")
    lines = against_table(section, "int8", "fewer_steps(share=0.5)").splitlines()
    assert len(lines) == 5 and lines[2].startswith("| fewer_steps(share=0.5): alignment | ")
    assert lines[4].startswith("| fewer_steps(share=0.5): perceptual | ")
    (row,) = [r for r in section.models["dit-tiny"] if r["stack"] == "int8"]
    whole = against_table(section, "none", "int8").splitlines()[2]
    assert f"{row['quality']['align.shapes_v1']['delta']['value']:+.3f} [" in whole
    with pytest.raises(ValueError, match="dit-tiny was not run with fora"):
        against_table(section, "int8", "fora")


def test_trainings_of_a_recipe_are_one_row_of_the_matched_table(tmp_path):
    stacks = [
        "none", "diffsparse(keep=0.46)", "diffsparse(keep=0.46, training=1)",
        "replay(of='teacache(threshold=0.2)')", "fora(interval=1.7)", "fora(interval=2.4)", "toca",
        "l2c",
    ]  # fmt: skip
    run = write_run(tmp_path / "run", stacks=[(stack, "ok") for stack in stacks], n=N)

    def half(record):
        saved = {"none": 0, "fora(interval=1.7)": 0.52, "toca": 0.525, "l2c": 0.545}.get(
            record["stack"], 0.54
        )
        record["flops"]["flops"] = 4e10 * (1 - saved)

    edit(run, half)
    (section,) = read_sections([run])
    table = matched_table(section, "0.54", "diffsparse").splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[1] for line in table[2:]}
    # of='teacache' is the default
    assert sorted(cells) == ["diffsparse", "fora", "l2c", "replay", "toca"]
    # what is more than a point from what the table's stack saves says so
    assert [name for name, cell in cells.items() if "%" in cell] == ["toca"]
    assert cells["toca"].rstrip(" |").endswith("; 52.5 %")
    rows = {row["stack"]: row["quality"] for row in section.models["dit-tiny"]}

    def value(stack, metric="perceptual.shapes_v1"):
        return rows[stack][metric]["value"]["value"]

    mean = (value(stacks[1]) + value(stacks[2])) / 2
    assert cells["diffsparse"].startswith(f"{mean:.3f}; ")
    assert cells["fora"].startswith(f"{value(stacks[5]):.3f}")  # the nearer to the budget


def test_the_noise_floor_has_a_line_for_each_model_and_metric(tmp_path):
    stacks = (("none", "ok"), ("rerun", "ok"), ("rerun(attention='math')", "ok"),
              ("rerun(seed=1)", "ok"), ("diffsparse", "ok"))  # fmt: skip
    (section,) = read_sections([write_run(tmp_path / "run", models=MODELS, stacks=stacks, n=N)])
    table = floor_table(section).splitlines()
    assert len(table) == 2 + 2 * 5 and table[2].startswith("| dit-tiny | align.shapes_v1 | ")
    (row,) = [r for r in section.models["wan-tiny"] if r["stack"] == "rerun(seed=1)"]
    change = row["quality"]["recall.shapes_v1"]["delta"]["value"]
    assert f"{round(change, 3) + 0.0:+.3f} [" in table[-1].split(" | ")[5]


def test_combinations_have_their_verdict_from_the_run(published):
    (section,) = read_sections([published])
    verdicts = verdict_table(section).splitlines()
    assert verdicts[0] == "| combination | dit-tiny | wan-tiny |"
    (row,) = [r for r in section.stacking if r["model"] == "dit-tiny"]
    assert verdicts[2].startswith(f"| int8+fora | {row['verdict']} | ")
    assert f"**{row['verdict']}** {row['alignment'].value:+.3f} [" in answer_table(section)


def test_times_that_are_suspect_stand_in_brackets_in_the_table_of_speeds(tmp_path):
    stacks = [("none", "ok"), ("int8", "ok"), ("firstblock", "refused")]
    folder = write_run(tmp_path / "run", models=("dit-tiny",), stacks=stacks, n=8)

    def cells():
        (section,) = read_sections([folder])
        _, _, *lines = speeds_table(section).splitlines()
        rows = {row["stack"]: row for row in section.rows}
        return rows, {line.split(" | ")[1].strip("`"): line.split(" | ")[2:] for line in lines}

    rows, shown = cells()
    assert not rows["int8"]["suspect"]
    assert shown["firstblock"] == ["refused", *["-"] * 5, "- |"]
    reliable = shown["int8"]
    assert reliable[1] == f"{rows['int8']['speedup_denoise']['value']:.2f}x"
    edit(folder, lambda r: r.update(timing=[t for t in r["timing"] if t["round"] == 0]))
    rows, shown = cells()
    assert rows["int8"]["suspect"]
    loop, call, realised, seconds = shown["int8"][1:5]
    assert loop == f"({rows['int8']['speedup_denoise']['value']:.2f}x)"
    assert call == f"({rows['int8']['speedup_call']['value']:.2f}x)"
    assert realised == f"({rows['int8']['realised']['value']:.2f})"
    assert seconds == f"({rows['int8']['timing']['call_s']['value']:.4f})"
    assert [shown["int8"][i] for i in (0, 5, 6)] == [reliable[i] for i in (0, 5, 6)]


def block_row(block, ms, speedup=1.0):
    return {"model": "dit-tiny", "block": block, "ms": ms, "speedup": speedup}


def schedule_row(name, seconds, flops):
    return {
        "model": "dit-tiny", "schedule": name, "partial": 0.25, "flops_ratio": flops,
        "predicted_s": seconds, "predicted_speedup": 8 / seconds,
        "predicted_realised": 8 / seconds / flops,
    }  # fmt: skip


def test_timed_blocks_are_published_with_their_hash_and_make_three_tables(run, tmp_path):
    source = shutil.copytree(run, tmp_path / "run")
    whole = [
        block_row(f"blocks block {how}", ms) for how, ms in zip("abc", (3, 3.1, 1), strict=True)
    ]
    levels = [("0.25", 1, 2), ("0.5", 1.5, 1.333), ("0.75", 1.8, 1.111), ("1", 2, 1)]
    levels = [block_row(f"blocks self {level}", ms, fast) for level, ms, fast in levels]
    schedules = [schedule_row("dense", 8, 1), schedule_row("evenly", 5, 2)]
    rows = [*whole, *levels, *schedules]
    (source / BLOCKS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    publish(source, folder := tmp_path / "published")
    (section,) = read_sections([folder])
    lines = {
        what: blocks_table(section, what).splitlines()[2:]
        for what in ("whole", "levels", "schedules")
    }
    assert lines == {
        "whole": ["| dit-tiny | blocks | 3.00 ms | 3.10 ms | 1.00 ms |"],
        "levels": ["| dit-tiny | blocks self | 2.00x | 1.33x | 1.11x | 2.00 |"],
        "schedules": [
            "| dit-tiny | dense | 25% | 1.00x | 8.00 | 1.00x | 1.00 |",
            "| dit-tiny | evenly | 25% | 2.00x | 5.00 | 1.60x | 0.80 |",
        ],
    }
    with pytest.raises(ValueError, match="'half' is neither whole, levels nor schedules"):
        blocks_table(section, "half")
    with pytest.raises(ValueError, match=f"has no {BLOCKS}"):
        blocks_table(read_sections([run])[0], "whole")
    assert not section.damaged
    (folder / BLOCKS).write_text(json.dumps(schedules[0]) + "\n")
    assert f"{BLOCKS}: not as published" in read_sections([folder])[0].damaged[0]
