"""Keep a run as a published one: what reports need of it, small enough for git. No torch."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from PIL import Image

from ditbench.analysis.rows import Record
from ditbench.extractors.references import ReferenceSets
from ditbench.metrics.published_statistics import is_statistic, rounded
from ditbench.metrics.set_statistics import Sets, sets_of
from ditbench.metrics.table import metrics
from ditbench.records.checks import read_references, read_requests
from ditbench.records.published_files import FILES, hashes
from ditbench.records.record import MEASURED, check_not_published, read_run
from ditbench.records.run_folder import RunFolder
from ditbench.records.sample_blocks import FEATURE, GROUPS
from ditbench.records.scores import SHAPE, Scores, as_bytes, read_scores
from ditbench.reports.publishing.speeds import BLOCKS
from ditbench.reports.sections.samples import Pixels, first_samples

IMAGES, VIDEOS, FRAMES = 4, 2, 4
"""Thumbnails of a cell, and frames of each, evenly spaced."""
SIDE, QUALITY = 192, 85
"""Of a thumbnail: its longer side in pixels at most, and WebP's quality."""
REQUEST = ("id", "seed", "prompt", "label")
"""What is kept of a request."""
ABSOLUTE = re.compile(r"/[^/:]*(/[^/:]+)+/?")
"""A text that is an absolute path."""
FOLDERS = re.compile(r"""(?<![^\s=:'"(\[,])/([^\s/'"]+/)+(?=[^\s/'"])""")
"""The folders of an absolute path within a text."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of every file in an archive, so that the same run gives the same bytes."""


def publish(run: Path, folder: Path) -> list[Path]:
    """Write what reports need of the run into `folder`; returns the files written. Other files that
    are there, its README say, stay. All is written beside it and then takes its place.

    Of random weights, which are for times and memory, neither scores nor samples are wanted.
    Records are kept whole but for tracebacks and folders of the machine; scores without features,
    which their statistics replace (numbers rounded to single precision); of requests what was asked
    for; of samples a few thumbnails. Raises ValueError for a folder that is no run, is published
    already, or has records, requests, samples or features that cannot be read, and for a measured
    cell of trained weights without scores; then nothing is written.
    """
    check_not_published(run)
    content = read_run(run)
    scores = read_scores(run, content.records)
    if content.damaged:
        raise ValueError(content.damaged[0])
    measured = [record for record in content.records if record["status"] in MEASURED]
    seen = [record for record in measured if record["run"].get("weights") != "random"]
    for record in seen:
        if record["key"] not in scores:
            raise ValueError(f"{record['key']} has no scores; `score {run}` makes them")
    source, into = RunFolder(run), RunFolder(folder)
    made: dict[Path, bytes] = {}
    if source.command.is_file():
        made[into.command] = _command(source.command.read_text(encoding="utf-8")).encode()
    if source.references.is_file():
        made[into.references] = as_text(_pointers(source.references))
    for model in dict.fromkeys(record["model"] for record in content.records):
        requests = [
            json.dumps({name: request.get(name) for name in REQUEST})
            for request in _requests(source, model)
        ]
        made[into.requests(model)] = f"[\n{f',{chr(10)}'.join(requests)}\n]\n".encode()
    sets = sets_of(None, ReferenceSets(run))
    small = {
        f"{r['key']}.safetensors": as_bytes(without_features(r, scores[r["key"]], sets))
        for r in content.records
        if r["key"] in scores
    }
    made[into.published_scores] = zipped(small, ZIP_DEFLATED)
    thumbnails = {
        f"{r['key']}/{i}-{t}.webp": _webp(frame)
        for r in seen
        for i, sample in enumerate(_first_samples(source, r["key"]))
        for t, frame in enumerate(sample)
    }
    made[into.thumbnails] = zipped(thumbnails, ZIP_STORED)
    made[into.published_records] = b"".join(
        as_text(without_folders({**record, "traceback": ""}), separators=(",", ":"))
        for record in content.records
    )
    for of in (run, folder):
        if (of / BLOCKS).is_file():
            made.setdefault(folder / BLOCKS, (of / BLOCKS).read_bytes())
    files = hashes({path.relative_to(folder).as_posix(): of_path for path, of_path in made.items()})
    spec = without_folders(_spec(content.spec)) | {FILES: files}
    made = {into.spec: as_text(spec, indent=1), **made}
    with in_place_of(folder) as fresh:
        before = RunFolder(fresh)
        requests_of = before.requests("any").parent
        for path in (before.command, before.references, *requests_of.glob("*")):
            path.unlink(missing_ok=True)  # of what was published here before
        requests_of.mkdir(parents=True, exist_ok=True)
        for path, of_path in made.items():
            (fresh / path.relative_to(folder)).write_bytes(of_path)
    return list(made)


@contextmanager
def in_place_of(folder: Path) -> Iterator[Path]:
    """A folder with what `folder` holds, to be changed; it takes the place of `folder` when the
    block ends, and is removed when it fails.

    A new folder appears by one rename. One that was there is renamed first, so that whoever is
    stopped in between leaves none of that name and both whole beside it: the next call puts the
    old one back.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, aside = (folder.with_name(f".{folder.name}.{what}") for what in ("partial", "before"))
    if aside.exists() and not folder.exists():
        aside.rename(folder)
    for left_over in (fresh, aside):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        if folder.exists():
            shutil.copytree(folder, fresh)
        else:
            fresh.mkdir()
        yield fresh
        if folder.exists():
            folder.rename(aside)
        try:
            fresh.rename(folder)
        except BaseException:
            if aside.exists():
                aside.rename(folder)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def without_features(record: Record, scores: Scores, sets: Sets) -> Scores:
    """The scores of a cell with its statistics in place of its features.

    A statistic that cannot be worked out has its reason instead. ValueError names features of which
    no known metric is made: they would be lost.
    """
    read = {metric.features for metric in metrics().values() if metric.statistic}
    features = [n.removesuffix(SHAPE) for n in scores.arrays if n.startswith(FEATURE)]
    if unread := [name for name in features if name not in read]:
        raise ValueError(
            f"{record['key']} has {unread[0]}, of which no metric here is made; --plugin FILE.py "
            "names the file that declares one"
        )
    known = metrics()
    arrays = {
        name: rounded(scores.arrays[name])
        for name in scores.arrays
        if name != GROUPS and not name.startswith(FEATURE) and not is_statistic(name, known)
    }
    reasons: dict[str, str] = without_folders(dict(scores.reasons))
    for metric in metrics().values():
        if not metric.statistic or (shape := scores.shape_of(metric.features)) is None:
            continue
        arrays[metric.features + SHAPE] = np.array(shape)
        try:
            statistics = sets.all_of(metric, record, scores)
        except ValueError as error:
            reasons[metric.name] = without_folders(str(error))
        else:
            arrays |= {
                f"{metric.name}@{name}": array if name.endswith(".head") else rounded(array)
                for name, array in statistics.items()
            }
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


def without_folders(value: Any) -> Any:
    """A JSON document with the last part of each absolute path in its texts in place of the path,
    which names folders of the machine."""
    if isinstance(value, dict):
        return {without_folders(name): without_folders(of_name) for name, of_name in value.items()}
    if isinstance(value, list):
        return [without_folders(part) for part in value]
    if not isinstance(value, str):
        return value
    return Path(value).name if ABSOLUTE.fullmatch(value) else FOLDERS.sub("", value)


def _spec(document: dict[str, Any]) -> dict[str, Any]:
    """A spec without the folder it was run in."""
    return document | {"spec": document.get("spec", {}) | {"out": ""}}


def _command(command: str) -> str:
    """A command without the folder it was run in, nor others of the machine."""
    words = shlex.split(command)
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    others = [word for word in words if not word.startswith("--out=")]
    return shlex.join(without_folders(others)) + "\n"


def _pointers(path: Path) -> dict[str, Any]:
    """References by their names and hashes."""
    return {
        model: {
            maker: pointer | {"path": Path(pointer["path"]).name}
            for maker, pointer in of_model.items()
        }
        for model, of_model in read_references(path).items()
    }


def _requests(source: RunFolder, model: str) -> list[dict[str, Any]]:
    try:
        requests = read_requests(source.requests(model))
    except FileNotFoundError:
        raise ValueError(f"{source.requests(model)} is missing") from None
    return requests


def _first_samples(source: RunFolder, key: str) -> list[list[Pixels]]:
    try:
        return first_samples(source, key, few, spaced)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _webp(pixels: Pixels) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    content = BytesIO()
    picture.save(content, "WEBP", quality=QUALITY, method=6)
    return content.getvalue()


def as_text(document: Any, **style: Any) -> bytes:
    """A JSON document and the end of its last line."""
    return f"{json.dumps(document, **style)}\n".encode()


def zipped(content: dict[str, bytes], compression: int) -> bytes:
    """An archive whose members have no date, so that the same content gives the same bytes."""
    archive = BytesIO()
    with ZipFile(archive, "w", compression, compresslevel=9) as file:
        for name, of_name in content.items():
            file.writestr(ZipInfo(name, EPOCH), of_name, compression, 9)
    return archive.getvalue()
