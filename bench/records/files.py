"""Files that are written completely or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, *, synced: bool = False) -> Iterator[Path]:
    """Yields a path to write to; what lies there takes the place of `path` when the block ends, and
    is removed when it fails. `path` is the new file or what was there before, never a part.

    `synced`: the content is on the disk before it takes the place, and the name after, so that no
    loss of power leaves a file of the right size without its content.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if synced:
            _sync(partial)
        partial.replace(path)
        if synced:
            with suppress(OSError):  # systems whose folders cannot be opened keep their own order
                _sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, document: Any) -> None:
    """Write `document` atomically, and to the disk before it takes the place of `path`."""
    with replacing(path, synced=True) as partial, partial.open("w") as f:
        json.dump(document, f, indent=1, allow_nan=False)


def read_json(path: Path) -> Any:
    """The document at `path`; ValueError names a damaged file."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digest(path: Path) -> str:
    """sha256 of a file, read once by a process for as long as it is unchanged."""
    stat = path.stat()
    return _sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    return file_sha256(path)


def user_cache() -> Path:
    """The folder for what need not be worked out twice on this machine; it may be missing."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ditbench"


def set_aside(path: Path) -> Path:
    """Move a damaged file or folder out of the way, keeping it; returns where it went."""
    for n in range(1, 10_000):
        aside = path.with_name(f"{path.name}.damaged-{n}")
        if not aside.exists():
            shutil.move(path, aside)
            return aside
    raise OSError(f"{path.parent} holds too many damaged files")
