"""Cells of several runs of one protocol as one published run. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED

from ditbench.models.workload import WORKLOAD, values_of
from ditbench.records.checks import read_references
from ditbench.records.environment import MACHINE
from ditbench.records.published_files import FILES, hashes, members
from ditbench.records.record import MEASURED, Run, environments_of, read_run, sessions_of
from ditbench.records.run_folder import RunFolder
from ditbench.records.scores import read_scores
from ditbench.records.settings import DEFAULTS, LABELS
from ditbench.reports.publishing.records import as_text, in_place_of, without_folders, zipped
from ditbench.reports.publishing.sharing import as_published

INSTEAD = "`report` shows runs that differ beside each other"


def merge_runs(runs: Sequence[Path], out: Path) -> list[str]:
    """Write the cells of at least two runs, published or not, into `out` as one published run;
    returns a sentence for each cell that is in several, of which the first that was measured is
    taken. Of a baseline that several have the times are put together: each cell is compared with
    those that its own command took.

    What models are asked for (steps, sizes) may differ between runs that share no model.

    Raises ValueError, and writes nothing, where other settings, margins, versions, machine,
    references or requests differ, or a baseline's samples or weights do; and where `out` is there
    already.
    """
    if len(runs) < 2:
        raise ValueError("merge: at least two runs")
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise ValueError(f"out: {out} is there already; name another folder")
    names = [str(run) for run in runs]
    with ExitStack() as stack:
        folders = [stack.enter_context(as_published(run)) for run in runs]
        read = [read_run(folder) for folder in folders]
        for name, run in zip(names, read, strict=True):
            if run.damaged:
                raise ValueError(f"{name}: {run.damaged[0]}")
        # every pair: the second and the third may share a model that the first has not
        for (name, run), (other, later) in combinations(zip(names, read, strict=True), 2):
            if apart := _apart(run, later):
                raise ValueError(
                    f"{name} and {other} are no one protocol: they differ in "
                    f"{'; '.join(apart)}; {INSTEAD}"
                )
        records, home, sentences = _records(read, names)
        content = _files(folders, home, records)
    spec = {
        **_with_workload(read),
        "cells": [*records],
        "labels": {key: f"{r['model']} {r['stack']}" for key, r in records.items()},
        FILES: hashes(content),
    }
    with in_place_of(out) as fresh:
        for name, data in {RunFolder(fresh).spec.name: as_text(spec, indent=1), **content}.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_bytes(data)
    return sentences


def _apart(one: Run, other: Run) -> list[str]:
    """What of the protocol differs between two runs, each with both values."""
    first, second = (_settings(run) for run in (one, other))
    fields = [
        f"{LABELS[name]} ({first.get(name)}, {second.get(name)})"
        for name in LABELS
        if first.get(name) != second.get(name) and _by_model(name, (one, other)) is None
    ]
    margins = [run.spec.get("spec", {}).get("margins") for run in (one, other)]
    fields += ["margins"] if margins[0] != margins[1] else []
    pointers = [_hashes_of_references(run.folder) for run in (one, other)]
    fields += ["references"] if pointers[0] != pointers[1] else []
    environments = [_environments(run) for run in (one, other)]
    for name in ("ditbench", *MACHINE):
        values = [sorted({json.dumps(e.get(name)) for e in of}) for of in environments]
        if all(values) and (values[0] != values[1] or len(values[0]) > 1):
            fields.append(f"{name} ({', '.join(values[0])}; {', '.join(values[1])})")
    return fields + _models(one, other)


def _settings(run: Run) -> Mapping[str, Any]:
    """Those that a run knew, and the defaults of those that came later."""
    return DEFAULTS | (run.spec.get("settings") or run.spec.get("spec") or {})


def _by_model(name: str, runs: Sequence[Run]) -> str | None:
    """What runs of different models ask each of for, as the text of one run of them all; None where
    one model is asked for different things, or the setting is none that goes by model."""
    if name not in WORKLOAD or name == "negative_prompt":
        return None
    texts, wanted = [str(_settings(run).get(name) or "") for run in runs], dict[str, str]()
    if len(set(texts)) == 1:
        return texts[0]
    for run, text in zip(runs, texts, strict=True):
        try:
            values = values_of(name, text) if text else {}
        except ValueError:  # a model that this checkout does not know
            return None
        for model in {record["model"] for record in run.records}:
            value = values.get(model, values.get("", ""))
            if wanted.setdefault(model, value) != value:
                return None
    return ",".join(f"{model}={value}" for model, value in sorted(wanted.items()) if value)


def _with_workload(runs: Sequence[Run]) -> dict[str, Any]:
    """The first run's spec, with what all of them ask their models for."""
    spec = dict(runs[0].spec)
    workload = {name: text for name in WORKLOAD if (text := _by_model(name, runs)) is not None}
    for part in ("settings", "spec"):
        if spec.get(part):
            spec[part] = spec[part] | workload
    return spec


def _models(one: Run, other: Run) -> list[str]:
    """Models whose requests or weights differ."""
    fields = []
    for field, words in (("requests_sha256", "requests"), ("model_sha256", "weights")):
        values: list[dict[str, set[str]]] = [{}, {}]
        for by_model, run in zip(values, (one, other), strict=True):
            for record in run.records:
                if record["status"] in MEASURED:
                    by_model.setdefault(record["model"], set()).add(str(record["run"].get(field)))
        shared = values[0].keys() & values[1].keys()
        fields += [f"{words} of {m}" for m in sorted(shared) if values[0][m] != values[1][m]]
    return fields


def _environments(run: Run) -> list[Mapping[str, Any]]:
    return [e for r in run.records if r["status"] in MEASURED for e in environments_of(r)]


def _hashes_of_references(folder: Path) -> Any:
    return {
        model: {maker: pointer["sha256"] for maker, pointer in of_model.items()}
        for model, of_model in read_references(RunFolder(folder).references).items()
    }


def _records(
    runs: Sequence[Run], names: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, int], list[str]]:
    """The records by key, the number of the run that each is from, and what is said of those in
    several."""
    records: dict[str, dict[str, Any]] = {}
    home: dict[str, int] = {}
    sentences = []
    samples = [{k: s.samples_sha256 for k, s in read_scores(run.folder).items()} for run in runs]
    for number, run in enumerate(runs):
        for record in run.records:
            key = record["key"]
            if key not in records:
                records[key], home[key] = dict(record), number
                continue
            label = f"{record['model']} {record['stack']}"
            if record["status"] not in MEASURED or records[key]["status"] not in MEASURED:
                if record["status"] in MEASURED:
                    records[key], home[key] = dict(record), number
                sentences.append(f"{label} is in several: taken from {names[home[key]]}")
            elif record["stack"] != "none":
                sentences.append(f"{label} is in several: taken from {names[home[key]]}")
            elif samples[number].get(key) != samples[home[key]].get(key):
                raise ValueError(
                    f"{names[home[key]]} and {names[number]}: the baselines of {record['model']} have "
                    f"other samples, so that no cell can be compared with both; {INSTEAD}"
                )
            else:
                records[key] = _times_of_both(records[key], dict(record))
                sentences.append(f"{label} is in several: its times are put together")
    return records, home, sentences


def _times_of_both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A baseline with the calls of another record of it that other commands timed."""
    new = set(sessions_of(other)) - set(sessions_of(one))
    merged = dict(one)
    for name in ("timing", "host"):
        if one.get(name) is not None or other.get(name) is not None:
            later = [entry for entry in other.get(name) or [] if entry.get("session", "") in new]
            merged[name] = [*(one.get(name) or []), *later]
    before, after = one.get("environments") or {}, other.get("environments") or {}
    if before or after:
        merged["environments"] = {**{s: e for s, e in after.items() if s in new}, **before}
    return merged


def _files(
    folders: Sequence[Path], home: Mapping[str, int], records: Mapping[str, dict[str, Any]]
) -> dict[str, bytes]:
    """The files of the merged run but its spec, by path."""
    made: dict[str, bytes] = {}
    commands, scores, pictures = [], dict[str, bytes](), dict[str, bytes]()
    for number, folder in enumerate(folders):
        files = RunFolder(folder)
        if files.command.is_file():
            commands.append(files.command.read_text(encoding="utf-8"))
        if files.references.is_file():
            made[files.references.name] = files.references.read_bytes()
        for path in sorted(RunFolder(folder).requests("x").parent.glob("*.json")):
            name = path.relative_to(folder).as_posix()
            if made.setdefault(name, path.read_bytes()) != path.read_bytes():
                raise ValueError(f"the runs differ in {name}; {INSTEAD}")
        for path, into in ((files.published_scores, scores), (files.thumbnails, pictures)):
            if not path.is_file():
                continue
            content, unreadable = members(path)
            if unreadable:
                raise ValueError(f"{path.name} of a run is damaged ({unreadable[0]})")
            for name, data in content.items():
                key = name.partition("/")[0].removesuffix(".safetensors")
                if home.get(key) == number:
                    into[name] = data
    made[RunFolder(folders[0]).command.name] = "".join(dict.fromkeys(commands)).encode()
    made["scores.zip"] = zipped(dict(sorted(scores.items())), ZIP_DEFLATED)
    made["thumbnails.zip"] = zipped(dict(sorted(pictures.items())), ZIP_STORED)
    made["records.jsonl"] = b"".join(
        as_text(without_folders(record), separators=(",", ":")) for record in records.values()
    )
    return made
