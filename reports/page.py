"""One page: tables, figures and grids of every section. Works from a file, without network and without scripts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import quote

from ditbench.reports.sections import SHOWN, Row, Section, file_name, status
from ditbench.reports.tables import CONVENTION, FIDELITY
from ditbench.reports.wording import DASH, interval, number, places_of, share, short, size, times, value

Cell = tuple[str, str]
"""A number and, in smaller type under it, its interval."""

DIRECTION = {"higher": "higher is better", "lower": "lower is better"}


def write_page(sections: Sequence[Section], pictures: Mapping[str, Mapping[str, Sequence[Path]]], out: Path) -> Path:
    """Write `index.html` into `out`; `pictures` gives the image files by section and model. Returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    templates = files("ditbench.reports")
    names = [section.name for section in sections]
    several = len(sections) > 1
    body = [_section(section, pictures[section.name], out, several) for section in sections]
    links = [
        f'<a href="#{_anchor(section, model)}">{escape(f"{section.name}: {model}" if several else model)}</a>'
        for section in sections
        for model in section.models
    ]
    page = Template((templates / "page.html").read_text()).substitute(
        title=escape(f"ditbench: {', '.join(names)}"),
        css=(templates / "page.css").read_text(),
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
        "A change is this stack minus none on the same requests and noise.",
        "The detectable change is the smallest that four in five such runs would find.",
        "A Fréchet distance is biased in n: compare it at equal n only. Its own value carries no interval; its change does.",
        "A cell that did not run, or a method that changed nothing (inert), has its reason and no number.",
    ]


def _section(section: Section, pictures: Mapping[str, Sequence[Path]], out: Path, several: bool) -> str:
    parts = [f"<h2>{escape(section.name)}</h2>"] if several else []
    if several:
        parts.append(
            '<p class="quiet">A run of its own: its numbers are not compared with those of the other runs here.</p>'
        )
    if section.left_out:
        parts.append("<h3>Left out</h3>" + _list(section.left_out))
    parts += [_model(section, model, pictures.get(model, []), out) for model in section.models]
    parts.append("<h2>How it was run</h2>")
    if section.command:
        parts.append(
            f"<p>The command, which also takes up an unfinished run where it stopped:</p><pre>{escape(section.command)}</pre>"
        )
    for told, models in _environments(section).items():
        parts.append(
            f"<details><summary>Environment of {escape(', '.join(models))}</summary><pre>{escape(told)}</pre></details>"
        )
    at = f"{section.name}/tables" if several else "tables"
    tables = [
        f'<a href="{quote(f"{at}/{name}")}">{name}</a>'
        for name in ("speed.csv", "speed.md", "quality.csv", "quality.md")
    ]
    parts.append(f"<p>Tables at full precision: {', '.join(tables)}.</p>")
    return "\n".join(parts)


def _environments(section: Section) -> dict[str, list[str]]:
    """Each distinct environment once, with the models measured in it."""
    found: dict[str, list[str]] = {}
    for model, rows in section.models.items():
        for row in rows:
            environment = section.records[row["key"]]["environment"]
            if environment:
                told = found.setdefault(json.dumps(environment, indent=1, sort_keys=True), [])
                if model not in told:
                    told.append(model)
    return found


def _model(section: Section, model: str, pictures: Sequence[Path], out: Path) -> str:
    rows = section.models[model]
    notes = [f"{', '.join(stacks)}: {note}" for note, stacks in _notes(rows).items()]
    for metric in dict.fromkeys(name for row in rows for name in row["quality"]):
        missing = {
            row["quality"][metric]["reason"]
            for row in rows
            if row["status"] == SHOWN and row["quality"][metric]["value"] is None
        }
        if len(missing) == 1 and all(row["quality"][metric]["value"] is None for row in rows):
            notes.append(f"no {metric}: {missing.pop()}")
    parts = [
        f'<h2 id="{_anchor(section, model)}">{escape(model)}</h2>',
        f'<p class="quiet">{escape(section.caption(model))}</p>',
        _table(rows, _glance, f"{model}: speed and quality"),
        _list(notes) if notes else "",
    ]
    for path in pictures:
        if path.suffix == ".png":
            parts.append(_figure(path, model, out))
    parts += [
        "<details><summary>All speed-ups, stages and memory</summary>" + _table(rows, _speed, f"{model}: speed") + "</details>",
        "<details><summary>Quality in parts, smallest detectable changes, record keys</summary>"
        + _table(rows, _quality, f"{model}: quality") + "</details>",
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _notes(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Notes that the table does not show itself, each once, with the stacks it is about."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for note in row["notes"] if row["status"] == SHOWN else ():
            found.setdefault(note, []).append(row["stack"])
    return found


def _figure(path: Path, model: str, out: Path) -> str:
    link = quote(Path(os.path.relpath(path, out)).as_posix())
    if path.name.endswith("-samples.png"):
        kind, alt, words = (
            "grid",
            f"Samples of {model}, a row for each stack",
            "Samples: the same request and noise down each column",
        )
        links = f'<a href="{link}">open the picture</a>'
    elif path.name.endswith("-schedules.png"):
        kind, alt = (
            "grid",
            f"Share of tokens each sub-layer of {model} computes at each step, a panel for each scheduled stack",
        )
        words, links = (
            "Schedules: the share of tokens computed, by step and sub-layer",
            f'<a href="{link}">open the picture</a>',
        )
    else:
        kind, alt, words = "plot", f"Quality of {model} against seconds per sample", "Quality against time"
        links = f'<a href="{link}">PNG</a>, <a href="{link[:-4]}.svg">SVG</a>'
        link = f"{link[:-4]}.svg"
    picture = f'<img class="{kind}" loading="lazy" src="{link}" alt="{escape(alt)}">'
    return f'<figure><div class="scroll" tabindex="0">{picture}</div><figcaption>{escape(words)} ({links}).</figcaption></figure>'


def _table(rows: Sequence[Row], cells: object, label: str) -> str:
    assert callable(cells)
    shown: list[dict[str, Cell]] = [cells(row) if row["status"] == SHOWN else {} for row in rows]
    heads = list(dict.fromkeys(head for line in shown for head in line))
    heads = [head for head in heads if any(line.get(head, (DASH, ""))[0] != DASH for line in shown)]
    parts = [
        '<thead><tr><th scope="col">stack</th>'
        + "".join(f'<th scope="col">{_broken(head)}</th>' for head in heads)
        + "</tr></thead>"
    ]
    for row, line in zip(rows, shown, strict=True):
        told = status(row)
        mark = f' <span class="mark {escape(told)}">{escape(told)}</span>' if told != SHOWN else ""
        kind = "baseline" if row["baseline"] else "away" if row["status"] != SHOWN else ""
        name = f'<th scope="row">{escape(row["stack"]).replace("+", "+<wbr>").replace("(", "<wbr>(")}{mark}</th>'
        if row["status"] != SHOWN:
            filled = (
                f'<td class="reason" colspan="{max(1, len(heads))}"><span>{escape(row["reason"] or told)}</span></td>'
            )
        else:
            filled = "".join(_filled(*line.get(head, (DASH, ""))) for head in heads)
        parts.append(f'<tr class="{kind}">{name}{filled}</tr>' if kind else f"<tr>{name}{filled}</tr>")
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>{"".join(parts)}</table></div>'


def _filled(first: str, second: str) -> str:
    return f"<td>{escape(first)}<small>{escape(second)}</small></td>" if second else f"<td>{escape(first)}</td>"


def _broken(head: str) -> str:
    return "<br>".join(escape(line).replace("speedup_", "speedup_<wbr>") for line in head.split("\n"))


def _glance(row: Row) -> dict[str, Cell]:
    """The columns for a first look."""
    found: dict[str, Cell] = {
        "speedup_call": _ratio(row, "speedup_call"),
        "speedup_denoise": _ratio(row, "speedup_denoise"),
        "speedup_flops": (times(row["speedup_flops"]), ""),
        "seconds\nper sample": _seconds(row, "call_s"),
        "peak\nmemory": (size(row["memory"].get("peak_bytes")), ""),
    }
    for metric, entry in row["quality"].items():
        places = places_of(metric)
        if metric.endswith(".vs_none"):
            found[f"{metric}\n{entry['unit']}".strip()] = (
                value(entry["value"], places),
                interval(entry["value"], places),
            )
        else:
            found[f"{metric}\n{DIRECTION.get(entry['better'], '')}"] = (
                value(entry["value"], places),
                interval(entry["value"], places),
            )
            found[f"{short(metric)}\nminus none"] = (
                value(entry["delta"], places, True),
                interval(entry["delta"], places, True),
            )
    return found


def _speed(row: Row) -> dict[str, Cell]:
    found: dict[str, Cell] = {
        "speedup_flops": (times(row["speedup_flops"]), ""),
        "speedup_predicted": (times(row["speedup_predicted"]), ""),
    }
    for name in ("speedup_denoise", "speedup_call", "realised", "realised_call"):
        found[name] = _ratio(row, name)
    found["intervals over"] = (row["speedup_interval"] or DASH, "")
    found |= {f"{stage}\ns/sample": _seconds(row, f"{stage}_s") for stage in ("call", "text", "denoise", "decode")}
    found["denoise\nshare"] = (share(row["share"]["denoise"]), "")
    found["GFLOPs\nper sample"] = (number(row["flops"]["flops"] / 1e9) if row["flops"].get("flops") else DASH, "")
    ledger = {
        "weights": "weights_bytes",
        "kept by\nmethods": "cache_bytes",
        "before": "before_bytes",
        "peak": "peak_bytes",
    }
    found |= {head: (size(row["memory"].get(name)), "") for head, name in ledger.items()}
    return found | {"first call": _plain(row["first_call_s"]), "load": _plain(row["load_s"])}


def _quality(row: Row) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    for metric, entry in row["quality"].items():
        places = places_of(metric)
        for part, told in ({"": entry} | entry["parts"]).items():
            name = f"{short(metric)} {part}".strip()
            if told["value"] and not (part == "" and metric.endswith(".vs_none")):
                found[name] = value(told["value"], places), interval(told["value"], places)
                found[f"{name}\nminus none"] = value(told["delta"], places, True), interval(told["delta"], places, True)
        if entry["mde"] is not None:
            found[f"{short(metric)}\ndetectable"] = value({"value": entry["mde"]}, places), ""
    return found | {"n": (str(row["num_samples"]), ""), "record key": (row["key"], "")}


def _ratio(row: Row, name: str) -> Cell:
    told = row[name]
    if told is None:
        return DASH, ""
    if row["baseline"]:
        return (times(1.0) if name.startswith("speedup") else value(told, 2)), ""
    shown = times(told["value"]) if name.startswith("speedup") else value(told, 2)
    return shown, interval(told, 2)


def _seconds(row: Row, name: str) -> Cell:
    told = row["timing"][name]
    if told is None:
        return DASH, ""
    return number(told["value"]), f"[{number(told['low'])}, {number(told['high'])}]" if told["low"] is not None else ""


def _plain(seconds: float | None) -> Cell:
    return (DASH if seconds is None else f"{number(seconds)} s"), ""


def _list(sentences: Sequence[str]) -> str:
    return '<ul class="notes">' + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _anchor(section: Section, model: str) -> str:
    return file_name(f"{section.name}--{model}")
