"""Several runs in one section, where their numbers may stand side by side; where they may not, the
fields that differ by name.

What is merged is which rows share a table, never what a number was set against: speed-ups are
ratios to the baseline timed in the same rounds, and changes are paired with the samples of the
baseline of the same run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ditbench.analysis import verdict
from ditbench.analysis.interaction import judged
from ditbench.analysis.summary import DRIFT_BOUND
from ditbench.method.dependencies import changed
from ditbench.records.checks import read_references
from ditbench.records.environment import MACHINE
from ditbench.records.record import MEASURED, SHOWN, environments_of
from ditbench.records.run_folder import RunFolder
from ditbench.records.settings import CHOICES, DEFAULTS, LABELS
from ditbench.reports.sections.format import number, share
from ditbench.reports.sections.reproduce import between
from ditbench.reports.sections.rows import ReportRow, ranked
from ditbench.reports.sections.section import Section

ALIKE = (
    "model_sha256", "requests_sha256", "num_samples", "seed", "batch_size", "rounds", "dtype",
    "device", *CHOICES,
)  # fmt: skip
"""Fields of a record's `run` in which cells of one model must agree."""


def merge(sections: Sequence[Section]) -> list[Section]:
    """Sections in order, those of runs that agree made one; every other says what keeps it apart
    from each before it."""
    groups: list[list[Section]] = []
    reasons: list[list[str]] = []
    for section in sections:
        apart = []
        for group in groups:
            if not (
                reason := next(
                    (words for other in group if (words := _why_apart(other, section))), ""
                )
            ):
                group.append(section)
                break
            apart.append(reason)
        else:
            groups.append([section])
            reasons.append(apart)
    joined = [_joined(group) if len(group) > 1 else group[0] for group in groups]
    return [
        replace(s, remarks=(*s.remarks, *words)) for s, words in zip(joined, reasons, strict=True)
    ]


def _why_apart(one: Section, other: Section) -> str:
    """Why two runs are kept apart, or ""."""
    fields = unlike(one, other)
    return f"kept apart from {one.name}, for they differ in {'; '.join(fields)}" if fields else ""


def unlike(one: Section, other: Section) -> list[str]:
    """The fields in which two runs differ and must agree to share a table, each with both values;
    empty where they may share one.

    Environment, margins and references throughout; for each model of both: weights, requests,
    sample count, seed, batch, rounds, precision, sampling, what each stack was prepared with and
    else depends on, and the baseline's time within `DRIFT_BOUND`. What is not on record does not
    agree.
    """
    fields = _environments(one, other)
    if one.spec.get("margins") != other.spec.get("margins"):
        fields.append("margins")
    if _references(one) != _references(other):
        fields.append("references")
    for model in one.models:
        if model in other.models:
            fields += [f"{field} of {model}" for field in _model(one, other, model)]
    return fields


def _environments(one: Section, other: Section) -> list[str]:
    """Fields of the environment in which any two measured cells differ."""
    known: list[Mapping[str, Any]] = []
    for section in (one, other):
        for record in section.records.values():
            for whole in environments_of(record) if record["status"] in MEASURED else ():
                environment = {name: whole.get(name) for name in MACHINE}
                if environment not in known:
                    known.append(environment)
    rows = [row for later in known[1:] for row in between(known[0], later)]
    return list(dict.fromkeys(f"{row['field']} ({row['record']}, {row['here']})" for row in rows))


def _references(section: Section) -> Any:
    """sha256 of the references of a run, by model and extractor."""
    path = RunFolder(section.folder).references
    try:
        pointers = read_references(path)
    except ValueError:  # nobody knows whether they are the same; the section names the file
        return section.name
    return {
        model: {name: pointer["sha256"] for name, pointer in of.items()}
        for model, of in pointers.items()
    }


def _model(one: Section, other: Section, model: str) -> list[str]:
    rows = [{row["stack"]: row for row in section.models[model]} for section in (one, other)]
    fields = []
    for field in ALIKE:
        first, second = (_values(section, model, field) for section in (one, other))
        if first != second or len(first) != 1:
            fields.append(
                f"{LABELS[field]} ({', '.join(sorted(first)) or 'unknown'}; "
                f"{', '.join(sorted(second)) or 'unknown'})"
            )
    # keys are made of settings and of what a cell depends on, and the settings are the same
    if not fields:
        other_keys = {stack: row["key"] for stack, row in rows[1].items()}
        apart = [
            stack
            for stack, row in rows[0].items()
            if other_keys.get(stack, row["key"]) != row["key"]
        ]
        sections = (one, other)
        for stack in apart:
            dependencies = [
                of.records[row[stack]["key"]].get("depends_on", {})
                for of, row in zip(sections, rows, strict=True)
            ]
            names = [name for name in changed(*dependencies) if name != "prepared"]
            fields.append(
                f"{' and '.join(names)} of {stack}" if names else f"what {stack} was prepared with"
            )
    bases = [
        next((row for row in of.values() if row["baseline"] and row["status"] == SHOWN), None)
        for of in rows
    ]
    if bases[0] and bases[1]:
        fields += ["sampling"] if bases[0]["sampling"] != bases[1]["sampling"] else []
        seconds = [
            base["timing"]["call_s"]["value"] for base in bases if base and base["timing"]["call_s"]
        ]
        if len(seconds) == 2 and max(seconds) > (1 + DRIFT_BOUND) * min(seconds):
            fields.append(
                f"time of none ({number(seconds[0])} s, {number(seconds[1])} s: over "
                f"{share(DRIFT_BOUND)})"
            )
    return fields


def _values(section: Section, model: str, field: str) -> set[str]:
    """What a model's measured cells have in a field of `run`; of a hash, its beginning."""
    records = (section.records[row["key"]] for row in section.models[model])
    runs: list[Mapping[str, Any]] = [r["run"] for r in records if r["status"] in MEASURED]
    older = {name: DEFAULTS[name] for name in CHOICES}  # records without them
    known = [older | dict(run) for run in runs]
    return {str(run[field])[:12] for run in known if run.get(field) is not None}


def _joined(group: Sequence[Section]) -> Section:
    """One section of runs that agree: of a cell in several, the first that was measured is kept."""
    rows: dict[str, ReportRow] = {}
    names: dict[str, list[str]] = {}
    for section in group:
        for row in section.rows:
            names.setdefault(row["key"], []).append(section.name)
            if row["key"] not in rows or (
                row["status"] == SHOWN and rows[row["key"]]["status"] != SHOWN
            ):
                rows[row["key"]] = row
    judged_again = verdict.judge(list(rows.values()))  # by as many stacks as there are now
    homes = {section.name: section for section in group}
    return Section(
        name="+".join(homes) if len(homes) <= 3 else f"{group[0].name} and {len(homes) - 1} more",
        folder=group[0].folder,
        command="\n".join(section.command for section in group if section.command),
        rows=ranked(judged_again),
        records={key: homes[row["run"]].records[key] for key, row in rows.items()},
        left_out=[f"{section.name}: {sentence}" for section in group for sentence in section.left_out],
        damaged=[f"{section.name}: {sentence}" for section in group for sentence in section.damaged], spec=group[0].spec,
        stacking=judged([of_stack for s in group for of_stack in s.stacking if _row_of(rows.values(), of_stack)["run"] == s.name]),
        over_steps=[of_stack for s in group for of_stack in s.over_steps if _row_of(rows.values(), of_stack)["run"] == s.name],
        surfaces=tuple(surface for s in group for surface in s.surfaces),
        printed=tuple(printed for s in group for printed in s.printed),
        merged=tuple(group), remarks=_remarks(rows, names),
    )  # fmt: skip


def _row_of(rows: Any, of_stack: Mapping[str, Any]) -> ReportRow:
    row_of_stack: ReportRow = next(
        row
        for row in rows
        if (row["model"], row["stack"]) == (of_stack["model"], of_stack["stack"])
    )
    return row_of_stack


def _remarks(rows: Mapping[str, ReportRow], names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    runs = list(dict.fromkeys(name for of_key in names.values() for name in of_key))
    remarks = [
        f"one table of the runs {', '.join(runs)}: environment, weights, requests and sample count "
        "agree; each row's speed-ups and "
        "changes are against none of its own run"
    ]
    twice: dict[tuple[str, str], list[str]] = {}
    for key, of_key in names.items():
        if len(of_key) > 1:
            twice.setdefault((", ".join(of_key), rows[key]["run"]), []).append(
                f"{rows[key]['model']} {rows[key]['stack']}"
            )
    remarks += [
        f"in each of {where}, and kept from {chosen}: {', '.join(cells)}"
        for (where, chosen), cells in twice.items()
    ]
    return tuple(remarks)
