"""Rows -> CSV at full precision, Markdown and LaTeX for people, and the JSON document. Shaped with
pandas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ditbench.analysis import interaction_table
from ditbench.analysis.quality import ASKED
from ditbench.analysis.verdict import RULE
from ditbench.records.files import write_text
from ditbench.records.record import SHOWN
from ditbench.reports.sections.findings import findings, judges, trainings
from ditbench.reports.sections.rows import (
    ReportRow,
    absent,
    labelled,
    status,
    without_difference,
)
from ditbench.reports.sections.section import Report, Section
from ditbench.reports.tables import columns, metric_columns
from ditbench.reports.tables.imported import imported_frame, imported_sheet
from ditbench.reports.tables.printed import (
    printed_frame,
    printed_pairs_frame,
    printed_pairs_sheet,
    printed_sheet,
)
from ditbench.reports.tables.sheet import (
    KEY,
    Block,
    Sheet,
    circumstances,
    frame,
    latex,
    markdown,
    without_empty,
)
from ditbench.reports.tables.stacking import stacking_frame, stacking_sheet
from ditbench.reports.tables.surface import surface_frame, surface_sheet
from ditbench.reports.tables.training_cost import training_frame, training_sheet

DOCUMENT = 1
"""Version of the JSON document."""
CONVENTION = (
    "FLOP = 2 MAC, attention and guidance passes included, whole sampler loop. "
    "speedup_flops: FLOPs of none / FLOPs of this. "
    "speedup_predicted: of the whole call, if denoising time followed FLOPs and the other stages "
    "stayed. "
    "speedup_denoise: measured, denoising loop. speedup_call: measured, whole pipeline call. "
    "realised: speedup_denoise / speedup_flops. Intervals are 95 %."
)
FIRST = ("stack", "status")
"""Columns of every table; of the others those stand there that have a number in some row."""
FIDELITY = (
    "perceptual.shapes_v1 and what ends in .vs_none say how closely a sample repeats the "
    "un-accelerated one of the same noise: "
    "fidelity, not quality."
)
MOTION = (
    "vstyle.* are formulas on pixels and not VBench. A video that stands still does best on "
    "frame_mad, second_diff and "
    "linear_interp_smooth: read block_motion and motion_energy_ratio beside them."
)
RULES = (
    RULE,
    "Rows marked noise floor are the un-accelerated model again, by a path that changes rounding "
    "only; rows marked ceiling, from other "
    "noise. What a method costs means something only between the two.",
    "On frontier: the probability that no other row here is both faster and better, from the "
    "errors of speed-up and change.",
)


def write_tables(section: Section, folder: Path) -> list[Path]:
    """Write speed and quality, and what else the run has something for, as .csv, .md and .tex into
    `folder`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = Sheet(
        name="speed", title="Speed and memory", run=section.name, convention=CONVENTION, blocks=()
    )
    sheets: list[tuple[Sheet, pd.DataFrame | None]] = [
        (_filled(whole, section, columns.lines), speed(section)),
        (_filled(replace(whole, name="quality", title="Quality", convention=FIDELITY), section, _quality_lines, RULES), quality(section)),
    ]  # fmt: skip
    if section.stacking:
        sheets.append((stacking_sheet(section), stacking_frame(section)))
    if section.surfaces:
        sheets.append((surface_sheet(section), surface_frame(section)))
    if section.printed:
        sheets.append((printed_sheet(section), printed_frame(section)))
        sheets.append((printed_pairs_sheet(section), printed_pairs_frame(section)))
    if section.trained:
        sheets.append((training_sheet(section), training_frame(section)))
    if (elsewhere := imported_sheet(section)).blocks:
        sheets.append((elsewhere, imported_frame(section)))
    if any(
        entry["value"]
        for row in section.rows
        for entry in row["quality"].values()
        if entry["table"] == "video"
    ):
        videos = replace(whole, name="video", title="Videos", convention=MOTION)
        sheets.append((_filled(videos, section, _video_lines), None))
    return [path for sheet, frame in sheets for path in write_sheet(sheet, frame, folder)]


def write_sheet(sheet: Sheet, content: pd.DataFrame | None, folder: Path) -> list[Path]:
    """Write a sheet as .md and .tex, and `content`, the same rows, where there is one, as .csv at
    full precision; returns the paths."""
    paths = []
    if content is not None:
        paths.append(folder / f"{sheet.name}.csv")
        write_text(paths[0], content.to_csv(index=False, lineterminator="\n"))
    for kind, write in (("md", markdown), ("tex", latex)):
        paths.append(folder / f"{sheet.name}.{kind}")
        write_text(paths[-1], write(sheet))
    return paths


def document(report: Report) -> dict[str, Any]:
    """The report as plain JSON."""
    runs = []
    for section in report.sections:
        models = [
            {"model": model, "caption": section.caption(model), "rows": rows}
            | {"judges": judges(section, model), "trainings": trainings(section, model)}
            for model, rows in section.models.items()
        ]
        run = {
            "name": section.name,
            "command": section.command,
            "models": models,
            "left_out": section.left_out,
        }
        runs.append(
            run
            | {
                "stacking": interaction_table.document(section.stacking),
                "remarks": list(section.remarks),
            }
        )
    return {"schema": DOCUMENT, "page": str(report.page), "convention": CONVENTION, "runs": runs}


def speed(section: Section) -> pd.DataFrame:
    """One line a cell: times, the four speed-ups under their own names, FLOPs, memory ledger, and
    what they depend on."""
    shown = columns.without_unused(columns.COLUMNS, section.rows)
    return frame(
        columns.csv_line(shown, row) | circumstances(row, section.environments(row))
        for row in section.rows
    )


def quality(section: Section) -> pd.DataFrame:
    """One line per cell, metric and part of it (the whole metric has an empty part), but for
    metrics that are scored only by name and were not."""
    reasons: dict[str, set[str]] = {}
    for row in section.rows:
        for metric, entry in row["quality"].items():
            reasons.setdefault(metric, set()).update(
                [entry["reason"]] if row["status"] == SHOWN else []
            )
    lines = []
    for row in section.rows:
        after = circumstances(row, section.environments(row))
        before = {
            "run": row["run"],
            "model": row["model"],
            "stack": row["stack"],
            "status": row["status"],
        }
        for metric, entry in row["quality"].items():
            for part in ("", *entry["parts"]) if reasons[metric] != {ASKED} else ():
                measure = metric_columns.Measure(row=row, metric=metric, part=part)
                line = before | {"metric": metric, "part": part}
                lines.append(line | columns.csv_line(metric_columns.COLUMNS, measure) | after)
    return frame(lines)


def _quality_lines(row: ReportRow) -> dict[str, str]:
    return metric_columns.lines(row, ("", "more"))


def _video_lines(row: ReportRow) -> dict[str, str]:
    return metric_columns.lines(row, ("video",))


def _filled(
    sheet: Sheet,
    section: Section,
    columns_of: Callable[[ReportRow], dict[str, str]],
    rules: Sequence[str] = (),
) -> Sheet:
    """The sheet with a block for every model of the section, a line for every row."""
    blocks = []
    for model, rows in section.models.items():
        lines = [
            {"stack": labelled(row), "status": status(row)} | columns_of(row) | {KEY: row["key"]}
            for row in rows
        ]
        notes = [f"`{row['stack']}`: {note}" for row in rows for note in row["notes"]]
        notes += without_difference(rows) if rules else []
        if columns_of is _quality_lines:
            notes += absent(rows, first=True) + findings(section, model)
        blocks.append(
            Block(
                model=model,
                caption=section.caption(model),
                lines=without_empty(lines, FIRST),
                notes=notes,
            )
        )
    if rules:
        margins = {
            n: e["margin"]
            for row in section.rows
            for n, e in row["quality"].items()
            if e["margin"] is not None
        }
        stated = ", ".join(f"{name} {margin:g}" for name, margin in margins.items())
        rules = (
            *rules,
            f"Margins stated before the run: {stated or 'none, so that nothing is equivalent'}.",
        )
    return replace(
        sheet, blocks=blocks, rules=(*rules, *section.remarks), left_out=section.left_out
    )
