"""The leaderboard of many runs: a table for each model and machine, each row with the run it came
from; runs whose protocols differ have tables of their own. No torch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

from ditbench.analysis.primary import primary_metrics
from ditbench.metrics.table import metrics
from ditbench.records.record import SHOWN
from ditbench.reports.sections.format import spoken, times
from ditbench.reports.sections.merge import merge
from ditbench.reports.sections.rows import ReportRow, labelled
from ditbench.reports.sections.section import Section, hardware, read_sections

LEAVES = "a change has its 95 % interval, and is against none of the same run"


@dataclass(frozen=True, kw_only=True)
class Board:
    """A table of the leaderboard."""

    model: str
    machine: str
    caption: str
    remarks: tuple[str, ...]
    """What keeps its runs apart from those of another table of the same model and machine."""
    rows: list[dict[str, str]]
    """Fastest first."""


def boards(runs: Sequence[Path]) -> list[Board]:
    """The tables of some runs, by model and machine; ValueError where one is no run folder."""
    made = []
    for section in merge(read_sections(runs)):
        for model, rows in section.models.items():
            shown = [row for row in rows if row["status"] == SHOWN]
            if not shown:
                continue
            machines = dict.fromkeys(
                hardware(e) for row in shown for e in section.environments(row)
            )
            apart = tuple(r for r in section.remarks if r.startswith("kept apart"))
            made.append(
                Board(
                    model=model,
                    machine=" and ".join(filter(None, machines)) or "unknown machine",
                    caption=section.caption(model),
                    remarks=apart,
                    rows=[_line(section, row) for row in sorted(shown, key=_speed)],
                )
            )
    return sorted(made, key=lambda board: (board.model, board.machine))


def _speed(row: ReportRow) -> float:
    speed = row["speedup_call"]
    return -(speed["value"] if speed else 1.0)


def _line(section: Section, row: ReportRow) -> dict[str, str]:
    suspect = " (suspect)" if row["suspect"] else ""
    line = {
        "stack": labelled(row),
        "speed-up": (spoken(row["speedup_call"], 2) or "1") + suspect,
        "FLOPs saved by": times(row["speedup_flops"]),
    }
    for name in primary_metrics().names:
        entry: Any = row["quality"].get(name)
        if entry and entry["value"]:
            metric = metrics()[name]
            change = spoken(entry["delta"], metric.decimals, signed=True) if entry["delta"] else ""
            line[f"{metric.label}, change"] = f"{change} {entry['verdict']}".strip()
    return line | {"run": section.home(row).name}


def write_leaderboard(runs: Sequence[Path], out: Path) -> list[Path]:
    """Write `leaderboard.html`, `.md` and `.csv` into a folder; returns the files. ValueError where
    no run has a finished cell, or one is no run folder."""
    tables = boards(runs)
    if not tables:
        raise ValueError("none of the runs has a finished cell")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for ending, make in (("html", _html), ("md", _markdown), ("csv", _csv)):
        path = out / f"leaderboard.{ending}"
        path.write_text(make(tables), encoding="utf-8")
        written.append(path)
    return written


def _heads(board: Board) -> list[str]:
    heads = list(dict.fromkeys(head for row in board.rows for head in row if head != "run"))
    return [*heads, "run"]


def _markdown(tables: Sequence[Board]) -> str:
    parts = [f"# Leaderboard\n\nSpeed-up of the whole call; {LEAVES}.\n"]
    for board in tables:
        heads = _heads(board)
        parts += [f"## {board.model} on {board.machine}\n", f"{board.caption}\n"]
        parts += [f"{remark}\n" for remark in board.remarks]
        lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for row in board.rows:
            cells = (row.get(head, "").replace("|", "\\|") for head in heads)
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _csv(tables: Sequence[Board]) -> str:
    heads = list(dict.fromkeys(head for board in tables for head in _heads(board)))
    text = StringIO()
    writer = csv.DictWriter(text, ["model", "machine", *heads], restval="", lineterminator="\n")
    writer.writeheader()
    for board in tables:
        for row in board.rows:
            writer.writerow({"model": board.model, "machine": board.machine, **row})
    return text.getvalue()


def _html(tables: Sequence[Board]) -> str:
    css = (files("ditbench.reports.page") / "page.css").read_text(encoding="utf-8")
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>ditbench: leaderboard</title><style>{css}</style></head><body><main>"
        f"<h1>Leaderboard</h1><p>Speed-up of the whole call; {escape(LEAVES)}.</p>"
    ]
    for board in tables:
        heads = _heads(board)
        parts.append(f"<h2>{escape(board.model)} on {escape(board.machine)}</h2>")
        parts += [
            f'<p class="quiet">{escape(words)}</p>' for words in (board.caption, *board.remarks)
        ]
        top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
        body = "".join(
            f'<tr><th scope="row">{escape(row.get("stack", ""))}</th>'
            + "".join(f"<td>{escape(row.get(head, ''))}</td>" for head in heads[1:])
            + "</tr>"
            for row in board.rows
        )
        parts.append(
            f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
        )
    return "".join([*parts, "</main></body></html>\n"])
