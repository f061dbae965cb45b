"""Commands that answer from the records of finished runs: `recommend`, `compare`, `reproduce`. They
read flags, call and print."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.cli.ending import tell
from ditbench.cli.parser import GATE, OK, SOME_FAILED

if TYPE_CHECKING:
    from ditbench.reports.sections.section import Section


def recommend(args: argparse.Namespace) -> int:
    """The stack to use under limits; GATE when none is known to qualify on any model."""
    from ditbench.method.plugins import load_plugins
    from ditbench.reports.answers.recommend import Limits, recommend
    from ditbench.reports.terminal.table import show_rows

    load_plugins(args.plugin)
    names = ("max_memory_gb", "max_seconds", "min_speedup", "min_alignment", "max_frechet")
    (section,) = _sections([args.run])
    limits = Limits(**{name: getattr(args, name) for name in names})
    for name in names:
        value = getattr(args, name)
        above = name.startswith(("max_mem", "max_sec", "min_sp"))  # the others may be below zero
        if value is not None and not (math.isfinite(value) and (value > 0 or not above)):
            wanted = "a number above 0" if above else "a number"
            raise ValueError(f"--{name.replace('_', '-')}: {value:g} is not {wanted}")
    models = [name for part in (args.models or "").split(",") if (name := part.strip())]
    rows, sentences = recommend(section, limits, models)
    if not sentences:
        sentences = [f"{args.run} has no finished cell that could be recommended"]
    show_rows(rows, args.json, "\n".join(sentences))
    return OK if any(row["qualifies"] == "yes" for row in rows) else GATE


UNSEEN = ("speedup_call", "peak_bytes", "flops", "status", "row")
"""Quantities of `compare` that say nothing of quality."""


def compare(args: argparse.Namespace) -> int:
    """What moved between two runs; GATE on a regression."""
    from ditbench.method.plugins import load_plugins
    from ditbench.records.files import json_text
    from ditbench.reports.answers.compare import Gates, compare
    from ditbench.reports.terminal.table import show_rows

    load_plugins(args.plugin)
    gates = Gates(
        alignment=args.max_alignment_loss, slowdown=args.max_slowdown,
        memory=args.max_memory_growth,
        flops=args.max_flops_growth,
    )  # fmt: skip
    before, after = _sections([args.before, args.after])
    rows = compare(before, after, gates)
    worse = sum(row["verdict"] == "regression" for row in rows)
    moved = [row for row in rows if row["verdict"] not in ("identical", "inconclusive")]
    alone = sum(row["verdict"] in ("only before", "only after") for row in rows)
    unseen = sum(row["verdict"].startswith("not compared") for row in rows)
    still = f"{len(rows) - len(moved)} of {len(rows) - alone - unseen} quantities did not move beyond noise"
    still += f"; rows that only one run has: {alone}" if alone else ""
    left_out = [row["quantity"] for row in rows if row["verdict"].startswith("not compared")]
    if left_out:
        still += f"; not compared: {len(left_out)} ({', '.join(dict.fromkeys(left_out))})"
    # a gate that never saw a picture must not be green
    blind = "quality" in left_out and all(
        row["quantity"] in UNSEEN for row in rows if row["before"]
    )
    if blind:
        still += "; quality was compared nowhere, which is no success"
    show_rows(moved, False, f"regressions past the gates: {worse}; {still}")
    if args.json:
        print(json_text(rows))
    return GATE if worse or blind else OK


def pairs(args: argparse.Namespace) -> int:
    """Every pair of methods of the runs: run, refused or not run; SOME_FAILED for damaged files."""
    from ditbench.records.files import json_text
    from ditbench.reports import build_pairs, pairs_json, print_pairs

    made = build_pairs(args.runs, args.out)
    print_pairs(made)
    if args.json:
        print(json_text(pairs_json(made)))
    return SOME_FAILED if any(section.damaged for section, _ in made.of) else OK


def reproduce(args: argparse.Namespace) -> int:
    """The command that makes a row again; GATE when this machine is not as the record's."""
    from ditbench.method.plugins import load_plugins
    from ditbench.records.environment import describe
    from ditbench.records.files import json_text
    from ditbench.reports.sections.reproduce import asked_of, command_of, elsewhere, find_row
    from ditbench.reports.terminal.table import show_rows
    from ditbench.runner.plan import missing_device

    load_plugins(args.plugin)
    (section,) = _sections([args.run])
    record = find_row(section, args.row)
    # files that were elsewhere when the run was made, or that a published run has the names of
    spec = section.spec | ({"plugins": args.plugin} if args.plugin else {})
    command = command_of(record, spec)
    device = str(record["run"]["device"])
    here = describe("cpu" if missing_device(device) else device)
    here |= _set_by_command(asked_of(record, spec), device)
    if missing_device(device):  # which its own row says
        here["gpu"] = record["environment"].get("gpu")
    rows = elsewhere(record, spec, here)
    rows += _edited(record, asked_of(record, spec))
    show_rows(
        rows,
        False,
        "not as it was when the record was made"
        if rows
        else "all as it was when the record was made",
    )
    print(json_text({"command": command, "differs": rows}) if args.json else command)
    return GATE if rows else OK


def _set_by_command(requested: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Fields of the environment that a run has of its settings and of the GPU's: threads, the
    processes that cells share, and what the GPU is set to."""
    from dataclasses import replace

    from ditbench.records.allocator import allocator, keep_freed_memory
    from ditbench.records.gpu_state import read
    from ditbench.runner.plan import missing_device
    from ditbench.runner.spec import Spec

    fields: dict[str, Any] = {}
    if requested.get("threads"):
        fields["threads"] = requested["threads"]
    spec = replace(Spec(), device=device, process=requested.get("process", "auto"))
    if spec.process_of_device == "round":
        fields["process"] = "round"
    if not device.startswith("cuda") and keep_freed_memory():
        fields["allocator"] = allocator()
    if device.startswith("cuda") and not missing_device(device):
        import torch

        uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
        fields["gpu"] = read(f"GPU-{uuid.removeprefix('GPU-')}" if uuid else "")[0]
    return fields


def _sections(folders: Sequence[Path]) -> list[Section]:
    """The runs as reports see them; their damaged files are named on stderr."""
    from ditbench.reports.sections.section import read_sections

    sections: list[Section] = read_sections(folders)
    for section in sections:
        for sentence in section.damaged:
            tell(f"{section.name}: {sentence}")
    return sections


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
