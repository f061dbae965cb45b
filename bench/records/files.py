"""Files that are written completely or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write to; what lies there takes the place of `path` when the block ends, and
    is removed when it fails. `path` is the new file or what was there before, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, document: Any) -> None:
    """Write `document` atomically, and to the disk before it takes the place of `path`."""
    with replacing(path) as partial, partial.open("w") as f:
        json.dump(document, f, indent=1, allow_nan=False)
        f.flush()
        os.fsync(f.fileno())


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
