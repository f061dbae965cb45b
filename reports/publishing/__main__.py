"""Rewrite the generated tables of all READMEs in a checkout from `reports/published/`:
`python -m ditbench.reports.publishing`. With `--add RUN` keep a finished run there first."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ditbench import ROOT
from ditbench.method.plugins import load_plugin
from ditbench.reports.publishing.documents import PUBLISHED, rewrite, section_of
from ditbench.reports.sections.format import number
from ditbench.reports.sections.section import file_name


def flags() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m ditbench.reports.publishing", description=__doc__
    )
    parser.add_argument(
        "checkout", type=Path, nargs="?", default=ROOT, help="default: the one ditbench is run from"
    )
    parser.add_argument(
        "--add", type=Path, metavar="RUN", help="a run folder to keep in reports/published/"
    )
    parser.add_argument(
        "--as", dest="name", metavar="NAME", default="", help="default: the name of the run folder"
    )
    parser.add_argument(
        "--figure",
        action="store_true",
        help="also draw plots/overview.png of the run that is added",
    )
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="a file with metrics of your own that the run was scored by; may be given again",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Add a run if one is named, rewrite the tables, and name the files that changed; returns the
    exit code."""
    args = flags().parse_args(arguments)
    checkout = args.checkout
    try:
        for plugin in args.plugin:
            load_plugin(plugin)
        if args.add:
            name = args.name or args.add.resolve().name
            if file_name(name) != name:  # markers of tables name it as a word
                raise ValueError(
                    f"{name!r} is no name for a published run: letters, digits, dots and dashes"
                )
            _add(args.add, checkout / PUBLISHED / name, args.figure)
        changed = rewrite(checkout)
    except (FileNotFoundError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for path in changed:
        sys.stdout.write(f"rewrote {path.relative_to(checkout)}\n")
    sys.stdout.write("" if changed else "all tables are up to date\n")
    return 0


def _add(run: Path, folder: Path, figure: bool) -> None:
    """Keep a run, and say how large it is."""
    from ditbench.reports.publishing.records import publish
    from ditbench.reports.publishing.run import run_figure

    files = publish(run, folder)
    if figure:
        picture, drawing = run_figure(section_of(folder), folder / "plots", "overview")
        drawing.unlink()  # READMEs show the PNG
        files.append(picture)
    size = sum(path.stat().st_size for path in files)
    sys.stdout.write(f"{folder}: {len(files)} files, {number(size / 1e6)} MB\n")


if __name__ == "__main__":
    raise SystemExit(main())
