"""The tables of a published run derived again from its records, and compared with those it came
with: the check of results that somebody sends. No torch."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from ditbench.records.record import is_published, read_spec
from ditbench.reports.publishing.documents import rewritten
from ditbench.reports.publishing.private import private_strings
from ditbench.reports.sections.rows import ReportRow
from ditbench.reports.sections.section import Section, read_sections
from ditbench.reports.tables.speed_quality import write_tables

TABLES = "tables"
"""Folder of a shared run with its tables at full precision."""


def write_derived(folder: Path) -> list[Path]:
    """Write the tables of a published run into its folder, in place of those that are there; returns
    the files."""
    for path in (folder / TABLES).glob("*"):
        path.unlink()
    (section,) = read_sections([folder])
    return write_tables(section, folder / TABLES)


def differences(folder: Path) -> list[str]:
    """A sentence for everything in a published run that does not follow from its records, or must
    not be in it; none where all does. ValueError when it is no published run.

    Looked at are its files against the hashes in spec.json, the files in tables/, the generated
    tables of its README, and what `private_strings` looks for.
    """
    read_spec(folder)
    if not is_published(folder):
        raise ValueError(f"{folder} is no published run; `publish` makes one of a run folder")
    (section,) = read_sections([folder])
    if section.damaged:
        return list(section.damaged)
    wrong = [*private_strings(folder), *_tables(folder)]
    readme = folder / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8")
        try:
            own = {name: folder} if (name := _stated_name(folder)) else {}
            made = rewritten(text, folder.resolve().parent, own)
        except (KeyError, TypeError, ValueError) as error:
            wrong.append(f"README.md: {error}")
        else:
            if made != text:
                wrong.append("README.md has a table that does not follow from the records")
    return wrong


def _tables(folder: Path) -> list[str]:
    stated = {path.name: path.read_bytes() for path in sorted((folder / TABLES).glob("*"))}
    if not stated:
        return []
    (section,) = read_sections([folder])
    section = _called(section, _stated_name(folder) or section.name)
    with TemporaryDirectory(prefix="ditbench-") as made:
        derived = {path.name: path.read_bytes() for path in write_tables(section, Path(made))}
    return [
        f"{TABLES}/{name} "
        + (
            "is missing"
            if name not in stated
            else "is none of the tables that are made of records"
            if name not in derived
            else f"does not follow from the records ({_line(stated[name], derived[name])})"
        )
        for name in sorted({*stated, *derived})
        if stated.get(name) != derived.get(name)
    ]


def _stated_name(folder: Path) -> str:
    """What the tables call the run: the folder it was published from, whatever its name is now; ""
    where they do not say."""
    try:
        text = (folder / TABLES / "speed.csv").read_text(encoding="utf-8")
        return next(csv.DictReader(io.StringIO(text)))["run"] or ""
    except (OSError, ValueError, KeyError, StopIteration, csv.Error):
        return ""


def _called(section: Section, name: str) -> Section:
    """A run under another name."""
    rows = [cast(ReportRow, {**row, "run": name}) for row in section.rows]
    stacking = [{**row, "run": name} if "run" in row else row for row in section.stacking]
    return replace(section, name=name, rows=rows, stacking=stacking)


def _line(stated: bytes, derived: bytes) -> str:
    """The first line that differs."""
    pairs = zip([*stated.splitlines(), b""], [*derived.splitlines(), b""], strict=False)
    number = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), 1)
    return f"line {number}"
