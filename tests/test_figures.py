"""One drawing gives a figure as PNG and as SVG, long figures are split over numbered files, and
crowded ones say what they leave out."""

import json
import re

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from report_runs import STACKS, write_run

from ditbench import reports
from ditbench.reports.figures import crossover, letters, sample_grid, stacking_matrix
from ditbench.reports.figures.frame import finish
from ditbench.reports.figures.pages import numbered, pages
from ditbench.reports.figures.scatter import NUMBERED, plate
from ditbench.reports.figures.style import PAPER, in_style
from ditbench.reports.sections.section import read_sections


def drawn(folder, words=("title", "title", "100 %"), **style):
    """A figure of so many texts, its files and how often it was drawn."""
    times = []

    class Counted(Figure):
        def draw(self, renderer):
            times.append(renderer)
            super().draw(renderer)

    with in_style(style):
        figure = Counted(figsize=(4, 2), dpi=160)
        FigureCanvasAgg(figure)
        axis = figure.add_subplot()
        axis.plot([1, 2, 3], marker="o")
        axis.bar([1], [2], hatch="//")
        for i, text in enumerate(words):
            figure.text(0.1, 0.1 + 0.2 * i, text, rotation=90 * (i == 1), fontsize=6 + i)
        return finish(figure, folder, "x"), len(times)


def test_a_figure_is_drawn_once_for_both_its_files(tmp_path):
    (png, svg), times = drawn(tmp_path)
    assert times == 1
    with Image.open(png) as image:
        assert image.size == (640, 320) and round(image.info["dpi"][0]) == 160
    head = svg.read_text().partition("viewBox")
    assert 'width="288pt"' in head[0] and 'height="144pt"' in head[0]
    assert head[2].startswith('="0 0 640 320"')


def test_a_letter_is_defined_once_in_an_svg_and_every_string_uses_it(tmp_path):
    (_, svg), _ = drawn(tmp_path)
    text = svg.read_text()
    defined = re.findall(r'<path id="(DejaVuSans-\w+)"', text)
    used = re.findall(r'<use xlink:href="#(DejaVuSans-\w+)"', text)
    assert len(defined) == len(set(defined)) and set(defined) == set(used)
    assert text.count("<!-- title -->") == 2 and "rotate(-90)" in text


def test_a_string_is_laid_out_once_whatever_its_size(tmp_path, monkeypatch):
    letters.lay_out.cache_clear()
    laid_out = []
    glyphs = letters.text_to_path.get_glyphs_with_font
    monkeypatch.setattr(
        letters.text_to_path,
        "get_glyphs_with_font",
        lambda font, words: laid_out.append(words) or glyphs(font, words),
    )
    drawn(tmp_path / "a")
    drawn(tmp_path / "b")
    assert laid_out.count("title") == laid_out.count("100 %") == 1
    assert len(laid_out) == len(set(laid_out))


def test_formulas_are_drawn_by_matplotlib_in_both(tmp_path):
    plain, _ = drawn(tmp_path / "a", words=("$10^{-1}$",))
    (png, svg), _ = drawn(tmp_path / "b", words=("$10^{-1}$",), **{"text.parse_math": True})
    assert png.read_bytes() != plain[0].read_bytes()
    assert "<!-- $10^{-1}$ -->" in svg.read_text()


@pytest.mark.parametrize(
    ("stacks", "on_pages"), [(0, []), (3, [("", "")]), (4, [("", "1 to 3 of 4"), ("-2", "4 to 4 of 4")])]
)  # fmt: skip
def test_pages_hold_everything_once_in_order_and_say_what_is_on_them(stacks, on_pages):
    made = list(pages(range(stacks), 3))
    assert [(ending, words) for ending, _, words in made] == on_pages
    assert [thing for _, page, _ in made for thing in page] == list(range(stacks))


def test_the_number_of_a_page_is_no_part_of_its_figures_name():
    assert numbered("dit-tiny-samples") == ("dit-tiny-samples", 1)
    assert numbered("dit-tiny-samples-2") == ("dit-tiny-samples", 2)
    assert numbered("dit-2-samples-11") == ("dit-2-samples", 11)


MANY = (("none", "ok"), *((f"fora(interval={i})", "ok") for i in range(2, 66)))
"""More stacks than a page has rows and a figure has numbers."""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "large", stacks=MANY, n=9)


def test_a_large_run_has_all_its_stacks_on_pages_that_a_browser_can_show(large):
    report = reports.build([large])
    drawn = {path.name for path in report.files if path.suffix == ".png"}
    assert {
        f"dit-tiny-{name}.png" for name in ("samples", "samples-2", "memory", "memory-2")
    } <= drawn
    assert not {"dit-tiny-samples-3.png", "dit-tiny-memory-3.png"} & drawn
    page = report.page.read_text()
    assert all(f">{kind.upper()}</a>" in page for kind in ("png", "svg"))
    assert len(re.findall(r"<img class=", page)) == len(drawn) and page.count(", part 2 (") == 2
    assert page.count('<figure class="viewer"') == 1
    for path in report.files:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert max(image.size) <= 16_383, path.name  # as WebP has it


def test_every_page_of_a_grid_begins_with_the_baseline(large, tmp_path, monkeypatch):
    on_pages, draw = [], sample_grid._draw
    monkeypatch.setattr(
        sample_grid,
        "_draw",
        lambda title, rows, *rest: on_pages.append((title, rows)) or draw(title, rows, *rest),
    )
    (section,) = read_sections([large])
    sample_grid.draw_grids(section, tmp_path)
    (first, rows), (second, others) = on_pages
    assert first == "dit-tiny, stacks 1 to 40 of 65" and len(rows) == 40
    assert second == "dit-tiny, stacks 41 to 65 of 65"
    assert others == [rows[0], *section.rows[40:]] and rows[0]["baseline"]


def test_of_too_many_points_the_notable_are_numbered_and_the_small_print_says_so(large):
    (section,) = read_sections([large])
    rows = section.rows
    with in_style():
        crowded = plate(section, "dit-tiny", rows, 1, "Words.", rows[3:5], "two of them")
        few = plate(section, "dit-tiny", rows[:NUMBERED], 1, "Words.", rows[3:5], "two of them")
    assert [label for label in crowded.labels if label] == ["4", "5"]
    assert "Numbered, where there is room: two of them; all 65 are" in " ".join(crowded.foot)
    assert all(few.labels) and "Numbered" not in " ".join(few.foot)


def test_a_row_with_suspect_times_is_hollow_beside_others_of_its_kind_and_has_a_legend_entry(
    tmp_path,
):
    (section,) = read_sections([write_run(tmp_path / "run", stacks=MANY[:4], n=9)])
    for i, entries in enumerate((0, 1)):
        rows = [{**row, "suspect": bool(i) and row is section.rows[2]} for row in section.rows]
        with in_style():
            drawn = plate(section, "dit-tiny", rows, 1, "", rows, "")
            drawn.mark(drawn.axes[0], [(float(k), 1.0, 0, 0, 0, 0) for k in range(4)])
            hollow = [
                line.get_xdata().tolist()
                for line in drawn.axes[0].lines
                if line.get_markerfacecolor() == PAPER and line.get_marker() == "o"
            ]
            _, svg = drawn.save("title", tmp_path, "x")
        assert hollow == [[2.0]] * entries
        assert svg.read_text().count("<!-- suspect times -->") == entries


def test_methods_over_steps_and_the_matrix_are_limited_to_what_can_be_read(tmp_path, monkeypatch):
    stacks = (*STACKS[:5], ("fewer_steps(steps=10)+int8", "ok"))
    stacks += (("fewer_steps(steps=10)+fora(interval=3)", "ok"),)
    run = write_run(tmp_path / "run", stacks=stacks)
    for path in (run / "cells").glob("*/record.json"):
        record = json.loads(path.read_text())
        record["sampling"]["steps"] = 10 if "fewer" in record["stack"] else 50
        path.write_text(json.dumps(record))
    (section,) = read_sections([run])
    monkeypatch.setattr(crossover, "LINED", 1)
    names = {path.name for path in crossover.draw_crossovers(section, tmp_path)["dit-tiny"]}
    assert {"dit-tiny-over-steps.svg", "dit-tiny-over-steps-2.svg"} <= names
    assert "methods 2 to 2 of 2" in (tmp_path / "dit-tiny-over-steps-2.svg").read_text()
    monkeypatch.setattr(stacking_matrix, "METHODS", 2)
    (_, svg) = stacking_matrix.draw_matrices(section, tmp_path)["dit-tiny"]
    assert "Of 3 methods the 2 in most pairs are drawn." in svg.read_text()
