"""Rewrite the generated tables of all READMEs in a checkout from `reports/published/`:
`python -m ditbench.reports.publishing [CHECKOUT]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ditbench import ROOT
from ditbench.reports.publishing.documents import rewrite


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the tables and name the files that changed; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ditbench.reports.publishing", description=__doc__
    )
    parser.add_argument(
        "checkout", type=Path, nargs="?", default=ROOT, help="default: the one ditbench is run from"
    )
    checkout = parser.parse_args(arguments).checkout
    try:
        changed = rewrite(checkout)
    except (FileNotFoundError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for path in changed:
        sys.stdout.write(f"rewrote {path.relative_to(checkout)}\n")
    sys.stdout.write("" if changed else "all tables are up to date\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
