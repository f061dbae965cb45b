"""Text as outlines: each string is laid out once a process, whatever its size and wherever it
stands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.path import Path as Outline
from matplotlib.textpath import text_to_path

from ditbench.reports.figures.style import RC

EM = float(text_to_path.FONT_SCALE)
"""Units of outlines in the size of a font."""
SPACING, HIGH = 1.05, 1.16
"""Between lines of a label, and from the highest to the lowest reach of the typeface: in sizes of
the font."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of text, its baseline beginning at the origin."""

    outline: Outline
    uses: str
    """Its letters as SVG, each a reference to one of `letters`."""
    letters: frozenset[str]
    width: float
    above: float
    below: float
    """Reach of the ink over and under the baseline."""


@cache
def lay_out(words: str, weight: str | int, style: str) -> Line:
    """The letters of a line and their places, in the typeface of all figures."""
    typeface = FontProperties(family=RC["font.family"], weight=weight, style=style)  # type: ignore[arg-type]
    font = get_font(findfont(typeface))
    font.set_size(EM, text_to_path.DPI)
    places, glyphs, _ = text_to_path.get_glyphs_with_font(font, words)
    uses, vertices, codes = [], [np.empty((0, 2))], [np.empty(0, np.uint8)]
    for name, x, _, _ in places:
        corners, kinds = glyphs[name]
        uses.append(f'<use xlink:href="#{name}" x="{x:.5g}"/>')
        vertices.append(np.reshape(corners, (-1, 2)) + [x, 0])
        codes.append(np.asarray(kinds, np.uint8))
        _letters.setdefault(name, _data(np.reshape(corners, (-1, 2)), kinds))
    corners = np.concatenate(vertices)
    (_, low), (right, high) = (corners.min(0), corners.max(0)) if len(corners) else np.zeros((2, 2))
    return Line(
        outline=Outline(corners, np.concatenate(codes)),
        uses="".join(uses),
        letters=frozenset(glyphs),
        width=float(right),
        above=float(high),
        below=float(-low),
    )


def extent(words: str, size: float) -> tuple[float, float]:
    """Width and height, in points, of a label of one or more lines in a font of `size` points."""
    lines = [lay_out(line, "normal", "normal") for line in words.split("\n")]
    wide = max(line.width for line in lines) * size / EM
    return wide, len(lines) * SPACING * HIGH * size


_letters: dict[str, str] = {}
"""Outlines of the letters met so far, as SVG's path data."""


def letter(name: str) -> str:
    """The outline of a letter of a line, as SVG's path data."""
    return _letters[name]


def _data(vertices: np.ndarray, codes: object) -> str:
    signs = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
    parts = []
    for corners, code in Outline(vertices, codes).iter_segments(simplify=False):  # type: ignore[arg-type]
        sign = signs.get(code, "z")  # type: ignore[call-overload]
        parts.append(sign + ("" if sign == "z" else " ".join(f"{side:.4g}" for side in corners)))
    return "".join(parts)
