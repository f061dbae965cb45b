"""JSON files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any


def write_json(path: Path, document: Any) -> None:
    """Write `document` so that `path` is either the whole new document or what was there before."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w") as f:
        json.dump(document, f, indent=1, allow_nan=False)
        f.flush()
        os.fsync(f.fileno())
    partial.rename(path)


def read_json(path: Path) -> Any:
    """The document at `path`; ValueError names a damaged file."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def set_aside(path: Path) -> Path:
    """Move a damaged file or folder out of the way, keeping it; returns where it went."""
    for n in range(1, 10_000):
        aside = path.with_name(f"{path.name}.damaged-{n}")
        if not aside.exists():
            shutil.move(path, aside)
            return aside
    raise OSError(f"{path.parent} holds too many damaged files")
