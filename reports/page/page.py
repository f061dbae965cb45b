"""One page: tables, figures and grids of every section, all in one file. Works without network, and
says the same without its script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import quote

from ditbench.records.files import write_text
from ditbench.records.record import SHOWN
from ditbench.reports.page.images import show_image
from ditbench.reports.page.pairs import PAGE
from ditbench.reports.page.tables import fold_sheet, list_of, table_of
from ditbench.reports.page.viewer import draw_viewer
from ditbench.reports.sections.findings import findings
from ditbench.reports.sections.format import count
from ditbench.reports.sections.parallel import abreast
from ditbench.reports.sections.reproduce import command_of
from ditbench.reports.sections.rows import (
    ReportRow,
    absent,
    labelled,
    without_difference,
)
from ditbench.reports.sections.section import Section, file_name, hardware
from ditbench.reports.tables import columns, metric_columns
from ditbench.reports.tables.columns import TableCell
from ditbench.reports.tables.imported import imported_sheet
from ditbench.reports.tables.printed import printed_pairs_sheet, printed_sheet
from ditbench.reports.tables.speed_quality import CONVENTION, FIDELITY, MOTION, RULES
from ditbench.reports.tables.stacking import stacking_sheet
from ditbench.reports.tables.surface import surface_sheet
from ditbench.reports.tables.training_cost import training_sheet


def write_page(
    sections: Sequence[Section], images: Mapping[str, Mapping[str, Sequence[Path]]], out: Path
) -> Path:
    """Write `index.html` into `out`; `images` gives the image files by section and model. Returns
    the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    templates = files("ditbench.reports.page")
    names = [section.name for section in sections]
    several = len(sections) > 1
    body = [_section(section, images[section.name], out, several) for section in sections]
    links = [
        f'<a href="#{_anchor(section, model)}">{escape(f"{section.name}: {model}" if several else model)}</a>'
        for section in sections
        for model in section.models
    ]
    page = Template((templates / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"ditbench: {', '.join(names)}"),
        css=(templates / "page.css").read_text(encoding="utf-8"),
        script=(templates / "page.js").read_text(encoding="utf-8"),
        nav="\n".join(links),
        body="\n".join(body),
        conventions="\n".join(f"<li>{escape(sentence)}</li>" for sentence in _conventions()),
    )
    path = out / "index.html"
    write_text(path, page)
    return path


def _conventions() -> list[str]:
    return [
        *(sentence.strip().rstrip(".") + "." for sentence in CONVENTION.split(". ")),
        FIDELITY,
        *RULES,
        "A change is this stack minus none on the same requests and noise.",
        "The detectable change is the smallest that four in five such runs would find.",
        "A Fréchet distance is biased in n: compare it at equal n only. Its own value carries no "
        "interval; its change does.",
        "A cell that did not run, or a method that changed nothing (inert), has its reason and no "
        "number.",
    ]


def _section(
    section: Section, images: Mapping[str, Sequence[Path]], out: Path, several: bool
) -> str:
    parts = [f"<h2>{escape(section.name)}</h2>"] if several else []
    if several:
        parts.append(
            '<p class="quiet">A run of its own: its numbers are not compared with those of the other runs here.</p>'
        )
    if section.remarks:
        parts.append(list_of(section.remarks))
    if section.left_out:
        parts.append("<h3>Left out</h3>" + list_of(section.left_out))
    parts += abreast(
        [
            partial(_model, section.only(model), model, images.get(model, []), out)
            for model in section.models
        ]
    )
    parts.append("<h2>How it was run</h2>")
    if section.command:
        parts.append(
            "<p>The command, which also takes up an unfinished run where it "
            f"stopped:</p><pre>{escape(section.command)}</pre>"
        )
    for document, rows in _environments(section).items():
        environment = json.loads(document)
        words = [
            ", ".join(dict.fromkeys(row["model"] for row in rows)),
            count(len(rows), "cell"),
            hardware(environment),
        ]
        if environment.get("revision"):
            words.append(f"revision {environment['revision']}")
        parts.append(
            "<details><summary>Environment of "
            f"{escape('; '.join(words))}</summary><pre>{escape(document)}</pre></details>"
        )
    at = f"{section.name}/tables" if several else "tables"
    tables = [
        f'<a href="{quote(f"{at}/{name}.{kind}")}">{name}.{kind}</a>'
        for name in TABLES
        for kind in ("csv", "md", "tex")
        if (out / at / f"{name}.{kind}").is_file()
    ]
    parts.append(f"<p>Tables at full precision: {', '.join(tables)}.</p>")
    if section.rows:
        pairs = [f'<a href="{quote(f"{at}/pairs.{k}")}">pairs.{k}</a>' for k in ("csv", "json")]
        parts.append(
            f'<p>Which methods can be combined at all, and which pairs were run: <a href="{PAGE}">{PAGE}</a>, '
            f"{', '.join(pairs)}.</p>"
        )
    return "\n".join(parts)


TABLES = (
    "speed",
    "quality",
    "stacking",
    "surface",
    "printed",
    "printed_pairs",
    "training",
    "video",
    "imported",
)


def _environments(section: Section) -> dict[str, list[ReportRow]]:
    """Each distinct environment once, with the rows measured in it."""
    rows_of: dict[str, list[ReportRow]] = {}
    for row in section.rows:
        for environment in filter(None, section.environments(row)):
            rows_of.setdefault(json.dumps(environment, indent=1, sort_keys=True), []).append(row)
    return rows_of


def _model(section: Section, model: str, images: Sequence[Path], out: Path) -> str:
    rows = section.models[model]
    notes = findings(section, model) + [
        f"{', '.join(stacks)}: {note}" for note, stacks in _notes(rows).items()
    ]
    notes += absent(rows, first=True) + without_difference(rows)
    nowhere = absent(rows, first=False)
    parts = [
        f'<section class="model" id="{_anchor(section, model)}"><h2>{escape(model)}</h2>',
        f'<p class="quiet">{escape(section.caption(model))}</p>',
        table_of(rows, _glance, f"{model}: speed and quality", section.name),
        list_of(notes) if notes else "",
    ]
    for path in images:
        if path.stem.endswith("-samples"):
            parts.append(draw_viewer(section, model))
        if path.suffix == ".png":
            parts.append(show_image(path, model, out))
    parts += [
        "<details><summary>All speed-ups, stages and memory</summary>"
        + table_of(rows, partial(columns.cells, "page"), f"{model}: speed") + "</details>",
        "<details><summary>Quality in parts, smallest detectable changes, record keys</summary>"
        + table_of(rows, metric_columns.details, f"{model}: quality") + "</details>",
    ]  # fmt: skip
    if any(
        entry["value"]
        for row in rows
        for entry in row["quality"].values()
        if entry["table"] == "video"
    ):
        parts.append(
            f"<details><summary>Videos</summary><p>{escape(MOTION)}</p>"
            + table_of(rows, partial(metric_columns.glance, table="video"), f"{model}: videos")
            + "</details>"
        )
    parts += [
        fold_sheet(make(section), model)
        for make in (
            stacking_sheet,
            surface_sheet,
            printed_sheet,
            printed_pairs_sheet,
            training_sheet,
            imported_sheet,
        )
    ]
    if nowhere:
        parts.append(
            f"<details><summary>Not measured, and why</summary>{list_of(nowhere)}</details>"
        )
    rows_and_commands = [
        (labelled(row), command_of(section.records[row["key"]], section.home(row).spec))
        for row in rows
    ]
    commands = "".join(
        f'<li>{escape(of)}: <code class="command">{escape(command)}</code></li>'
        for of, command in rows_and_commands
    )
    parts.append(
        f'<details><summary>The command of every row</summary><ul class="notes">{commands}</ul></details></section>'
    )
    return "\n".join(part for part in parts if part)


def _notes(rows: Sequence[ReportRow]) -> dict[str, list[str]]:
    """Notes that the table does not show itself, each once, with the stacks it is about."""
    stacks_of: dict[str, list[str]] = {}
    for row in rows:
        for note in row["notes"] if row["status"] == SHOWN else ():
            stacks_of.setdefault(note, []).append(row["stack"])
    return stacks_of


def _glance(row: ReportRow) -> dict[str, TableCell]:
    """The columns for a first look."""
    return columns.cells("glance", row) | metric_columns.glance(row, "")


def _anchor(section: Section, model: str) -> str:
    return file_name(f"{section.name}--{model}")
