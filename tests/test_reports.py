"""The report from hand-written run folders: nothing that misleads gets in, nothing that was run is
left out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from report_runs import (
    ENVIRONMENT,
    REASONS,
    SCHEDULE,
    STACKS,
    WORLDS,
    edit,
    key_of,
    lines_of,
    write_run,
)

from ditbench import reports
from ditbench.analysis import summary, verdict
from ditbench.metrics import set_statistics
from ditbench.records.record import RANDOM
from ditbench.records.scores import read_file, write_file
from ditbench.reports.figures import labels, style
from ditbench.reports.figures import quality_time as figures
from ditbench.reports.figures import sample_grid as grids
from ditbench.reports.figures import scatter as drawing
from ditbench.reports.figures import schedule_heatmap as heatmaps
from ditbench.reports.figures import speed_memory as charts
from ditbench.reports.sections import format as wording
from ditbench.reports.sections import section as sections
from ditbench.reports.sections.rows import TIMES
from ditbench.reports.terminal import table as terminal
from ditbench.statistics.frechet import Reference

ROOT = Path(__file__).resolve().parents[1]
AWAY = [(stack, status) for stack, status in STACKS if status != "ok"]
NUMBERS = (
    "call_s",
    "speedup_flops",
    "speedup_predicted",
    "speedup_denoise",
    "speedup_call",
    "realised",
    "flops",
    "peak_bytes",
)


@pytest.fixture(autouse=True, scope="module")
def normal_reference():
    """A Fréchet reference of our own, so that these tests need no data files."""
    patch = pytest.MonkeyPatch()
    held = Reference.through(np.random.default_rng(0).standard_normal((512, 64)))
    patch.setattr(set_statistics, "reference_of", lambda world, family: held)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "demo", models=("dit-tiny", "wan-tiny"))


@pytest.fixture(scope="module")
def report(run):
    return reports.build([run])


def test_a_report_has_tables_plots_grids_and_a_page_for_every_model(report, run):
    names = {str(path.relative_to(run / "report")) for path in report.files}
    tables = {
        f"tables/{name}.{kind}"
        for name in ("speed", "quality", "stacking")
        for kind in ("csv", "md", "tex")
    }
    plots = {
        f"plots/{model}-{what}.{kind}"
        for model in ("dit-tiny", "wan-tiny")
        for what in (
            "quality-against-time",
            "promised-and-measured",
            "memory",
            "stacking",
            "crossover",
            "schedules",
        )
        for kind in ("png", "svg")
    }
    assert names == tables | plots | {
        "grids/dit-tiny-samples.png",
        "grids/wan-tiny-samples.png",
        "index.html",
        "pairs.html",
        "tables/pairs.csv",
        "tables/pairs.json",
    }
    assert all(path.stat().st_size > 200 for path in report.files)


def test_a_heat_map_has_sub_layers_by_kind_and_depth_and_a_column_per_step():
    shares, spans = heatmaps.grouped(SCHEDULE)
    assert shares.tolist() == [[1, 0], [1, 0.25], [1, 0.5], [1, 0]]
    assert spans == [("self", 0, 2), ("mlp", 2, 4)]


def test_every_cell_is_a_row_of_the_csv_with_its_record_key(report, run):
    speed = lines_of(run / "report/tables/speed.csv")
    assert [
        (line["stack"], line["status"]) for line in speed if line["model"] == "dit-tiny"
    ] == list(STACKS)
    assert {line["key"] for line in speed} == {p.name for p in (run / "cells").iterdir()}
    assert {line["processor"] for line in speed if line["status"] == "ok"} == {"Imaginary 3000"}
    assert {line["num_samples"] for line in speed} == {"12"}


def test_cells_that_did_not_run_or_did_nothing_have_a_reason_and_no_numbers(report, run, capsys):
    reports.print_report(report)
    printed, page = capsys.readouterr().out, report.page.read_text()
    speed = {line["key"]: line for line in lines_of(run / "report/tables/speed.csv")}
    quality = [
        line for line in lines_of(run / "report/tables/quality.csv") if line["status"] != "ok"
    ]
    assert {line["status"] for line in quality} == {"refused", "inert", "skipped", "failed", "oom"}
    assert all(
        line[name] == "" for line in quality for name in ("value", "value_low", "delta", "mde")
    )
    assert all(line["reason"] for line in quality)
    for stack, status in AWAY:
        line = speed[key_of("dit-tiny", stack)]
        assert line["status"] == status and line["reason"] == REASONS[status]
        assert all(line[name] == "" for name in NUMBERS)
        assert f"{stack}: {status}: {REASONS[status]}" in " ".join(printed.split())
        assert (
            REASONS[status].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in page
        )


def test_an_inert_cell_has_times_in_its_record_yet_no_speed_up_anywhere(report, run):
    key = key_of("dit-tiny", "noop")
    assert json.loads((run / "cells" / key / "record.json").read_text())["timing"]
    (row,) = [r for r in report.sections[0].rows if r["key"] == key]
    assert all(row[name] is None for name in TIMES)
    assert (
        row["speedup_flops"] is None
        and row["timing"]["call_s"] is None
        and not row["flops"]
        and not row["memory"]
    )


def test_the_csv_has_the_four_speed_ups_at_full_precision_as_the_records_give_them(report, run):
    by_key = {line["key"]: line for line in lines_of(run / "report/tables/speed.csv")}
    none, fora = (
        json.loads((run / "cells" / key_of("dit-tiny", s) / "record.json").read_text())
        for s in ("none", "fora(interval=3)")
    )
    line = by_key[fora["key"]]
    logs = [
        np.log(
            sum(t["call_s"] for t in none["timing"] if t["round"] == r)
            / sum(t["call_s"] for t in fora["timing"] if t["round"] == r)
        )
        for r in range(3)
    ]
    flops = none["flops"]["flops"] / fora["flops"]["flops"]
    share = sum(t["denoise_s"] for t in none["timing"]) / sum(t["call_s"] for t in none["timing"])
    assert float(line["speedup_call"]) == pytest.approx(np.exp(np.mean(logs)), rel=1e-12)
    assert (
        float(line["speedup_call_low"])
        < float(line["speedup_call"])
        < float(line["speedup_call_high"])
    )
    assert float(line["speedup_flops"]) == pytest.approx(flops, rel=1e-12)
    assert float(line["speedup_predicted"]) == pytest.approx(
        1 / (1 - share + share / flops), rel=1e-9
    )
    assert float(line["realised"]) == pytest.approx(
        float(line["speedup_denoise"]) / flops, rel=1e-12
    )
    assert line["baseline_key"] == none["key"]


def test_every_quality_number_carries_its_n_and_every_delta_its_baseline(report, run):
    lines = [line for line in lines_of(run / "report/tables/quality.csv") if line["value"]]
    assert all(int(line["value_n"]) == 12 for line in lines)
    assert all(
        int(line["delta_n"]) == 12 and line["baseline_key"] for line in lines if line["delta"]
    )
    assert {line["part"] for line in lines} == {"", "shape", "colour", "pooled"}
    assert {
        line["n_identical"]
        for line in lines
        if line["metric"] == "psnr.vs_none" and not line["part"]
    } == {"0"}
    assert not [line for line in lines if line["stack"] == "none" and line["delta"]]


def test_two_builds_write_the_same_bytes(report, tmp_path, run):
    again = reports.build([run], tmp_path / "again")
    assert len(again.files) == len(report.files)
    for one, two in zip(report.files, again.files, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name


def test_prompts_names_and_reasons_are_escaped(tmp_path):
    stacks = (("none", "ok"), ("<script>alert(1)</script>", "refused"))
    run = write_run(tmp_path / "a<b>", models=("pixart-tiny",), stacks=stacks, n=9)
    (run / "command.txt").write_text("python run_bench.py --out 'a<b>' && echo \"</pre>\"\n")
    page = reports.build([run]).page.read_text()
    assert page.count("<script") == 1 and "&lt;script&gt;alert(1)&lt;/script&gt;" in page.replace(
        "<wbr>", ""
    )
    assert "<b>" not in page and "a&lt;b&gt;" in page
    assert page.count("</pre>") == page.count("<pre>")
    table = (run / "report/tables/speed.md").read_text()
    assert "<script" not in table


def test_a_pipe_in_a_reason_does_not_break_the_markdown_table(report, run):
    text = (run / "report/tables/speed.md").read_text()
    assert "the \\| matrix" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1


def test_every_file_the_page_names_exists_and_none_is_remote(report):
    page = report.page.read_text()
    names = [part.split('"')[0] for mark in ('src="', 'href="') for part in page.split(mark)[1:]]
    assert not [
        name for name in names if ":" in name.split("/")[0] and not name.startswith("data:image/")
    ]
    for name in names:
        if name.startswith("data:"):
            continue
        if name.startswith("#"):
            assert f'id="{name[1:]}"' in page
        else:
            assert (report.out / name).is_file(), name
    assert any(name.endswith(".svg") for name in names) and any(
        name.endswith("-samples.png") for name in names
    )


def test_a_damaged_record_is_named_and_the_rest_reported(tmp_path, capsys):
    run = write_run(tmp_path / "hurt", n=9, stacks=STACKS[:4])
    bad = run / "cells" / key_of("dit-tiny", "int8") / "record.json"
    bad.write_text(bad.read_text()[:100])
    (run / "scores" / f"{key_of('dit-tiny', 'fora(interval=3)')}.safetensors").write_bytes(b"half")
    report = reports.build([run])
    reports.print_report(report)
    out, page = capsys.readouterr().out, report.page.read_text()
    assert [row["stack"] for row in report.sections[0].rows] == [
        "none",
        "fewer_steps(steps=10)",
        "fora(interval=3)",
    ]
    for text in (
        " ".join(out.split()),
        page,
        " ".join((run / "report/tables/speed.md").read_text().split()),
    ):
        assert f"cells/{bad.parent.name}/record.json is damaged" in text
        assert "scores/dit-tiny--fora-interval-3-.safetensors is damaged" in text
    told = reports.report_json(report)["runs"][0]
    assert len(told["left_out"]) == 2 and len(told["models"][0]["rows"]) == 3


def test_a_cell_without_samples_is_a_row_of_the_grid_with_the_reason(tmp_path):
    run = write_run(tmp_path / "run", n=9, stacks=STACKS[:2])
    (run / "cells" / key_of("dit-tiny", STACKS[1][0]) / "samples.safetensors").write_bytes(
        b"\x00" * 40
    )
    (section,) = sections.read_sections([run])
    found = [grids.read_tiles(section, row) for row in section.rows]
    assert len(found[0].samples) == 8 and not found[0].trouble
    assert not found[1].samples and "damaged" in found[1].trouble
    assert grids.draw_grids(section, tmp_path / "grids")


def test_a_drifting_baseline_marks_the_rows_suspect_and_prints_the_bound(tmp_path, capsys):
    run = write_run(tmp_path / "run", n=9, stacks=STACKS[:3], drift=0.2)
    report = reports.build([run])
    reports.print_report(report)
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("suspect") >= 3
    assert (
        f"above {100 * summary.DRIFT_BOUND:.1f} % the times of this model are not to be trusted"
        in out
    )
    assert 'class="mark suspect"' in report.page.read_text()
    assert "| suspect |" in (run / "report/tables/speed.md").read_text()


def test_times_from_two_machines_are_never_divided(tmp_path):
    run = write_run(tmp_path / "run", n=9, stacks=STACKS[:3])
    path = run / "cells" / key_of("dit-tiny", "fora(interval=3)") / "record.json"
    record = json.loads(path.read_text())
    record["environment"] = ENVIRONMENT | {"processor": "Another 4000", "cores": 64}
    path.write_text(json.dumps(record))
    rows = {row["stack"]: row for row in sections.read_sections([run])[0].rows}
    moved = rows["fora(interval=3)"]
    assert all(moved[name] is None for name in TIMES)
    assert moved["timing"]["call_s"] is not None and moved["speedup_flops"] is not None
    assert "differ in processor, cores" in moved["notes"][0]
    assert rows["fewer_steps(steps=10)"]["speedup_call"] is not None


def test_runs_of_two_machines_keep_their_own_sections_and_files(tmp_path, capsys):
    machines = ENVIRONMENT, ENVIRONMENT | {"cores": 64}
    runs = [
        write_run(tmp_path / at / "same", n=9, stacks=STACKS[:2], environment=machine)
        for at, machine in zip("ab", machines, strict=True)
    ]
    report = reports.build(runs, tmp_path / "out")
    reports.print_report(report)
    assert [section.name for section in report.sections] == ["same", "same-2"]
    assert (tmp_path / "out/same/tables/speed.csv").is_file() and (
        tmp_path / "out/same-2/tables/speed.csv"
    ).is_file()
    first, second = (
        lines_of(tmp_path / f"out/{name}/tables/speed.csv") for name in ("same", "same-2")
    )
    assert {line["run"] for line in first} == {"same"} and {line["run"] for line in second} == {
        "same-2"
    }
    assert "same-2: dit-tiny" in capsys.readouterr().out


def test_the_json_document_is_what_the_table_shows(report, capsys):
    told = json.loads(json.dumps(reports.report_json(report), allow_nan=False))
    rows = told["runs"][0]["models"][0]["rows"]
    assert [(row["stack"], row["status"]) for row in rows] == list(STACKS)
    reports.print_report(report)
    out = capsys.readouterr().out
    for row in rows:
        if row["status"] == "ok":
            assert f"{row['speedup_call']['value']:.2f}x" in out
            assert f"{row['quality']['align.shapes_v1']['value']['value']:.3f}" in out
        assert bool(row["notes"]) == (row["status"] != "ok")


@pytest.mark.parametrize("width", [60, 100, 120])
def test_the_table_fits_the_terminal_and_says_what_it_left_out(report, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    reports.print_report(report)
    out = capsys.readouterr().out
    tables = [line for line in out.splitlines() if not line.startswith("page, figures")]
    assert max(map(len, tables)) <= width
    assert "\x1b[" not in out
    assert ("not shown for want of width" in " ".join(out.split())) == (width < 110)


@pytest.mark.parametrize("width", [60, 120])
def test_verdicts_stand_in_the_terminal_as_on_the_page(report, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    reports.print_report(report)
    out = capsys.readouterr().out
    document = json.loads(json.dumps(reports.report_json(report), allow_nan=False))
    words = [
        row["quality"]["align.shapes_v1"]["verdict"]
        for model in document["runs"][0]["models"]
        for row in model["rows"]
    ]
    assert len(set(filter(None, words))) > 1
    for word in {"worse", "better", "equivalent"}:
        assert len(re.findall(rf"\b{word}\b", out)) == words.count(word)
    (section,) = report.sections
    combinations = [row["verdict"] for row in section.stacking]
    assert len(combinations) == 2 and out.count("under the name of a combination") == 2
    lines = out.splitlines()
    at = [i for i, line in enumerate(lines) if re.match(r"int8\+fora.*\dx", line)]
    for i, word in zip(at, combinations, strict=True):
        assert word in {line.split("  ")[0].strip() for line in lines[i : i + 4]}


def test_what_no_verdict_can_be_had_of_for_want_of_a_part_is_said(tmp_path, capsys):
    stacks = [(s, "ok") for s in ("none", "int8", "int8+fora(interval=3)")]
    reports.print_report(reports.build([write_run(tmp_path / "run", stacks=stacks)]))
    hint = "whether int8+fora(interval=3) stacks is not judged without fora(interval=3) alone"
    out = " ".join(capsys.readouterr().out.split())
    assert hint in out and "under the name of a combination" not in out


def test_rows_of_a_plain_table_keep_their_first_column_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    name = "a_method_with_a_rather_long_name"
    terminal.print_rows(
        [
            {"method": name, "steps": 5, "about": "words " * 30},
            {"method": "b", "steps": None, "about": "[red]x[/red]"},
        ],
        "two",
    )
    out = capsys.readouterr().out
    assert name in out and "[red]x[/red]" in out and "two" in out and " - " in out
    assert max(map(len, out.splitlines())) <= 60
    terminal.print_rows([], "nothing to show")
    assert "nothing to show" in capsys.readouterr().out


def test_a_long_stack_breaks_after_a_plus_or_before_a_bracket():
    assert terminal.broken("int8+fora(interval=3)", 16) == ["int8+fora", "(interval=3)"]
    assert terminal.broken("int8", 16) == ["int8"]
    stack = "diffsparse(keep=0.442, allocator='uniform', selector='shuffle')+int8"
    assert terminal.broken(stack, 24) == [
        "diffsparse(keep=0.442,", "allocator='uniform',", "selector='shuffle')+int8",
    ]  # fmt: skip
    assert terminal.broken("needs package:torchao>=0.17, sm>=89", 22) == [
        "needs", "package:torchao>=0.17,", "sm>=89",
    ]  # fmt: skip
    lines = terminal.broken("a" * 40 + "+b", 16)
    assert "".join(lines) == "a" * 40 + "+b" and max(map(len, lines)) <= 16


LONG_STACKS = (
    "none", "int8+diffsparse(keep=0.442, allocator='uniform', selector='shuffle')",
    "distill(steps=2)+fora(interval=2.406)", "fewer_steps(share=0.438)",
    "token_merging(size=4)+taylorseer(interval=2.406)",
)  # fmt: skip


@pytest.mark.parametrize("width", [80, 100, 120])
def test_tables_break_stacks_only_after_a_plus_or_a_comma_or_before_a_bracket(
    tmp_path, capsys, monkeypatch, width
):
    """The final table of a run, and plain ones as of `stack`, `compare` and `estimate`."""
    monkeypatch.setenv("COLUMNS", str(width))
    stacks = [(stack, "ok") for stack in LONG_STACKS]
    found = sections.read_sections([write_run(tmp_path / "run", n=9, stacks=stacks)])
    reports.print_report(sections.Report(sections=found, out=tmp_path, page=Path("x"), files=[]))
    printed = [capsys.readouterr().out.partition("n = 9 samples")[0]]
    numbers = {"alignment": "-0.123 [-0.234, 0.345]", "weights_gb": 12.3456, "step_ms": 123.45}
    texts = {"verdict": "inconclusive", "reason": "the interaction may be below the margin " * 3}
    for columns in ({}, numbers, texts, numbers | texts):
        terminal.print_rows([{"model": "flux-1-dev", "stack": s, **columns} for s in LONG_STACKS])
        printed.append(capsys.readouterr().out)
    pieces = {p.strip() for s in LONG_STACKS for p in re.split(r"(?<=[+ ])|(?=\()", s)}
    for out in printed:
        assert max(map(len, out.splitlines())) <= width
        assert {piece for piece in pieces if piece not in out} == set()


def test_what_is_too_wide_for_any_column_stands_below_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    address = "https://example.org/a/rather/long/address/of/something"
    terminal.print_rows([{"method": "a", "paper": address, "about": "words " * 9}])
    out = capsys.readouterr().out
    assert f"a: paper: {address}" in " ".join(out.split()) and "about" in out


def test_a_single_row_keeps_its_stack_beside_its_model(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    row = {"model": "dit-tiny", "stack": "distill+alternate_blocks", "reason": "words " * 9}
    terminal.print_rows([row | {name: "0.123 [0.001, 0.999]" for name in "abcd"}])
    head, _, below = capsys.readouterr().out.partition("reason: words")
    assert below and head.split()[:2] == ["model", "stack"]
    assert " ".join(head.split()).endswith("dit-tiny distill+alternate_blocks:")


def test_grids_show_the_same_requests_in_every_row_and_three_frames_of_a_video(
    run, report, tmp_path
):
    (section,) = sections.read_sections([run])
    wan = [row for row in section.models["wan-tiny"] if row["status"] == "ok"]
    tiles = [grids.read_tiles(section, row) for row in wan]
    assert {len(t.samples) for t in tiles} == {4} and {
        len(sample) for t in tiles for sample in t.samples
    } == {3}
    from safetensors.numpy import load_file

    stored = load_file(run / "cells" / wan[0]["key"] / "samples.safetensors")["samples"]
    for i, sample in enumerate(tiles[0].samples):
        for frame, t in zip(sample, (0, 4, 8), strict=True):
            assert (frame[::8, ::8] == stored[i, t]).all() and frame.shape == (128, 128, 3)
    dit = [row for row in section.models["dit-tiny"] if row["status"] == "ok"]
    picture = np.asarray(Image.open(run / "report/grids/dit-tiny-samples.png"))
    for row in dit:
        for sample in grids.read_tiles(section, row).samples[:2]:
            assert _occurs(picture, sample[0]), row["stack"]


def test_the_longest_line_of_a_row_label_ends_before_the_pictures(run, report):
    (section,) = sections.read_sections([run])
    none = section.models["wan-tiny"][0]
    entry = {"value": {"value": 0.5}, "delta": None}
    row = none | {"quality": {"motion.of_" + "long_" * 12 + "name": entry}}
    longest = max(
        grids._font().getlength(text) for text, _, bold in grids._row_label(row) if not bold
    )
    assert longest > grids.LEFT
    tiles = grids.read_tiles(section, none)
    picture = np.asarray(grids._draw("wan-tiny", [row], [tiles], []))
    frame = tiles.samples[0][0]
    left = min(x for x in range(picture.shape[1] - 129) if _occurs(picture[:, x : x + 129], frame))
    assert left >= grids.EDGE + longest


def test_below_each_stack_of_a_grid_are_its_differences_to_the_unaccelerated_samples(run, report):
    (section,) = sections.read_sections([run])
    none, other = (
        grids.read_tiles(section, row).samples[0][0].astype(int)
        for row in section.models["dit-tiny"][:2]
    )
    # a pixel of the sample is eight of the tile
    stronger = np.minimum(grids.STRONGER * abs(other - none), 255)[::8, ::8]
    picture = np.asarray(Image.open(run / "report/grids/dit-tiny-samples.png"))
    assert _occurs(picture, stronger.repeat(4, 0).repeat(4, 1)) and not _occurs(
        picture, np.zeros((64, 64, 3))
    )


def _occurs(picture, tile):
    """Whether the tile is somewhere in the picture, unaltered."""
    height, width = tile.shape[:2]
    spots = np.argwhere(
        (picture[: -height + 1, : -width + 1] == tile[0, 0]).all(-1)
        & (picture[height - 1 :, width - 1 :] == tile[-1, -1]).all(-1)
    )
    return any((picture[y : y + height, x : x + width] == tile).all() for y, x in spots)


def test_a_class_is_named_as_the_world_names_it():
    shapes = pytest.importorskip("ditbench.shapes.scenes")
    for label, name in enumerate(shapes.CLASSES):
        assert (
            grids.asked_for({"prompt": None, "label": label}, "class") == f"{name} (class {label})"
        )
    assert grids.asked_for({"prompt": None, "label": 207}, "") == "class 207"


def test_wrapped_text_fits_its_column_and_loses_no_word_unless_it_says_so():
    text = "a large red circle top-left and a small blue square bottom-right on striped grey"
    lines = grids.wrap(text, 128, 9)
    assert " ".join(lines) == text
    assert all(grids._font().getlength(line) <= 128 for line in lines)
    assert grids.wrap(text, 128, 2)[-1].endswith("…") and len(grids.wrap(text, 128, 2)) == 2
    assert "".join(grids.wrap("x" * 60, 100, 9)) == "x" * 60


def test_labels_of_scattered_points_cover_neither_each_other_nor_the_points_nor_a_line():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rng = np.random.default_rng(3)
    figure = Figure(figsize=(8, 3), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = [tuple(p) for p in rng.random((12, 2))]
    axes.set_xlim(-0.2, 1.2)
    axes.set_ylim(-0.2, 1.2)
    spots = [labels.Box(x - 5, y - 5, x + 5, y + 5) for x, y in axes.transData.transform(points)]
    (left, low), (right, high) = axes.transData.transform([(-0.2, 0.1), (1.2, 0.9)])
    across = np.array([[left, low, right, high]])
    boxes = labels.place_labels(
        axes, points, [f"stack(knob={i})" for i in range(12)], spots, size=7.5, lines=across
    )
    edges = np.array([[box.left, box.bottom, box.right, box.top] for box in boxes])
    assert not labels._crosses(across, edges).any(), (
        "a label lies on the line drawn across the panel"
    )
    for i, a in enumerate(boxes):
        for b in [*boxes[:i], *spots]:
            assert min(a.right, b.right) <= max(a.left, b.left) or min(a.top, b.top) <= max(
                a.bottom, b.bottom
            )
    assert [t.get_text() for t in axes.texts] != []


def test_a_stack_too_many_for_names_has_the_number_of_its_line_in_the_table_whatever_else_a_figure_leaves_out(
    run, report
):
    (section,) = sections.read_sections([run])
    rows = section.models["wan-tiny"]
    assert drawing.numbers(section, "wan-tiny", [rows[3], rows[1]]) == ["4", "2"]


def test_a_panel_of_a_heat_map_has_its_own_steps_where_the_one_below_counts_others(
    tmp_path, monkeypatch
):
    told, paint = [], heatmaps.paint
    monkeypatch.setattr(
        heatmaps, "paint", lambda *a, **k: told.append(k["below"]) or paint(*a, **k)
    )
    long, short = SCHEDULE, SCHEDULE | {"keep": SCHEDULE["keep"][:1]}
    shown = [("a", long), ("b", long), ("c", long), ("d", long), ("e", short)]
    heatmaps._draw("dit-tiny", shown, "", tmp_path)
    # over d as long, over the short e, over nothing; the lowest
    assert told == [
        False,
        True,
        True,
        True,
        True,
    ]


def test_a_long_kind_of_sub_layer_lies_beside_what_the_rows_of_a_heat_map_are(
    tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(heatmaps, "finish", lambda figure, *rest: seen.append(figure) or [])
    long = {"sublayers": ["0.context_mlp", "0.joint"], "keep": [[1.0, 0.5], [0.0, 1.0]]}
    with style.in_style({"axes.grid": False}):
        heatmaps._draw("flux-tiny", [("a", long)], "", tmp_path)
    (figure,) = seen
    (label,) = [text for text in figure.texts if text.get_text().startswith("sub-layer")]
    kinds = [text for text in figure.axes[0].texts if text.get_text() in ("context_mlp", "joint")]
    edge = label.get_window_extent().x1
    assert len(kinds) == 2 and all(edge < kind.get_window_extent().x0 for kind in kinds)


def test_kinds_of_stacks_differ_in_marker_and_not_in_colour_alone():
    looks = [style.BASELINE, style.COMBINATION, style.OTHER, *style.FAMILIES.values()]
    assert len({kind.marker for kind in looks}) == len({kind.label for kind in looks}) == len(looks)
    assert style.look([{"name": "none", "family": "baseline"}]) is style.BASELINE
    assert (
        style.look([{"name": "a", "family": "cache"}, {"name": "b", "family": "cache"}])
        is style.COMBINATION
    )
    assert style.look([{"name": "a", "family": "never heard of"}]) is style.OTHER


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.012345, "0.0123"),
        (1.2345, "1.23"),
        (12.345, "12.3"),
        (1234.5, "1234"),
        (-0.5, "-0.500"),
        (2.5e7, "2.50e+07"),
    ],
)
def test_numbers_are_told_in_three_figures(value, text):
    assert wording.number(value) == text


def test_a_rounded_change_is_never_minus_zero():
    assert wording.fixed(-0.0001, 3, signed=True) == "+0.000"


def test_an_end_of_an_interval_says_whether_zero_is_inside():
    def interval(low, high, **more):
        return wording.interval({"value": 0.0, "low": low, "high": high}, 3, **more)

    assert interval(-0.012, -0.0002, signed=True) == "[-0.012, -0.000]"
    assert interval(-0.0002, 0.0002, signed=True) == "[-0.000, +0.000]"
    assert interval(-0.0, 0.0, signed=True) == "[+0.000, +0.000]"
    assert interval(-0.0002, 0.012) == "[0.000, 0.012]"


def test_a_run_without_scores_has_a_report_that_says_why(tmp_path, capsys):
    run = write_run(tmp_path / "run", n=9, stacks=STACKS[:2])
    for path in (run / "scores").iterdir():
        path.unlink()
    report = reports.build([run])
    reports.print_report(report)
    missing = r"no align\.shapes_v1, fd\.shapes_v1, [^:]*: not scored yet"
    assert len(re.findall(missing, " ".join(capsys.readouterr().out.split()))) == 1
    drawn = {path.name for path in (run / "report/plots").iterdir()}
    assert {name.rpartition(".")[0] for name in drawn} == {
        "dit-tiny-promised-and-measured",
        "dit-tiny-memory",
    }
    assert len(re.findall(missing, report.page.read_text())) == 1


def test_a_run_with_random_weights_says_once_that_it_has_no_quality(tmp_path, capsys):
    run = write_run(tmp_path / "run", n=9, models=("dit-tiny",), stacks=STACKS[:5])
    edit(run, lambda record: record["run"].update(weights="random"))
    for path in (run / "scores").iterdir():
        path.unlink()
    report = reports.build([run])
    reports.print_report(report)
    sentence = f"no quality: {RANDOM}"
    texts = [
        " ".join(capsys.readouterr().out.split()),
        report.page.read_text(),
        (report.out / "tables/quality.md").read_text(),
    ]
    for text in texts:
        assert text.count(sentence) == text.count(RANDOM) == 1
        assert "not scored yet" not in text
    assert "Not measured, and why" not in texts[1]
    drawn = {path.name.partition(".")[0] for path in (report.out / "plots").iterdir()}
    assert drawn == {f"dit-tiny-{n}" for n in ("promised-and-measured", "memory", "schedules")}
    (row, *_) = [r for r in lines_of(report.out / "tables/quality.csv") if r["stack"] == "int8"]
    assert row["reason"] == RANDOM


def test_a_cell_without_a_record_is_named_by_model_and_stack(tmp_path):
    run = write_run(tmp_path / "run", n=2, models=("dit-tiny",), stacks=STACKS[:2])
    spec = json.loads((run / "spec.json").read_text())
    labels = {"dit-tiny--fora-0a": "dit-tiny fora(interval=3)"}
    spec |= {"cells": ["dit-tiny--fora-0a", "dit-tiny--int8-0b"], "labels": labels}
    (run / "spec.json").write_text(json.dumps(spec))
    (section,) = sections.read_sections([run])
    assert [sentence.partition(" has no record: ")[0] for sentence in section.left_out] == [
        "dit-tiny fora(interval=3)",
        "dit-tiny--int8-0b",
    ]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        reports.build([tmp_path])
    with pytest.raises(ValueError, match="at least one"):
        reports.build([])


def test_a_report_needs_no_torch(tmp_path):
    run = write_run(tmp_path / "run", n=9, stacks=STACKS[:2])
    code = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport run_bench\nfrom pathlib import "
        "Path\nfrom ditbench import reports\n"
        "report = "
        f"reports.build([Path({str(run)!r})])\nreports.print_report(report)\nreports.report_json(report)\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules), 'torch came in'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-800:]


def test_a_hundred_cells_take_little_enough_work(tmp_path):
    """Counted in function calls, which no other work on the machine changes.

    The command makes 11.6 million, imports and the matrix of all pairs of methods (0.6 million)
    included; when it made 8 million it took 6.6 to 7.9 s on
    a quiet two-core machine, of the ten it may take. At other hours it took 14 s of processor time
    on the same machine, so that seconds cannot be asserted.
    """
    stacks = [("none", "ok"), *((f"fora(interval={i})", "ok") for i in range(2, 26))]
    run = write_run(tmp_path / "large", models=tuple(WORLDS), stacks=stacks, n=9)
    code = (
        "import cProfile, os, pstats, runpy, sys\nsys.argv = ['run_bench.py', 'report', "
        f"{str(run)!r}]\nprofile = cProfile.Profile()\n"
        "if sys.platform == 'linux':\n    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  "
        "# all in this process\n"
        f"try:\n    profile.runcall(runpy.run_path, {str(ROOT / 'run_bench.py')!r}, "
        "run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "print('calls', pstats.Stats(profile).total_calls)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout.rpartition("calls ")[2]) <= 12_000_000
    assert (run / "report" / "index.html").is_file()


def test_promise_and_clock_and_memory_are_drawn_for_every_model_that_ran(tmp_path):
    folder = write_run(tmp_path / "run", models=("dit-tiny", "wan-tiny"))
    plots = reports.build([folder]).out / "plots"
    for model in ("dit-tiny", "wan-tiny"):
        for stem in ("promised-and-measured", "memory"):
            assert (plots / f"{model}-{stem}.png").stat().st_size > 5000
            assert (plots / f"{model}-{stem}.svg").read_text().startswith("<?xml")


def test_times_far_apart_have_a_logarithmic_axis_that_begins_near_the_fastest(
    tmp_path, monkeypatch
):
    seen = []
    label = figures.time_axis
    monkeypatch.setattr(
        figures,
        "time_axis",
        lambda axes: (label(axes), seen.append((axes[-1].get_xscale(), axes[-1].get_xlim()))),
    )
    run = write_run(tmp_path / "run", n=9, stacks=STACKS[:3])
    (section,) = sections.read_sections([run])
    section.rows[1]["timing"]["call_s"] = dict.fromkeys(
        ("value", "low", "high"), section.rows[0]["timing"]["call_s"]["value"] / 40
    )
    figures.draw_figures(section, tmp_path / "plots")
    ((scale, (left, right)),) = seen
    fastest, slowest = (section.rows[i]["timing"]["call_s"]["value"] for i in (1, 0))
    assert scale == "log" and fastest / 3 < left < fastest and slowest < right < 3 * slowest


@pytest.mark.parametrize("slowest", [1.5, 40.0])
def test_intervals_of_times_that_say_nothing_leave_the_axis_to_the_values(slowest):
    seconds = [
        {"value": value, "low": value / 1000, "high": value * 1000} for value in (1.0, slowest)
    ]
    axis = Figure().add_subplot()
    figures.scale_time([axis], [{"timing": {"call_s": call}} for call in (*seconds, None)])
    left, right = axis.get_xlim()
    assert 1 / 3 < left < 1 and slowest < right < 3 * slowest
    narrow = [{"value": call["value"], "low": 0.99, "high": 1.01 * slowest} for call in seconds]
    figures.scale_time([axis], [{"timing": {"call_s": call}} for call in narrow])
    inner, outer = axis.get_xlim()
    assert left < inner < 0.99 and 1.01 * slowest < outer < right


@pytest.mark.parametrize(("n", "drawn"), [(9, False), (96, True)])
def test_the_small_print_speaks_of_frechet_distance_only_beside_a_panel_of_it(
    tmp_path, monkeypatch, n, drawn
):
    told, plate = [], figures.plate
    monkeypatch.setattr(figures, "plate", lambda *a, **k: told.append(a[4]) or plate(*a, **k))
    (section,) = sections.read_sections([write_run(tmp_path / "run", n=n, stacks=STACKS[:3])])
    figures.draw_figures(section, tmp_path / "plots")
    assert told and all(("without bias in n" in words) == drawn for words in told)
    assert all(("No panel of Fréchet distance" in words) != drawn for words in told)


def test_the_parts_of_the_peak_add_up_to_it(tmp_path):
    (section,) = sections.read_sections([write_run(tmp_path / "run")])
    row = next(r for r in section.rows if r["stack"] == "int8")
    assert charts._parts(row) == [9e6, 491e6, 0.4e6, 111.6e6]
    assert sum(charts._parts(row)) == row["memory"]["peak_bytes"]


def test_a_method_that_did_not_engage_has_no_point_among_the_speed_ups(tmp_path):
    (section,) = sections.read_sections([write_run(tmp_path / "run")])
    points = {row["stack"]: charts._promise(row) for row in section.rows}
    assert (
        points["noop"] is None
        and points["firstblock"] is None
        and points["none"] == (1, 1, 0, 0, 0, 0)
    )
    ratio, measured, *_, below, above = points["int8"]
    row = next(r for r in section.rows if r["stack"] == "int8")
    assert (
        ratio == row["speedup_flops"]
        and measured == row["speedup_denoise"]["value"]
        and below > 0 < above
    )


def test_verdicts_margins_and_their_rule_are_in_the_tables_and_on_the_page(report, run):
    lines = [
        line
        for line in lines_of(run / "report/tables/quality.csv")
        if line["part"] == "" and line["status"] == "ok"
    ]
    judged = [line for line in lines if line["delta"]]
    assert judged and {line["verdict"] for line in judged} <= set(verdict.WORDS)
    assert {line["margin"] for line in lines if line["metric"] == "fd.shapes_v1"} == {"30.0"}
    assert all(float(line["p_holm"]) >= float(line["p"]) for line in judged if line["p_holm"])
    assert not [line for line in lines if not line["delta"] and line["verdict"]]
    table, page = (run / "report/tables/quality.md").read_text(), report.page.read_text()
    assert table.count(verdict.RULE) == 1 and "align.shapes_v1 verdict" in table
    assert (
        "Margins stated before the run: align.shapes_v1 0.02, fd.shapes_v1 30, precision.shapes_v1 "
        "0.05" in table
    )
    assert "two one-sided tests" in page and "<td>worse</td>" in page
    why = "no difference of fd.shapes_v1 to none: a difference of Fréchet distances needs 1.25 times as many samples as their 64 features"
    assert why in table and why in page


def test_a_run_that_stated_no_margin_has_nothing_equivalent(tmp_path):
    run = write_run(tmp_path / "run", n=9, stacks=STACKS[:3])
    spec = json.loads((run / "spec.json").read_text())
    del spec["spec"]
    (run / "spec.json").write_text(json.dumps(spec))
    entries = [e for row in sections.read_sections([run])[0].rows for e in row["quality"].values()]
    assert all(e["margin"] is None and e["verdict"] != "equivalent" for e in entries)


def test_a_row_that_says_what_it_is_for_is_labelled(tmp_path):
    run = write_run(tmp_path / "run", n=9, stacks=STACKS[:3])
    path = run / "cells" / key_of("dit-tiny", "fora(interval=3)") / "record.json"
    record = json.loads(path.read_text())
    record["methods"][0]["label"] = "noise floor"
    path.write_text(json.dumps(record))
    page = reports.build([run]).page.read_text().replace("<wbr>", "")
    assert "fora(interval=3) (noise floor)" in page
    assert "| fora(interval=3) (noise floor) |" in (run / "report/tables/quality.md").read_text()
    assert [
        line["label"] for line in lines_of(run / "report/tables/quality.csv") if line["part"] == ""
    ][-1] == "noise floor"


def test_videos_have_a_table_of_their_own_and_the_first_stays_narrow(tmp_path):
    run = write_run(tmp_path / "run", models=("wan-tiny", "dit-tiny"), n=9, stacks=STACKS[:3])
    for path in (run / "scores").glob("wan*.safetensors"):
        scores = read_file(path)
        rng = np.random.default_rng(0)
        write_file(
            path, scores.having("vstyle.frame_mad", "", "", {"vstyle.frame_mad": rng.random(9)})
        )
    report = reports.build([run])
    tables = run / "report/tables"
    assert (
        "| stack | status | vstyle.frame_mad | vstyle.frame_mad minus none |"
        in (tables / "video.md").read_text()
    )
    assert (
        "vstyle" not in (tables / "quality.md").read_text()
        and "ms_ssim" not in (tables / "quality.md").read_text()
    )
    page = report.page.read_text()
    assert page.count("<summary>Videos</summary>") == 1
    first = page[page.index("<table>") : page.index("</table>")]
    assert "psnr.vs_none" in first and "vstyle" not in first
    assert (
        "ms_ssim.vs_none, lpips.alex_v0_1, vstyle.second_diff" in page
        and "Not measured, and why" in page
    )


def test_pictures_have_no_table_of_videos(report, run):
    metrics = {line["metric"] for line in lines_of(run / "report/tables/quality.csv")}
    # the one is missing, the other was not asked for
    assert "vstyle.frame_mad" in metrics and "vbench.total" not in metrics
    assert (
        not (run / "report/tables/video.md").exists()
        and "<summary>Videos</summary>" not in report.page.read_text()
    )


def test_what_was_asked_for_and_could_not_be_had_is_said_on_the_terminal(tmp_path, capsys):
    run = write_run(tmp_path / "run", n=9, stacks=STACKS[:2])
    for path in (run / "scores").iterdir():
        scores = read_file(path)
        for name in ("pickscore.v1", "imagereward.v1_0"):
            scores = scores.having(name, "its weights are missing", "", {})
        write_file(path, scores)
    reports.print_report(reports.build([run]))
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "none, fewer_steps(steps=10): no pickscore.v1, imagereward.v1_0: its weights are missing"
        in told
    )
    assert "vbench" not in told and "vstyle" not in told
