"""How papers count: a published table is reproduced by counting as its authors did. No torch.

Ours is `flops`: 2 MAC, linear, attention and convolution, every step and guidance pass. Numbers of different conventions are never
compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
"""A row of `flops.count_model`."""

CONVENTIONS: dict[str, tuple[str, Callable[[Row], float]]] = {
    "flops": ("FLOP = 2 MAC, attention included, all guidance passes", lambda row: row["flops"]),
    "macs": ("multiply-accumulates, attention included, all guidance passes", lambda row: row["flops"] / 2),
    "linear-macs": (
        "multiply-accumulates of linear layers and convolutions, without attention products, all guidance passes (DiffSparse on Wan)",
        lambda row: row["macs_linear"] + row["macs_conv"],
    ),
    "linear-macs-one-pass": (
        "the same, of one guidance pass a step (DiffSparse on PixArt and FLUX, Learning-to-Cache)",
        lambda row: (row["macs_linear"] + row["macs_conv"]) * row["steps"] / row["passes"],
    ),
}
"""Name -> (what it counts, how it follows from a row)."""


def counted(row: Row, convention: str) -> float | None:
    """The row's cost in a convention; None for a row without numbers. KeyError for an unknown convention."""
    _, cost = CONVENTIONS[convention]
    return None if row["flops"] is None else cost(row)
