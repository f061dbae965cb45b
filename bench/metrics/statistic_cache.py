"""Readings of a run, kept in its folder by all they were made of, so that a second report works
none of them out again. No torch.

A key is a hash of the features, their groups, the reference, and the statistic: its function with
what is bound to it, and the source of the module it lives in and of all that module imports of its
package and ours. Whatever changes, there is no reading under its key, and it is made anew. A file
that is missing, damaged or cannot be written costs time and nothing else.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ditbench.records.files import replacing
from ditbench.records.reading import regular
from ditbench.records.run_folder import RunFolder
from ditbench.statistics.frechet import Reference
from ditbench.statistics.influence import MOST, Reading


def key_of(
    read: Callable[..., Reading],
    features: NDArray[np.generic],
    group: NDArray[np.generic],
    reference: Reference | None,
) -> str:
    """What a reading by `read` is kept under: sha256 of everything it depends on."""
    digest = hashlib.sha256(
        f"{_statistic(read)} {_digest(reference) if reference else ''}".encode()
    )
    for array in (features, group):
        digest.update(f" {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def worked_out_from(
    functions: Sequence[Callable[..., Any] | None], source: str, reference: Reference | None
) -> str:
    """What a statistic in a scores file is said to be worked out from: sha256 of its functions, of
    what its features are of and were made by (`source`), and of the reference. The features are not
    read for it."""
    names = [_statistic(function) for function in functions if function is not None]
    text = f"{MOST} {names} {source} {_digest(reference) if reference else ''}"
    return hashlib.sha256(text.encode()).hexdigest()


def array_of(reading: Reading) -> NDArray[np.float64]:
    """A reading as numbers, [3 + units]: value, its unbiased one (NaN where there is none), units
    behind the parts (0 where that is not said), and the parts."""
    unbiased = np.nan if reading.unbiased is None else reading.unbiased
    return np.array([reading.value, unbiased, reading.groups or 0, *reading.parts])


def reading_of(numbers: NDArray[np.float64]) -> Reading:
    """The reading that `array_of` wrote."""
    value, unbiased, groups = numbers[:3].tolist()
    return Reading(
        value=value,
        parts=numbers[3:],
        unbiased=None if np.isnan(unbiased) else unbiased,
        groups=int(groups) or None,
    )


class Kept:
    """The readings of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.path = RunFolder(folder).readings
        self._asked: dict[str, NDArray[np.float64]] = {}
        try:
            stored = load_file(regular(self.path, folder))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, MemoryError):
            stored = {}
        # what has not the shape of a reading is made anew
        self._found = {
            key: array
            for key, array in stored.items()
            if array.dtype == np.float64 and array.ndim == 1 and len(array) >= 3
        }

    def get(self, key: str) -> Reading | None:
        """The reading under a key, if there is one."""
        if (stored := self._found.get(key)) is None:
            return None
        self._asked[key] = stored
        return reading_of(stored)

    def put(self, key: str, reading: Reading) -> None:
        """Keep a reading that was not there."""
        self._asked[key] = array_of(reading)

    def save(self) -> None:
        """Write what was asked for, and forget the rest; nothing where that is what the file holds,
        or where it cannot be written."""
        if self._asked.keys() == self._found.keys():
            return
        if not self._asked:
            with suppress(OSError):
                self.path.unlink()
            return
        with suppress(SafetensorError, OSError), replacing(self.path) as partial_file:
            save_file(self._asked, partial_file)


def _statistic(read: Any) -> str:
    """The names of a function and of what is bound to it, with sha256 of their modules' sources."""
    if isinstance(read, partial):
        bound = [*read.args, *(value for pair in sorted(read.keywords.items()) for value in pair)]
        return f"{_statistic(read.func)}({', '.join(map(_statistic, bound))})"
    if not callable(read):
        return repr(read)
    inside = [_statistic(cell.cell_contents) for cell in getattr(read, "__closure__", None) or ()]
    name = f"{read.__module__}.{getattr(read, '__qualname__', repr(read))}"
    return f"{name} {inside} {_source_sha256(read.__module__)}"


@cache
def _source_sha256(module: str) -> str:
    """Of a module and all it imports, wherever in the file, of its own package and of ours."""
    packages, sources, waiting = (
        {"ditbench", module.partition(".")[0]},
        dict[str, bytes](),
        [module],
    )
    while waiting:
        name = waiting.pop()
        if (
            name in sources
            or name.partition(".")[0] not in packages
            or (file := _file(name)) is None
        ):
            continue
        sources[name] = file.read_bytes()
        waiting += _imported(
            sources[name], name if file.name == "__init__.py" else name.rpartition(".")[0]
        )
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(f"{name} {hashlib.sha256(sources[name]).hexdigest()}\n".encode())
    return digest.hexdigest()


def _imported(source: bytes, package: str) -> Iterator[str]:
    """Names that may be modules, of all imports in a source that lies in `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _file(name: str) -> Path | None:
    """The source of a module, which is not imported for it; None when there is no such module."""
    if name in sys.modules:
        origin = getattr(sys.modules[name], "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(name)
        except ImportError:  # a name in a module, which is no package
            return None
        origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None


@lru_cache(maxsize=32)
def _digest(reference: Reference) -> str:
    digest = hashlib.sha256(f"{reference.n}".encode())
    for array in (reference.mean, reference.root, reference.features):
        if array is not None:
            digest.update(f" {array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
