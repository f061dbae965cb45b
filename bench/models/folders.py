"""What the index files in a folder of weights say: parts of a pipeline, shards of a part, tensors of a
file. ValueError names a file that is damaged. No torch."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from ditbench.records.checks import MAYBE, NAME, Names, Values, check
from ditbench.records.reading import parse_json, read_json, regular
from ditbench.records.text import one_line

INDEX = "model_index.json"
ANY = (dict, list, str, int, float, bool, MAYBE)
LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, as its own library has it."""


def pipeline_of(folder: Path) -> dict[str, Any]:
    """The index of a diffusers pipeline. ValueError also where there is none."""
    index = folder / INDEX
    try:
        parts: dict[str, Any] = check(read_json(index), Names(ANY), str(index))
    except FileNotFoundError:
        raise ValueError(f"{index} is missing: {folder} is no diffusers pipeline") from None
    for name, kind in parts.items():
        if isinstance(kind, list) and (
            len(kind) != 2 or not all(isinstance(text, str | None) for text in kind)
        ):
            raise ValueError(f"{index} is damaged ({name} is no library and class)")
    return parts


def parts_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Library and class of the parts a diffusers pipeline has, by name; ValueError as
    `pipeline_of`."""
    return {
        name: (str(kind[0]), str(kind[1]))
        for name, kind in pipeline_of(folder).items()
        if isinstance(kind, list) and kind[0]
    }


def sizes_of(config: Path) -> dict[str, Any]:
    """The sizes of a part, by its configuration. ValueError also where there is none."""
    try:
        sizes: dict[str, Any] = check(read_json(config, infinite=True), {}, str(config))
    except FileNotFoundError:
        raise ValueError(f"{config} is missing") from None
    return {name: value for name, value in sizes.items() if not name.startswith("_")}


def class_of(config: Path) -> str:
    """The diffusers class of a part, by its configuration; "" where that does not say. ValueError
    as `sizes_of`."""
    sizes_of(config)
    return str(read_json(config, infinite=True).get("_class_name", ""))


def shards_of(index: Path) -> dict[str, str]:
    """The file of each tensor of a part that is in several."""
    document = check(read_json(index), {"weight_map": Values(NAME)}, str(index))
    shards: dict[str, str] = document["weight_map"]
    return shards


def check_file(path: Path) -> None:
    """Raise ValueError, naming the file, unless it is as long as its safetensors header says."""
    try:
        size = regular(path).stat().st_size
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > min(size, LONGEST_HEADER):
                raise ValueError("its header is cut off")
            header = parse_json(f.read(length).decode(), "its header")
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        ends = [_end(entry) for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is damaged: {one_line(str(error))}") from None
    if (expected := 8 + length + max(ends, default=0)) != size:
        raise ValueError(f"{path} is damaged: it has {size} bytes and its header says {expected}")


def _end(entry: Any) -> int:
    """Where a tensor ends, by its entry in a header."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and type(offsets[1]) is int):
        raise ValueError("its header says not where its tensors are")
    end: int = offsets[1]
    return end
