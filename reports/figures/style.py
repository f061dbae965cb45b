"""How every figure looks: one place for sizes, colours and markers. Colour-blind safe, and readable
in black and white."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

INK, QUIET, PALE, PAPER = "#1c1c1c", "#5f5f5f", "#d9d9d9", "#ffffff"
RC: dict[str, Any] = {
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titley": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "svg.hashsalt": "ditbench",
    "svg.fonttype": "path",
    "path.simplify": False,
}
"""matplotlib's settings, on top of its defaults, whatever the user's own are."""
DPI = 160


def in_style(changes: Mapping[str, Any] | None = None) -> AbstractContextManager[None]:
    """matplotlib's settings while a figure is drawn, with `changes` to `RC`."""
    import matplotlib

    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **RC, **(changes or {})}
    return matplotlib.rc_context(settings)


@dataclass(frozen=True)
class Look:
    """How the points of one kind of stack are drawn."""

    label: str
    colour: str
    marker: str


BASELINE = Look("none", INK, "*")
COMBINATION = Look("combination", "#8c3a7a", "P")
OTHER = Look("other", QUIET, "X")
FAMILIES = {
    "control": Look("fewer steps", "#000000", "s"),
    "cache": Look("cache", "#0072b2", "o"),
    "quantisation": Look("quantisation", "#d55e00", "^"),
    "sparsity": Look("sparsity", "#009e73", "D"),
    "distillation": Look("distillation", "#b8860b", "p"),
}
"""By the family a method declares (Okabe and Ito's palette, its yellow darkened); a marker each, so
that grey prints tell them apart."""


def look(methods: Sequence[Mapping[str, Any]]) -> Look:
    """How a stack is drawn, from its record's list of methods."""
    if not methods or [m["name"] for m in methods] == ["none"]:
        return BASELINE
    if len(methods) > 1:
        return COMBINATION
    return FAMILIES.get(methods[0].get("family", ""), OTHER)


@cache
def font_path(bold: bool = False) -> Path:
    """The typeface of all figures, as matplotlib ships it."""
    import matplotlib

    return (
        Path(matplotlib.get_data_path())
        / "fonts"
        / "ttf"
        / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    )
