"""Commands and flags: reads them, calls the rest, prints. No logic, and no torch until a command needs it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OK, GATE, USAGE, SOME_FAILED = 0, 1, 2, 3
"""Exit codes: all well, a gate failed, wrong usage, some cells failed or were inert."""
COMMANDS = ("run", "plan", "count", "prepare", "match", "score", "report", "list", "check", "doctor")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    told = list(sys.argv[1:] if arguments is None else arguments)
    if not told or (told[0] not in COMMANDS and told[0] not in ("-h", "--help", "--version")):
        told.insert(0, "run")
    try:
        args = _parser().parse_args(told)
        return int(args.do(args))
    except BrokenPipeError:
        return OK
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"ditbench: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("ditbench: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from ditbench import __version__

    parser = argparse.ArgumentParser(
        prog="ditbench", description="Measure ways of accelerating diffusion transformers."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, do: Any, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        sub.add_argument(
            "--json", action="store_true", help="end stdout with one JSON document of what the table shows"
        )
        sub.set_defaults(do=do)
        return sub

    run = command("run", _run, "run models under methods, score and report (the default command)")
    _run_flags(run)
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    _run_flags(command("plan", _plan, "print the cells a run would have"))

    count = command("count", _count, "count FLOPs over the real sampler loop, without weights")
    count.add_argument("--models", default="full", help="names or groups, comma separated (default: full)")
    count.add_argument("--methods", default="", help="stacks, comma separated")
    count.add_argument("--convention", default="flops", help="flops, macs, linear-macs, linear-macs-one-pass or toca")
    for flag in ("height", "width", "frames", "steps", "text-tokens"):
        count.add_argument(f"--{flag}", type=int, help="instead of the model's own")
    count.add_argument("--plugin", action="append", default=[], metavar="FILE.py")

    prepare = command("prepare", _prepare, "train or calibrate what a method needs beforehand")
    prepare.add_argument("method", help="a method or stack, knobs included; what is below a method is prepared for")
    prepare.add_argument("--models", default="tiny")
    prepare.add_argument("--weights", default="bundled", help="bundled, hub, or a local folder")
    prepare.add_argument("--out", type=Path, default=Path("artifacts"), help="folder for what is made")
    prepare.add_argument("--plugin", action="append", default=[], metavar="FILE.py")

    match = command("match", _match, "set methods so that they save the same share of FLOPs")
    match.add_argument(
        "--saved", type=float, required=True, metavar="SHARE", help="share of FLOPs to save, between 0 and 1"
    )
    match.add_argument("--methods", required=True, help="stacks, comma separated; the last method's dial is turned")
    match.add_argument("--models", default="tiny")
    match.add_argument("--weights", default="bundled", help="bundled, hub, or a local folder")
    match.add_argument("--plugin", action="append", default=[], metavar="FILE.py")

    score = command("score", _score, "score the samples of a run again")
    score.add_argument("run", type=Path, metavar="RUN")
    score.add_argument("--metrics", default="", help="names, comma separated (default: all)")

    report = command("report", _report, "make tables, figures and the page of runs from their records")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    report.add_argument("--out", type=Path, help="folder for the report (default: RUN/report)")

    listing = command("list", _list, "list models, methods or metrics")
    listing.add_argument("what", choices=("models", "methods", "metrics"))
    listing.add_argument("-v", "--verbose", action="store_true", help="knobs, needs and claims too")
    listing.add_argument("--plugin", action="append", default=[], metavar="FILE.py")

    check = command("check", _check, "put a method through the contract on models")
    check.add_argument("method", help="a method or stack, knobs included")
    check.add_argument("--models", default="tiny")
    check.add_argument("--plugin", action="append", default=[], metavar="FILE.py")

    command("doctor", _doctor, "say what works on this machine and what is missing")
    return parser


def _run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spec", metavar="FILE.toml", help="read the run from a file or a named spec; flags override it"
    )
    parser.add_argument("--models", help="names or groups (tiny, full), comma separated")
    parser.add_argument("--methods", help="stacks, comma separated: fora,fora(interval=2)+int8")
    parser.add_argument("--num-samples", type=int, metavar="N", help="samples a cell; a video counts as four")
    parser.add_argument("--batch-size", type=int, metavar="N", help="samples a pipeline call; a video counts as four")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often every cell is timed")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--device", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")
    parser.add_argument("--weights", help="bundled, hub, random, or a local folder")
    parser.add_argument("--out", metavar="FOLDER", help="run folder; the same folder goes on with a run")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a file with methods of your own"
    )


def _spec(args: argparse.Namespace) -> Any:
    from ditbench.spec import from_table, read_toml
    from ditbench.stack import split_stacks

    table: dict[str, Any] = {}
    for name in ("num_samples", "batch_size", "rounds", "seed", "device", "dtype", "weights", "out"):
        if (value := getattr(args, name)) is not None:
            table[name] = value
    if args.models is not None:
        table["models"] = [part for part in args.models.split(",") if part]
    if args.methods is not None:
        table["methods"] = split_stacks(args.methods) if args.methods else []
    if args.plugin:
        table["plugins"] = args.plugin
    return from_table(table, read_toml(args.spec or "default"))


def _cells(args: argparse.Namespace) -> list[Any]:
    from ditbench.plan import plan
    from ditbench.spec import check_writable

    spec = _spec(args)
    cells = plan(spec)
    check_writable(spec.folder)
    return cells


def _plan(args: argparse.Namespace) -> int:
    from ditbench.plan import describe

    cells = _cells(args)
    _show(describe(cells), args.json, f"{len(cells)} cells, to be kept in {cells[0].spec.folder}", hide=["key"])
    return OK


def _run(args: argparse.Namespace) -> int:
    from ditbench.execute import execute
    from ditbench.progress import plain, progress
    from ditbench.score import score_run

    if args.dry_run:
        return _plan(args)
    cells = _cells(args)
    command = "python run_bench.py " + shlex.join(sys.argv[1:])
    with progress() as tell:
        folder = execute(cells, command.strip(), tell)
    with progress() as tell:
        scoring = score_run(folder, progress=plain(tell))
    _complain(scoring.damaged)
    return _tell_report([folder], None, args.json, {cell.key for cell in cells})


def _score(args: argparse.Namespace) -> int:
    from ditbench.progress import plain, progress
    from ditbench.score import score_run

    metrics = [name for name in args.metrics.split(",") if name] or None
    with progress() as tell:
        scoring = score_run(args.run, metrics, progress=plain(tell))
    _complain(scoring.damaged)
    return max(SOME_FAILED if scoring.damaged else OK, _tell_report([args.run], None, args.json, None))


def _complain(sentences: list[str]) -> None:
    for sentence in sentences:
        print(f"ditbench: {sentence}", file=sys.stderr)


def _report(args: argparse.Namespace) -> int:
    return _tell_report(args.runs, args.out, args.json, None)


def _tell_report(folders: list[Path], out: Path | None, as_json: bool, keys: set[str] | None) -> int:
    from ditbench.record import read_run
    from ditbench.reports import build, print_report, report_json

    report = build(folders, out)
    print_report(report)
    if as_json:
        print(json.dumps(report_json(report)))
    runs = [read_run(folder) for folder in folders]
    records = [r for run in runs for r in run.records if keys is None or r["key"] in keys]
    wrong = [r for r in records if r["status"] in ("failed", "oom", "inert")]
    return SOME_FAILED if wrong or any(run.damaged for run in runs) else OK


def _count(args: argparse.Namespace) -> int:
    from ditbench.conventions import count_in
    from ditbench.models import select
    from ditbench.stack import Stack, split_stacks

    _load(args.plugin)
    models, texts = select(args.models), ["none", *(split_stacks(args.methods) if args.methods else [])]
    stacks = [Stack.parse(text) for text in dict.fromkeys(texts)]
    sizes = {name: getattr(args, name) for name in ("height", "width", "frames", "steps", "text_tokens")}
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: {value} is less than 1")
    rows, lines = count_in(args.convention, models, stacks, **sizes)
    _show(rows, args.json, lines, hide=["size", "text_tokens", "passes", "not_counted", "note", "work"])
    return OK


def _load(plugins: Sequence[str]) -> None:
    from ditbench.method import load_plugin

    for plugin in plugins:
        load_plugin(plugin)


def _prepare(args: argparse.Namespace) -> int:
    from ditbench.models import select
    from ditbench.prepare import prepare
    from ditbench.progress import counting, progress
    from ditbench.stack import Stack

    _load(args.plugin)
    stack, models = Stack.parse(args.method), select(args.models)
    with progress() as tell:
        rows = prepare(
            models, stack, args.weights, lambda need: counting(tell, f"{need.model} {need.method}"), args.out
        )
    _show(rows, args.json, "")
    return OK


def _match(args: argparse.Namespace) -> int:
    from ditbench.match import match
    from ditbench.models import select
    from ditbench.stack import Stack, split_stacks

    _load(args.plugin)
    if not 0 < args.saved < 1:
        raise ValueError(f"--saved: {args.saved} is not between 0 and 1")
    models, stacks = select(args.models), [Stack.parse(text) for text in split_stacks(args.methods)]
    rows = [row for model in models for row in match(model, stacks, args.saved, args.weights)]
    _show(rows, args.json, "saved: share of the un-accelerated model's FLOPs, on four training requests")
    return SOME_FAILED if any(row["note"] for row in rows) else OK


def _list(args: argparse.Namespace) -> int:
    from ditbench import listing

    rows = listing.rows(args.what, args.verbose, args.plugin)
    _show(rows, args.json, "")
    return OK


def _check(args: argparse.Namespace) -> int:
    from ditbench.models import select
    from ditbench.stack import Stack
    from ditbench.testing import check_models

    _load(args.plugin)
    stack, models = Stack.parse(args.method), select(args.models)
    rows = check_models(stack, models)
    _show(rows, args.json, "")
    return GATE if any(row["result"] == "failed" for row in rows) else OK


def _doctor(args: argparse.Namespace) -> int:
    from ditbench.doctor import examine

    rows = examine()
    _show(rows, args.json, "")
    return GATE if any(row["state"] == "missing" for row in rows) else OK


def _show(rows: list[dict[str, Any]], as_json: bool, caption: str, hide: Sequence[str] = ()) -> None:
    """Print rows without the columns to `hide` and those that are empty throughout; JSON has them all."""
    from ditbench.reports.terminal import print_rows

    heads = [
        h for h in dict.fromkeys(h for row in rows for h in row) if h not in hide and any(row.get(h) for row in rows)
    ]
    print_rows([{h: row.get(h) for h in heads} for row in rows], caption)
    if as_json:
        print(json.dumps(rows))
