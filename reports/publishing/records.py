"""Keep a run as a published one: what reports need of it, small enough for git. No torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from PIL import Image

from ditbench.analysis.published_statistics import rounded
from ditbench.analysis.quality import sets_of
from ditbench.analysis.rows import Record
from ditbench.analysis.set_statistics import Sets
from ditbench.extractors.references import ReferenceSets
from ditbench.metrics.table import metrics
from ditbench.records.files import read_json, replacing
from ditbench.records.record import MEASURED, check_not_published, read_run
from ditbench.records.run_folder import RunFolder
from ditbench.records.scores import SHAPE, Scores, as_bytes, read_scores
from ditbench.reports.sections.samples import Pixels, first_samples

FEATURE = "feature."
"""How the names of arrays of features begin."""
IMAGES, VIDEOS, FRAMES = 4, 2, 4
"""Thumbnails of a cell, and frames of each, evenly spaced."""
SIDE, QUALITY = 192, 85
"""Of a thumbnail: its longer side in pixels at most, and WebP's quality."""
REQUEST = ("id", "seed", "prompt", "label")
"""What is kept of a request."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of every file in an archive, so that the same run gives the same bytes."""


def publish(run: Path, folder: Path) -> list[Path]:
    """Write what reports need of the run into `folder`; returns the files written.

    Records are kept whole but for tracebacks, which name folders of the machine; scores without features, which their
    statistics replace (numbers rounded to single precision); of requests what was asked for; of
    samples a few thumbnails. Raises ValueError for a folder that is no run, is published already,
    or has records that cannot be read, and for a measured cell without scores.
    """
    check_not_published(run)
    content, scores = read_run(run), read_scores(run)
    if content.damaged:
        raise ValueError(content.damaged[0])
    for record in content.records:
        if record["status"] in MEASURED and record["key"] not in scores:
            raise ValueError(f"{record['key']} has no scores; `score {run}` makes them")
    folder.mkdir(parents=True, exist_ok=True)
    source, into = RunFolder(run), RunFolder(folder)
    files = [_write_text(into.spec, json.dumps(_spec(content.spec), indent=1) + "\n")]
    if source.command.is_file():
        files.append(_write_text(into.command, _without_out(source.command.read_text())))
    lines = [
        json.dumps({**record, "traceback": ""}, separators=(",", ":")) for record in content.records
    ]
    files.append(_write_text(into.published_records, "\n".join(lines) + "\n"))
    if source.references.is_file():
        files.append(_write_text(into.references, json.dumps(_pointers(source.references))))
    into.requests("any").parent.mkdir(exist_ok=True)
    for model in dict.fromkeys(r["model"] for r in content.records):
        requests = [
            json.dumps({name: request.get(name) for name in REQUEST})
            for request in read_json(source.requests(model))
        ]
        files.append(_write_text(into.requests(model), "[\n" + ",\n".join(requests) + "\n]\n"))
    sets = sets_of(None, ReferenceSets(run))
    small = {
        f"{r['key']}.safetensors": as_bytes(without_features(r, scores[r["key"]], sets))
        for r in content.records
        if r["key"] in scores
    }
    files.append(_write_zip(into.published_scores, small, ZIP_DEFLATED))
    thumbnails = {
        f"{r['key']}/{i}-{t}.webp": _webp(frame)
        for r in content.records
        if r["status"] in MEASURED
        for i, sample in enumerate(first_samples(source, r["key"], few, spaced))
        for t, frame in enumerate(sample)
    }
    files.append(_write_zip(into.thumbnails, thumbnails, ZIP_STORED))
    return files


def without_features(record: Record, scores: Scores, sets: Sets) -> Scores:
    """The scores of a cell with its statistics in place of its features.

    A statistic that cannot be worked out has its reason instead.
    """
    arrays = {
        name: rounded(array)
        for name, array in scores.arrays.items()
        if not name.startswith(FEATURE)
    }
    reasons = dict(scores.reasons)
    for metric in metrics().values():
        if not metric.statistic or metric.features not in scores.arrays:
            continue
        arrays[metric.features + SHAPE] = np.array(scores.shape_of(metric.features))
        try:
            statistics = sets.all_of(metric, record, scores)
        except ValueError as error:
            reasons[metric.name] = str(error)
        else:
            arrays |= {f"{metric.name}@{name}": array for name, array in statistics.items()}
    return Scores(
        samples_sha256=scores.samples_sha256,
        arrays=arrays,
        reasons=reasons,
        fingerprints=scores.fingerprints,
    )


def few(video: bool, side: int) -> int:
    """How many samples are kept."""
    return VIDEOS if video else IMAGES


def spaced(frames: int) -> Sequence[int]:
    """The frames of a video that are kept."""
    return sorted({round(i * (frames - 1) / (FRAMES - 1)) for i in range(FRAMES)})


def _spec(document: dict[str, Any]) -> dict[str, Any]:
    """A spec without the folder it was run in."""
    return document | {"spec": document.get("spec", {}) | {"out": ""}}


def _without_out(command: str) -> str:
    """A command without the folder it was run in."""
    words = shlex.split(command)
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    return shlex.join(word for word in words if not word.startswith("--out=")) + "\n"


def _pointers(path: Path) -> dict[str, Any]:
    """References by their names and hashes."""
    return {
        model: {
            maker: pointer | {"path": Path(pointer["path"]).name}
            for maker, pointer in of_model.items()
        }
        for model, of_model in read_json(path).items()
    }


def _webp(pixels: Pixels) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    content = BytesIO()
    picture.save(content, "WEBP", quality=QUALITY, method=6)
    return content.getvalue()


def _write_text(path: Path, text: str) -> Path:
    with replacing(path) as partial:
        partial.write_text(text)
    return path


def _write_zip(path: Path, content: dict[str, bytes], compression: int) -> Path:
    with replacing(path) as partial, ZipFile(partial, "w", compression, compresslevel=9) as file:
        for name, of_name in content.items():
            file.writestr(ZipInfo(name, EPOCH), of_name, compression, 9)
    return path
