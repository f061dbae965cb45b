"""Commands that answer from the records of finished runs: `recommend`, `compare`, `reproduce`. They read flags, call and print."""

from __future__ import annotations

import argparse
import json

from ditbench.flags import GATE, OK


def recommend(args: argparse.Namespace) -> int:
    """The stack to use under limits; GATE when none qualifies on any model."""
    from ditbench.reports.answers import Limits, recommend
    from ditbench.reports.sections import read_sections
    from ditbench.reports.terminal import show_rows

    names = ("max_memory_gb", "max_seconds", "min_alignment", "max_frechet")
    (section,) = read_sections([args.run])
    rows, sentences = recommend(section, Limits(**{name: getattr(args, name) for name in names}))
    show_rows(rows, args.json, "\n".join(sentences))
    return OK if any(row["qualifies"] == "yes" for row in rows) else GATE


def compare(args: argparse.Namespace) -> int:
    """What moved between two runs; GATE on a regression."""
    from ditbench.reports.comparing import Gates, compare
    from ditbench.reports.sections import read_sections
    from ditbench.reports.terminal import show_rows

    gates = Gates(
        alignment=args.max_alignment_loss, slowdown=args.max_slowdown, memory=args.max_memory_growth,
        flops=args.max_flops_growth,
    )  # fmt: skip
    rows = compare(*read_sections([args.before, args.after]), gates)
    worse = sum(row["verdict"] == "regression" for row in rows)
    moved = [row for row in rows if row["verdict"] not in ("identical", "not told apart")]
    still = f"{len(rows) - len(moved)} of {len(rows)} quantities did not move beyond noise"
    show_rows(moved, False, f"regressions past the gates: {worse}; {still}")
    if args.json:
        print(json.dumps(rows))
    return GATE if worse else OK


def reproduce(args: argparse.Namespace) -> int:
    """The command that makes a row again; GATE when this machine is not as the record's."""
    from ditbench.environment import describe
    from ditbench.reports.answers import command_of, elsewhere, find_row
    from ditbench.reports.sections import read_sections
    from ditbench.reports.terminal import show_rows

    (section,) = read_sections([args.run])
    record = find_row(section, args.row)
    command = command_of(record, section.spec)
    rows = elsewhere(record, section.spec, describe(record["run"]["device"]))
    show_rows(
        rows, False, "not as it was when the record was made" if rows else "all as it was when the record was made"
    )
    print(json.dumps({"command": command, "differs": rows}) if args.json else command)
    return GATE if rows else OK
