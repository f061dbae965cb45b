"""Commands that answer from the records of finished runs: `recommend`, `compare`, `reproduce`. They
read flags, call and print."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from ditbench.cli.parser import GATE, OK


def recommend(args: argparse.Namespace) -> int:
    """The stack to use under limits; GATE when none qualifies on any model."""
    from ditbench.reports.answers.recommend import Limits, recommend
    from ditbench.reports.sections.section import read_sections
    from ditbench.reports.terminal.table import show_rows

    names = ("max_memory_gb", "max_seconds", "min_alignment", "max_frechet")
    (section,) = read_sections([args.run])
    rows, sentences = recommend(section, Limits(**{name: getattr(args, name) for name in names}))
    show_rows(rows, args.json, "\n".join(sentences))
    return OK if any(row["qualifies"] == "yes" for row in rows) else GATE


def compare(args: argparse.Namespace) -> int:
    """What moved between two runs; GATE on a regression."""
    from ditbench.reports.answers.compare import Gates, compare
    from ditbench.reports.sections.section import read_sections
    from ditbench.reports.terminal.table import show_rows

    gates = Gates(
        alignment=args.max_alignment_loss, slowdown=args.max_slowdown,
        memory=args.max_memory_growth,
        flops=args.max_flops_growth,
    )  # fmt: skip
    before, after = read_sections([args.before, args.after])
    rows = compare(before, after, gates)
    worse = sum(row["verdict"] == "regression" for row in rows)
    moved = [row for row in rows if row["verdict"] not in ("identical", "inconclusive")]
    alone = sum(row["verdict"] in ("only before", "only after") for row in rows)
    still = f"{len(rows) - len(moved)} of {len(rows) - alone} quantities did not move beyond noise"
    still += f"; rows that only one run has: {alone}" if alone else ""
    show_rows(moved, False, f"regressions past the gates: {worse}; {still}")
    if args.json:
        print(json.dumps(rows))
    return GATE if worse else OK


def reproduce(args: argparse.Namespace) -> int:
    """The command that makes a row again; GATE when this machine is not as the record's."""
    from ditbench.records.environment import describe
    from ditbench.reports.sections.reproduce import asked_of, command_of, elsewhere, find_row
    from ditbench.reports.sections.section import read_sections
    from ditbench.reports.terminal.table import show_rows
    from ditbench.runner.plan import missing_device

    (section,) = read_sections([args.run])
    record = find_row(section, args.row)
    command = command_of(record, section.spec)
    device = str(record["run"]["device"])
    here = describe("cpu" if missing_device(device) else device)
    if section.spec.get("threads"):  # the command sets it
        here["threads"] = section.spec["threads"]
    rows = elsewhere(record, section.spec, here)
    rows += _edited(record, asked_of(record, section.spec))
    show_rows(
        rows,
        False,
        "not as it was when the record was made"
        if rows
        else "all as it was when the record was made",
    )
    print(json.dumps({"command": command, "differs": rows}) if args.json else command)
    return GATE if rows else OK


def _edited(record: Mapping[str, Any], requested: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each file, or artefact, that the record's samples depend on and that is another one
    here by its hash, or why the command would not run here; none for a record that does not say
    what it depends on."""
    from ditbench.method.dependencies import changed
    from ditbench.runner.plan import plan
    from ditbench.runner.spec import Spec, from_table

    if not (before := record.get("depends_on")):
        return []
    try:
        cell = plan(from_table(requested, Spec()))[-1]
    except ValueError as error:
        return [{"field": "command", "record": "", "here": str(error)}]
    if cell.refusal:
        return [
            {
                "field": "command",
                "record": "",
                "here": f"{record['stack']} is refused: {cell.refusal}",
            }
        ]
    now = json.loads(json.dumps(cell.depends))
    return [
        {"field": name, "record": before.get(name), "here": now.get(name)}
        for name in changed(before, now)
    ]
