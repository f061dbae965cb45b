"""One page: tables, figures and grids of every section, all in one file. Works without network, and
says the same without its script."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import quote

from PIL import Image

from ditbench.records.record import SHOWN
from ditbench.reports.figures.style import DPI
from ditbench.reports.page.viewer import data_uri, draw_viewer
from ditbench.reports.sections.findings import findings
from ditbench.reports.sections.format import DASH, count
from ditbench.reports.sections.parallel import abreast
from ditbench.reports.sections.reproduce import command_of
from ditbench.reports.sections.rows import (
    ReportRow,
    labelled,
    status,
    unmeasured,
    without_difference,
)
from ditbench.reports.sections.section import Section, file_name, hardware
from ditbench.reports.tables import columns, metric_columns
from ditbench.reports.tables.columns import TableCell
from ditbench.reports.tables.imported import imported_sheet
from ditbench.reports.tables.sheet import KEY, Sheet
from ditbench.reports.tables.speed_quality import CONVENTION, FIDELITY, MOTION, RULES
from ditbench.reports.tables.stacking import stacking_sheet
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
    page = Template((templates / "page.html").read_text()).substitute(
        title=escape(f"ditbench: {', '.join(names)}"),
        css=(templates / "page.css").read_text(),
        script=(templates / "page.js").read_text(),
        nav="\n".join(links),
        body="\n".join(body),
        conventions="\n".join(f"<li>{escape(sentence)}</li>" for sentence in _conventions()),
    )
    path = out / "index.html"
    path.write_text(page)
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
        parts.append(_list(section.remarks))
    if section.left_out:
        parts.append("<h3>Left out</h3>" + _list(section.left_out))
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
        environment = section.records[rows[0]["key"]]["environment"]
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
    return "\n".join(parts)


TABLES = ("speed", "quality", "stacking", "training", "video", "imported")


def _environments(section: Section) -> dict[str, list[ReportRow]]:
    """Each distinct environment once, with the rows measured in it."""
    rows_of: dict[str, list[ReportRow]] = {}
    for row in section.rows:
        if environment := section.records[row["key"]]["environment"]:
            rows_of.setdefault(json.dumps(environment, indent=1, sort_keys=True), []).append(row)
    return rows_of


def _model(section: Section, model: str, images: Sequence[Path], out: Path) -> str:
    rows = section.models[model]
    notes = findings(section, model) + [
        f"{', '.join(stacks)}: {note}" for note, stacks in _notes(rows).items()
    ]
    notes += [
        f"no {metric}: {reason}"
        for reason, names in unmeasured(rows, first=True).items()
        for metric in names
    ]
    notes += without_difference(rows)
    nowhere = [
        f"no {', '.join(names)}: {reason}"
        for reason, names in unmeasured(rows, first=False).items()
    ]
    parts = [
        f'<section class="model" id="{_anchor(section, model)}"><h2>{escape(model)}</h2>',
        f'<p class="quiet">{escape(section.caption(model))}</p>',
        _table(rows, _glance, f"{model}: speed and quality"),
        _list(notes) if notes else "",
    ]
    for path in images:
        if path.stem.endswith("-samples"):
            parts.append(draw_viewer(section, model))
        if path.suffix == ".png":
            parts.append(_figure(path, model, out))
    parts += [
        "<details><summary>All speed-ups, stages and memory</summary>"
        + _table(rows, partial(columns.cells, "page"), f"{model}: speed") + "</details>",
        "<details><summary>Quality in parts, smallest detectable changes, record keys</summary>"
        + _table(rows, metric_columns.details, f"{model}: quality") + "</details>",
    ]  # fmt: skip
    if any(
        entry["value"]
        for row in rows
        for entry in row["quality"].values()
        if entry["table"] == "video"
    ):
        parts.append(
            f"<details><summary>Videos</summary><p>{escape(MOTION)}</p>"
            + _table(rows, partial(metric_columns.glance, table="video"), f"{model}: videos")
            + "</details>"
        )
    parts += [
        _sheet(make(section), model) for make in (stacking_sheet, training_sheet, imported_sheet)
    ]
    if nowhere:
        parts.append(f"<details><summary>Not measured, and why</summary>{_list(nowhere)}</details>")
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


def _sheet(sheet: Sheet, model: str) -> str:
    """What a sheet has about a model, folded up; empty where it has nothing."""
    parts = []
    for block in sheet.blocks:
        if block.model == model:
            first, *heads = (head for head in block.lines[0] if head != KEY)
            body = "".join(f'<th scope="col">{_broken(head)}</th>' for head in (first, *heads))
            body = f"<thead><tr>{body}</tr></thead>"
            for line in block.lines:
                name = f'<th scope="row" title="{escape(line.get(KEY, ""))}">{escape(line[first])}</th>'
                body += f"<tr>{name}{''.join(_filled(*_apart(line[head])) for head in heads)}</tr>"
            kind = ' class="imported"' if block.italic else ""
            parts += [f'<p class="quiet">{escape(block.caption)}.</p>'] if block.italic else []
            label = escape(f"{model}: {sheet.title}")
            parts.append(
                f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table{kind}>{body}</table></div>'
            )
            parts += [_list(block.notes)] if block.notes else []
    words = "".join(f"<p>{escape(sentence)}</p>" for sentence in (sheet.convention, *sheet.rules))
    return (
        f"<details><summary>{escape(sheet.title)}</summary>{words}{''.join(parts)}</details>"
        if parts
        else ""
    )


def _apart(text: str) -> TableCell:
    """A number and its interval."""
    number, bracket, interval = text.partition(" [")
    return number, f"[{interval}" if bracket else ""


def _notes(rows: Sequence[ReportRow]) -> dict[str, list[str]]:
    """Notes that the table does not show itself, each once, with the stacks it is about."""
    stacks_of: dict[str, list[str]] = {}
    for row in rows:
        for note in row["notes"] if row["status"] == SHOWN else ():
            stacks_of.setdefault(note, []).append(row["stack"])
    return stacks_of


IMAGES = {
    "quality-against-time": ("plot", "Quality of {} against seconds per sample", "Quality against time"),
    "crossover": ("plot", "Cells of {} beside the curve of fewer steps", "Does it beat fewer steps in the same time?"),
    "over-steps": ("plot", "What each method gives on {} over the number of steps", "What a method still gives at fewer steps"),
    "stacking": ("matrix", "Which methods stack on {}, a cell for each combination", "Do they stack? Methods by methods"),
    "promised-and-measured": ("plot", "Measured speed-up of the loop of {} against its ratio of FLOPs", "Promised and measured speed-up"),
    "memory": ("plot", "Peak memory of {} under each stack, in parts", "Peak memory"),
    "schedules": (
        "grid",
        "Share of tokens each sub-layer of {} computes at each step, a panel for each scheduled stack",
        "Schedules: the share of tokens computed, by step and sub-layer",
    ),
    "training": ("small", "Loss over the training of a method for {}", "What was trained for these rows, and for how long"),
    "samples": (
        "grid", "Samples of {}, a row for each stack",
        "Samples: the same request and noise down each column, and below each stack four times "
        "its difference to none",
    ),
}  # fmt: skip
"""How the page shows a image, by the end of its file's name: kind, alternative text, caption."""


def _figure(path: Path, model: str, out: Path) -> str:
    link = quote(Path(os.path.relpath(path, out)).as_posix())
    kind, alt, words = next(
        shown_as for end, shown_as in IMAGES.items() if path.stem.endswith(f"-{end}")
    )
    links = f'<a class="whole" href="{link}">open the image</a>'
    if kind in ("plot", "matrix"):
        links = f'<a class="whole" href="{link}">PNG</a>, <a href="{link[:-4]}.svg">SVG</a>'
    with Image.open(path) as drawn:
        inch = float(drawn.info.get("dpi", (DPI,))[0])
        # CSS counts 96 pixels an inch
        width, height = (round(side * 96 / inch) for side in drawn.size)
    image = (
        f'<img class="{kind}" loading="lazy" width="{width}" height="{height}" alt="{escape(alt.format(model))}" '
        f'src="{data_uri(path)}">'
    )
    return f'<figure><div class="scroll" tabindex="0">{image}</div><figcaption>{escape(words)} ({links}).</figcaption></figure>'


def _glance(row: ReportRow) -> dict[str, TableCell]:
    """The columns for a first look."""
    return columns.cells("glance", row) | metric_columns.glance(row, "")


def _table(
    rows: Sequence[ReportRow], cells: Callable[[ReportRow], dict[str, TableCell]], label: str
) -> str:
    shown = [cells(row) if row["status"] == SHOWN else {} for row in rows]
    heads = list(dict.fromkeys(head for line in shown for head in line))
    heads = [head for head in heads if any(line.get(head, (DASH, ""))[0] != DASH for line in shown)]
    parts = [
        '<thead><tr><th scope="col">stack</th>'
        + "".join(f'<th scope="col">{_broken(head)}</th>' for head in heads)
        + "</tr></thead>"
    ]
    for row, line in zip(rows, shown, strict=True):
        word = status(row)
        mark = f' <span class="mark {escape(word)}">{escape(word)}</span>' if word != SHOWN else ""
        kind = "baseline" if row["baseline"] else "away" if row["status"] != SHOWN else ""
        stack = escape(labelled(row)).replace("+", "+<wbr>").replace("(", "<wbr>(")
        name = f'<th scope="row" title="{escape(row["key"])}">{stack}{mark}</th>'
        if row["status"] != SHOWN:
            filled = f'<td class="reason" colspan="{max(1, len(heads))}"><span>{escape(row["reason"] or word)}</span></td>'
        else:
            filled = "".join(_filled(*line.get(head, (DASH, ""))) for head in heads)
        parts.append(
            f'<tr class="{kind}">{name}{filled}</tr>' if kind else f"<tr>{name}{filled}</tr>"
        )
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>{"".join(parts)}</table></div>'


def _filled(first: str, second: str, hover: str = "") -> str:
    start = f'<td title="{escape(hover)}">' if hover else "<td>"
    return (
        f"{start}{escape(first)}<small>{escape(second)}</small></td>"
        if second
        else f"{start}{escape(first)}</td>"
    )


def _broken(head: str) -> str:
    return "<br>".join(
        escape(line).replace("speedup_", "speedup_<wbr>") for line in head.split("\n")
    )


def _list(sentences: Sequence[str]) -> str:
    return (
        '<ul class="notes">'
        + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
        + "</ul>"
    )


def _anchor(section: Section, model: str) -> str:
    return file_name(f"{section.name}--{model}")
