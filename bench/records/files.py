"""Files that are written completely or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from ditbench.records.reading import is_inside, regular
from ditbench.records.reading import read_json as read_json

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""Half a character, as JSON writes it in ASCII; two of them may be a whole one."""


@contextmanager
def replacing(path: Path, *, synced: bool = False) -> Iterator[Path]:
    """Yields a path to write to; what lies there takes the place of `path` when the block ends, and
    is removed when it fails. `path` is the new file or what was there before, never a part.

    What lies there already is an empty file that was not there before, under a name that nobody
    could know: no link is followed. The file gets the permissions of any new file (the umask's),
    also from libraries that would give their files others. `synced`: the content is on the disk
    before it takes the place, and the name after, so that no loss of power leaves a file of the
    right size without its content.
    """
    partial = path.with_name(f".{path.name[:80]}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        mode = partial.stat().st_mode & 0o777
        yield partial
        if partial.stat().st_mode & 0o777 != mode:
            partial.chmod(mode)
        if synced:
            _sync(partial)
        partial.replace(path)
        if synced:
            with suppress(OSError):  # systems whose folders cannot be opened keep their own order
                _sync(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            error.filename = str(path)  # a full disk does not say which file
        raise


def make_folder(folder: Path, within: Path) -> Path:
    """`folder`, made where it is not there; ValueError where a link leads it out of `within`."""
    check_folder(folder, within)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_folder(folder: Path, within: Path) -> None:
    """ValueError where what is written to `folder` would land outside of `within`."""
    if not is_inside(folder, within):
        raise ValueError(
            f"{folder} is a link to {folder.resolve()}, outside of {within}, and nothing is written "
            "there; remove the link"
        )


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8 atomically; what UTF-8 has no bytes for becomes a question mark."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, document: Any) -> None:
    """Write `document` atomically, and to the disk before it takes the place of `path`. Text that is
    no Unicode, which names of files may be, is written as what can be read again."""
    text = json.dumps(document, indent=1, allow_nan=False)
    if SURROGATE.search(text):
        text = json.dumps(_unicode(document), indent=1, allow_nan=False)
    with replacing(path, synced=True) as partial:
        partial.write_text(text, encoding="utf-8")


def _unicode(value: Any) -> Any:
    """A document whose texts UTF-8 has bytes for: those of a name that the locale could not decode are
    taken as UTF-8, what else it has no bytes for becomes a question mark."""
    if isinstance(value, str):
        try:
            return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        except UnicodeEncodeError:
            return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_unicode(name): _unicode(inner) for name, inner in value.items()}
    return [_unicode(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def json_text(document: Any) -> str:
    """A document for other programs: numbers that JSON has none of (NaN, infinity) are null."""
    return json.dumps(_finite(document), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digest(path: Path) -> str:
    """sha256 of a file, read once by a process for as long as it is unchanged; ValueError for what is
    no file, and is not opened."""
    stat = regular(path).stat()
    return _sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    return file_sha256(path)


def user_cache() -> Path:
    """The folder for what need not be worked out twice on this machine; it may be missing."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ditbench"


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Move a damaged file or folder out of the way, keeping it; returns where it went."""
    for n in range(1, 10_000):
        aside = path.with_name(f"{path.name}.damaged-{n}")
        if not os.path.lexists(aside):
            path.rename(aside)  # a link itself, a folder with what is in it
            return aside
    raise OSError(f"{path.parent} holds too many damaged files")


def check_file(path: Path) -> None:
    """ValueError when a file could not be written there; makes nothing."""
    if path.is_dir():
        raise ValueError(f"--out: {path} is a folder, not a file")
    if not path.parent.is_dir():
        raise ValueError(f"--out: there is no folder {path.parent} to write {path.name} to")
    if not os.access(path.parent, os.W_OK | os.X_OK) or (
        path.exists() and not os.access(path, os.W_OK)
    ):
        raise ValueError(f"--out: {path} cannot be written (no permission)")
