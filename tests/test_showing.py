"""A published run's table and figure, from its own CSVs."""

import shutil

from report_runs import edit, lines_of, write_run

from ditbench.reports.publishing.run import run_figure, run_table
from ditbench.reports.sections.format import fixed, times
from ditbench.reports.sections.section import read_sections
from ditbench.reports.tables.speed_quality import write_tables


def tables_of(run, out):
    """A folder with the run's tables, as a published one has them."""
    (section,) = read_sections([run])
    write_tables(section, out / "tables")
    return out


def test_a_cell_has_both_speed_ups_and_both_changes_as_the_tables_have_them(tmp_path):
    run = write_run(tmp_path / "run", models=("dit-tiny", "wan-tiny"), n=9)
    built = tables_of(run, tmp_path / "out")
    speed = {(s["model"], s["stack"]): s for s in lines_of(built / "tables/speed.csv")}
    quality = {
        (q["model"], q["stack"], q["metric"]): q
        for q in lines_of(built / "tables/quality.csv")
        if not q["part"]
    }
    head, _, *lines = run_table(built).splitlines()
    assert head == "| stack | dit-tiny | wan-tiny |"
    told = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines}
    assert list(told) == list(dict.fromkeys(stack for _, stack in speed if stack != "none"))
    assert (
        told["firstblock"] == ["refused"] * 2
        and told["int8+fewer_steps(steps=5)"] == ["failed"] * 2
    )
    fora = speed["wan-tiny", "fora(interval=3)"]
    alignment, frechet = (
        quality["wan-tiny", "fora(interval=3)", metric]
        for metric in ("align.shapes_v1", "fd.shapes_v1")
    )
    assert told["fora(interval=3)"][1].startswith(
        f"{times(float(fora['speedup_flops']))}, {times(float(fora['speedup_call']))}; "
    )
    assert fixed(float(alignment["delta"]), 3, signed=True) in told["fora(interval=3)"][1]
    marks = {"better": "▲", "worse": "▼", "equivalent": "="}
    ends = [part.split(" ")[-1] for part in told["fora(interval=3)"][1].split("; ")[1:]]
    for end, entry in zip(ends, (alignment, frechet), strict=True):
        assert (end in marks.values()) == (entry["verdict"] in marks) and marks.get(
            entry["verdict"], end
        ) == end


def test_suspect_speed_ups_of_the_clock_are_in_brackets(tmp_path):
    run = write_run(tmp_path / "run", n=9, drift=0.5)
    built = tables_of(run, tmp_path / "out")
    (line,) = [
        line for line in run_table(built).splitlines() if line.startswith("| fora(interval=3) |")
    ]
    (fora,) = [s for s in lines_of(built / "tables/speed.csv") if s["stack"] == "fora(interval=3)"]
    assert fora["suspect"] == "True" and f", ({times(float(fora['speedup_call']))}); " in line


def test_the_figure_is_the_same_twice_and_another_where_a_number_is(tmp_path):
    run = write_run(tmp_path / "run", models=("dit-tiny", "flux-tiny", "wan-tiny"), n=9)
    built = tables_of(run, tmp_path / "out")
    first, again = (
        run_figure(built, tmp_path / name, "run")[0].read_bytes() for name in ("a", "b")
    )
    assert first == again

    def slower(record):
        for entry in record["timing"]:
            entry["call_s"] *= 2

    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    edit(moved, slower, stack="fora(interval=3)", model="flux-tiny")
    assert (
        run_figure(tables_of(moved, tmp_path / "other"), tmp_path / "c", "run")[0].read_bytes()
        != first
    )
