"""Commands that send, fetch, join and check finished runs: `publish`, `pull`, `merge`,
`leaderboard`, `verify`. They read flags, call and print."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ditbench.cli.parser import GATE, OK


def publish(args: argparse.Namespace) -> int:
    """Send a run without what tells of the machine."""
    from ditbench.method.plugins import load_plugins
    from ditbench.reports.publishing.sharing import share
    from ditbench.reports.sections.format import number

    load_plugins(args.plugin)
    size = share(args.run, args.to)
    return _say(args, {"run": str(args.run), "to": args.to, "bytes": size}, f"published to {args.to}: {number(size / 1e6)} MB")  # fmt: skip


def pull(args: argparse.Namespace) -> int:
    """Fetch a published run."""
    from ditbench.reports.publishing.sharing import pull

    folder = pull(args.source, args.out)
    return _say(args, {"run": str(folder)}, f"{folder}: `report`, `compare`, `recommend` and `verify` read it")  # fmt: skip


def merge(args: argparse.Namespace) -> int:
    """Put cells of several runs of one protocol into one published run."""
    from ditbench.method.plugins import load_plugins
    from ditbench.reports.publishing.merging import merge_runs

    load_plugins(args.plugin)
    sentences = merge_runs(args.runs, args.out)
    words = "\n".join([*sentences, f"merged into {args.out}"])
    return _say(args, {"run": str(args.out), "in_several": sentences}, words)


def leaderboard(args: argparse.Namespace) -> int:
    """Write the leaderboard of some runs."""
    from ditbench.method.plugins import load_plugins
    from ditbench.reports.publishing.leaderboard import write_leaderboard

    load_plugins(args.plugin)
    paths = [str(path) for path in write_leaderboard(args.runs, args.out)]
    return _say(args, {"files": paths}, "\n".join(paths))


def verify(args: argparse.Namespace) -> int:
    """Derive the tables of published runs again; GATE where anything differs."""
    from ditbench.method.plugins import load_plugins
    from ditbench.reports.publishing.verifying import differences

    load_plugins(args.plugin)
    wrong = {str(run): differences(run) for run in args.runs}
    lines = [f"{run}: {sentence}" for run, of_run in wrong.items() for sentence in of_run]
    lines += [f"{run}: every table follows from the records" for run, of in wrong.items() if not of]
    _say(args, wrong, "\n".join(lines))
    return GATE if any(wrong.values()) else OK


def _say(args: argparse.Namespace, document: Any, words: str) -> int:
    print(words)
    if args.json:
        print(json.dumps(document))
    return OK
