"""What a long preparation has got to, on disk, so that the same command goes on after a kill. No
torch."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.records.files import read_json, replacing, write_json
from ditbench.records.lock import writing_to

SPENT = "spent.json"
EVERY = 5.0
"""Seconds between two writings of how long the preparation has taken."""


@dataclass
class HalfDone:
    """A preparation that earlier commands may have begun."""

    folder: Path
    """For what a method keeps to go on from; gone once its artefact is there."""
    earlier: float = 0.0
    """Seconds that earlier commands spent."""
    commands: int = 0
    """Earlier commands, which were stopped."""
    by: str = ""
    """Device and number format."""

    def listening(self, tell: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        """`tell`, which hears of progress, and the time it took so far written down meanwhile."""
        started, written = time.monotonic(), [0.0]

        def hear(row: dict[str, Any]) -> None:
            now = time.monotonic()
            if not written[0] or now - written[0] >= EVERY:
                written[0] = now
                seconds = round(self.earlier + now - started, 1)
                spent = {"seconds": seconds, "commands": self.commands + 1, "by": self.by}
                write_json(self.folder / SPENT, spent)
            tell(row)

        if self.commands:
            note = f"goes on from {self.folder}; remove that folder to begin anew"
            tell({"done": 0, "of": 1, "note": note})
        return hear


@contextmanager
def half_done(artifact: Path, by: str = "") -> Iterator[HalfDone]:
    """The preparation of an artefact's folder, `by` a device and number format. ValueError, from
    `writing_to`, where another command is at it, and where it was half done by others; what is half
    done stays where the block is left by an exception. What killed commands were about to write of
    the artefact is removed."""
    folder = artifact.with_name(f".{artifact.name}.half")
    try:
        with writing_to(folder):
            for partial in artifact.parent.glob(f".{artifact.name}.*.partial"):
                shutil.rmtree(partial, ignore_errors=True)
            own = HalfDone(folder, by=by)
            try:
                spent = read_json(folder / SPENT)
                own.earlier, own.commands = float(spent["seconds"]), int(spent["commands"])
            except (OSError, ValueError, KeyError, TypeError):
                clear(folder)  # the first command was stopped before it had anything
            else:
                if (before := str(spent.get("by") or by)) != by:
                    raise ValueError(
                        f"{folder} has {own.earlier:.0f} s of this preparation by {before}, and this "
                        f"command asks for {by}; ask for {before} to go on, or remove that folder"
                    )
            yield own
            clear(folder)
    finally:
        with suppress(OSError):  # there is something to go on from
            folder.rmdir()


def clear(folder: Path) -> None:
    """Remove all that is in a folder but the lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not path.name.startswith(".lock"):
            os.unlink(path)


class Journal:
    """Results of the costly calls of a computation that is deterministic otherwise, in their order:
    begun again, it takes them from the disk as far as they go, and comes to the same state."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.calls = folder / "journal" if folder else None, 0
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, compute: Callable[[], Any], of: object) -> NDArray[np.float64]:
        """What `compute` returns, a number or float64 array, or what it returned to the command
        before. `of` says what is asked, by its text; where another was asked then, it and what came
        after it are computed again."""
        if not self.folder:
            return np.asarray(compute(), np.float64)
        path, key = self.folder / f"{self.calls:06d}.npz", hashlib.sha256(repr(of).encode())
        self.calls += 1
        digest = np.frombuffer(key.digest(), np.uint8)
        if path.exists():
            with np.load(path) as stored:
                if np.array_equal(stored["of"], digest):
                    value: NDArray[np.float64] = stored["value"]
                    return value
            for later in self.folder.glob("*.npz"):
                if later >= path:
                    later.unlink()
        value = np.asarray(compute(), np.float64)
        with replacing(path) as partial, open(partial, "wb") as file:
            np.savez(file, of=digest, value=value)
        return value


NO_JOURNAL = Journal(None)
"""Computes everything."""
