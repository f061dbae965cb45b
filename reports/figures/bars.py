"""Bars in parts, one for each stack, all to one scale and split over pages. PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch
from numpy.typing import NDArray

from ditbench.analysis.rows import Row
from ditbench.reports.figures.frame import frame
from ditbench.reports.figures.pages import pages
from ditbench.reports.figures.style import PAPER

BAR = 0.24
"""Inches for a bar."""
BARS = 60
"""Stacks on a page of bars."""

Part = tuple[str, str, str]
"""What a part is called, its colour and hatch."""


def draw_bars(
    rows: Sequence[Row], parts: NDArray[np.float64], kinds: Sequence[Part], values: Sequence[str],
    *, foot: Sequence[str], title: str, unit: str, folder: Path, stem: str,
) -> list[Path]:  # fmt: skip
    """A bar for each row, of `parts` [rows, kinds], with its value in words beside its stack; the
    files written."""
    longest = 9 + max(len(_short(row["stack"])) for row in rows)
    left = min(0.46, 0.02 + 0.0086 * longest)
    most = float(parts.sum(1).max())
    patches = [
        Patch(facecolor=colour, hatch=hatch, edgecolor=PAPER, label=label)
        for label, colour, hatch in kinds
    ]
    written: list[Path] = []
    for ending, page, words in pages(range(len(rows)), BARS):
        drawn = frame(1, BAR * len(page), foot, head=0.62, left=left, margin=0.02)
        names = [f"{_short(rows[i]['stack'])}   {values[i]}" for i in page]
        _bars(drawn.axes[0], parts[list(page)], kinds, names)
        drawn.axes[0].set_xlabel(unit)
        drawn.axes[0].set_xlim(0, 1.03 * most)
        heading = f"{title}{f', stacks {words}' * bool(words)}"
        written += drawn.save(
            heading, patches, len(kinds), folder, f"{stem}{ending}", handlelength=1.2
        )
    return written


def _bars(
    axis: Axes, parts: NDArray[np.float64], kinds: Sequence[Part], names: Sequence[str]
) -> None:
    places = np.arange(len(parts))[::-1]
    ends = np.cumsum(parts, 1)
    low, high = places - 0.34, places + 0.34
    for i, (_, colour, hatch) in enumerate(kinds):
        start, end = ends[:, i] - parts[:, i], ends[:, i]
        corners = ((start, low), (start, high), (end, high), (end, low))
        bars = np.stack([np.stack(corner, 1) for corner in corners], 1)
        axis.add_collection(
            PolyCollection(
                list(bars), facecolor=colour, hatch=hatch, edgecolor=PAPER, linewidth=0.4
            )
        )
    # plain text: ticks cost four times as much to draw
    for place, name in zip(places, names, strict=True):
        axis.text(
            -0.012, place, name, transform=axis.get_yaxis_transform(), ha="right", va="center",
            fontsize=7.5,
        )  # fmt: skip
    axis.set_yticks([])
    axis.set_ylim(-0.6, len(parts) - 0.4)


def _short(stack: str) -> str:
    """Shortened in the middle: stacks of one plane differ in their first knobs and in their last."""
    return stack if len(stack) <= 44 else f"{stack[:21]}…{stack[-22:]}"
