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
from ditbench.analysis.printed_order import Printed, printed_order
from ditbench.analysis.step_sweep import over_steps
from ditbench.analysis.summary import Scores, read_scores, summarise
from ditbench.analysis.surfaces import Surface, surfaces
from ditbench.extractors.references import ReferenceSets
from ditbench.models.lora import loras_of
from ditbench.models.sampling import noun_for
from ditbench.records.checks import read_references, read_requests
from ditbench.records.published_files import members, replaced
from ditbench.records.reading import read_content
from ditbench.records.record import (
    MEASURED,
    SHOWN,
    Record,
    Run,
    environments_of,
    is_published,
    read_run,
)
from ditbench.records.run_folder import RunFolder
from ditbench.records.settings import changed_settings
from ditbench.records.text import clean, one_line
from ditbench.reports.sections.format import count
from ditbench.reports.sections.rows import ReportRow, comparable, report_rows


@dataclass(frozen=True, kw_only=True)
class Section:
    """One run, or several that were merged: its rows in table order, `none` first within each
    model. A row's `run` is its run's name."""

    name: str
    """Name of the run folder, made unlike those of the other sections."""
    folder: Path
    """Of merged runs the first one's, as `spec` is."""
    command: str
    rows: list[ReportRow]
    records: dict[str, Record]
    """By cell key."""
    left_out: list[str]
    """One sentence for each file that could not be read, and each cell without a record."""
    damaged: list[str]
    """Those sentences of `left_out` that are about damaged files."""
    spec: dict[str, Any]
    """What the run was told, as its spec.json has it; empty where that says nothing."""
    stacking: list[dict[str, Any]]
    """The rows of `ditbench.analysis.interaction.together`."""
    over_steps: list[dict[str, Any]]
    """The rows of `ditbench.analysis.step_sweep.over_steps`."""
    surfaces: tuple[Surface, ...] = ()
    """Of `ditbench.analysis.surfaces`."""
    printed: tuple[Printed, ...] = ()
    """Of `ditbench.analysis.printed_order`: one for each run that stands beside printed tables."""
    merged: tuple[Section, ...] = ()
    """The runs it was merged of, each as a section; none for a run alone."""
    remarks: tuple[str, ...] = ()
    """What was merged and how, or what keeps it apart from the other runs of the report."""

    def home(self, row: ReportRow) -> Section:
        """The run a row was measured in."""
        return next((section for section in self.merged if section.name == row["run"]), self)

    @cached_property
    def trained(self) -> list[tuple[ReportRow, str, dict[str, Any]]]:
        """(row, method, what its artefact cost), in table order."""
        return [
            (row, method, cost)
            for row in self.rows
            for method, cost in (self.records[row["key"]].get("artifacts") or {}).items()
        ]

    @property
    def models(self) -> dict[str, list[ReportRow]]:
        """Rows by model, in order of appearance."""
        rows_of: dict[str, list[ReportRow]] = {}
        for row in self.rows:
            rows_of.setdefault(row["model"], []).append(row)
        return rows_of

    def only(self, model: str) -> Section:
        """The same with the rows of one model."""
        return replace(self, rows=self.models[model])

    def caption(self, model: str) -> str:
        """Sample count, rounds, batch, precision and hardware of a model's rows."""
        rows = self.models[model]
        row = next((r for r in rows if r["status"] == SHOWN), rows[0])
        frames = max(((r["sampling"] or {}).get("frames", 1) for r in rows), default=1)
        parts = [
            f"n = {row['num_samples']} {noun_for(frames)}",
            count(row["rounds"], "timed round"),
            f"batch {row['batch_size']}",
        ]
        sampling = row["sampling"]
        if sampling:
            kind = f"{sampling['frames']} frames of " if sampling["frames"] > 1 else ""
            parts.append(
                f"{kind}{sampling['width']}x{sampling['height']}, "
                f"{count(sampling['steps'], 'step')}"
            )
            parts += [sampling[name] for name in ("scheduler",) if sampling.get(name)]
            if "negative_prompt" in sampling:
                parts.append("a negative prompt")
            if "calls" in sampling:
                parts.append(f"{sampling['calls']} sampler calls")
        parts += [
            row["dtype"],
            *self._weights(row),
            *changed_settings(self.records[row["key"]]["run"]),
            " and ".join(dict.fromkeys(map(hardware, self.environments(row)))),
        ]
        return ", ".join(str(part) for part in parts if part)

    def _weights(self, row: ReportRow) -> list[str]:
        """Where the weights are from, and what is merged into them."""
        own = [
            text for text in self.spec.get("own_models", ()) if text.startswith(f"{row['model']}=")
        ]
        name = Path(own[0] if own else row["weights"] or "unknown").name
        loras = loras_of(row["model"], self.spec.get("models", ()), self.spec.get("lora", ()))
        return [f"{name} weights", *(f"with {Path(text).name}" for text in loras)]

    def environments(self, row: ReportRow) -> list[dict[str, Any]]:
        """The environments that a row's times are from, each once."""
        baseline = self.records.get(row["baseline_key"] or "")
        return environments_of(self.records[row["key"]], baseline)

    def requests(self, model: str) -> list[dict[str, Any]]:
        """What the model was asked for, in sample order; empty when the file is missing or
        damaged."""
        try:
            folder = RunFolder(self.home(self.models[model][0]).folder)
            return read_requests(folder.requests(model))
        except (OSError, ValueError):
            return []


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
    sections = []
    for folder in folders:
        stem = folder.resolve().name
        name = next(
            n
            for i in range(len(folders) + 1)
            if (n := stem if not i else f"{stem}-{i + 1}") not in taken
        )
        taken.add(name)
        sections.append(_section(folder, name))
    return sections


def _section(folder: Path, name: str) -> Section:
    run = read_run(folder)
    records = {r["key"]: r for r in run.records}
    scores = read_scores(folder, run.records)
    damaged = [sentence.replace(f"{folder}/", "") for sentence in run.damaged]
    files = RunFolder(folder)
    unread = [path.stem for path in files.all_scores() if path.stem not in scores]
    damaged += [
        f"scores/{one_line(key)}.safetensors is damaged or of another version; scoring again makes it anew"
        for key in unread
    ]
    try:
        read_references(files.references)
    except ValueError as error:
        damaged.append(one_line(str(error).replace(f"{folder}/", "")))
    if is_published(folder):
        damaged += _lost(files, run, scores)
    missing = [
        key
        for key in run.spec.get("cells", [])
        if key not in records and not files.record(key).exists()
    ]
    labels = run.spec.get("labels", {})
    left_out = damaged + [
        f"{labels.get(key, key)} has no record: the run has not come to it, or stopped while it was "
        "in flight"
        for key in missing
    ]
    spec = run.spec.get("spec", {})
    summed = summarise(
        run.records, scores, margins=spec.get("margins"), sets_of_run=ReferenceSets(folder)
    )
    rows = report_rows(summed, records, name)
    try:
        text = clean(read_content(files.command, folder).decode("utf-8", "replace")).strip()
    except (ValueError, FileNotFoundError):
        text = ""
    paired = comparable(rows, records)
    beside = printed_order(paired, scores, sets_of_run=ReferenceSets(folder))
    return Section(
        name=name, folder=folder, command=text, rows=rows, records=records, left_out=left_out,
        damaged=damaged, spec=spec,
        stacking=together(paired, scores, sets_of_run=ReferenceSets(folder)), over_steps=over_steps(paired, scores),
        surfaces=tuple(surfaces(paired, scores)), printed=(beside,) if beside else (),
    )  # fmt: skip


ONCE_MORE = "take the file from where the run was published, or publish the run again"


def _lost(files: RunFolder, run: Run, scores: Mapping[str, Scores]) -> list[str]:
    """A sentence for what a published run should have, as it was published with, and has not."""
    measured = [record["key"] for record in run.records if record["status"] in MEASURED]
    trained = [r["key"] for r in run.records if r["run"].get("weights") != "random"]
    unscored = [key for key in measured if key not in scores and key in trained]
    if unscored:  # those of other samples are of another run, which is said below
        scored = read_scores(files.path)
        unscored = [key for key in unscored if key not in scored]
    lost = []
    if unscored and len(unscored) == len(measured):
        lost.append(f"scores.zip is missing or damaged: there are no scores; {ONCE_MORE}")
    elif unscored:
        lost.append(
            f"scores.zip has no scores of {', '.join(unscored)} that can be read; {ONCE_MORE}"
        )
    try:
        _, unreadable = members(files.thumbnails)
    except ValueError:
        if measured:
            lost.append(
                f"thumbnails.zip is missing or damaged: there are no samples to show; {ONCE_MORE}"
            )
    else:
        if keys := dict.fromkeys(name.partition("/")[0] for name in unreadable):
            lost.append(
                f"thumbnails.zip is damaged: samples of {', '.join(keys)} cannot be shown; "
                f"{ONCE_MORE}"
            )
    named = [name for name in replaced(files.path, run.spec) if not " ".join(lost).count(name)]
    if named:
        lost.append(
            f"{', '.join(named)}: not as published with spec.json, but changed or of another run; "
            f"{ONCE_MORE}"
        )
    return lost


def file_name(text: str) -> str:
    """`text` as the name of a file: letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".") or "_"


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
