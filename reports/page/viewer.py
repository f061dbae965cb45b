"""Images inside the page: figures as they are, and each stack's first samples as one small
image that its script cuts up.

K samples, T frames (1 for images), H height, W width; pixels are uint8 RGB.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ditbench.records.record import SHOWN
from ditbench.reports.figures.sample_grid import asked_for, read_samples
from ditbench.reports.sections.rows import ReportRow, labelled
from ditbench.reports.sections.section import Section

HEAVY, DENSE = 400_000, 1.0
"""Bytes, and bits a pixel, from which a PNG goes into the page as WebP with small losses; the file
beside the page has none. Enlarged samples have fewer bits, and would only grow as WebP."""
IMAGES, VIDEOS, FRAMES = 4, 2, 16
"""Samples of a stack that go into the page, and frames of each, evenly spaced."""
MANY = 32
"""Stacks of a model from which on half as many samples of each do."""
WHOLE, REDUCED = 128, 256
"""Sides in pixels: samples up to WHOLE are kept bit by bit, larger ones reduced to REDUCED with
small losses."""


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """A stack's samples below each other, the frames of each side by side: [K H, T W, 3]."""

    link: str
    """A data URI."""
    samples: int
    frames: int
    height: int
    width: int


def data_uri(path: Path) -> str:
    """A PNG as a link that holds it. Not the SVG: browsers take a tenth of a second for each before
    they show the page."""
    content, kind = path.read_bytes(), "png"
    if len(content) > HEAVY:
        with Image.open(path) as image:
            if 8 * len(content) > DENSE * image.width * image.height:
                content, kind = _webp(image.convert("RGB"), lossless=False), "webp"
    return _uri(content, kind)


def draw_viewer(section: Section, model: str) -> str:
    """The page's part to look at two stacks' samples one over the other; empty where fewer than two
    stacks have samples alike."""
    rows = [row for row in section.models[model] if row["status"] == SHOWN]
    drawn = [(row, sprite) for row in rows if (sprite := make_sprite(section, row, len(rows)))]
    if not drawn:
        return ""
    _, first = drawn[0]
    size = (first.samples, first.frames, first.height, first.width)
    drawn = [(row, s) for row, s in drawn if (s.samples, s.frames, s.height, s.width) == size]
    if len(drawn) < 2:
        return ""
    chosen = next(
        (
            row
            for row, _ in drawn
            if not row["baseline"] and not row["label"] and _accelerates(section, row)
        ),
        drawn[1][0],
    )
    stacks = "".join(
        f'<option data-sprite="{sprite.link}"{" data-chosen" if row is chosen else ""}>{escape(labelled(row))}</option>'
        for row, sprite in drawn
    )
    requests = [asked_for(request, rows[0]["world"]) for request in section.requests(model)][
        : first.samples
    ]
    requests += [""] * (first.samples - len(requests))
    samples = "".join(
        f'<option value="{i}">{escape(f"{i + 1}: {words}" if words else str(i + 1))}</option>'
        for i, words in enumerate(requests)
    )
    moving = (
        '<p class="moving"><button type="button" class="play">play</button> '
        f'<label>frame <input type="range" class="frame" min="0" max="{first.frames - 1}" value="0" step="1"></label></p>'
        '<div class="strips"><p class="quiet"></p><div class="strip"></div><p class="quiet"></p><div class="strip"></div></div>'
        if first.frames > 1 else ""
    )  # fmt: skip
    return (
        f'<figure class="viewer" hidden data-samples="{first.samples}" data-frames="{first.frames}" '
        f'style="--width: {first.width}; --height: {first.height}; --frames: {first.frames}; --samples: {first.samples}">'
        f'<p><label>left <select class="left">{stacks}</select></label> <label>right <select class="right"></select></label> '
        f'<label>sample <select class="sample">{samples}</select></label></p>'
        '<div class="stage"><div class="under"></div><div class="over"></div><span></span><span></span></div>'
        '<p><label class="wide">left &#8596; right <input type="range" class="split" min="0" max="100" value="50"></label> '
        '<label><input type="checkbox" class="difference"> difference, four times as strong</label></p>'
        f"{moving}<figcaption>Two stacks from the same request and noise, one over the "
        "other.</figcaption></figure>"
    )


def _accelerates(section: Section, row: ReportRow) -> bool:
    return all(m.get("family") != "control" for m in section.records[row["key"]]["methods"])


def make_sprite(section: Section, row: ReportRow, stacks: int) -> Sprite | None:
    """The first samples of one of a model's so many stacks as one image; None where there are
    none."""
    halved = 2 if stacks > MANY else 1
    read = read_samples(section, row, IMAGES // halved, VIDEOS // halved, _spread)
    if not read.samples:
        return None
    side = max(read.samples[0][0].shape[:2])
    fitted = [
        [_reduced(frame) for frame in sample] if side > WHOLE else sample for sample in read.samples
    ]
    whole = np.concatenate([np.concatenate(sample, 1) for sample in fitted], 0)
    height, width = fitted[0][0].shape[:2]
    return Sprite(
        link=_uri(_webp(Image.fromarray(whole), lossless=side <= WHOLE), "webp"),
        samples=len(fitted), frames=len(fitted[0]),
        height=height, width=width,
    )  # fmt: skip


def _spread(frames: int) -> Sequence[int]:
    """Which frames of so many are shown."""
    shown: list[int] = np.linspace(0, frames - 1, min(frames, FRAMES)).round().astype(int).tolist()
    return shown


def _reduced(image: Any) -> Any:
    height, width = image.shape[:2]
    factor = REDUCED / max(height, width)
    return np.asarray(
        Image.fromarray(image).resize(
            (max(1, round(width * factor)), max(1, round(height * factor))),
            Image.Resampling.LANCZOS,
        )
    )


def _webp(image: Image.Image, lossless: bool) -> bytes:
    written = BytesIO()
    image.save(
        written,
        "WEBP",
        lossless=lossless,
        quality=0 if lossless else 75,
        method=0 if lossless else 2,
    )
    return written.getvalue()


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
