"""Commands and flags: reads them, calls the rest, prints. No logic, and no torch until a command
needs it."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ditbench.cli import preparing, queries, sharing
from ditbench.cli.blocks import blocks
from ditbench.cli.ending import run, stopped_by_signals, tell
from ditbench.cli.estimating import estimate
from ditbench.cli.parser import GATE, OK, SOME_FAILED, STOPPED, parsers
from ditbench.cli.planning import begun_cells, check_runnable, spec_of, tell_plan, unjudged
from ditbench.cli.speed import speed
from ditbench.cli.usage import check_command, check_given, check_left_over, usage_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _command(words), words)


def _command(words: list[str]) -> int:
    about = bool(words) and words[0] in ("-h", "--help", "--version")
    name = words[0] if words and words[0] in COMMANDS else "run"
    parser, by_name = parsers(COMMANDS, "" if about else name)
    check_command(words, COMMANDS, usage_line(parser))
    if not about and (not words or words[0] not in COMMANDS):
        words = ["run", *words]
    check_given(words)
    args, left_over = parser.parse_known_args(words)
    check_left_over(left_over, by_name[name])
    with stopped_by_signals():
        return int(args.do(args))


def _forecast(cells: list[Any], args: argparse.Namespace) -> Any:
    """The plan with what it needs of a GPU."""
    from ditbench.cli.forecasting import forecast, requested_batch

    return forecast(cells, args.gpu, requested_batch(args))


def _plan(args: argparse.Namespace) -> int:
    return tell_plan(
        _forecast(begun_cells(spec_of(args)), args), args.json, elsewhere=bool(args.gpu)
    )


def _run(args: argparse.Namespace) -> int:
    if args.dry_run:
        return _plan(args)
    cells = begun_cells(spec_of(args))
    check_runnable(cells)
    planned = _forecast(cells, args)
    cells = planned.begin(_complain)
    _complain(unjudged(cells))
    folder = _carry_out(cells, planned.peak_bytes)
    code = _tell_report([folder], None, args.json, {cell.key for cell in cells})
    return _stopped(cells, folder) or code


def _stopped(cells: list[Any], folder: Path) -> int:
    """`STOPPED` where --stop-after left cells to do, said on stderr; else OK."""
    from ditbench.records.run_folder import RunFolder

    left = [cell for cell in cells if not RunFolder(folder).record(cell.key).exists()]
    if not left:
        return OK
    seconds = cells[0].spec.stop_after
    _complain(
        [
            f"stopped after {seconds} s with {len(left)} of {len(cells)} cells to do; the same command goes on"
        ]
    )
    return STOPPED


def _carry_out(cells: list[Any], memory: Mapping[str, float]) -> Path:
    """Run and score what is missing; the run folder. `memory`: peak bytes of cells by key."""
    from ditbench.metrics.scoring import score_run
    from ditbench.runner.execute import execute
    from ditbench.runner.progress import progress

    _complain([f"{cell.label}: {cell.note}" for cell in cells if cell.note])
    command = "python run_bench.py " + shlex.join(sys.argv[1:])
    with progress() as tell:
        folder = execute(cells, command.strip(), tell, memory=memory)
    spec = cells[0].spec
    _add_references(folder, spec.references)
    with progress() as tell:
        scoring = score_run(
            folder, progress=_scoring(tell), workers=spec.workers, plugins=spec.plugins
        )
    _complain(scoring.damaged)
    return folder


def _scoring(tell: Any) -> Any:
    """`tell` for `score_run`, whose cells are told by their keys."""
    from ditbench.runner.progress import plain

    step = plain(tell)
    return lambda key, done, of: step(f"scoring {key}" if key else "", done, of)


def _stack(args: argparse.Namespace) -> int:
    from ditbench.analysis.interaction import (
        factorial,
        interactions,
        replays,
        rules,
        shorter_students,
    )
    from ditbench.analysis.interaction_table import LEGEND, describe, document
    from ditbench.analysis.surfaces import grid
    from ditbench.method.plugins import load_plugins
    from ditbench.method.stack import Stack
    from ditbench.records.files import json_text
    from ditbench.records.record import read_run
    from ditbench.records.scores import read_scores

    spec = spec_of(args)
    load_plugins(spec.plugins)
    parts = [Stack.parse(text) for text in args.parts]
    besides = set(shorter_students(parts)) | set(replays(parts))
    planned_stacks = grid(parts, args.surface) if args.surface else factorial(parts)
    methods = tuple(dict.fromkeys([*planned_stacks, *sorted(besides)]))
    cells = begun_cells(replace(spec, methods=methods))
    ready = [cell for cell in cells if not (cell.refusal and cell.requested in besides)]
    _complain(
        [
            f"{cell.label} is not run as a control: {cell.refusal}"
            for cell in cells
            if cell not in ready
        ]
    )
    if not args.dry_run:
        check_runnable(ready)
    planned = _forecast(ready, args)
    if args.dry_run:
        return tell_plan(planned, args.json, elsewhere=bool(args.gpu))
    ready = planned.begin(_complain)
    folder = _carry_out(ready, planned.peak_bytes)
    code = _tell_report([folder], None, False, None)
    code = _stopped(ready, folder) or code
    if args.surface:  # what it is for are the table and the figure of the report
        return code
    ran = {(cell.model.name, cell.requested): cell.stack for cell in cells}
    records = read_run(folder).records
    parts_of = {
        name: [ran.get((name, str(part)), part) for part in parts]
        for name in dict.fromkeys(record["model"] for record in records)
    }
    rows = interactions(records, read_scores(folder, records), parts_of)
    _show(describe(rows), False, " ".join([LEGEND, *rules(rows)]))
    if args.json:
        print(json_text(document(rows)))
    return code


def _score(args: argparse.Namespace) -> int:
    from ditbench.method.plugins import load_plugins
    from ditbench.metrics.scoring import score_run
    from ditbench.runner.progress import progress

    load_plugins(args.plugin)
    metrics = args.metrics.split(",") if args.metrics is not None else None
    _add_references(args.run, args.reference)
    with progress() as tell:
        scoring = score_run(
            args.run, metrics, progress=_scoring(tell), workers=args.workers, plugins=args.plugin
        )
    _complain(scoring.damaged)
    return max(
        SOME_FAILED if scoring.damaged else OK, _tell_report([args.run], None, args.json, None)
    )


def _add_references(folder: Path, references: Sequence[str]) -> None:
    from ditbench.extractors.references import tell

    tell(folder, references)


def _reference(args: argparse.Namespace) -> int:
    from ditbench.extractors.build_reference import build
    from ditbench.runner.progress import counting, progress

    with progress() as tell:
        made = build(
            args.source, args.extractor, args.out, progress=counting(tell, args.source.name)
        )
    row = {
        "file": str(args.out),
        **{name: made[name] for name in ("n", "extractor", "key", "preprocessing")},
    }
    _show([row], args.json, f"what it was made of: {args.out.with_suffix('.json')}")
    return OK


def _complain(sentences: list[str]) -> None:
    for sentence in sentences:
        tell(sentence)


def _report(args: argparse.Namespace) -> int:
    from ditbench.method.plugins import load_plugins

    load_plugins(args.plugin)
    if args.only == "pairs":
        return queries.pairs(args)
    return _tell_report(args.runs, args.out, args.json, None)


def _tell_report(
    folders: list[Path], out: Path | None, as_json: bool, keys: set[str] | None
) -> int:
    from ditbench.records.files import json_text
    from ditbench.records.record import read_run
    from ditbench.reports import build, print_report, report_json

    report = build(folders, out)
    print_report(report)
    if as_json:
        print(json_text(report_json(report)))
    runs = [read_run(folder) for folder in folders]
    records = [r for run in runs for r in run.records if keys is None or r["key"] in keys]
    wrong = [
        r
        for r in records
        if r["status"] in ("failed", "oom", "inert")
        or (r["stack"], r["status"]) == ("none", "refused")
    ]
    damaged = any(section.damaged for section in report.sections)
    return SOME_FAILED if wrong or damaged else OK


def _list(args: argparse.Namespace) -> int:
    from ditbench.cli import listing

    rows = listing.rows(args.what, args.verbose, args.plugin)
    _show(rows, args.json, "")
    return OK


def _doctor(args: argparse.Namespace) -> int:
    from ditbench.cli.doctor import examine

    rows = examine()
    _show(rows, args.json, "")
    return GATE if any(row["state"] == "missing" for row in rows) else OK


def _show(
    rows: list[dict[str, Any]], as_json: bool, caption: str, hide: Sequence[str] = ()
) -> None:
    from ditbench.reports.terminal.table import show_rows

    show_rows(rows, as_json, caption, hide)


COMMANDS = {
    "run": _run, "plan": _plan, "count": preparing.count, "estimate": estimate, "blocks": blocks,
    "speed": speed, "prepare": preparing.prepare, "convert": preparing.convert,
    "match": preparing.match, "stack": _stack, "score": _score, "report": _report,
    "recommend": queries.recommend, "compare": queries.compare, "reproduce": queries.reproduce,
    "publish": sharing.publish, "pull": sharing.pull, "merge": sharing.merge,
    "leaderboard": sharing.leaderboard, "verify": sharing.verify, "reference": _reference,
    "list": _list, "check": preparing.check, "doctor": _doctor,
}  # fmt: skip
