"""One drawing gives a figure as PNG and as SVG."""

import re

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ditbench.reports.figures import letters
from ditbench.reports.figures.scatter import finish
from ditbench.reports.figures.style import in_style


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
