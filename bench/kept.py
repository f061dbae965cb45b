"""Readings of a run, kept in its folder by all they were made of, so that a second report works none of them out again. No torch.

A key is a hash of the features, their groups, the reference and the source of the modules that read them: whatever changes, there is
no reading under its key, and it is made anew. A file that is missing, damaged or cannot be written costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ditbench.distances import Reference
from ditbench.readings import Reading

FILE = "readings.safetensors"
SOURCES = ("distances", "kernels", "manifold", "readings", "sets", "statistics")
"""Modules that a reading is made by."""


def key_of(
    statistic: str, check: bool, features: NDArray[np.generic], group: NDArray[np.generic], reference: Reference | None
) -> str:
    """What a reading is kept under: sha256 of everything it depends on."""
    told = hashlib.sha256(f"{_sources()} {statistic} {check} {_digest(reference) if reference else ''}".encode())
    for array in (features, group):
        told.update(f" {array.dtype} {array.shape} ".encode())
        told.update(np.ascontiguousarray(array).data)
    return told.hexdigest()


class Kept:
    """The readings of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._asked: dict[str, NDArray[np.float64]] = {}
        try:
            self._found = load_file(self.path) if self.path.is_file() else {}
        except (SafetensorError, OSError):
            self._found = {}

    def get(self, key: str) -> Reading | None:
        """The reading under a key, if there is one."""
        if (told := self._found.get(key)) is None:
            return None
        self._asked[key] = told
        value, unbiased, groups = told[:3].tolist()
        return Reading(
            value=value, parts=told[3:], unbiased=None if np.isnan(unbiased) else unbiased, groups=int(groups) or None
        )

    def put(self, key: str, reading: Reading) -> None:
        """Keep a reading that was not there."""
        self._asked[key] = np.array(
            [
                reading.value,
                np.nan if reading.unbiased is None else reading.unbiased,
                reading.groups or 0,
                *reading.parts,
            ]
        )

    def save(self) -> None:
        """Write what was asked for, and forget the rest; nothing where that is what the file holds, or where it cannot be written."""
        if self._asked.keys() == self._found.keys():
            return
        partial = self.path.with_name(f".{FILE}.{os.getpid()}.partial")
        try:
            save_file(self._asked, partial)
            partial.rename(self.path)
        except (SafetensorError, OSError):
            partial.unlink(missing_ok=True)


@cache
def _sources() -> str:
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / f"{name}.py").read_bytes() for name in SOURCES)).hexdigest()


@lru_cache(maxsize=32)
def _digest(reference: Reference) -> str:
    told = hashlib.sha256(f"{reference.n}".encode())
    for array in (reference.mean, reference.root, reference.features):
        if array is not None:
            told.update(f" {array.dtype} {array.shape} ".encode())
            told.update(np.ascontiguousarray(array).data)
    return told.hexdigest()
