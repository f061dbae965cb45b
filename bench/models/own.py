"""Models of one's own, named on the command line: a diffusers folder that is sampled as a model of
the table, and low-rank updates (LoRA) that are merged into a transformer. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path

from ditbench.models import table
from ditbench.models.family import families, family_named
from ditbench.models.lora import Lora
from ditbench.models.table import GROUPS, NAME, REGISTRY, Model
from ditbench.suggest import suggest

MODULE = "ditbench.models.own"
"""Whose rows they are in the table."""


def register_own(text: str) -> Model:
    """Add a model `NAME=FAMILY:FOLDER` to the table, in place of an earlier one of that name.

    FAMILY is a model of the table, as which it is sampled (steps, guidance, size, prompts), or a
    family, whose first full-size model is meant. ValueError for any other text, a name that is taken, and a folder that
    is none.
    """
    name, equals, rest = text.partition("=")
    base, colon, folder = rest.partition(":")
    if not (name and equals and base and colon and folder):
        raise ValueError(f"model: {text!r} is not NAME=FAMILY:FOLDER")
    if not NAME.fullmatch(name) or name in GROUPS:
        raise ValueError(f"model: {name!r} is no name for a model")
    rows = {row.name: row for row in table.models().values() if not row.folder}
    if name in rows:
        raise ValueError(f"model: {name!r} is in the table already; choose another name")
    of_family = [m for m in rows.values() if m.family == base and m.group == "full"]
    if base not in rows and not of_family:
        raise ValueError(
            f"model: no family or model {base!r}; {suggest(base, {**families(), **rows})}"
        )
    if not (Path(folder) / "model_index.json").is_file():
        raise ValueError(f"model: {folder} holds no model_index.json of a diffusers pipeline")
    row = rows.get(base) or of_family[0]
    own = replace(
        row, name=name, hub="", revision="", architecture="", changes={}, parts={},
        folder=folder, base=base,
    )  # fmt: skip
    REGISTRY.add(name, own, MODULE)
    return own


def with_lora(model: Model, texts: Sequence[str]) -> Model:
    """The model with what `[MODEL=]FILE[@SCALE]` asks for it, in that order; ValueError for a file
    that is no safetensors file, a scale that is no number, and a family that takes none."""
    updates = []
    for text in texts:
        of, equals, rest = text.partition("=")
        if not equals or of not in table.models():
            of, rest = "", text
        file, at, number = rest.rpartition("@")
        if not at or Path(rest).is_file():
            file, number = rest, "1"
        try:
            scale = float(number)
        except ValueError:
            raise ValueError(f"lora: {number!r} in {text!r} is no number") from None
        if not isfinite(scale):
            raise ValueError(f"lora: {number!r} in {text!r} is no number")
        if not Path(file).is_file():
            raise ValueError(f"lora: there is no file {file!r}")
        if not file.endswith(".safetensors"):
            raise ValueError(f"lora: {file!r} is no .safetensors file")
        if of in ("", model.name):
            updates.append(Lora(file, scale))
    if updates and not (family := family_named(model.family)).takes_lora:
        raise ValueError(f"lora: {family.pipeline} takes none, and {model.name} has one")
    return replace(model, lora=tuple(updates)) if updates else model


def own_flags(model: Model) -> tuple[str, ...]:
    """Flags that name a model of one's own and its updates."""
    words = ("--model", f"{model.name}={model.base}:{model.folder}") if model.folder else ()
    return words + tuple(word for update in model.lora for word in ("--lora", update.text))
