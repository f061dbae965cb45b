"""Pipelines built from their published sizes, without weights: for `--weights random`, and on the
meta device for counting.

The sizes are data, in `architectures/*.toml` (full-size models) or in a tiny model's own folder.
"""

from __future__ import annotations

import copy
import importlib
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ditbench import ZOO
from ditbench.models.family import family_named
from ditbench.models.folders import parts_of, sizes_of
from ditbench.models.origin import note_origin
from ditbench.models.table import HERE, Model

SEED = 0
"""Of random weights."""


def describe(model: Model, changes: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Part -> its class (`library.Class`, none for a tokenizer) and sizes, `changes` (`part.key`)
    applied last.

    ValueError for a change of a part the pipeline does not have, and for a folder without what it
    should hold.
    """
    parts: dict[str, dict[str, Any]]
    if model.parts:
        parts = copy.deepcopy({name: dict(sizes) for name, sizes in model.parts.items()})
    elif model.architecture:
        file = HERE / "architectures" / f"{model.architecture}.toml"
        parts = tomllib.loads(file.read_text(encoding="utf-8"))
    else:
        parts = _of_folder(model)
    for where, value in {**model.changes, **(changes or {})}.items():
        part, _, key = where.partition(".")
        if part not in parts:
            raise ValueError(
                f"{model.name} has no part {part!r} to change {key} of; there are "
                f"{', '.join(parts)}"
            )
        parts[part][key] = value
    return parts


def _of_folder(model: Model) -> dict[str, dict[str, Any]]:
    """What the folder of a tiny model, or of one's own, says of its parts."""
    folder = Path(model.folder) if model.folder else ZOO / model.name
    if not (folder / "model_index.json").is_file() and not model.folder:
        raise ValueError(
            f"{folder / 'model_index.json'} is missing; python -m ditbench.zoo.models makes it"
        )
    parts: dict[str, dict[str, Any]] = {
        "pipeline": {"class": f"diffusers.{family_named(model.family).pipeline}"}
    }
    for part, kind in parts_of(folder).items():
        if "tokenizer" in part:
            parts[part] = {"folder": str(folder / part)}
            continue
        file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        parts[part] = {"class": ".".join(kind), **sizes_of(file)}
    return parts


def build(
    model: Model,
    *,
    device: str,
    dtype: Any = None,
    parts: Iterable[str] | None = None,
    changes: dict[str, Any] | None = None,
) -> Any:
    """The model's pipeline with random weights, made directly on `device` in `dtype` (default
    float32), in evaluation mode.

    `parts` names those to make (default all); the rest of the pipeline is None. Parts that
    diffusers keeps in float32 when it loads weights are kept so here, and so are those of
    `Family.float32_parts`. ValueError as `describe`.
    """
    import torch

    described = describe(model, changes)
    wanted = set(described) if parts is None else set(parts)
    pipeline = _class(described["pipeline"]["class"])
    made: dict[str, Any] = {name: None for name in described if name != "pipeline"}
    with _seeded(device):
        for name in (part for part in made if part in wanted):
            wide = dtype is None or name in family_named(model.family).float32_parts
            torch.set_default_dtype(torch.float32 if wide else dtype)
            with torch.device("cpu" if name == "scheduler" else device):
                made[name] = _make(name, described[name])
    pipe = pipeline(**made)
    pipe.set_progress_bar_config(disable=True)
    note_origin(pipe, model, "random")
    return pipe


def build_transformer(
    model: Model, *, device: str, dtype: Any, changes: dict[str, Any] | None = None
) -> Any:
    """The model's transformer alone, as `build` makes it."""
    import torch

    described = describe(model, changes)
    with _seeded(device):
        torch.set_default_dtype(dtype)
        with torch.device(device):
            return _make("transformer", described["transformer"])


@contextmanager
def _seeded(device: str) -> Iterator[None]:
    """Random numbers of the seed, and afterwards those of before; the default type likewise."""
    import torch

    before = torch.get_default_dtype()
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def _make(part: str, description: dict[str, Any]) -> Any:
    """One part of a pipeline, on the device and in the type that are the default now."""
    import torch

    if "tokenizer" in part:
        return _tokenizer(description)
    kind = _class(description["class"])
    sizes = {k: v for k, v in description.items() if k != "class"}
    if description["class"].startswith("transformers."):
        return kind(kind.config_class(**sizes)).eval()
    made = kind.from_config(sizes)
    if part == "scheduler":
        return made
    for key, parameter in made.named_parameters():
        if set(made._keep_in_fp32_modules or ()) & set(key.split(".")):
            parameter.data = parameter.data.to(torch.float32)
    return made.eval()


def _class(path: str) -> Any:
    """The class of `library.Class`."""
    library, _, name = path.rpartition(".")
    return getattr(importlib.import_module(library), name)


def _tokenizer(description: dict[str, Any]) -> Any:
    """A tiny model's own tokenizer, or one that needs no download: a token for every byte. The text
    encoder's work is the same."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if "folder" in description:
        return AutoTokenizer.from_pretrained(description["folder"], local_files_only=True)
    words = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_ = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    bytes_.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_, pad_token="<pad>", eos_token="</s>", **description
    )
