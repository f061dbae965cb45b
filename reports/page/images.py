"""Figures and sample grids on the page: alternative texts, captions, links to their files."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from ditbench.reports.figures.pages import numbered
from ditbench.reports.figures.style import DPI
from ditbench.reports.page.viewer import data_uri

IMAGES = {
    "quality-against-time": ("plot", "Quality of {} against seconds per sample", "Quality against time"),
    "crossover": ("plot", "Cells of {} beside the curve of fewer steps", "Does it beat fewer steps in the same time?"),
    "over-steps": ("plot", "What each method gives on {} over the number of steps", "What a method still gives at fewer steps"),
    "surface": ("matrix", "Quality of {} over the number of steps and a method's dial", "What does the method buy between whole steps?"),
    "printed-order": (
        "matrix", "Methods of {} in the order of printed tables and in ours",
        "Are methods in the order that authors print for the large model?",
    ),
    "stacking": ("matrix", "Which methods stack on {}, a cell for each combination", "Do they stack? Methods by methods"),
    "promised-and-measured": ("plot", "Measured speed-up of the loop of {} against its ratio of FLOPs", "Promised and measured speed-up"),
    "memory": ("plot", "Peak memory of {} under each stack, in parts", "Peak memory"),
    "operations": ("plot", "Time of the sampler loop of {} by kind of operation under each stack", "Where the time of the loop goes"),
    "schedules": (
        "grid",
        "Share of tokens each sub-layer of {} computes at each step, a panel for each scheduled stack",
        "Schedules: the share of tokens computed, by step and sub-layer",
    ),
    "training": ("small", "Loss over the training of a method for {}", "What was trained for these rows, and for how long"),
    "samples": (
        "grid", "Samples of {}, a row for each stack",
        "Samples: the same request and noise down each column, and below each stack four times "
        "its difference to none",
    ),
}  # fmt: skip
"""How the page shows an image, by the end of its file's name: kind, alternative text, caption."""


def show_image(path: Path, model: str, out: Path) -> str:
    """A PNG as a figure of the page, with links to its files; numbered files are parts of one."""
    stem, part = numbered(path.stem)
    kind, alt, words = next(shown for end, shown in IMAGES.items() if stem.endswith(f"-{end}"))
    links = f'<a class="whole" href="{_link(path, out)}">PNG</a>'
    if (vectors := path.with_suffix(".svg")).is_file():
        links += f', <a href="{_link(vectors, out)}">SVG</a>'
    words += f", part {part}" if part > 1 else ""
    with Image.open(path) as drawn:
        inch = float(drawn.info.get("dpi", (DPI,))[0])
        # CSS counts 96 pixels an inch
        width, height = (round(side * 96 / inch) for side in drawn.size)
    image = (
        f'<img class="{kind}" loading="lazy" width="{width}" height="{height}" alt="{escape(alt.format(model))}" '
        f'src="{data_uri(path)}">'
    )
    return f'<figure><div class="scroll" tabindex="0">{image}</div><figcaption>{escape(words)} ({links}).</figcaption></figure>'


def _link(path: Path, out: Path) -> str:
    return quote(Path(os.path.relpath(path, out)).as_posix())
