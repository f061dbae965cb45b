"""One command at a time writes to a run folder. No torch."""

from __future__ import annotations

import errno
import json
import os
import platform
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from ditbench.records.reading import read_json
from ditbench.records.run_folder import RunFolder
from ditbench.records.text import cleaned

UNABLE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of file systems without locks."""


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Keep other commands from writing to a run folder, which is made if it is not there.

    ValueError, in one sentence with its process and host, where another command does so, and where
    a part of the folder is a link out of it. The lock
    is the system's (`flock`), which a process that ends gives back however it ends; where the file
    system has none, what the file says is believed, unless its process is of this host and gone.
    Systems without `flock` (Windows) are not kept apart.
    """
    folder.mkdir(parents=True, exist_ok=True)
    RunFolder(folder).check_own()
    path = RunFolder(folder).lock
    file = _locked(path)
    try:
        file.seek(0)
        file.truncate()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        json.dump({"pid": os.getpid(), "host": platform.node(), "since": since}, file)
        file.flush()
        yield
    finally:
        path.unlink(
            missing_ok=True
        )  # before others can lock it: they look whether it is still there
        file.close()


def _locked(path: Path) -> TextIO:
    """The file, open and locked, and still the one at `path`."""
    while True:
        file = _opened(path)
        try:
            _lock(file, path)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _opened(path: Path) -> TextIO:
    """The file, made where it is not there; ValueError for a link, which is not followed, and for
    what is no file."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES):
            raise
        raise ValueError(f"out: {path} cannot be locked ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"out: {path} cannot be locked (it is not a file)")
    return open(descriptor, "r+", encoding="utf-8", errors="replace")


def _lock(file: TextIO, path: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        user = _user(path)
        if error.errno in UNABLE and not _there(user):
            return
        if error.errno not in (*UNABLE, errno.EAGAIN, errno.EACCES):
            raise
        raise ValueError(
            f"out: another command writes to {path.parent} (process {user.get('pid', 'unknown')} on "
            f"{user.get('host', 'an unknown host')}, since {user.get('since', 'an unknown time')}); "
            "wait until it has ended, or choose another folder with --out"
        ) from None


def _user(path: Path) -> dict[str, Any]:
    """What the file says of the command that holds it."""
    try:
        user = cleaned(read_json(path))
    except (OSError, ValueError):  # it has only just locked it
        return {}
    return user if isinstance(user, dict) else {}


def _there(user: dict[str, Any]) -> bool:
    """Whether a process may still be running: it is of another host, or is seen to be."""
    if not isinstance(pid := user.get("pid"), int):
        return False
    if user.get("host") != platform.node():
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no process has a number of that size
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
