"""Low-rank updates of a transformer's layers, from a file: what is added to which weight. Imports no
torch by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditbench.records.files import file_sha256


@dataclass(frozen=True)
class Lora:
    """A file of low-rank updates."""

    file: str
    scale: float = 1.0
    """What they are multiplied by."""

    @property
    def text(self) -> str:
        """As one types it."""
        return self.file if self.scale == 1 else f"{self.file}@{self.scale:g}"

    @property
    def content(self) -> list[object]:
        """sha256 of the file, and the scale; ValueError where it cannot be read."""
        try:
            return [file_sha256(Path(self.file)), self.scale]
        except OSError as error:
            raise ValueError(f"lora: {self.file} cannot be read: {error.strerror}") from None


def loras_of(model: str, others: Iterable[str], texts: Iterable[str]) -> list[str]:
    """Those of `[MODEL=]FILE[@SCALE]` that are for a model: they name it, or none of the `others` of
    the run."""
    names = {*others} - {model}
    return [text for text in texts if text.partition("=")[0] not in names]


def updates_of(path: Path, pipeline: Any) -> list[tuple[Any, Any, Any]]:
    """The updates of a file, in whichever of the forms that diffusers knows; ValueError as
    `matched`."""
    state = pipeline.lora_state_dict(str(path.parent), weight_name=path.name)
    return matched(state, pipeline.transformer, path.name)


def matched(state: Mapping[str, Any], transformer: Any, source: str) -> list[tuple[Any, Any, Any]]:
    """(weight [O,I], and the factors [O,R] and [R,I] of what is added to it) of every layer of the
    transformer that has a pair in `state`; ValueError, naming the `source`, when no key, or not
    every shape, matches."""
    layers = dict(transformer.named_modules())
    updates = []
    for key, down in state.items():
        if not key.endswith(".lora_A.weight"):
            continue
        name = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
        up = state.get(key.replace("lora_A", "lora_B"))
        if name not in layers or up is None:
            continue
        weight = layers[name].weight
        if (shape := (up.shape[0], down.shape[1])) != tuple(weight.shape):
            raise ValueError(
                f"{source}: {name} is {shape[0]} x {shape[1]}, and in this model "
                f"{tuple(weight.shape)}"
            )
        updates.append((weight, up, down))
    if not updates:
        raise ValueError(
            f"{source}: none of its {len(state)} keys matches a layer of this transformer"
        )
    return updates


def updated(weight: Any, up: Any, down: Any, scale: float) -> Any:
    """The weight with its update, added in float32."""
    update = scale * up.to(weight.device).float() @ down.to(weight.device).float()
    return weight.data.float() + update


def merge(pipeline: Any, loras: Iterable[Lora]) -> None:
    """Add updates to the transformer for good, each weight in its own format; ValueError as
    `updates_of`, and for a file that cannot be read."""
    for lora in loras:
        path = Path(lora.file).resolve()
        try:
            updates = updates_of(path, pipeline)
        except (OSError, KeyError) as error:
            raise ValueError(f"lora: {path.name} cannot be read: {error}") from error
        for weight, up, down in updates:
            weight.data = updated(weight, up, down, lora.scale).to(weight.dtype)
