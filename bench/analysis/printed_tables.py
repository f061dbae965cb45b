"""Results that authors print for methods ditbench has (`printed.toml`): a table is one harness, with
its own un-accelerated model. No torch."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PRINTED = Path(__file__).with_name("printed.toml")
LIKE = ("distance", "score", "perceptual", "psnr")
"""What of ours a printed metric is set against: the model's primary metrics (statistic of the set,
mean of a score), and two comparisons with the un-accelerated sample."""


@dataclass(frozen=True, kw_only=True)
class PrintedRow:
    """A row of a printed table."""

    printed: str
    """The method as printed, with its setting."""
    method: str
    """The method of ditbench it is."""
    speedup: float
    """Compute of the table's un-accelerated model over this row's, by FLOPs or by time."""
    value: float
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class PrintedTable:
    """A printed table: one model, one harness, one metric."""

    id: str
    source: str
    """arXiv number."""
    place: str
    read: str
    """"source", or "note" where a reading note of the paper was read."""
    family: str
    model: str
    steps: int | None
    guidance: float | None
    """None, as other settings, where it was not stated."""
    size: str
    """Pixels, and frames of videos; or ""."""
    tokens: int | None
    """Image tokens."""
    prompts: str
    metric: str
    better: str
    """"higher" or "lower"."""
    like: str
    """Of `LIKE`."""
    compute: str
    """"FLOPs" (or multiply-accumulates), or "time"."""
    baseline: float | None
    """What its authors print for the un-accelerated model."""
    rows: tuple[PrintedRow, ...]

    @property
    def setting(self) -> tuple[Any, ...]:
        """What tables must share for their un-accelerated models to be the same."""
        return self.model, self.steps, self.size, self.prompts, self.metric


@cache
def printed_tables() -> tuple[PrintedTable, ...]:
    """The tables of `printed.toml`, in its order."""
    return tuple(_table(dict(group)) for group in _document()["table"])


def baselines(table: PrintedTable) -> dict[str, float]:
    """Source -> what it prints for the un-accelerated model of a table, of all sources that print it
    at the same steps, size and prompts; empty where the table prints none itself, or does not say
    at what."""
    if table.baseline is None or table.steps is None or not table.prompts:
        return {}
    values = {
        other.source: other.baseline
        for other in printed_tables()
        if other.baseline is not None and other.setting == table.setting
    }
    others = (
        group
        for group in _document()["baseline"]
        if tuple(group[name] for name in ("model", "steps", "size", "prompts", "metric"))
        == table.setting
    )
    return values | {group["source"]: group["value"] for group in others} | {
        table.source: table.baseline
    }  # fmt: skip


@cache
def _document() -> dict[str, Any]:
    return tomllib.loads(PRINTED.read_text(encoding="utf-8"))


def _table(group: dict[str, Any]) -> PrintedTable:
    """ValueError where a row has no compute, and for an unknown `like`."""
    none = group.pop("none", {})
    if group["like"] not in LIKE:
        raise ValueError(f"printed.toml: {group['id']}: like = {group['like']!r} is none of {LIKE}")
    rows = []
    for row in group.pop("rows"):
        speedup = row.get("speedup")
        if speedup is None:
            if "compute" not in row or "compute" not in none:
                raise ValueError(f"printed.toml: {group['id']}: {row['printed']} has no compute")
            speedup = none["compute"] / row["compute"]
        rows.append(
            PrintedRow(
                printed=row["printed"], method=row["method"], speedup=float(speedup),
                value=float(row["value"]), remark=row.get("remark", ""),
            )
        )  # fmt: skip
    known: dict[str, Any] = {
        "steps": None, "guidance": None, "size": "", "tokens": None, "prompts": "",
    } | group  # fmt: skip
    return PrintedTable(**known, baseline=none.get("value"), rows=tuple(rows))
