"""Sample grids: a row per stack in table order, the same request and noise down each column, and
below it the differences to `none`. Images, or three frames of a video.

n samples, T frames, H height, W width; pixels are uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ditbench.records.files import replacing
from ditbench.records.record import SHOWN
from ditbench.records.run_folder import RunFolder
from ditbench.reports.figures.pages import pages
from ditbench.reports.figures.style import INK, PALE, PAPER, QUIET, font_path
from ditbench.reports.sections.format import decimals, short, times, value
from ditbench.reports.sections.rows import ReportRow, status
from ditbench.reports.sections.samples import Pixels, first_samples
from ditbench.reports.sections.section import Section, file_name

LEFT, GAP, EDGE = 190, 6, 12
"""Pixels: least width of the row labels, space between tiles, border."""
SMALL, LARGE = 128, 192
"""Side of a tile, pixels: samples up to SMALL are enlarged by whole factors, larger ones reduced to
LARGE."""
LINE, FONT = 14, 11
STRONGER = 4
"""How many times stronger differences to the un-accelerated sample are shown, at half the size of a
tile."""
ROWS = 40
"""Stacks on a page: 40 rows of large samples are 12 000 pixels high, and WebP ends at 16 383."""
FRAMES = ("first", "middle", "last")
CLASS_COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
CLASS_SHAPES = ("circle", "square", "triangle", "cross")
"""The class world's label is shape * 6 + colour, as `ditbench.shapes.scenes` has it (which would
import torch)."""


@dataclass(frozen=True)
class Tiles:
    """The first samples of a cell: a list per sample, of one image or of some frames."""

    samples: list[list[Pixels]]
    trouble: str = ""
    """Why there are none."""


def draw_grids(section: Section, folder: Path) -> dict[str, list[Path]]:
    """Draw a grid of every model with samples, `ROWS` stacks on a page and the baseline on top of
    each; returns the PNG written, by model."""
    files: dict[str, list[Path]] = {}
    for model, rows in section.models.items():
        for ending, page, words in pages(rows, ROWS):
            shown = list(page) if not ending or not rows[0]["baseline"] else [rows[0], *page]
            tiles = [read_tiles(section, row) for row in shown]
            if any(t.samples for t in tiles):
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{file_name(model)}-samples{ending}.png"
                title = f"{model}{f', stacks {words}' * bool(words)}"
                with replacing(path) as partial:
                    drawn = _draw(title, shown, tiles, _heads(section, model))
                    drawn.save(partial, "PNG", compress_level=1)
                files.setdefault(model, []).append(path)
    return files


def read_tiles(section: Section, row: ReportRow) -> Tiles:
    """The first samples of a row's cell at the size of tiles; none, with the reason, as
    `read_samples`."""
    read = read_samples(section, row, None, None, lambda frames: (0, frames // 2, frames - 1))
    return Tiles([[_fitted(frame) for frame in sample] for sample in read.samples], read.trouble)


def read_samples(
    section: Section,
    row: ReportRow,
    images: int | None,
    videos: int | None,
    frames: Callable[[int], Sequence[int]],
) -> Tiles:
    """The first `images` or `videos` of a row's cell as they are (None: as many as a grid has
    columns), and of a video of so many frames those that `frames` names; none, with the reason, for
    a cell that did not run or whose file cannot be read.
    """
    if row["status"] != SHOWN:
        return Tiles([], row["reason"] or "no samples")

    def count(video: bool, side: int) -> int:
        return (videos if video else images) or _columns(video, side)

    files = RunFolder(section.home(row).folder)
    try:
        return Tiles(first_samples(files, row["key"], count, frames))
    except ValueError as error:
        return Tiles([], str(error))


def _columns(video: bool, side: int) -> int:
    return (4 if side <= SMALL else 2) if video else (8 if side <= SMALL else 6)


def _fitted(image: Pixels) -> Pixels:
    """Enlarged by a whole factor without smoothing, or reduced, to about the size of a tile."""
    height, width = image.shape[:2]
    side = max(height, width)
    if side <= SMALL:
        factor = SMALL // side
        return image.repeat(factor, 0).repeat(factor, 1)
    target = min(side, LARGE)
    sizes = (max(1, round(width * target / side)), max(1, round(height * target / side)))
    return np.asarray(Image.fromarray(image).resize(sizes, Image.Resampling.LANCZOS))


def _heads(section: Section, model: str) -> list[str]:
    """What each column asked for."""
    world = section.models[model][0]["world"]
    return [asked_for(request, world) for request in section.requests(model)]


def asked_for(request: dict[str, Any], world: str) -> str:
    """A request in words: its prompt, or the name or number of its class."""
    if request.get("prompt") is not None:
        return str(request["prompt"])
    label = request.get("label")
    if label is None:
        return ""
    if world == "class" and 0 <= label < len(CLASS_COLOURS) * len(CLASS_SHAPES):
        return f"{CLASS_COLOURS[label % len(CLASS_COLOURS)]} {CLASS_SHAPES[label // len(CLASS_COLOURS)]} (class {label})"
    return f"class {label}"


def _draw(
    title: str, rows: Sequence[ReportRow], tiles: Sequence[Tiles], heads: Sequence[str]
) -> Image.Image:
    largest = max(tiles, key=lambda t: len(t.samples)).samples
    height = max(frame.shape[0] for t in tiles for sample in t.samples for frame in sample)
    inner = max(
        sum(frame.shape[1] + 2 for frame in sample) - 2 for t in tiles for sample in t.samples
    )
    num, video = len(largest), len(largest[0]) > 1
    words = [wrap(heads[i] if i < len(heads) else "", inner, 7) for i in range(num)]
    labels = [_row_label(row) for row in rows]
    left = max(
        LEFT,
        *(
            ceil(_font(bold=bold).getlength(text)) + 2 * GAP
            for label in labels
            for text, _, bold in label
        ),
    )
    short = 2 * LINE + 10
    away = [
        _differences(t, tiles[0]) if rows[0]["baseline"] and t is not tiles[0] else []
        for t in tiles
    ]
    subtitle = [f"{', '.join(FRAMES)} frame of each video"] if video else []
    subtitle += (
        [f"below each, at half its size: the difference to none, {STRONGER} times as strong"]
        if any(away)
        else []
    )
    top = 34 + (LINE if subtitle else 0) + max(map(len, words)) * LINE + 10
    heights = [
        max((height + bool(d) * (height // 2 + 2)) if t.samples else short, len(lines) * LINE + 6)
        for t, lines, d in zip(tiles, labels, away, strict=True)
    ]
    size = (EDGE + left + num * (inner + GAP) + EDGE, top + sum(h + GAP for h in heights) + EDGE)
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text(
        (EDGE, 8),
        f"{title}: the same request and noise down each column",
        INK,
        _font(bold=True, size=14),
    )
    pen.text((EDGE, 8 + 20), "; ".join(subtitle), QUIET, _font())
    for i, lines in enumerate(words):
        x = EDGE + left + i * (inner + GAP)
        bottom = top - 6 - len(lines) * LINE
        pen.text((x, bottom), "\n".join(lines), INK, _font(), spacing=LINE - FONT - 1)
    y = top
    for row, of_row, label, high, apart in zip(rows, tiles, labels, heights, away, strict=True):
        pen.line((EDGE, y - GAP // 2, size[0] - EDGE, y - GAP // 2), PALE)
        for k, (text, colour, bold) in enumerate(label):
            pen.text((EDGE, y + 2 + k * LINE), text, colour, _font(bold=bold))
        for i, sample in enumerate(of_row.samples):
            x = EDGE + left + i * (inner + GAP)
            for frame in sample:
                canvas.paste(Image.fromarray(frame), (x, y))
                x += frame.shape[1] + 2
        for i, sample in enumerate(apart):
            x = EDGE + left + i * (inner + GAP)
            for frame, above in zip(sample, of_row.samples[i], strict=True):
                canvas.paste(Image.fromarray(frame), (x, y + height + 2))
                x += above.shape[1] + 2
        if not of_row.samples:
            wide = size[0] - EDGE - left - EDGE
            reason = wrap(
                f"{status(row)}: {of_row.trouble}" if row["status"] != SHOWN else of_row.trouble,
                wide - 16,
                2,
            )
            pen.rectangle((EDGE + left, y, size[0] - EDGE - GAP, y + high - 1), "#f2f2f2")
            pen.text(
                (EDGE + left + 8, y + 5), "\n".join(reason), QUIET, _font(), spacing=LINE - FONT - 1
            )
        y += high + GAP
    return canvas


def _differences(tiles: Tiles, baseline: Tiles) -> list[list[Pixels]]:
    """How far each tile is from the baseline's, at half its size; nothing where the two are not
    alike in number and size."""
    pairs = [
        list(zip(a, b, strict=False)) for a, b in zip(tiles.samples, baseline.samples, strict=False)
    ]
    if not pairs or any(a.shape != b.shape for pair in pairs for a, b in pair):
        return []
    return [[_halved(np.abs(a.astype(np.int16) - b)) for a, b in pair] for pair in pairs]


def _halved(difference: NDArray[np.int16]) -> Pixels:
    stronger = np.minimum(STRONGER * difference, 255)
    height, width = (side // 2 * 2 for side in difference.shape[:2])
    rows = stronger[0:height:2] + stronger[1:height:2]
    halved: Pixels = ((rows[:, 0:width:2] + rows[:, 1:width:2]) // 4).astype(np.uint8)
    return halved


def _row_label(row: ReportRow) -> list[tuple[str, str, bool]]:
    """Lines of a row's label: text, colour, bold."""
    lines = [
        (line, INK, True)
        for line in wrap(row["stack"].replace("+", "+\u200b"), LEFT - 12, 5, bold=True)
    ]
    if row["speedup_call"] and not row["baseline"]:
        lines.append((f"{times(row['speedup_call']['value'])} call", QUIET, False))
    for metric, entry in row["quality"].items():
        if entry["value"] is not None and not metric.endswith(".vs_none"):
            change = (
                f" ({value(entry['delta'], decimals(metric), signed=True)})"
                if entry["delta"]
                else ""
            )
            lines.append(
                (
                    f"{short(metric)} {value(entry['value'], decimals(metric))}{change}",
                    QUIET,
                    False,
                )
            )
    if status(row) == "suspect":
        lines.append(("suspect", "#a04000", False))
    return lines


def wrap(text: str, width: int, most: int, bold: bool = False) -> list[str]:
    """Lines of at most `width` pixels and `most` of them, broken at spaces and zero-width spaces,
    or anywhere at need."""
    font, lines = _font(bold=bold), [""]
    for word in text.replace("\u200b", "\u200b\0").replace(" ", " \0").split("\0"):
        if font.getlength((lines[-1] + word).rstrip()) <= width:
            lines[-1] += word
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    lines = [line.replace("\u200b", "").strip() for line in lines]
    if len(lines) > most:
        lines = lines[:most]
        while lines[-1] and font.getlength(lines[-1] + "…") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "…"
    return lines


@cache
def _font(bold: bool = False, size: int = FONT) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_path(bold), size)
