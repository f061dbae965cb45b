"""Which process makes a shard now: a file beside it that only one process can make, and that its
owner touches for as long as it lives. No torch.

`SSSSS.lease-0` is the first claim. Where its owner is gone, or has not touched it for `EXPIRED_S`,
`SSSSS.lease-1` is the next, and so on: the highest number counts, each can be made once, and so two
processes that find the same dead owner never both take its place.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ditbench.records.reading import read_json

BEAT_S = 5.0
"""Seconds from one touch to the next."""
EXPIRED_S = 6 * BEAT_S
"""Seconds without a touch after which an owner is taken for dead."""


class Lease:
    """A claim of this process, kept alive by a thread until it is released."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        """Give the claim back, and remove those before it."""
        self._over.set()
        self._thread.join()
        for path in _claims(self.path.with_suffix("")):
            if _number(path) <= _number(self.path):
                path.unlink(missing_ok=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()


def claim(place: Path, session: str) -> Lease | None:
    """A lease of what `place` (a path without a suffix) stands for; None where a living process has
    one. Whoever gets it looks again whether the work has been done meanwhile."""
    claims = _claims(place)
    if claims and _lives(claims[-1]):
        return None
    number = _number(claims[-1]) + 1 if claims else 0
    path = place.with_name(f"{place.name}.lease-{number}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return None
    owner = {"host": platform.node(), "pid": os.getpid(), "session": session}
    with os.fdopen(handle, "w") as file:
        json.dump(owner, file)
    return Lease(path)


def owner_of(place: Path) -> dict[str, Any]:
    """Host, pid and session of the process that has the lease; empty where there is none."""
    for path in reversed(_claims(place)):
        return _owner(path)
    return {}


def _claims(place: Path) -> list[Path]:
    return sorted(place.parent.glob(f"{place.name}.lease-*"), key=_number)


def _number(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _owner(path: Path) -> dict[str, Any]:
    """What a lease says; empty where it is gone, or only just made."""
    try:
        owner = read_json(path)
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _lives(path: Path) -> bool:
    try:
        if time.time() - path.stat().st_mtime > EXPIRED_S:
            return False
    except FileNotFoundError:  # released in this moment: whoever had it has done the work
        return True
    owner = _owner(path)
    if owner.get("host") != platform.node() or not isinstance(owner.get("pid"), int):
        return True
    try:
        os.kill(owner["pid"], 0)
        # killed, and nobody has asked how it ended: the first process of a container may never ask
        status = Path(f"/proc/{owner['pid']}/stat").read_text(encoding="utf-8")
        return status.rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, OverflowError):  # no process has a number of that size
        return False
    except (OSError, IndexError):  # another user's, or a system without /proc
        return True
