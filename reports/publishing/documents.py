"""The generated tables of a checkout's READMEs, from `reports/published/`. No torch."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ditbench.reports.publishing.matched import floor_table, matched_table
from ditbench.reports.publishing.run import run_table
from ditbench.reports.publishing.stacking import answer_table, verdict_table

PUBLISHED = Path("reports") / "published"
FOLDERS = ("bench", "datasets", "methods", "reports")
"""Whose READMEs may hold tables, besides the checkout's own."""
TABLES: Mapping[str, Callable[..., str]] = {
    "floor": lambda path: floor_table(_csv(path)),
    "matched": lambda path, budget: matched_table(_csv(path), budget),
    "run": run_table,
    "stacking": lambda path: answer_table(_json(path)),
    "verdicts": lambda path: verdict_table(_json(path)),
}
"""Kind of table -> its Markdown, from a file or folder of `reports/published/` and what else the
marker says."""
START, END = "<!-- table: ", "<!-- end of table -->"
BLOCK = re.compile(rf"^{START}(.+?) -->$\n.*?^{END}$", re.S | re.M)


def documents(checkout: Path) -> list[Path]:
    """The READMEs of a checkout."""
    below = (path for name in FOLDERS for path in sorted((checkout / name).rglob("README.md")))
    return [checkout / "README.md", *below]


def rewritten(text: str, published: Path) -> str:
    """A document with each generated table made again.

    A table stands between the lines `<!-- table: KIND FILE [ARGUMENT] -->` and
    `<!-- end of table -->`. Raises ValueError for a marker without its partner, an unknown kind, or
    a file that is missing.
    """
    starts = sum(line.startswith(START.strip()) for line in text.splitlines())
    ends = text.splitlines().count(END)
    if not starts == ends == len(BLOCK.findall(text)):
        raise ValueError(f"{starts} tables begin and {ends} end")
    return BLOCK.sub(lambda block: _block(block[1], published), text)


def _block(marker: str, published: Path) -> str:
    kind, _, rest = marker.partition(" ")
    file, *arguments = rest.split()
    if kind not in TABLES:
        raise ValueError(f"{kind!r} is no kind of table; there are {', '.join(TABLES)}")
    if not (published / file).exists():
        raise ValueError(f"there is no {published / file}")
    return f"{START}{marker} -->\n\n{TABLES[kind](published / file, *arguments)}\n{END}"


def rewrite(checkout: Path) -> list[Path]:
    """Write the READMEs of a checkout whose tables are out of date; returns which those were.
    ValueError names the document; then nothing is written."""
    changed: dict[Path, str] = {}
    for path in documents(checkout):
        text = path.read_text(encoding="utf-8")
        try:
            made = rewritten(text, checkout / PUBLISHED)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path.relative_to(checkout)}: {error}") from error
        if made != text:
            changed[path] = made
    for path, made in changed.items():
        path.write_text(made, encoding="utf-8")
    return list(changed)


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _json(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows
