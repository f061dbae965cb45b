"""Weights that are there as `.bin` only, as safetensors beside them: tensors are read and nothing
else, so that no code in them runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ditbench.models.folders import INDEX, parts_of, shards_of
from ditbench.models.weights import WEIGHTLESS
from ditbench.records.files import file_sha256, read_json, replacing, write_json

NAMES = re.compile(r"(?P<stem>diffusion_pytorch_model|pytorch_model)(?P<rest>[-.\w]*)\.bin")
"""Files of weights, whole or a shard: of diffusers and of transformers."""
RENAMED = {"diffusion_pytorch_model": "diffusion_pytorch_model", "pytorch_model": "model"}


def convert(folder: Path, tell: Callable[[str, int, int], None]) -> list[dict[str, Any]]:
    """Write safetensors for every part of a diffusers pipeline (or for a folder of weights) that has
    none, and return a row for each file; what is there is left alone. `tell` hears of each file
    before it is read: its path, how many are done, of how many.

    Values keep their number format; the metadata names the source and its sha256. ValueError for a
    folder without such weights, and for a file with more in it than tensors.
    """
    rows: list[dict[str, Any]] = []
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    parts = {part: files for part in _parts(folder) if (files := _left(part))}
    if not parts:
        raise ValueError(f"{folder} has no part whose weights are .bin alone")
    for part, files in parts.items():
        for source, path in files.items():
            tell(str(source), len(rows), sum(map(len, parts.values())))
            rows.append(_convert(source, path))
        for index in sorted(part.glob("*.bin.index.json")):
            _convert_index(index)
    return rows


def _parts(folder: Path) -> list[Path]:
    """The folders in it that have weights; itself where it is no pipeline's."""
    if not (folder / INDEX).is_file():
        return [folder]
    return [
        folder / name
        for name, (_, kind) in parts_of(folder).items()
        if not kind.endswith(WEIGHTLESS)
    ]


def _renamed(name: str) -> str:
    """What the file, or the shard, is called as safetensors; "" for other files."""
    match = NAMES.fullmatch(name)
    return f"{RENAMED[match['stem']]}{match['rest']}.safetensors" if match else ""


def _left(part: Path) -> dict[Path, Path]:
    """Source -> what is made of it, where that is not there; none where the part has safetensors of
    another kind."""
    paths = {
        source: part / name
        for source in sorted(part.glob("*.bin"))
        if (name := _renamed(source.name))
    }
    others = {*part.glob("*.safetensors")} - {*paths.values()}
    return {} if others else {s: path for s, path in paths.items() if not path.is_file()}


def _convert(source: Path, path: Path) -> dict[str, Any]:
    from safetensors.torch import save_file

    tensors = _tensors(source)
    metadata = {"format": "pt", "source": source.name, "source_sha256": file_sha256(source)}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata)
    return {
        "file": str(path), "source": source.name, "tensors": len(tensors),
        "megabytes": round(path.stat().st_size / 1e6, 1), "sha256": file_sha256(path),
    }  # fmt: skip


def _tensors(source: Path) -> dict[str, Any]:
    """The tensors of a file, none sharing memory with another; ValueError for anything else in
    it."""
    import torch

    try:
        try:
            state = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # of a format that cannot be mapped
            state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever damaged files raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if type(error).__name__ == "UnpicklingError":  # whose advice is to run the code
            reason = "it is not tensors alone"
        raise ValueError(f"{source} is not read: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{source} is no table of tensors by name")
    memory: set[int] = set()
    tensors = {}
    for name, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        tensors[str(name)] = (
            tensor.clone(memory_format=torch.contiguous_format)
            if place in memory
            else tensor.contiguous()
        )
        memory.add(place)
    return tensors


def _convert_index(index: Path) -> None:
    """The table of shards, with their new names."""
    names, document = shards_of(index), read_json(index)
    document["weight_map"] = {key: _renamed(name) or name for key, name in names.items()}
    name = _renamed(index.name.removesuffix(".index.json"))
    write_json(index.with_name(f"{name}.index.json"), document)
