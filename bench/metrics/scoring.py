"""Score a finished run: samples -> per-sample values and features, one file per cell. Never
generates, never derives.

scores/<key>.safetensors holds arrays [n, ...] in request order, named by metric, and `group` [n],
samples of one prompt sharing a number. Its metadata say for every metric why it is missing (""
where it is there) and what it was computed from, so that a second run does only what is new.
`ditbench.analysis.summary.read_scores` reads them back without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ditbench.extractors.shelf import Shelf
from ditbench.metrics import features
from ditbench.metrics.samples import Sampled, Samples
from ditbench.metrics.table import Metric, select
from ditbench.records.checks import read_requests
from ditbench.records.files import set_aside
from ditbench.records.lock import writing_to
from ditbench.records.record import MEASURED, Record, check_not_published, read_run, read_spec
from ditbench.records.run_folder import RunFolder
from ditbench.records.sample_files import OTHER, not_as_written
from ditbench.records.scores import Scores, read_file, write_file

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


def score_run(
    folder: Path, metrics: str | list[str] | None = None, progress: Tell | None = None,
    judge_folder: Path | None = None,
    shelf: Shelf | None = None,
) -> Scoring:  # fmt: skip
    """Bring the scores of every measured cell of a run up to date and say what was done.

    `metrics` chooses some by name (default: all but those that are scored only when asked for; for
    models of a shapes world, of those only what needs no extractor); `shelf` has the extractors
    (default: the official ones). Scores are against the cell with stack `none` of the same model. A
    samples file that is damaged is set aside and named; its cell is then left without scores.
    Raises ValueError for an unknown metric, no run folder, or a published run, and when another
    command writes to the folder.
    """
    check_not_published(folder)
    select(metrics)
    read_spec(folder)  # before anything is made there
    with writing_to(folder):
        return _score_run(folder, metrics, progress, judge_folder, shelf or Shelf())


def _score_run(
    folder: Path, metrics: str | list[str] | None, progress: Tell | None, judge_folder: Path | None,
    shelf: Shelf,
) -> Scoring:  # fmt: skip
    wanted, run, done = select(metrics), read_run(folder), Scoring()
    files = RunFolder(folder)
    opened: dict[str, Samples] = {}
    cells = [r for r in run.records if r["status"] in MEASURED]
    for record in cells:
        if samples := _opened(files, record, done):
            opened[record["key"]] = samples
    baselines = {r["model"]: r for r in cells if r["stack"] == "none"}
    for i, record in enumerate(cells):
        key = record["key"]
        if progress:
            progress(key, i, len(cells))
        if key not in opened:
            files.scores(key).unlink(missing_ok=True)
            continue
        requests = _requests(folder, record["model"], len(opened[key]))
        cell = _sampled(
            record, baselines.get(record["model"]), opened, requests, judge_folder, shelf
        )
        chosen = [m for m in wanted if metrics is not None or not (cell.world and m.extractor)]
        new = _score_cell(files.scores(key), cell, features.before(chosen), requests, done)
        (done.written if new else done.kept).append(key)
    if progress:
        progress("", len(cells), len(cells))
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
    path: Path, cell: Sampled, wanted: list[Metric], requests: list[dict[str, Any]], done: Scoring
) -> bool:
    """Write what is missing of a cell's scores; False when nothing was."""
    samples_sha256 = cell.samples.sha256
    scores = _before(path, done)
    fits = scores is not None and scores.fits(len(requests))
    if scores is None or not fits or scores.samples_sha256 != samples_sha256:
        scores = Scores(samples_sha256=samples_sha256)
    before = scores
    for metric in wanted:
        cell.stored["arrays"] = scores.arrays
        fingerprint = metric.module.fingerprint(cell, metric)
        current = scores.fingerprints.get(metric.name) == fingerprint
        if current and not scores.reasons[metric.name]:
            continue
        reason, arrays = _extract(cell, metric)
        if not current or reason != scores.reasons[metric.name]:
            scores = scores.having(metric.name, reason, fingerprint, arrays)
            scores = replace(scores, arrays={**scores.arrays, "group": group(requests)})
            if metric.asked:  # it may have taken hours, and the next one may never end
                write_file(path, scores)
    if scores is before:
        return False
    write_file(path, scores)
    return True


def _before(path: Path, done: Scoring) -> Scores | None:
    if not path.is_file():
        return None
    try:
        return read_file(path)
    except ValueError as error:
        set_aside(path)
        done.damaged.append(f"{error}; set aside and made again")
        return None


def _extract(cell: Sampled, metric: Metric) -> tuple[str, dict[str, np.ndarray]]:
    """Why the metric cannot be had, or "" and its arrays."""
    if cell.weights == "random":
        return "the weights are random, so the samples show nothing", {}
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
