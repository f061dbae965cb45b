"""Rows -> CSV at full precision, Markdown and LaTeX for people, and the JSON document. Shaped with
pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ditbench.analysis import interaction
from ditbench.analysis.quality import ASKED
from ditbench.analysis.verdict import RULE
from ditbench.records.record import SHOWN
from ditbench.reports.sections.findings import findings, judges, trainings
from ditbench.reports.sections.format import (
    DASH,
    fixed,
    number,
    places_of,
    share,
    size,
    spoken,
    times,
)
from ditbench.reports.sections.rows import ReportRow, labelled, status, without_difference
from ditbench.reports.sections.section import Report, Section
from ditbench.reports.tables.imported import imported_frame, imported_sheet
from ditbench.reports.tables.sheet import (
    KEY,
    Block,
    Sheet,
    circumstances,
    latex,
    markdown,
    spread,
    without_empty,
)
from ditbench.reports.tables.stacking import stacking_frame, stacking_sheet
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
WHOLE = (
    "num_samples",
    "batch_size",
    "rounds",
    "seed",
    "steps",
    "calls",
    "height",
    "width",
    "frames",
    "forwards",
    "cores",
    "threads",
    "n_identical",
    "samples_needed",
    "iterations",
    "samples",
)
"""Columns of whole numbers, with those named after a count or bytes: written without a decimal
point also where some are missing."""
JUDGED = ("verdict", "margin", "p", "p_equivalent", "p_holm", "p_equivalent_holm")
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
SECOND_MINUS_FIRST = "alignment minus none, second judge minus first"
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
        (_filled(whole, section, _speed_cells), speed(section)),
        (_filled(replace(whole, name="quality", title="Quality", convention=FIDELITY), section, _quality_cells, RULES), quality(section)),
    ]  # fmt: skip
    if section.stacking:
        sheets.append((stacking_sheet(section), stacking_frame(section)))
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
        sheets.append((_filled(videos, section, _video_cells), None))
    return [path for sheet, frame in sheets for path in write_sheet(sheet, frame, folder)]


def write_sheet(sheet: Sheet, frame: pd.DataFrame | None, folder: Path) -> list[Path]:
    """Write a sheet as .md and .tex, and the frame of the same rows, where there is one, as .csv at
    full precision; returns the paths."""
    paths = []
    if frame is not None:
        whole = [
            column
            for column in map(str, frame.columns)
            if column in WHOLE or column.endswith(("_n", "_bytes"))
        ]
        frame[whole] = frame[whole].astype("Int64")
        paths.append(folder / f"{sheet.name}.csv")
        frame.to_csv(paths[0], index=False, lineterminator="\n")
    for kind, write in (("md", markdown), ("tex", latex)):
        paths.append(folder / f"{sheet.name}.{kind}")
        paths[-1].write_text(write(sheet))
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
        told = {
            "name": section.name,
            "command": section.command,
            "models": models,
            "left_out": section.left_out,
        }
        runs.append(
            told
            | {"stacking": interaction.document(section.stacking), "remarks": list(section.remarks)}
        )
    return {"schema": DOCUMENT, "page": str(report.page), "convention": CONVENTION, "runs": runs}


def speed(section: Section) -> pd.DataFrame:
    """One line a cell: times, the four speed-ups under their own names, FLOPs, memory ledger, and
    what they depend on."""
    return pd.DataFrame([_speed_line(section, row) for row in section.rows])


def _speed_line(section: Section, row: Any) -> dict[str, Any]:
    environment = section.records[row["key"]]["environment"]
    line: dict[str, Any] = {"run": row["run"]} | {
        name: row[name] for name in ("model", "stack", "status", "reason", "suspect")
    }
    for name in ("call_s", "text_s", "denoise_s", "decode_s"):
        line |= spread(name, row["timing"][name], counted=name == "call_s")
    line |= {"share_denoise": row["share"]["denoise"]}
    line |= {name: row[name] for name in ("speedup_flops", "speedup_predicted")}
    for name in ("speedup_denoise", "speedup_call"):
        line |= spread(name, row[name], counted=True)
    line |= {"speedup_interval": row["speedup_interval"]}
    for name in ("realised", "realised_call"):
        line |= spread(name, row[name])
    line |= {
        name: row["flops"].get(name)
        for name in ("flops", "linear_macs", "attention_macs", "conv_macs", "forwards")
    }
    ledger = ("weights_bytes", "cache_bytes", "peak_bytes", "before_bytes", "reserved_bytes")
    line |= {name: row["memory"].get(name) for name in ledger} | {
        "memory_source": row["memory"].get("source")
    }
    line |= {name: row[name] for name in ("first_call_s", "load_s", "drift", "drift_bound")}
    return line | circumstances(row, environment)


def quality(section: Section) -> pd.DataFrame:
    """One line per cell, metric and part of it (the whole metric has an empty part), but for
    metrics nobody asked for."""
    reasons: dict[str, set[str]] = {}
    for row in section.rows:
        for metric, entry in row["quality"].items():
            reasons.setdefault(metric, set()).update(
                [entry["reason"]] if row["status"] == SHOWN else []
            )
    unasked = {metric for metric, told in reasons.items() if told == {ASKED}}
    lines = []
    for row in section.rows:
        after = circumstances(row, section.records[row["key"]]["environment"])
        for metric, entry in row["quality"].items():
            if metric in unasked:
                continue
            parts: dict[str, Any] = {"": entry, **entry["parts"]}
            for part, told in parts.items():
                line: dict[str, Any] = {
                    "run": row["run"],
                    "model": row["model"],
                    "stack": row["stack"],
                    "status": row["status"],
                }
                line |= {"metric": metric, "part": part} | spread(
                    "value", told["value"], counted=True
                )
                line |= spread("delta", told["delta"], counted=True)
                second = (
                    row["second_judge"] if metric == "align.shapes_check_v1" and not part else None
                )
                line |= spread("delta_minus_first_judge", second)
                line |= {
                    name: told.get(name) for name in ("mde", "se_jackknife", "frontier", *JUDGED)
                }
                line |= {
                    name: entry[name]
                    for name in (
                        "better",
                        "unit",
                        "interval",
                        "reason",
                        "delta_reason",
                        "extractor",
                        "reference",
                    )
                }
                line |= {"label": row["label"]}
                line |= {"n_identical": None if part else entry["n_identical"]}
                lines.append(line | after)
    return pd.DataFrame(lines)


def _speed_cells(row: ReportRow) -> dict[str, str]:
    return {
        "s/sample": spoken_time(row["timing"]["call_s"]),
        "speedup_flops": times(row["speedup_flops"]),
        "speedup_predicted": times(row["speedup_predicted"]),
        "speedup_denoise": spoken(row["speedup_denoise"], 2),
        "speedup_call": spoken(row["speedup_call"], 2),
        "realised": spoken(row["realised"], 2),
        "denoise share": share(row["share"]["denoise"]),
        "GFLOPs": number(row["flops"]["flops"] / 1e9) if row["flops"].get("flops") else DASH,
        "weights": size(row["memory"].get("weights_bytes")),
        "cache": size(row["memory"].get("cache_bytes")),
        "peak": size(row["memory"].get("peak_bytes")),
        "rounds": str(row["rounds"]),
    }


def _quality_cells(row: ReportRow) -> dict[str, str]:
    return _metric_cells(row, ("", "more"))


def _video_cells(row: ReportRow) -> dict[str, str]:
    return _metric_cells(row, ("video",))


def _metric_cells(row: ReportRow, tables: Sequence[str]) -> dict[str, str]:
    found = {}
    for name, entry in row["quality"].items():
        if entry["table"] not in tables:
            continue
        places = places_of(name)
        found[name] = spoken(entry["value"], places)
        if not entry["against_none"]:
            found[f"{name} minus none"] = spoken(entry["delta"], places, signed=True)
            found[f"{name} detectable"] = fixed(entry["mde"], places)
            found[f"{name} verdict"] = entry["verdict"] or DASH
        if entry["primary"]:
            found[f"{name} on frontier"] = fixed(entry["frontier"], 2)
        if name == "align.shapes_check_v1":
            found[SECOND_MINUS_FIRST] = spoken(row["second_judge"], places, signed=True)
    return found | {"n": str(row["num_samples"])}


def spoken_time(estimate: Mapping[str, Any] | None) -> str:
    """Seconds per sample with their interval."""
    if estimate is None:
        return DASH
    low, high = estimate["low"], estimate["high"]
    return number(estimate["value"]) + (
        f" [{number(low)}, {number(high)}]" if low is not None else ""
    )


def _filled(sheet: Sheet, section: Section, cells: Any, rules: Sequence[str] = ()) -> Sheet:
    """The sheet with a block for every model of the section, a line for every row."""
    blocks = []
    for model, rows in section.models.items():
        lines = [
            {"stack": labelled(row), "status": status(row)} | cells(row) | {KEY: row["key"]}
            for row in rows
        ]
        notes = [f"`{row['stack']}`: {note}" for row in rows for note in row["notes"]]
        notes += without_difference(rows) if rules else []
        notes += findings(section, model) if cells is _quality_cells else []
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
