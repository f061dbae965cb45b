"""Where the weights of a model lie, and whether they are whole."""

from __future__ import annotations

import functools
import hashlib
import json
import socket
from pathlib import Path

from ditbench import ZOO
from ditbench.models.folders import check_file, parts_of, pipeline_of, shards_of
from ditbench.models.table import Model
from ditbench.records.files import file_sha256, user_cache, write_json
from ditbench.records.text import one_line

WEIGHTLESS = ("Scheduler", "Tokenizer", "TokenizerFast", "Backend")
"""How the names of classes end whose parts of a pipeline have no weights."""
LARGE = 1 << 28
"""Bytes from which a file takes seconds to hash."""
READ = (".safetensors", ".json", ".model", ".txt")
"""How the files end that a pipeline is loaded from: weights, configurations, tokenizers."""


def locate(model: Model, weights: str, *, download: bool = True) -> Path:
    """The diffusers folder with the model's weights.

    For a PATH that is PATH itself, a folder in it named after the model or its hub repository, or a
    hub cache (`models--org--name/snapshots/REVISION`) at or in it. ValueError when there is
    none. A model of one's own has a folder, whatever `weights` says.
    """
    if model.folder:
        return Path(model.folder)
    if weights == "bundled":
        if not model.is_bundled:
            raise ValueError(
                f"{model.name} has no bundled weights; choose --weights hub, random or a folder"
            )
        if not (ZOO / model.name).is_dir():
            raise ValueError(
                f"{model.name} has not been trained yet; python -m ditbench.zoo.models "
                f"{model.name} --help says how"
            )
        return ZOO / model.name
    if weights == "hub":
        return _from_hub(model, download)
    root = Path(weights).expanduser()
    cache = "models--" + model.hub.replace("/", "--")
    plain = [root, root / model.name] + (
        [root / model.hub, root / model.hub.rpartition("/")[2]] if model.hub else []
    )
    caches = [root, *([root / cache, root / "hub" / cache] if model.hub else [])]
    for folder in (*plain, *(snapshot for place in caches if (snapshot := _snapshot(place)))):
        if (folder / "model_index.json").is_file():
            return folder
    where = (
        f", nor in {model.name}/ or {cache}/ in it"
        if model.hub
        else f", nor in {model.name}/ in it"
    )
    raise ValueError(
        f"no model_index.json in {root}{where}: it holds no diffusers pipeline for {model.name}"
    )


def _snapshot(place: Path) -> Path | None:
    """The snapshot of a hub cache folder that `main` names, or else the only one."""
    try:
        return place / "snapshots" / (place / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        snapshots = [p for p in (place / "snapshots").glob("*") if p.is_dir()]
        return snapshots[0] if len(snapshots) == 1 else None


def _from_hub(model: Model, download: bool) -> Path:
    if not model.hub:
        raise ValueError(f"{model.name} is not on the hub; it is bundled")
    from ditbench.quiet import quiet

    with quiet():
        from diffusers import DiffusionPipeline

        def fetched(offline: bool) -> Path:
            return Path(
                DiffusionPipeline.download(
                    model.hub, revision=model.revision or None, use_safetensors=True,
                    local_files_only=offline,
                )
            )  # fmt: skip

        try:  # what is there is used as it is: a branch may move while a run goes on
            folder = fetched(True)
            check_folder(folder)
            return folder
        except Exception as error:  # not there, or in parts
            missing = error
        try:
            if not download:
                raise missing
            return fetched(False)
        # whatever the network stack raises, there is nothing else to do than to say so
        except Exception as error:
            if "safetensors" in str(error):
                raise ValueError(_without_safetensors(model)) from error
            raise ValueError(f"{model.hub} on the Hugging Face hub {trouble(error)}") from error


def _without_safetensors(model: Model) -> str:
    folder = model.hub.rpartition("/")[2]
    revision = f" --revision {model.revision}" if model.revision else ""
    return (
        f"{model.hub} on the Hugging Face hub has no safetensors: `hf download {model.hub}{revision} "
        f"--local-dir {folder}`, then `python run_bench.py convert {folder}`, and --weights {folder}"
    )


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
    if any(
        isinstance(e, (ConnectionError, TimeoutError, FileNotFoundError, socket.gaierror))
        for e in chain
    ):
        return "cannot be reached and is not cached; --weights PATH reads a folder"
    return f"cannot be fetched: {_first_line(error)}"


def check_folder(folder: Path, pipeline: str | None = None) -> None:
    """Raise ValueError, naming the file, unless `folder` is a diffusers pipeline whose safetensors
    files are all there and whole.

    Reads headers only. `pipeline` is the pipeline class it must hold, when given.
    """
    class_name = pipeline_of(folder).get("_class_name")
    if pipeline and class_name != pipeline:
        raise ValueError(f"{folder} holds a {one_line(str(class_name), 80)}, not a {pipeline}")
    for name, (_, part_class) in parts_of(folder).items():
        if not part_class.endswith(WEIGHTLESS):
            _check_part(folder / name)


def variant_of(folder: Path) -> str | None:
    """`fp16` where that is the only variant of the weights in a pipeline's folder, else None."""
    files = [path for path in folder.glob("*/*.safetensors")]
    return "fp16" if files and all(".fp16." in path.name for path in files) else None


def _check_part(folder: Path) -> None:
    """A part with weights: at least one safetensors file, all shards there, every file whole."""
    files = sorted(folder.glob("*.safetensors"))
    for index in folder.glob("*.safetensors.index.json"):
        shards = {*shards_of(index).values()}
        if missing := sorted(shards - {f.name for f in files}):
            raise ValueError(f"{folder / missing[0]} is missing, but {index.name} names it")
    if not files:
        if sorted([*folder.glob("*.bin"), *folder.glob("*.bin.index.json")]):
            raise ValueError(
                f"{folder} has its weights as .bin only, which can run code when it is read; "
                f"python run_bench.py convert {folder.parent} makes .safetensors of them"
            )
        raise ValueError(f"{folder} has no .safetensors file, and nothing else is read")
    for file in files:
        check_file(file)


def weights_sha256(model: Model, weights: str) -> str:
    """One hash for everything the model's outputs depend on: every file of its folder that is READ,
    configurations and tokenizers as well as weights; or its architecture when the weights are
    random; and its low-rank updates.

    ValueError as `locate`; fetches nothing.
    """
    if model.lora:
        parts_of_hash = [_unmerged_sha256(model, weights), *(lora.content for lora in model.lora)]
        return hashlib.sha256(json.dumps(parts_of_hash).encode()).hexdigest()
    return _unmerged_sha256(model, weights)


def _unmerged_sha256(model: Model, weights: str) -> str:
    if weights == "random":
        from ditbench.models.architecture import describe

        parts = describe(model)
        for part in parts.values():
            if "folder" in part:  # a tiny model's tokenizer, wherever the package is installed
                part["folder"] = _folder_sha256(Path(part["folder"]))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return _folder_sha256(locate(model, weights, download=False))


def _folder_sha256(folder: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(
        path for path in folder.rglob("*") if path.suffix in READ and path.is_file()
    ):
        stat = file.stat()
        large = file.suffix == ".safetensors"
        sha256 = _hash(file, stat.st_size, stat.st_mtime_ns) if large else file_sha256(file)
        total.update(f"{file.relative_to(folder).as_posix()} {sha256}\n".encode())
    return total.hexdigest()


@functools.cache
def _hash(file: Path, size: int, modified_ns: int) -> str:
    """sha256 of a file's content, computed once per process and version of the file, of a large one
    once on this machine; a hub cache already has it as the blob's name."""
    blob = file.resolve().name
    if file.is_symlink() and len(blob) == 64 and set(blob) <= set("0123456789abcdef"):
        return blob
    return file_sha256(file) if size < LARGE else _remembered(file.resolve(), size, modified_ns)


def _remembered(file: Path, size: int, modified_ns: int) -> str:
    """sha256 of a large file from the user's cache, where it was of this size and time when it was
    hashed; else it is hashed and noted there, where that can be written."""
    notes = user_cache() / "weights-sha256.json"
    try:
        table = json.loads(notes.read_text(encoding="utf-8"))
        *version, sha256 = table[str(file)]
        if version == [size, modified_ns]:
            return str(sha256)
    except (OSError, ValueError, KeyError, TypeError):
        table = {}
    sha256 = file_sha256(file)
    try:
        notes.parent.mkdir(parents=True, exist_ok=True)
        write_json(notes, {**table, str(file): [size, modified_ns, sha256]})
    except OSError:  # it is hashed again next time
        pass
    return sha256


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
