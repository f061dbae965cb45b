"""A run sent somewhere and fetched from there: a folder, a file FILE.tar.zst, or a data set of the
Hugging Face hub, hf://datasets/OWNER/NAME. No torch."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ditbench.records.published_files import replaced
from ditbench.records.record import is_published, read_run, read_spec
from ditbench.records.run_folder import RunFolder
from ditbench.reports.publishing.archive import pack, unpack, zstandard
from ditbench.reports.publishing.private import private_strings
from ditbench.reports.publishing.records import in_place_of, publish
from ditbench.reports.publishing.verifying import TABLES, write_derived

HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)/?")
ARCHIVE = ".tar.zst"
_FILES = RunFolder(Path())
OURS = (
    *(p.name for p in (
        _FILES.spec, _FILES.command, _FILES.references, _FILES.published_records,
        _FILES.published_scores, _FILES.thumbnails,
    )),
    "requests/*.json", f"{TABLES}/*.csv", f"{TABLES}/*.md", f"{TABLES}/*.tex", "README.md",
    "plots/*.png",
)  # fmt: skip
"""What of a published run is sent and fetched."""


def share(run: Path, to: str) -> int:
    """Send a run, published first where it is not, with its tables; returns the number of bytes.

    Raises ValueError, and sends nothing, where the run cannot be published, or would tell secrets,
    folders of the machine, or names of its user and host; and for a destination that is none.
    """
    _check_place(to)
    with as_published(run) as folder:
        write_derived(folder)
        if reasons := private_strings(folder):
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            raise ValueError(f"{run} is not published: {reasons[0]}{more}")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if name := HUB.fullmatch(to):
            _upload(folder, name[1])
        elif to.endswith(ARCHIVE):
            pack(folder, Path(to))
        else:
            _place(folder, Path(to))
    return size


def pull(source: str, into: Path) -> Path:
    """Fetch a published run into a folder that is not there yet; returns it. ValueError where there
    is no such run, or its files are not those it was published with; then nothing is left."""
    _check_place(source)
    if into.exists() and any(into.iterdir() if into.is_dir() else [into]):
        raise ValueError(f"out: {into} is there already; name another folder")
    into.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".pull-", dir=into.parent) as made:
        fetched, fresh = Path(made) / "fetched", Path(made) / "run"
        fetched.mkdir()
        if name := HUB.fullmatch(source):
            _download(name[1], fetched)
        elif source.endswith(ARCHIVE):
            if not Path(source).is_file():
                raise ValueError(f"there is no file {source}")
            unpack(Path(source), fetched)
        else:
            fetched = Path(source)
        _copy(fetched, fresh)
        try:
            spec = read_spec(fresh)
        except ValueError as error:
            raise ValueError(str(error).replace(str(fresh), source)) from error
        if not is_published(fresh):
            raise ValueError(f"{source} is no published run; `publish` makes one of a run folder")
        if wrong := replaced(fresh, spec):
            raise ValueError(f"{source}: {', '.join(wrong)} not as published with its spec.json")
        if damaged := read_run(fresh).damaged:
            raise ValueError(damaged[0].replace(str(fresh), source))
        if into.is_dir():
            into.rmdir()
        fresh.rename(into)
    return into


def _place(folder: Path, to: Path) -> None:
    """Put a published run into a folder, where an earlier one may be; other files there stay."""
    if RunFolder(to).spec.is_file() and not is_published(to):
        raise ValueError(f"to: {to} is a run folder; a published run needs another")
    if to.exists() and not to.is_dir():
        raise ValueError(f"to: {to} is a file")
    with in_place_of(to) as fresh:
        for pattern in OURS[:-2]:
            for path in fresh.glob(pattern):
                path.unlink()
        shutil.copytree(folder, fresh, dirs_exist_ok=True)


@contextmanager
def as_published(run: Path) -> Iterator[Path]:
    """A folder, to be changed, with a run as a published one; removed when the block ends."""
    read_spec(run)
    with TemporaryDirectory(prefix="ditbench-") as made:
        folder = Path(made) / (run.resolve().name or "run")
        if is_published(run):
            _copy(run, folder)
        else:
            publish(run, folder)
        yield folder


def _copy(run: Path, folder: Path) -> None:
    """Copy the files a published run consists of; links are not followed out of it."""
    folder.mkdir()
    for pattern in OURS:
        for path in sorted(run.glob(pattern)):
            if path.is_symlink() or not path.is_file():
                continue
            (folder / path.relative_to(run)).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / path.relative_to(run))


def _check_place(place: str) -> None:
    if place.startswith("hf:") and not HUB.fullmatch(place):
        raise ValueError(f"{place!r} is no data set of the hub: hf://datasets/OWNER/NAME")
    if re.match(r"[a-z0-9+]+://", place) and not HUB.fullmatch(place):
        raise ValueError(
            f"{place!r}: a run is shared as a folder, FILE{ARCHIVE} or hf://datasets/OWNER/NAME"
        )
    if place.endswith(ARCHIVE):
        zstandard()


def _hub() -> Any:
    import huggingface_hub

    return huggingface_hub


def _upload(folder: Path, name: str) -> None:
    hub = _hub()
    try:
        api = hub.HfApi()
        api.create_repo(name, repo_type="dataset", exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, repo_type="dataset",
            commit_message="Results of ditbench",
        )  # fmt: skip
    except (OSError, ValueError) as error:  # HTTP errors of the hub are OSErrors
        raise ValueError(f"the hub did not take {name} ({_first(error)})") from error


def _download(name: str, into: Path) -> None:
    hub = _hub()
    try:
        hub.snapshot_download(name, repo_type="dataset", local_dir=into, allow_patterns=list(OURS))
    except (OSError, ValueError) as error:
        raise ValueError(f"the hub did not give {name} ({_first(error)})") from error


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
