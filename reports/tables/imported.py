"""Rows that others published about a full-size model: shown in italics with their source, and set
against nothing of ours."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd

from ditbench.reports.sections.format import DASH
from ditbench.reports.sections.section import Section
from ditbench.reports.tables.sheet import Block, Sheet, frame

IMPORTED = (
    "Numbers of others, copied as they published them (source: imported). Other prompts, hardware, "
    "references and code: they are not "
    "comparable with the numbers of this run, and stand in no ratio and on no frontier. compute "
    "and speedup: as the source counts "
    "them. counted again: whether our own count of that arithmetic, by the source's convention, "
    "came within 0.5 % of it."
)


@cache
def published() -> tuple[dict[str, Any], ...]:
    """The groups of `imported.toml`: model, setting, source, rows, and unit where they have a
    compute."""
    document = tomllib.loads(
        (files("ditbench.reports.tables") / "imported.toml").read_text(encoding="utf-8")
    )
    return tuple(document["group"])


def imported_sheet(section: Section) -> Sheet:
    """A block for each table published about a model of the section; none for models that nobody
    else has."""
    blocks = []
    for group in published():
        if group["model"] in section.models:
            heads = list(
                dict.fromkeys(name for row in group["rows"] for name in row if name != "counted")
            )
            lines = [
                {_head(name, group): row.get(name, DASH) for name in heads} for row in group["rows"]
            ]
            for line, row in zip(lines, group["rows"], strict=True) if "unit" in group else ():
                line["counted again"] = "yes" if row.get("counted") else "no"
            notes = [f"source: {group['source']}"]
            blocks.append(
                Block(
                    model=group["model"],
                    caption=group["setting"],
                    lines=lines,
                    notes=notes,
                    italic=True,
                )
            )
    return Sheet(
        name="imported", title="Published elsewhere", run="", convention=IMPORTED, blocks=blocks
    )


def imported_frame(section: Section) -> pd.DataFrame:
    """The same rows; the column `source` says of each that it is imported, and from where."""
    return frame(
        {"source": f"imported: {group['source']}", "model": group["model"], "setting": group["setting"], "unit": group.get("unit")} | row
        for group in published()
        if group["model"] in section.models
        for row in group["rows"]
    )  # fmt: skip


def _head(name: str, group: dict[str, Any]) -> str:
    return f"{name}, {group['unit']}" if name == "compute" else name
