"""A run folder made, or taken up where it was left: what is whole and still holds stays, everything
else is set aside or redone. No torch.

A cell that was planned again under another key, because something it depends on was edited, has its
old folder moved to `superseded/`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ditbench.models.requests import make_requests
from ditbench.models.sampling import count_for
from ditbench.models.weights import weights_sha256
from ditbench.records.files import read_json, remove, set_aside, write_json, write_text
from ditbench.records.reading import regular
from ditbench.records.record import MEASURED, SCHEMA, read_record, read_round, read_spec
from ditbench.records.run_folder import RunFolder
from ditbench.records.sample_files import OTHER, digest_of
from ditbench.records.settings import DEFAULTS
from ditbench.records.text import one_line
from ditbench.runner.plan import Cell
from ditbench.runner.shards import is_divided, missing_shards, num_shards, take_up_shards
from ditbench.runner.spec import Spec


def open_folder(cells: Sequence[Cell], command: str) -> RunFolder:
    """Make the run folder, or take up the one that is there; spec and requests are written, what is
    out of date or damaged set aside.

    Raises ValueError when the folder holds a run with other settings or of another schema
    version.
    """
    spec, folder = cells[0].spec, RunFolder(cells[0].spec.folder)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "spec": asdict(spec) | {"margins": dict(spec.margins)},
        "cells": [cell.key for cell in cells],
        "labels": {cell.key: cell.label for cell in cells},
        "settings": spec.requested(),
    }
    before: dict[str, Any] = {}
    if folder.spec.exists():
        before = read_spec(folder.path)
        _check_settings(before, cells[0], folder.path)
        if before.get("spec", {}).get("margins") is None:
            del document["spec"]["margins"]  # stated after the fact, they would be none
        # rows of earlier commands need theirs to be made again
        for name in (
            "plugins",
            "references",
            "own_models",
            "lora",
        ):
            earlier, mine = before.get("spec", {}).get(name, ()), list(getattr(spec, name))
            document["spec"][name] = [*(text for text in earlier if text not in mine), *mine]
    elif folder.foreign:
        raise ValueError(
            f"out: {folder.path} is not empty and is no run folder; choose another with --out"
        )
    old = _out_of_date(before, cells, folder, _write_requests(cells, folder))
    for key in old:
        _supersede(folder, key)
    for name, earlier in (("cells", before.get("cells", [])), ("labels", before.get("labels", {}))):
        rest = [key for key in earlier if key not in old]
        document[name] = (
            list(dict.fromkeys([*rest, *document[name]]))
            if name == "cells"
            else {key: earlier[key] for key in rest} | document[name]
        )
    write_json(folder.spec, document)
    if folder.command.is_dir():
        set_aside(folder.command)
    write_text(folder.command, command + "\n")
    return folder


def with_threads(spec: Spec) -> Spec:
    """The spec with a share of the cores for each worker where no number of threads was requested,
    or the number that the run folder was begun with: it may change the last bit of a sample, so that
    all samples of a run are made with one, however many workers there are. On Ray each has one
    thread, for nodes have unlike numbers of cores. The folder stays the one that is named after what
    was requested. ValueError where it was begun with a number that only its machine knows."""
    on_ray = spec.engine == "ray"
    if (spec.workers == 1 and not on_ray) or spec.threads:
        return spec
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = 1 if on_ray else max(1, (cores or 1) // spec.workers)
    if RunFolder(spec.folder).spec.exists():
        settings = DEFAULTS | read_spec(spec.folder).get("settings", {})
        threads = int(settings["threads"])
        if on_ray and not threads:
            raise ValueError(
                f"engine: {spec.folder} was begun with as many threads as its machine has cores, "
                "which differ from node to node; go on without --engine ray, or choose another "
                "folder with --out"
            )
    return replace(spec, threads=threads, out=str(spec.folder))


def _check_settings(before: dict[str, Any], cell: Cell, folder: Path) -> None:
    """ValueError when the run in the folder was made with other settings or margins."""
    made_with = DEFAULTS | before.get("settings", {})
    for name, value in cell.spec.requested().items():
        if (earlier := made_with[name]) != value:
            raise ValueError(
                f"out: {folder} was made with {name} {earlier!r}, not {value!r}; choose another "
                "folder with --out"
            )
    stated = before.get("spec", {}).get("margins")
    if stated not in (None, dict(cell.spec.margins)):
        raise ValueError(
            f"margins: {folder} states {stated}, and they are fixed before a run; choose another "
            "folder with --out"
        )


def _write_requests(cells: Sequence[Cell], folder: RunFolder) -> list[str]:
    """Write what each model is asked for; the models whose requests are no longer those that were
    there."""
    spec, changed = cells[0].spec, []
    for model in {cell.model.name: cell.model for cell in cells}.values():
        path = folder.requests(model.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        requests = make_requests(model, count_for(model, spec.num_samples), spec.seed, spec.prompts)
        wanted = json.loads(json.dumps([asdict(request) for request in requests]))
        try:
            there = read_json(path, folder.path) if path.exists() else wanted
        except ValueError:
            set_aside(path)
            there = wanted  # each record has a hash of its own requests
        if there != wanted:
            changed.append(model.name)
        if there != wanted or not path.exists():
            write_json(path, wanted)
    return changed


def _out_of_date(
    before: dict[str, Any], cells: Sequence[Cell], folder: RunFolder, changed_models: Sequence[str]
) -> list[str]:
    """Keys of cells that are there and are planned under another key now, or whose model is asked
    for something else."""
    planned = {cell.key for cell in cells}
    labels = {cell.label for cell in cells}
    keys = []
    for key in before.get("cells", []):
        label = before.get("labels", {}).get(key) or _label(folder.record(key))
        if key not in planned and (label in labels or label.partition(" ")[0] in changed_models):
            keys.append(key)
    return keys


def _label(path: Path) -> str:
    """`model stack` of a record; "" when there is none that can be read."""
    try:
        record = read_record(path)
    except (OSError, ValueError):
        return ""
    return f"{record['model']} {record['stack']}"


def _supersede(folder: RunFolder, key: str) -> None:
    at, scores, features = folder.cell(key), folder.scores(key), folder.features(key)
    if at.is_dir() and any(at.iterdir()):
        target = folder.superseded(key)
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            set_aside(target)
        shutil.move(at, target)
        for path in (scores, features):
            if path.exists():
                shutil.move(path, target / f"{path.parent.name}.safetensors")
    shutil.rmtree(at, ignore_errors=True)
    for path in (scores, features):
        path.unlink(missing_ok=True)


def take_up(cell: Cell, folder: RunFolder, requests_sha256: str) -> list[str]:
    """Keep what is whole of a cell's earlier work, set aside what is damaged, forget what failed,
    and what was made with other weights or asked for something else. A sentence for each file that
    was set aside, with what is wrong with it."""
    at = folder.cell(cell.key)
    damaged = without_what_is_no_file(folder, cell.key)
    at.mkdir(parents=True, exist_ok=True)
    for part in (*at.glob(".*.partial"), *folder.shards(cell.key).glob(".*.partial")):
        remove(part)
    path, first = folder.record(cell.key), folder.round(cell.key, 0)
    unfinished = stale = round_failed = False
    files: dict[str, str] = {}
    timed_again = folder.timed_again(cell.key)
    rounds = folder.rounds(cell.key)
    for document in rounds + timed_again + ([path] if path.exists() else []):
        try:
            content: Any = _record(path, cell) if document == path else read_round(document)
            wrong = content["status"] not in MEASURED
            unfinished |= document == path and wrong
            round_failed |= document in rounds and wrong
            files |= content.get("sample_files", {})
            stale |= _made_otherwise(
                cell, requests_sha256, content["run"] if document == path else content
            )
        except ValueError as error:
            damaged.append(f"{error}; set aside as {set_aside(document).name}, measured again")
    divided = is_divided(cell, folder)
    samples = folder.shard(cell.key, 0) if divided else folder.samples(cell.key)
    if samples.exists() and (why := _wrong_with(samples, cell, files, divided)):
        aside = set_aside(samples).name
        damaged.append(f"{samples} is damaged ({why}); set aside as {aside}, measured again")
    if divided:
        damaged += take_up_shards(cell, folder, partial(_made_otherwise, cell, requests_sha256))
    if unfinished or stale or damaged:
        path.unlink(missing_ok=True)
    keeps_rounds = divided and not round_failed  # a shard failed, and it alone is made again
    if stale or (unfinished and not damaged and not keeps_rounds):
        for old in rounds + timed_again:
            old.unlink(missing_ok=True)
    if not samples.exists():
        path.unlink(missing_ok=True)
        first.unlink(missing_ok=True)
    if divided and missing_shards(cell, folder):
        path.unlink(missing_ok=True)
    if not divided and num_shards(cell) > 1 and not (first.exists() or path.exists()):
        samples.unlink(missing_ok=True)  # it will be shards
    return damaged


def without_what_is_no_file(folder: RunFolder, key: str) -> list[str]:
    """Move away what lies where files of a cell are to be and is none, or none of the run: a pipe, a
    folder, a link out of the run or to nothing. A sentence for each."""
    at, shards = folder.cell(key), folder.shards(key)
    wrong = {
        path: f"{path} is damaged (not a folder)"
        for path in (at, shards)
        if os.path.lexists(path) and not path.is_dir()
    }
    for path in folder.parts(key):
        try:
            regular(path, folder.path)
        except FileNotFoundError:
            wrong[path] = f"{path} is damaged (a link to nothing)"
        except ValueError as error:
            wrong[path] = str(error)
    return [
        f"{why}; set aside as {set_aside(path).name}, made again" for path, why in wrong.items()
    ]


def _record(path: Path, cell: Cell) -> Any:
    """The record of a cell; ValueError also where what it says of the model is not so, by which
    scores choose their judges."""
    record, model = read_record(path), cell.model
    for name, fact in {"model": model.name, "family": model.family, "world": model.world}.items():
        if (stated := record.get(name, fact)) != fact:
            raise ValueError(
                f"{path} is damaged ({name} is {one_line(repr(stated), 40)}, not {fact!r})"
            )
    return record


def _wrong_with(samples: Path, cell: Cell, stated: Mapping[str, str], divided: bool) -> str:
    """What is wrong with the samples of a cell's first round, "" where nothing is; `stated` has the
    hashes of samples files, where they are on record."""
    name, sha256 = next(iter(digest_of(samples.parents[divided], samples).items()))
    if name in stated:
        return "" if stated[name] == sha256 else OTHER
    return "" if divided or _whole(samples, cell.num_samples) else f"not {cell.num_samples} samples"


def _made_otherwise(cell: Cell, requests_sha256: str, made: Mapping[str, Any]) -> bool:
    """Whether a record's `run`, or a round, is of other weights or other requests than the cell's
    by now."""
    if not (before := made.get("model_sha256")):
        return False  # it failed before it knew
    if made.get("requests_sha256") != requests_sha256:
        return True
    try:
        return bool(before != weights_sha256(cell.model, cell.spec.weights))
    except ValueError:  # of the hub, and no longer in its cache
        return False


def _whole(samples: Path, n: int) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(regular(samples, samples.parents[2]), "np") as f:
            return bool(f.get_slice("samples").get_shape()[0] == n)
    except (SafetensorError, OSError, KeyError, ValueError, IndexError):
        return False
