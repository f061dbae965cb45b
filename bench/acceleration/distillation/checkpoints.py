"""Published distilled checkpoints for full-size models: the table `checkpoints.toml`, and how a row
is put in place.

Files are read as safetensors only. Torch is imported when weights are touched.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ditbench.suggest import suggest

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment

TABLE = Path(__file__).parent / "checkpoints.toml"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A row of the table."""

    name: str
    family: str
    """Of the models it is for."""
    hub: str
    """Repository on the hub, or a local folder."""
    kind: Literal["lora", "transformer"]
    """Low-rank updates that are merged into the transformer, or a transformer that takes its
    place."""
    steps: int
    guidance: float
    licence: str
    """As its page says; empty where it has to be read there."""
    file: str = ""
    """For `lora`."""
    scale: float = 1.0
    """What the updates are multiplied by."""
    revision: str = ""
    """Commit on the hub; empty: the newest."""
    blocks: int = 0
    """Blocks of the transformer's first list, where they are fewer than the model's: so many are
    counted without weights."""
    refusal: str = ""
    """Why it cannot be put in place here, after "it"; it can be counted all the same."""
    scheduler: str = ""
    """Class of diffusers that takes the model's own sampler's place; empty: none."""


@cache
def checkpoints() -> dict[str, Checkpoint]:
    """All rows by name."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {name: Checkpoint(name=name, **row) for name, row in table.items()}


def checkpoint(name: str) -> Checkpoint:
    """A row; ValueError with the nearest names when there is none."""
    if name not in checkpoints():
        raise ValueError(f"no checkpoint {name!r}; {suggest(name, checkpoints())}")
    return checkpoints()[name]


def local_files(row: Checkpoint) -> list[Path]:
    """The files of a checkpoint whose row names a folder; none for one of the hub."""
    if not Path(row.hub).is_dir():
        return []
    at = Path(row.hub) / row.file if row.file else Path(row.hub) / "transformer"
    return sorted(path for path in at.rglob("*") if path.is_file()) if at.is_dir() else [at]


def fetch(row: Checkpoint) -> Path:
    """The file or folder of a checkpoint, from the hub's cache or the hub; ValueError in one
    sentence when it cannot be had."""
    local = Path(row.hub)
    if local.is_dir():
        path = local / row.file if row.file else local / "transformer"
        if not path.exists():
            raise ValueError(f"{path} is missing")
        return path
    from huggingface_hub import hf_hub_download, snapshot_download

    from ditbench.models.weights import trouble

    try:
        if row.file:
            return Path(hf_hub_download(row.hub, row.file, revision=row.revision or None))
        folder = snapshot_download(
            row.hub, revision=row.revision or None, allow_patterns=["transformer/*"]
        )
        return Path(folder) / "transformer"
    except (
        Exception
    ) as error:  # whatever the network stack raises, there is nothing else to do than to say so
        raise ValueError(f"{row.hub} on the Hugging Face hub {trouble(error)}") from error


def unfit(row: Checkpoint, pipeline: Any) -> str | None:
    """Why a pipeline cannot take a checkpoint, in one sentence; None when it can, its files then
    being there."""
    from ditbench.models.family import family_of
    from ditbench.models.lora import updates_of

    if (family := family_of(pipeline.transformer).name) != row.family:
        return f"{row.name} is for {row.family} models, not for {family}"
    if row.refusal:
        return f"{row.name} can be counted only: it {row.refusal}"
    try:
        path = fetch(row)
        if row.kind == "lora":
            updates_of(path, pipeline)
    except ValueError as error:
        return str(error)
    return None


def count_in_place(row: Checkpoint, pipeline: Any, at: Attachment) -> None:
    """Where there are no values: the transformer's blocks, as many as the checkpoint has."""
    from torch import nn

    from ditbench.models.family import family_of

    at.count("weights")
    if row.blocks:
        name = family_of(pipeline.transformer).stacks[0][0]
        blocks = getattr(pipeline.transformer, name)
        at.patch(pipeline.transformer, name, nn.ModuleList(list(blocks)[: row.blocks]))


def put_in_place(row: Checkpoint, pipeline: Any, at: Attachment) -> None:
    """The checkpoint's weights and sampler, until detached; ValueError when the files do not
    fit."""
    from ditbench.models.lora import updated, updates_of

    path = fetch(row)
    if row.kind == "lora":
        for weight, up, down in updates_of(path, pipeline):
            at.replace(weight, updated(weight, up, down, row.scale))
            at.count("weights")
    else:
        own = pipeline.transformer
        device = own.device
        at.undo(own.to, device)
        own.to("cpu")  # the device need not hold both
        other = type(own).from_pretrained(path, use_safetensors=True, dtype=own.dtype)
        at.undo(setattr, pipeline, "transformer", own)
        pipeline.transformer = other.to(device).eval().requires_grad_(False)
        at.count("weights", sum(1 for _ in other.parameters()))
    if row.scheduler:
        import diffusers

        from ditbench.models.precision import step_in_float32

        scheduler = getattr(diffusers, row.scheduler).from_config(pipeline.scheduler.config)
        step_in_float32(scheduler)
        at.undo(setattr, pipeline, "scheduler", pipeline.scheduler)
        pipeline.scheduler = scheduler
