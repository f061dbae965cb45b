"""Rows as a report shows them: in table order, without numbers that would mislead, and with the
sentences that belong beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ditbench.analysis.rows import QualityEntry, Row, unscored
from ditbench.analysis.summary import own_timing
from ditbench.analysis.verdict import replaced
from ditbench.records.environment import differing
from ditbench.records.record import (
    RANDOM,
    SHOWN,
    Record,
    differing_beside,
    environments_of,
)
from ditbench.reports.sections.format import share
from ditbench.reports.sections.frontier import probabilities

TIMES = ("speedup_call", "speedup_denoise", "speedup_predicted", "realised", "realised_call")
"""Keys of a row that rest on measured times."""


class ReportRow(Row):
    """A row of a report."""

    run: str
    """Name of the run it was measured in."""
    notes: list[str]
    """Sentences that belong beside it."""


def report_rows(rows: Sequence[Row], records: Mapping[str, Record], run: str) -> list[ReportRow]:
    """The rows of a run, without the numbers that would mislead, in table order."""
    return ranked([_presentable(row, records, run) for row in rows])


def ranked(rows: Sequence[ReportRow]) -> list[ReportRow]:
    """Rows in table order, each with its probability of being on the frontier of its model."""
    models: dict[str, list[ReportRow]] = {}
    for row in rows:
        models.setdefault(row["model"], []).append(row)
    in_order = []
    for of_model in models.values():
        of_model.sort(key=lambda row: not row["baseline"])
        chances = {
            metric: probabilities(of_model, metric) if entry["primary"] else {}
            for metric, entry in of_model[0]["quality"].items()
        }
        for row in of_model:
            entries: dict[str, QualityEntry] = {
                metric: {**entry, "frontier": chances[metric].get(row["key"])}
                for metric, entry in row["quality"].items()
            }
            in_order.append(replaced(row, entries))
    return in_order


def comparable(rows: Sequence[Row], records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """The records that may be compared with their baseline: of the same requests, and without the
    times that another environment gave."""
    return [
        {
            **records[row["key"]],
            **({} if row["baseline"] or row["speedup_call"] else {"timing": []}),
        }
        for row in rows
        if row["baseline_key"]
    ]


def _presentable(row: Row, records: Mapping[str, Record], run: str) -> ReportRow:
    """The row without the numbers that would mislead."""
    if row["status"] != SHOWN:
        because = f"{row['status']}: {row['reason']}" if row["reason"] else row["status"]
        return {**_without_numbers(row), "run": run, "notes": [because, *row["warnings"]]}
    notes = []
    baseline = records.get(row["baseline_key"] or "")
    record = records[row["key"]]
    if baseline and (other := differing_beside(record, baseline)):
        row = {**_without_times(row), "timing": own_timing(record)}
        notes.append(
            "no measured speed-up: its times and the baseline's come from environments that "
            f"differ in {', '.join(other)}"
        )
    elif baseline and not row["baseline"] and row["speedup_call"] is None:
        notes.append(
            "no measured speed-up: the baseline was not timed beside it by one command; the same "
            "command times both again"
        )
    if baseline is None and not row["baseline"]:
        notes.append(
            "nothing to compare with: the baseline `none` has no usable record in this run"
        )
    if several := differing(*environments_of(record, baseline)):
        row = {**row, "suspect": row["suspect"] or not row["baseline"]}
        notes.append(
            f"{'' if row['baseline'] else 'suspect: '}timed in environments that differ in "
            f"{', '.join(several)}, and its numbers are means over them"
        )
    notes += [f"{text}; {REMEDY}" if text.startswith(SUSPECT) else text for text in row["warnings"]]
    if reason := row["memory"].get("peak_missing"):
        notes.append(f"no peak memory: {reason}")
    notes += _doubts_of_rounds(row)
    return {**row, "run": run, "notes": notes}


SUSPECT = "suspect: "
"""How notes begin that say why times are not to be trusted."""
REMEDY = "run it again on an idle machine, into another --out"


def _doubts_of_rounds(row: Row) -> list[str]:
    """Why the times of a row are not to be trusted, by the rounds they were taken in."""
    if row["suspect"] and row["drift"] is None and row["speedup_call"]:
        return [
            f"{SUSPECT}timed in one round, so that nothing is known of how its times vary; run it "
            "with --rounds 3"
        ]
    if row["drift"] is not None and row["drift"] > row["drift_bound"]:
        return [
            f"{SUSPECT}the baseline's slowest round took {share(row['drift'])} longer than its "
            f"fastest; above {share(row['drift_bound'])} the times of this model are not to be "
            f"trusted; {REMEDY}"
        ]
    return []


def doubts(row: ReportRow) -> list[str]:
    """Why the times of a row are suspect, each with what to do; empty where they are not."""
    return [note.removeprefix(SUSPECT) for note in row["notes"] if note.startswith(SUSPECT)]


def _without_times(row: Row) -> Row:
    """The row without the keys of `TIMES`."""
    return {
        **row, "speedup_call": None, "speedup_denoise": None, "speedup_predicted": None,
        "realised": None, "realised_call": None, "speedup_over_compile": None,
    }  # fmt: skip


def _without_numbers(row: Row) -> Row:
    """The row of a cell that did not run, or whose method had no effect."""
    entries: dict[str, QualityEntry] = {
        metric: {
            **entry,
            **unscored(f"the cell is {row['status']}"),
            "mde": None, "p": None, "p_equivalent": None, "p_holm": None,
            "p_equivalent_holm": None, "verdict": "",
        }
        for metric, entry in row["quality"].items()
    }  # fmt: skip
    return {
        **_without_times(row),
        "speedup_flops": None,
        "first_call_s": None,
        "compile_s": None,
        "load_s": None,
        "second_judge": None,
        "flops": {},
        "memory": {},
        "counters": {},
        "operations": {},
        "timing": dict.fromkeys(row["timing"]),
        "share": dict.fromkeys(row["share"]),
        "quality": entries,
        "suspect": False,
    }


def unmeasured(rows: Sequence[Row], first: bool) -> dict[str, list[str]]:
    """Metrics of the first table, or of the others, that no row has, by their reasons; a baseline's
    own reason counts only alone."""
    metrics_of: dict[str, list[str]] = {}
    measured = [row for row in rows if row["status"] == SHOWN]
    for metric in measured[0]["quality"] if measured else ():
        entries = [row["quality"][metric] for row in measured]
        if (entries[0]["table"] == "") == first and not any(entry["value"] for entry in entries):
            own = [
                e["reason"] for row, e in zip(measured, entries, strict=True) if not row["baseline"]
            ]
            for reason in dict.fromkeys(own or [entry["reason"] for entry in entries]):
                metrics_of.setdefault(reason, []).append(metric)
    return metrics_of


def absent(rows: Sequence[Row], first: bool) -> list[str]:
    """A sentence for each reason for which metrics of the first table, or of the others, are in no
    row; of random weights one for all of them, with the first table."""
    reasons = unmeasured(rows, first)
    if RANDOM in unmeasured(rows, first=True):
        return [f"no quality: {RANDOM}"] if first else []
    return [f"no {', '.join(names)}: {reason}" for reason, names in reasons.items()]


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
