"""Score a finished run: samples -> per-sample values and features, and the statistics that are made
of features, for each cell. Never generates.

scores/<key>.safetensors holds arrays [n, ...] in request order, named by metric, and `group` [n],
samples of one prompt sharing a number; beside them statistics of the set
(`ditbench.metrics.published_statistics`) and, of very many samples, means by block
(`ditbench.records.sample_blocks`). Features are in features/<key>.safetensors. The metadata say for
every metric why it is missing ("" where it is there) and what it was computed from, so that a
second run does only what is new. `ditbench.records.scores.read_scores` reads them back without
torch.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ditbench.extractors.shelf import Shelf
from ditbench.metrics import features
from ditbench.metrics.cell_statistics import with_statistics
from ditbench.metrics.samples import Sampled, Samples
from ditbench.metrics.score_workers import Job, abreast
from ditbench.metrics.set_statistics import Sets
from ditbench.metrics.table import Metric, select
from ditbench.records.checks import read_requests
from ditbench.records.files import remove, set_aside
from ditbench.records.lock import writing_to
from ditbench.records.record import (
    MEASURED,
    RANDOM,
    Record,
    check_not_published,
    read_run,
    read_spec,
)
from ditbench.records.run_folder import RunFolder
from ditbench.records.sample_blocks import FEATURE
from ditbench.records.sample_files import OTHER, not_as_written
from ditbench.records.scores import SHAPE, Scores, read_cell, read_file, write_cell

Tell = Callable[[str, int, int], None]
"""Told (cell's key, cells done, cells in all) before each cell, and once at the end with an empty
key."""


@dataclass
class Scoring:
    """What `score_run` did."""

    written: list[str] = field(default_factory=list)
    """Keys of cells scored now."""
    kept: list[str] = field(default_factory=list)
    """Keys of cells whose scores were there already."""
    damaged: list[str] = field(default_factory=list)
    """One sentence for each file that was damaged and has been set aside."""


WRITTEN_EVERY = 30.0
"""Seconds of work on a cell that a `score` that is stopped may lose, but for one metric's."""


def score_run(
    folder: Path, metrics: str | list[str] | None = None, progress: Tell | None = None,
    judge_folder: Path | None = None,
    shelf: Shelf | None = None,
    workers: int = 1,
    plugins: Sequence[str] = (),
) -> Scoring:  # fmt: skip
    """Bring the scores of every measured cell of a run up to date and say what was done.

    `metrics` chooses some by name (default: all but those that are scored only when asked for; for
    models of a shapes world, of those only what needs no extractor); `shelf` has the extractors
    (default: the official ones). Scores are against the cell with stack `none` of the same model. A
    samples file that is damaged is set aside and named; its cell is then left without scores.
    `workers`: processes that score cells side by side, each with as many threads as this one; the
    files are the same. They run `plugins` first. Raises ValueError for an unknown metric, no run
    folder, or a published run, when another command writes to the folder, and when a worker dies.
    """
    check_not_published(folder)
    select(metrics)
    read_spec(folder)  # before anything is made there
    if workers < 1:
        raise ValueError(f"workers: at least one process scores, got {workers}")
    with writing_to(folder):
        return _score_run(folder, metrics, progress, judge_folder, shelf, workers, plugins)


def _score_run(
    folder: Path, metrics: str | list[str] | None, progress: Tell | None, judge_folder: Path | None,
    shelf: Shelf | None,
    workers: int,
    plugins: Sequence[str],
) -> Scoring:  # fmt: skip
    run, done = read_run(folder), Scoring()
    files = RunFolder(folder)
    opened: dict[str, Samples] = {}
    cells = [r for r in run.records if r["status"] in MEASURED]
    for record in cells:
        if samples := _opened(files, record, done):
            opened[record["key"]] = samples
    baselines = {r["model"]: r for r in cells if r["stack"] == "none"}
    for record in cells:
        if record["key"] not in opened:
            remove(files.scores(record["key"]))
            remove(files.features(record["key"]))
    jobs = [
        Job(
            folder=folder,
            record=record,
            none=(none := baselines.get(record["model"])),
            opened={r["key"]: opened[r["key"]] for r in (record, none) if r and r["key"] in opened},
            metrics=metrics,
            judge_folder=judge_folder,
        )
        for record in cells
        if record["key"] in opened
    ]
    for job, (new, damaged) in abreast(jobs, score_cell, folder, shelf, workers, plugins, progress):
        (done.written if new else done.kept).append(job.record["key"])
        done.damaged += damaged
    if progress:
        progress("", len(jobs), len(jobs))
    return done


def _opened(files: RunFolder, record: Record, done: Scoring) -> Samples | None:
    """The samples of a cell, as they were written; None where a file is missing, or is damaged and
    was set aside, which `done` says."""
    cell, stated = files.cell(record["key"]), record.get("sample_files", {})
    missing = [cell / name for name in stated if not (cell / name).is_file()]
    path = files.stored_samples(record["key"])
    if missing or not path.exists():
        done.damaged.append(f"{(missing or [path])[0]} is missing")
    damaged = not_as_written(cell, stated)
    for file in damaged:
        set_aside(file)
        done.damaged.append(f"{file} is damaged ({OTHER}); set aside")
    if damaged or missing or not path.exists():
        return None
    try:
        return Samples(path, files.path)
    except ValueError as error:
        if path.is_file():
            set_aside(path)
            done.damaged.append(f"{error}; set aside")
        else:
            done.damaged.append(str(error))
        return None


def score_cell(job: Job, shelf: Shelf, sets: Sets) -> tuple[bool, list[str]]:
    """Bring one cell's scores up to date: whether anything was written, and a sentence for each
    damaged file."""
    record, wanted = job.record, select(job.metrics)
    requests = _requests(job.folder, record["model"], len(job.opened[record["key"]]))
    cell = _sampled(record, job.none, job.opened, requests, job.judge_folder, shelf)
    files = RunFolder(job.folder)
    cell = replace(cell, parts=files.feature_parts(record["key"]))
    chosen = [m for m in wanted if job.metrics is not None or not (cell.world and m.extractor)]
    return _score_cell(files, record, cell, features.before(chosen), requests, sets)


def _requests(folder: Path, model: str, num: int) -> list[dict[str, Any]]:
    requests = read_requests(RunFolder(folder).requests(model))
    if len(requests) != num:
        raise ValueError(f"{folder}: {model} has {num} samples for {len(requests)} requests")
    return requests


def _sampled(
    record: Record, none: Record | None, opened: dict[str, Samples],
    requests: list[dict[str, Any]],
    judge_folder: Path | None, shelf: Shelf,
) -> Sampled:  # fmt: skip
    baseline, why = None, ""
    if record["stack"] == "none":
        why = "this is the baseline itself"
    elif none is None or none["key"] not in opened:
        why = f"the baseline `none` of {record['model']} has no samples in this run"
    elif none["run"].get("requests_sha256") != record["run"].get("requests_sha256"):
        why = "the baseline answered other requests"
    else:
        baseline = opened[none["key"]]
    truths = [r["truth"] for r in requests if r["truth"] is not None]
    prompts = [r["prompt"] for r in requests if r["prompt"] is not None]
    return Sampled(
        world=record.get("world", ""),
        weights=record["run"]["weights"],
        samples=opened[record["key"]],
        truths=truths if len(truths) == len(requests) else None,
        baseline=baseline,
        no_baseline=why,
        judge_folder=judge_folder,
        prompts=prompts if len(prompts) == len(requests) else None,
        shelf=shelf,
    )


def _score_cell(
    files: RunFolder, record: Record, cell: Sampled, wanted: list[Metric],
    requests: list[dict[str, Any]],
    sets: Sets,
) -> tuple[bool, list[str]]:  # fmt: skip
    """Write what is missing of a cell's scores; False when nothing was."""
    key, written = record["key"], time.monotonic()
    samples_sha256 = cell.samples.sha256
    scores, apart, damaged = _before(files, key)
    fits = scores is not None and scores.fits(len(requests))
    if scores is None or not fits or scores.samples_sha256 != samples_sha256:
        scores, apart = Scores(samples_sha256=samples_sha256), False
    before = scores
    for metric in wanted:
        cell.stored["arrays"] = scores.arrays
        fingerprint = metric.module.fingerprint(cell, metric)
        current = scores.fingerprints.get(metric.name) == fingerprint
        current &= all(name in scores.arrays for name in scores.owned.get(metric.name, ()))
        if current and not scores.reasons[metric.name]:
            continue
        reason, arrays = _extract(cell, metric)
        if not current or reason != scores.reasons[metric.name]:
            scores = scores.having(metric.name, reason, fingerprint, arrays)
            scores = replace(scores, arrays={**scores.arrays, "group": group(requests)})
            apart = apart and not any(name.startswith(FEATURE) for name in arrays)
            # another metric may take hours, and never end
            if metric.asked or time.monotonic() - written > WRITTEN_EVERY:
                write_cell(files, key, scores, features=not apart)
                apart, written = True, time.monotonic()
    scores = with_statistics(record, scores, sets)
    sets.forget()
    if scores is not before or not apart:
        write_cell(files, key, scores, features=not apart)
    shutil.rmtree(files.feature_parts(key), ignore_errors=True)
    return scores is not before, damaged


def _before(files: RunFolder, key: str) -> tuple[Scores | None, bool, list[str]]:
    """The scores of a cell with their features, whether all features are in a file of their own, and
    a sentence for each damaged file, which is set aside."""
    damaged = []
    for path in (files.scores(key), files.features(key)):
        try:
            if os.path.lexists(path):
                read_file(path, whole=True)
        except FileNotFoundError:  # a link to nothing, which writing replaces
            continue
        except ValueError as error:
            set_aside(path)
            damaged.append(f"{error}; set aside and made again")
    if not files.scores(key).is_file():
        return None, False, damaged
    inside = (
        name.startswith(FEATURE) and not name.endswith(SHAPE)
        for name in read_file(files.scores(key)).arrays
    )  # as older folders have them
    return read_cell(files, key), not any(inside), damaged


def _extract(cell: Sampled, metric: Metric) -> tuple[str, dict[str, np.ndarray]]:
    """Why the metric cannot be had, or "" and its arrays."""
    if cell.weights == "random":
        return RANDOM, {}
    if reason := metric.module.refuse(cell, metric):
        return reason, {}
    try:
        values: dict[str, np.ndarray] = metric.module.extract(cell, metric)
    except ValueError as error:
        return str(error), {}
    if wrong := [name for name, array in values.items() if not np.isfinite(array).all()]:
        return f"{', '.join(wrong)} came out not finite", {}
    return "", values


def group(requests: list[dict[str, Any]]) -> np.ndarray:
    """[n] int64: requests of one prompt, or of one entry of a prompt file, share a number. Classes
    are a fixed set, not drawn: each such request stands alone.
    """
    units = [_unit(r) for r in requests]
    numbers = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    return np.array([numbers[unit] for unit in units], np.int64)


def _unit(request: dict[str, Any]) -> Any:
    if request.get("entry") is not None:
        return request["entry"]
    return request["prompt"] if request["prompt"] is not None else request["id"]
