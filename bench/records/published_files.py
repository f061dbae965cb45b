"""The files of a published run: archives whose members may be damaged, and the hashes in spec.json
by which files of two runs in one folder are noticed. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from ditbench.records.files import file_sha256
from ditbench.records.reading import regular

LARGEST = 1 << 31
"""Bytes that the members of an archive may unpack to."""
FILES = "files"
"""Key of spec.json: path in the folder -> sha256 of every other file the run was published with."""


def members(path: Path, prefix: str = "") -> tuple[dict[str, bytes], list[str]]:
    """The members of an archive whose names begin with `prefix`: the content of those that can be
    read, and the names of the others. ValueError when it is missing or no archive."""
    content, unreadable = {}, []
    try:
        with ZipFile(regular(path, path.parent)) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST:
                raise ValueError(f"it unpacks to more than {LARGEST >> 20} MiB")
            for name in archive.namelist():
                if name.startswith(prefix):
                    try:
                        content[name] = archive.read(name)
                    except Exception:  # of bytes that are no member the decoders raise anything
                        unreadable.append(name)
    except Exception as error:
        raise ValueError(f"{path} is missing or damaged ({error})") from error
    return content, unreadable


def hashes(content: Mapping[str, bytes]) -> dict[str, str]:
    """The sha256 of files by their paths in the folder, for spec.json."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(content.items())}


def replaced(folder: Path, spec: Mapping[str, Any]) -> list[str]:
    """The files of a published run that are missing or are not those it was published with, by what
    its spec.json says; none where that says nothing, as those of older versions."""
    stated = spec.get(FILES)
    return [
        name
        for name, sha256 in (stated.items() if isinstance(stated, Mapping) else ())
        if not _is(folder / name, folder, sha256)
    ]


def _is(path: Path, folder: Path, sha256: str) -> bool:
    """Whether a file of the folder is there and has that content."""
    try:
        return file_sha256(regular(path, folder)) == sha256
    except (OSError, ValueError):
        return False
