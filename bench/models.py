"""The models: a table of facts, and one way to load any of them. Imports torch only inside `load`."""

from __future__ import annotations

import functools
import hashlib
import json
import socket
import struct
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ditbench.knobs import suggest

HERE = Path(__file__).resolve().parent
ZOO = HERE / "zoo"
GROUPS = ("tiny", "full")
PIPELINES = {"dit": "DiTPipeline", "pixart": "PixArtAlphaPipeline", "flux": "FluxPipeline", "wan": "WanPipeline"}
"""Pipeline class of each family."""
WEIGHTLESS = ("Scheduler", "Tokenizer", "TokenizerFast", "Backend")
"""How the names of classes end whose parts of a pipeline have no weights."""
READ = (".safetensors", ".json", ".model", ".txt")
"""How the files end that a pipeline is loaded from: weights, configurations, tokenizers."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A row of `models.toml`."""

    name: str
    family: str
    """`dit`, `pixart`, `flux` or `wan`: decides the call's arguments and the anatomy."""
    group: str
    """`tiny` (bundled with the package) or `full`."""
    hub: str = ""
    """Repository on the Hugging Face hub; empty for tiny models."""
    architecture: str = ""
    """File of `architectures/` with the published sizes; empty for tiny models, whose folder says it."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Sizes that differ from the file, as `part.key`."""
    steps: int
    guidance: float
    height: int
    width: int
    frames: int = 1
    """1 for pictures."""
    text_tokens: int = 0
    """Length prompts are padded to; 0 for class-conditional models."""
    passes_batched: bool = False
    """Whether the two guidance passes share one transformer call."""
    world: str = ""
    """The world a tiny model was trained in: `class`, `scene` or `video`."""


@functools.cache
def _table() -> dict[str, Model]:
    rows = tomllib.loads((HERE / "models.toml").read_text())
    return {name: Model(name=name, **row) for name, row in rows.items()}


def models() -> dict[str, Model]:
    """Every model of the table, by name."""
    return dict(_table())


def select(text: str) -> list[Model]:
    """The models of a comma-separated list of names and groups, each once; ValueError with the nearest names for anything else."""
    table = _table()
    found: dict[str, Model] = {}
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ValueError(f"no model given; {suggest('', (*GROUPS, *table))}")
    for word in words:
        if word in GROUPS:
            found |= {name: model for name, model in table.items() if model.group == word}
        elif word in table:
            found[word] = table[word]
        else:
            raise ValueError(f"no model {word!r}; {suggest(word, (*GROUPS, *table))}")
    return list(found.values())


def load(model: Model, *, weights: str, device: str, dtype: str, changes: dict[str, Any] | None = None) -> Any:
    """The model's diffusers pipeline, on `device` in `dtype` (`float32`, `bfloat16`, `float16`), silent and ready to be called.

    `weights` is `bundled` (tiny models), `hub`, `random` (the whole architecture with random weights, for speed and memory only) or
    a folder, see `locate`. `changes` overrides sizes of a random model, as `part.key`. Only safetensors are read, nothing is
    unpickled. Raises ValueError in one sentence for weights that cannot be found, reached or read, naming the file.
    """
    import torch

    from ditbench.quiet import quiet

    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype: {dtype!r} is no floating-point type of torch")
    with quiet():
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        if weights == "random":
            from ditbench.architecture import build

            pipe = build(model, device=device, dtype=kind, changes=changes)
        else:
            folder = locate(model, weights)
            check_folder(folder, PIPELINES[model.family])
            try:
                only = {"use_safetensors": True, "local_files_only": True}
                pipe = DiffusionPipeline.from_pretrained(folder, dtype=kind, **only)
            except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{folder} cannot be loaded as {model.name}: {_first_line(error)}") from error
            pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def locate(model: Model, weights: str, *, download: bool = True) -> Path:
    """The diffusers folder with the model's weights.

    For a PATH that is PATH itself, a folder in it named after the model or its hub repository, or a hub cache
    (`models--org--name/snapshots/REVISION`) at or in it. ValueError when there is none.
    """
    if weights == "bundled":
        if model.group != "tiny":
            raise ValueError(f"{model.name} has no bundled weights; choose --weights hub, random or a folder")
        if not (ZOO / model.name).is_dir():
            raise ValueError(
                f"{model.name} has not been trained yet; python -m ditbench.zoo.models {model.name} --help says how"
            )
        return ZOO / model.name
    if weights == "hub":
        return _from_hub(model, download)
    root = Path(weights).expanduser()
    cache = "models--" + model.hub.replace("/", "--")
    plain = [root, root / model.name] + ([root / model.hub, root / model.hub.rpartition("/")[2]] if model.hub else [])
    caches = [root, *([root / cache, root / "hub" / cache] if model.hub else [])]
    for folder in (*plain, *(found for place in caches if (found := _snapshot(place)))):
        if (folder / "model_index.json").is_file():
            return folder
    where = f", nor in {model.name}/ or {cache}/ in it" if model.hub else f", nor in {model.name}/ in it"
    raise ValueError(f"no model_index.json in {root}{where}: it holds no diffusers pipeline for {model.name}")


def _snapshot(place: Path) -> Path | None:
    """The snapshot of a hub cache folder that `main` names, or else the only one."""
    try:
        return place / "snapshots" / (place / "refs" / "main").read_text().strip()
    except OSError:
        found = [p for p in (place / "snapshots").glob("*") if p.is_dir()]
        return found[0] if len(found) == 1 else None


def _from_hub(model: Model, download: bool) -> Path:
    if not model.hub:
        raise ValueError(f"{model.name} is not on the hub; it is bundled")
    from ditbench.quiet import quiet

    with quiet():
        from diffusers import DiffusionPipeline

        try:
            return Path(DiffusionPipeline.download(model.hub, use_safetensors=True, local_files_only=not download))
        except Exception as error:  # whatever the network stack raises, there is nothing else to do than to say so
            raise ValueError(f"{model.hub} on the Hugging Face hub {trouble(error)}") from error


def trouble(error: BaseException) -> str:
    """What went wrong with the hub, by the most telling of an error and its causes."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if any(isinstance(e, GatedRepoError) for e in chain):
        return "is gated: accept its licence there, then log in with `hf auth login`"
    if any(isinstance(e, RepositoryNotFoundError) for e in chain):
        return "was not found, or needs `hf auth login`"
    if any(isinstance(e, (ConnectionError, TimeoutError, FileNotFoundError, socket.gaierror)) for e in chain):
        return "cannot be reached and is not cached; --weights PATH reads a folder"
    return f"cannot be fetched: {_first_line(error)}"


def check_folder(folder: Path, pipeline: str | None = None) -> None:
    """Raise ValueError, naming the file, unless `folder` is a diffusers pipeline whose safetensors files are all there and whole.

    Reads headers only. `pipeline` is the pipeline class it must hold, when given.
    """
    index = folder / "model_index.json"
    try:
        parts = json.loads(index.read_text())
    except FileNotFoundError:
        raise ValueError(f"{index} is missing: {folder} is no diffusers pipeline") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{index} cannot be read: {_first_line(error)}") from None
    if pipeline and (found := parts.get("_class_name")) != pipeline:
        raise ValueError(f"{folder} holds a {found}, not a {pipeline}")
    for name, kind in parts.items():
        if isinstance(kind, list) and kind[0] and not str(kind[1]).endswith(WEIGHTLESS):
            _check_part(folder / name)


def _check_part(folder: Path) -> None:
    """A part with weights: at least one safetensors file, all shards there, every file whole."""
    files = sorted(folder.glob("*.safetensors"))
    for index in folder.glob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{index} cannot be read: {_first_line(error)}") from None
        if missing := sorted(shards - {f.name for f in files}):
            raise ValueError(f"{folder / missing[0]} is missing, but {index.name} names it")
    if not files:
        raise ValueError(f"{folder} has no .safetensors file, and nothing else is read")
    for file in files:
        check_file(file)


def check_file(path: Path) -> None:
    """Raise ValueError, naming the file, unless it is as long as its safetensors header says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > size:
                raise ValueError("its header is cut off")
            header = json.loads(f.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {_first_line(error)}") from None
    if (expected := 8 + length + max(ends, default=0)) != size:
        raise ValueError(f"{path} is damaged: it has {size} bytes and its header says {expected}")


def weights_sha256(model: Model, weights: str) -> str:
    """One hash for everything the model's outputs depend on: every file of its folder that is READ, configurations and tokenizers as well
    as weights; or its architecture when the weights are random.

    ValueError as `locate`; fetches nothing.
    """
    if weights == "random":
        from ditbench.architecture import describe

        parts = describe(model)
        for part in parts.values():
            if "folder" in part:  # a tiny model's tokenizer, wherever the package is installed
                part["folder"] = _folder_sha256(Path(part["folder"]))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return _folder_sha256(locate(model, weights, download=False))


def _folder_sha256(folder: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in READ and path.is_file()):
        stat = file.stat()
        large = file.suffix == ".safetensors"
        sha256 = _hash(file, stat.st_size, stat.st_mtime_ns) if large else hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(folder).as_posix()} {sha256}\n".encode())
    return total.hexdigest()


@functools.cache
def _hash(file: Path, size: int, modified_ns: int) -> str:
    """sha256 of a file's content, computed once per process and version of the file; a hub cache already has it as the blob's name."""
    blob = file.resolve().name
    if file.is_symlink() and len(blob) == 64 and set(blob) <= set("0123456789abcdef"):
        return blob
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
