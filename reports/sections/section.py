"""A run as the report sees it: rows with only such numbers as may be shown, and in words what was
left out and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ditbench.analysis.interaction import together
from ditbench.analysis.step_sweep import over_steps
from ditbench.analysis.summary import own_timing, read_scores, summarise
from ditbench.extractors.references import ReferenceSets
from ditbench.records.files import read_json
from ditbench.records.record import SHOWN, Record, read_run
from ditbench.records.run_folder import RunFolder
from ditbench.reports.sections.format import count, share
from ditbench.reports.sections.frontier import Row, probabilities

TIMES = ("speedup_call", "speedup_denoise", "speedup_predicted", "realised", "realised_call")
EMPTIED = (
    "value",
    "level",
    "delta",
    "mde",
    "floor",
    "se_jackknife",
    "p",
    "p_equivalent",
    "p_holm",
    "p_equivalent_holm",
)
MACHINE = (
    "device",
    "processor",
    "cores",
    "threads",
    "capability",
    "cuda",
    "tf32",
    "packages",
    "variables",
)
"""Fields of a record's environment that two times must share before one is divided by the other."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One run, or several that were merged: its rows in table order, `none` first within each
    model. A row's `run` is its run's name."""

    name: str
    """Name of the run folder, made unlike those of the other sections."""
    folder: Path
    """Of merged runs the first one's, as `spec` is."""
    command: str
    rows: list[Row]
    records: dict[str, Record]
    """By cell key."""
    left_out: list[str]
    """One sentence for each file that could not be read."""
    spec: dict[str, Any]
    """What the run was told, as its spec.json has it; empty where that says nothing."""
    stacking: list[dict[str, Any]]
    """The rows of `ditbench.analysis.interaction.together`."""
    over_steps: list[dict[str, Any]]
    """The rows of `ditbench.analysis.step_sweep.over_steps`."""
    merged: tuple[Section, ...] = ()
    """The runs it was merged of, each as a section; none for a run alone."""
    remarks: tuple[str, ...] = ()
    """What was merged and how, or what keeps it apart from the other runs of the report."""

    def home(self, row: Row) -> Section:
        """The run a row was measured in."""
        return next((section for section in self.merged if section.name == row["run"]), self)

    @cached_property
    def trained(self) -> list[tuple[Row, str, dict[str, Any]]]:
        """(row, method, what its artefact cost), in table order."""
        return [
            (row, method, cost)
            for row in self.rows
            for method, cost in (self.records[row["key"]].get("artifacts") or {}).items()
        ]

    @property
    def models(self) -> dict[str, list[Row]]:
        """Rows by model, in order of appearance."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row["model"], []).append(row)
        return found

    def only(self, model: str) -> Section:
        """The same with the rows of one model."""
        return replace(self, rows=self.models[model])

    def caption(self, model: str) -> str:
        """Sample count, rounds, batch, precision and hardware of a model's rows."""
        rows = self.models[model]
        row = next((r for r in rows if r["status"] == SHOWN), rows[0])
        told = [
            f"n = {row['num_samples']} samples",
            count(row["rounds"], "timed round"),
            f"batch {row['batch_size']}",
        ]
        sampling = row["sampling"]
        if sampling:
            kind = f"{sampling['frames']} frames of " if sampling["frames"] > 1 else ""
            told.append(
                f"{kind}{sampling['width']}x{sampling['height']}, "
                f"{count(sampling['steps'], 'step')}"
            )
            if "calls" in sampling:
                told.append(f"{sampling['calls']} sampler calls")
        told += [
            row["dtype"],
            f"{Path(row['weights']).name} weights",
            hardware(self.records[row["key"]]["environment"]),
        ]
        return ", ".join(str(part) for part in told if part)

    def requests(self, model: str) -> list[dict[str, Any]]:
        """What the model was asked for, in sample order; empty when the file is missing or
        damaged."""
        try:
            folder = RunFolder(self.home(self.models[model][0]).folder)
            found = read_json(folder.requests(model))
        except (OSError, ValueError):
            return []
        return found if isinstance(found, list) else []


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `build` made."""

    sections: list[Section]
    out: Path
    page: Path
    files: list[Path]
    """Every file written, in order of writing."""


def read_sections(folders: Sequence[Path]) -> list[Section]:
    """A section for each run folder; ValueError when one is no run folder."""
    taken: set[str] = set()
    found = []
    for folder in folders:
        stem = folder.resolve().name
        name = next(
            n
            for i in range(len(folders) + 1)
            if (n := stem if not i else f"{stem}-{i + 1}") not in taken
        )
        taken.add(name)
        found.append(_section(folder, name))
    return found


def _section(folder: Path, name: str) -> Section:
    run = read_run(folder)
    records = {r["key"]: r for r in run.records}
    scores = read_scores(folder)
    left_out = [sentence.replace(f"{folder}/", "") for sentence in run.damaged]
    files = RunFolder(folder)
    unread = [path.stem for path in files.all_scores() if path.stem not in scores]
    left_out += [
        f"scores/{key}.safetensors is damaged or of another version; scoring again makes it anew"
        for key in unread
    ]
    missing = [
        key
        for key in run.spec.get("cells", [])
        if key not in records and not files.record(key).exists()
    ]
    left_out += [
        f"{key} has no record: the run has not come to it, or stopped while it was in flight"
        for key in missing
    ]
    spec = run.spec.get("spec", {})
    summed = summarise(
        run.records, scores, margins=spec.get("margins"), sets_of_run=ReferenceSets(folder)
    )
    rows = ranked([_presentable(row, records) | {"run": name} for row in summed])
    command = files.command
    told = command.read_text(errors="replace").strip() if command.is_file() else ""
    comparable = _comparable(rows, records)
    return Section(
        name=name, folder=folder, command=told, rows=rows, records=records, left_out=left_out,
        spec=spec,
        stacking=together(comparable, scores), over_steps=over_steps(comparable, scores),
    )  # fmt: skip


def ranked(rows: list[Row]) -> list[Row]:
    """Rows in table order, each with its probability of being on the frontier of its model."""
    order = {model: i for i, model in enumerate(dict.fromkeys(r["model"] for r in rows))}
    found = sorted(rows, key=lambda row: (order[row["model"]], not row["baseline"]))
    for model in order:
        mine = [row for row in found if row["model"] == model]
        for metric in mine[0]["quality"]:
            chances = probabilities(mine, metric) if mine[0]["quality"][metric]["primary"] else {}
            for row in mine:
                row["quality"][metric]["frontier"] = chances.get(row["key"])
    return found


def _comparable(rows: Sequence[Row], records: Mapping[str, Record]) -> list[Mapping[str, Any]]:
    """The records that may be set against their baseline: asked the same, and without the times
    that another environment gave."""
    return [
        {
            **records[row["key"]],
            **({} if row["baseline"] or row["speedup_call"] else {"timing": []}),
        }
        for row in rows
        if row["baseline_key"]
    ]


def _presentable(row: Row, records: Mapping[str, Record]) -> Row:
    """The row without the numbers that would mislead, and with `notes`: sentences that belong
    beside it."""
    notes = (
        [f"{row['status']}: {row['reason']}" if row["reason"] else row["status"]]
        if row["status"] != SHOWN
        else []
    )
    if row["status"] != SHOWN:
        row = row | dict.fromkeys(
            (*TIMES, "speedup_flops", "first_call_s", "load_s", "second_judge")
        )
        row |= {
            "flops": {},
            "memory": {},
            "counters": {},
            "timing": dict.fromkeys(row["timing"]),
            "share": dict.fromkeys(row["share"]),
        }
        row["quality"] = {
            name: entry
            | dict.fromkeys(EMPTIED)
            | {
                "verdict": "",
                "parts": {},
                "n_identical": None,
                "reason": f"the cell is {row['status']}",
            }
            for name, entry in row["quality"].items()
        }
        return row | {"suspect": False, "notes": notes}
    baseline = records.get(row["baseline_key"] or "")
    other = (
        differing(records[row["key"]]["environment"], baseline["environment"]) if baseline else []
    )
    if other:
        row = row | dict.fromkeys(TIMES) | {"timing": own_timing(records[row["key"]])}
        notes.append(
            "no measured speed-up: its times and the baseline's come from environments that "
            f"differ in {', '.join(other)}"
        )
    if baseline is None and not row["baseline"]:
        notes.append(
            "nothing to compare with: the baseline `none` has no usable record in this run"
        )
    notes += row["warnings"]
    if row["suspect"]:
        notes.append(
            f"suspect: the baseline's slowest round took {share(row['drift'])} longer than its "
            "fastest; "
            f"above {share(row['drift_bound'])} the times of this model are not to be trusted"
        )
    return row | {"notes": notes}


def unmeasured(rows: Sequence[Row], first: bool) -> dict[str, list[str]]:
    """Metrics of the first table, or of the others, that no row has, by their reasons; a baseline's
    own reason counts only alone."""
    found: dict[str, list[str]] = {}
    measured = [row for row in rows if row["status"] == SHOWN]
    for metric in measured[0]["quality"] if measured else ():
        entries = [row["quality"][metric] for row in measured]
        if (entries[0]["table"] == "") == first and not any(entry["value"] for entry in entries):
            own = [
                e["reason"] for row, e in zip(measured, entries, strict=True) if not row["baseline"]
            ]
            for reason in dict.fromkeys(own or [entry["reason"] for entry in entries]):
                found.setdefault(reason, []).append(metric)
    return found


def without_difference(rows: Sequence[Row]) -> list[str]:
    """A sentence for each reason for which metrics of the first table have values and no row a
    difference to none."""
    reasons: dict[str, list[str]] = {}
    compared = [
        row["quality"]
        for row in rows
        if row["status"] == SHOWN and row["baseline_key"] and not row["baseline"]
    ]
    for metric in compared[0] if compared else ():
        entries = [quality[metric] for quality in compared]
        if (
            not entries[0]["table"]
            and not entries[0]["against_none"]
            and all(e["value"] and not e["delta"] for e in entries)
        ):
            reasons.setdefault(entries[0]["delta_reason"], []).append(metric)
    return [
        f"no difference of {', '.join(names)} to none: {reason}"
        for reason, names in reasons.items()
    ]


def status(row: Row) -> str:
    """`suspect` where the times are not to be trusted, else the record's status."""
    return "suspect" if row["suspect"] else str(row["status"])


def labelled(row: Row) -> str:
    """The stack, and after it what its row is for, where it is not to be judged as a method."""
    return f"{row['stack']} ({row['label']})" if row["label"] else str(row["stack"])


def file_name(text: str) -> str:
    """`text` as the name of a file: letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".") or "_"


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the environment fields that must agree and do not."""
    return [name for name in MACHINE if one.get(name) != other.get(name)]


def hardware(environment: Mapping[str, Any]) -> str:
    """The machine in a few words."""
    if not environment:
        return ""
    if environment.get("device", "cpu") != "cpu":
        return f"{environment['device']}, torch {_packages(environment).get('torch', '?')}"
    cores = f"{environment.get('processor', 'unknown processor')}, {count(environment.get('cores') or 0, 'core')}"
    return f"{cores}, {count(environment.get('threads') or 0, 'thread')}, torch {_packages(environment).get('torch', '?')}"


def _packages(environment: Mapping[str, Any]) -> Mapping[str, Any]:
    return environment.get("packages") or {}
