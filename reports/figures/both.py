"""A figure as PNG and as SVG from one drawing: laid out and measured once, every stroke goes to
both."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.colors import rgb2hex
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D
from PIL import Image

from ditbench.records.files import replacing, write_text
from ditbench.reports.figures.letters import EM, Line, lay_out, letter

COLOURS = 128
"""Of a figure as PNG."""
STROKES = {
    "draw_path", "draw_markers", "draw_path_collection", "draw_quad_mesh", "draw_gouraud_triangles",
    "draw_image", "open_group", "close_group",
}  # fmt: skip
"""What matplotlib asks of a renderer that leaves something on paper, but for text; all else
measures."""


class Vectors(RendererSVG):
    """An SVG in the pixels of the PNG beside it, shown at the figure's size in points."""

    def __init__(self, width: int, height: int, dpi: float) -> None:
        self.written = StringIO()
        self.pixel = dpi / 72
        self._defined: set[str] = set()
        super().__init__(width, height, self.written, metadata={"Date": None, "Creator": None})

    def draw_line(self, line: Line, words: str, colour: str, place: str) -> None:
        """A line of text, as letters that the document defines once."""
        self.writer.comment(words)
        if new := sorted(line.letters - self._defined):
            letters = "".join(f'<path id="{name}" d="{letter(name)}"/>' for name in new)
            self.written.write(f"<defs>{letters}</defs>\n")
            self._defined |= line.letters
        self.written.write(f'<g fill="{colour}" transform="{place}">{line.uses}</g>\n')

    def draw_formula(self, gc: Any, x: float, y: float, s: str, prop: Any, angle: float) -> None:
        """A formula as matplotlib draws it. Its font comes in points, the only length that is not
        in pixels yet."""
        larger = prop.copy()
        larger.set_size(prop.get_size_in_points() * self.pixel)
        super().draw_text(gc, x, y, s, larger, angle, ismath=True)

    def text(self) -> str:
        """The finished document."""
        self.finalize()
        width, height = (f'"{side / self.pixel:g}pt"' for side in (self.width, self.height))
        document = self.written.getvalue()
        document = document.replace(f'width="{self.width}pt"', f"width={width}", 1)
        document = document.replace(f'height="{self.height}pt"', f"height={height}", 1)
        # a tile of hatching has the same number of units whatever a unit is
        scale = f'<pattern patternTransform="scale({self.pixel:g})" '
        return document.replace("<pattern ", scale)


class Both:
    """A renderer that measures text as the PNG has it and draws on two sheets."""

    def __init__(self, figure: Figure) -> None:
        width, height = (int(side) for side in figure.bbox.size)
        self._pixels = RendererAgg(width, height, figure.dpi)
        self._vectors = Vectors(width, height, figure.dpi)
        self._dpi = figure.dpi
        figure.draw(self)  # type: ignore[arg-type]  # a renderer in all but its class

    def __getattr__(self, name: str) -> Any:
        on_pixels = getattr(self._pixels, name)
        if name not in STROKES:
            return on_pixels
        in_vectors: Callable[..., None] = getattr(self._vectors, name)

        def draw(*arguments: Any, **options: Any) -> None:
            on_pixels(*arguments, **options)
            in_vectors(*arguments, **options)

        return draw

    def get_text_width_height_descent(
        self, s: str, prop: Any, ismath: Any
    ) -> tuple[float, float, float]:
        """The size of a line and how far it reaches under its baseline, in pixels."""
        if ismath:
            formula: tuple[float, float, float] = self._pixels.get_text_width_height_descent(
                s, prop, ismath
            )
            return formula
        line = lay_out(s, prop.get_weight(), prop.get_style())
        scale = self._pixels_of(prop)
        return line.width * scale, (line.above + line.below) * scale, line.below * scale

    def draw_text(
        self, gc: Any, x: float, y: float, s: str, prop: Any, angle: float,
        ismath: Any = False, mtext: Any = None,
    ) -> None:  # fmt: skip
        """A line of text with its baseline beginning at x, y, pixels from the top."""
        if ismath:
            self._pixels.draw_text(gc, x, y, s, prop, angle, ismath)
            self._vectors.draw_formula(gc, x, y, s, prop, angle)
            return
        line = lay_out(s, prop.get_weight(), prop.get_style())
        scale, colour = self._pixels_of(prop), gc.get_rgb()
        fill = self._pixels.new_gc()
        fill.set_linewidth(0)
        place = Affine2D().scale(scale).rotate_deg(angle).translate(x, self._pixels.height - y)
        self._pixels.draw_path(fill, line.outline, place, colour)
        turned = f" rotate({-angle:g})" * bool(angle)
        place_of_line = f"translate({x:.6g} {y:.6g}){turned} scale({scale:.5g} {-scale:.5g})"
        self._vectors.draw_line(line, s, rgb2hex(colour), place_of_line)

    def _pixels_of(self, prop: Any) -> float:
        """Pixels of an outline's unit at a font's size."""
        size: float = prop.get_size_in_points()
        return size * self._dpi / 72 / EM

    def write_png(self, path: Path) -> Path:
        """Write a PNG in few colours, a third of the bytes; nothing differs from one writing to the
        next."""
        drawn = Image.fromarray(np.asarray(self._pixels.buffer_rgba())).convert("RGB")
        few = drawn.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        palette, paper = few.getpalette() or [], 3 * int(few.getpixel((0, 0)))  # type: ignore[arg-type]
        palette[paper : paper + 3] = [255, 255, 255]  # white paper stays white
        few.putpalette(palette)
        with replacing(path) as partial:
            few.save(partial, "PNG", dpi=(self._dpi, self._dpi), compress_level=6)
        return path

    def write_svg(self, path: Path) -> Path:
        """Write the SVG; once, for this ends the document."""
        write_text(path, self._vectors.text())
        return path
