"""Where caching stops paying: cells beside the curve of fewer steps, and methods over the number of
steps."""

import html
import json
import re

import pytest
from report_runs import key_of, write_run

from ditbench.reports.figures import crossover
from ditbench.reports.figures.quality_time import draw_figures
from ditbench.reports.sections.section import read_sections

STACKS = (
    ("none", "ok"), ("fewer_steps(steps=10)", "ok"), ("fewer_steps(steps=5)", "ok"), ("fora", "ok"),
    ("int8", "ok"),
    ("fewer_steps(steps=10)+fora", "ok"), ("fewer_steps(steps=5)+fora", "refused"),
    ("noop", "inert"),
)  # fmt: skip


def row(seconds, lost, better="lower", stack="fora", baseline=False):
    told = {"value": lost, "low": lost - 0.1, "high": lost + 0.1}
    entry = {"value": told, "delta": None if baseline else told, "better": better}
    return {
        "stack": stack, "key": stack, "status": "ok", "baseline": baseline,
        "speedup_call": {"value": 1 / seconds},
        "timing": {"call_s": {"value": seconds, "low": None, "high": None}},
        "quality": dict.fromkeys(("perceptual.shapes_v1", "align.shapes_v1"), entry),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "lost", "beats"),
    [(0.75, 0.2, True), (0.75, 0.3, False), (0.4, 0.0, False), (1.1, 0.0, False)],
)
def test_a_cell_beats_fewer_steps_on_the_better_side_of_their_curve_and_beyond_its_ends_nothing_is_said(
    seconds, lost, beats
):
    # the baseline lies at nothing lost, whatever its own value is
    curve = [
        row(1.0, 0.7, baseline=True),
        row(0.5, 0.5),
    ]
    assert crossover._beats(row(seconds, lost), curve, "perceptual.shapes_v1", False) is beats


def test_where_higher_is_better_a_cell_above_the_curve_beats_it():
    curve = [row(1.0, 0.9, "higher", baseline=True), row(0.5, -0.4, "higher")]
    assert crossover._beats(row(0.75, -0.1, "higher"), curve, "align.shapes_v1", False)
    assert not crossover._beats(row(0.75, -0.3, "higher"), curve, "align.shapes_v1", False)


def test_on_a_logarithmic_axis_the_curve_is_straight_there():
    # half way down it on that axis: 0.4 at 0.1 s
    curve = [
        row(1.0, 0.0, baseline=True),
        row(0.01, 0.8),
    ]
    assert crossover._beats(row(0.1, 0.39), curve, "perceptual.shapes_v1", True)
    assert not crossover._beats(row(0.1, 0.41), curve, "perceptual.shapes_v1", True)


def test_the_curve_is_drawn_where_a_run_has_it_and_a_method_over_steps_where_it_ran_at_several(
    tmp_path,
):
    run = write_run(tmp_path / "run", stacks=STACKS)
    (section,) = read_sections([run])
    names = {
        path.name for path in crossover.draw_crossovers(section, tmp_path / "plots")["dit-tiny"]
    }
    assert (
        names == {"dit-tiny-crossover.png", "dit-tiny-crossover.svg"} and section.over_steps == []
    )
    path = run / "cells" / key_of("dit-tiny", "fewer_steps(steps=10)+fora") / "record.json"
    record = json.loads(path.read_text())
    record["sampling"]["steps"] = 10
    path.write_text(json.dumps(record))
    (section,) = read_sections([run])
    assert [row["stack"] for row in section.over_steps] == ["fora", "fewer_steps(steps=10)+fora"]
    names = {
        path.name for path in crossover.draw_crossovers(section, tmp_path / "plots")["dit-tiny"]
    }
    assert (
        "dit-tiny-over-steps.png" in names
        and (tmp_path / "plots" / "dit-tiny-over-steps.png").stat().st_size > 5000
    )


def test_without_fewer_steps_or_without_anything_that_has_to_beat_them_there_is_no_figure(tmp_path):
    for i, stacks in enumerate((STACKS[:3], (STACKS[0], STACKS[3], STACKS[4]))):
        (section,) = read_sections([write_run(tmp_path / str(i), stacks=stacks)])
        assert crossover.draw_crossovers(section, tmp_path / "plots") == {}


def test_what_the_curve_does_not_show_is_named_with_its_reason(tmp_path):
    stacks = (*STACKS[:5], ("int8+fora", "ok"))
    (section,) = read_sections([write_run(tmp_path / "run", stacks=stacks)])
    crossover.draw_crossovers(section, tmp_path / "plots")
    assert " ".join(crossover._left_out(["int8", "int8+fora"]).split()) in text_of(
        tmp_path / "plots/dit-tiny-crossover.svg"
    )
    assert crossover._left_out([]) == ""
    many = crossover._left_out([f"s{i}" for i in range(11)])
    assert "s7 and 3 more" in many and "s8" not in many


def test_a_panel_in_which_nothing_is_compared_is_left_out_with_its_reason(tmp_path):
    (section,) = read_sections([write_run(tmp_path / "run", stacks=STACKS[:5], n=64)])
    rows = section.models["dit-tiny"]
    assert all(row["quality"]["fd.shapes_v1"]["value"] for row in rows)
    assert not any(row["quality"]["fd.shapes_v1"]["frontier"] for row in rows)
    assert any(row["quality"]["align.shapes_v1"]["frontier"] for row in rows)
    draw_figures(section, tmp_path / "plots")
    text = text_of(tmp_path / "plots/dit-tiny-quality-against-time.svg")
    assert (
        "No panel of Fréchet distance: a difference of Fréchet distances needs 1.25 times" in text
    )
    assert "(align.shapes_v1)" in text and "(fd.shapes_v1)" not in text


def text_of(svg):
    """The text of a figure: its comments, for letters are outlines."""
    return " ".join(html.unescape(" ".join(re.findall(r"<!-- (.*?) -->", svg.read_text()))).split())
