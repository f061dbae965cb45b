"""Tables of times without quality: whole runs, and the blocks that `blocks --json` timed. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ditbench.records.record import SHOWN
from ditbench.reports.sections.format import DASH, fixed, times
from ditbench.reports.sections.section import Section

BLOCKS = "blocks.jsonl"
"""In a published run: the rows of `blocks --json`."""


def speeds_table(section: Section) -> str:
    """A row per stack and model: FLOPs, the loop and the call against the baseline's, the share of the
    FLOPs' ratio that the loop realised, seconds and peak memory. What rests on suspect times is in
    brackets."""
    lines = [
        "| model | stack | FLOPs | loop | call | realised | s a sample | GB | compiling, s |",
        "|---|---|" + "---:|" * 7,
    ]
    for row in section.rows:
        timed = [
            _ratio(row["speedup_denoise"]), _ratio(row["speedup_call"]),
            _fixed(row["realised"], 2), _fixed(row["timing"]["call_s"], 4),
        ]  # fmt: skip
        if row["suspect"]:
            timed = [text if text == DASH else f"({text})" for text in timed]
        shown = [
            times(row["speedup_flops"]), *timed,
            _gigabytes(row["memory"].get("peak_bytes")), fixed(row["compile_s"], 1),
        ]  # fmt: skip
        cells = shown if row["status"] == SHOWN else [row["status"], *[DASH] * (len(shown) - 1)]
        lines.append(f"| {row['model']} | `{row['stack']}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _fixed(estimate: Mapping[str, Any] | None, places: int) -> str:
    return fixed(estimate["value"] if estimate else None, places)


def _gigabytes(size: int | None) -> str:
    return fixed(size / 1e9 if size else None, 2)


def _ratio(estimate: Mapping[str, Any] | None) -> str:
    return times(estimate["value"] if estimate else None)


def blocks_table(section: Section, what: str) -> str:
    """`what` is `whole`: a row per block, plain, computed under a method, and reused; `levels`: what a
    sub-layer takes at each level, against all of its tokens; or `schedules`: what schedules would take
    by addition. ValueError for another, and for a run without such rows."""
    path = section.folder / BLOCKS
    if not path.is_file():
        raise ValueError(f"{section.folder.name} has no {BLOCKS}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if what == "whole":
        return _table("plain | dense | reused", _whole(rows))
    if what == "levels":
        return _table("1/4 | 1/2 | 3/4 | all, ms", _levels(rows))
    if what == "schedules":
        return _table("partial | FLOPs | s | predicted | realised", _schedules(rows))
    raise ValueError(f"{what!r} is neither whole, levels nor schedules")


def _table(heads: str, rows: Mapping[tuple[str, str], list[str]]) -> str:
    first = f"| model | of | {heads} |"
    lines = [first, "|---|---|" + "---:|" * (first.count("|") - 3)]
    lines += [
        f"| {model} | {name} | {' | '.join(cells)} |" for (model, name), cells in rows.items()
    ]
    return "\n".join(lines) + "\n"


def _whole(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    made: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        block, _, how = str(row.get("block", "")).partition(" block ")
        if how:
            made.setdefault((row["model"], block), []).append(f"{row['ms']:.2f}")
    return {name: [f"{cell} ms" for cell in cells] for name, cells in made.items()}


def _levels(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    made: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        block, _, rest = str(row.get("block", " block ")).partition(" ")
        kind, _, level = rest.partition(" ")
        if kind and kind != "block":
            text = f"{row['ms']:.2f}" if level == "1" else times(row["speedup"])
            made.setdefault((row["model"], f"{block} {kind}"), []).append(text)
    return made


def _schedules(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    return {
        (row["model"], row["schedule"]): [
            f"{row['partial']:.0%}", times(row["flops_ratio"]), fixed(row["predicted_s"], 2),
            times(row["predicted_speedup"]), fixed(row["predicted_realised"], 2),
        ]
        for row in rows
        if row.get("schedule")
    }  # fmt: skip
