"""The models: a table of facts, and one way to load any of them. Imports torch only inside
`load`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.declarations import Registry, calling_module
from ditbench.suggest import suggest

if TYPE_CHECKING:
    from ditbench.models.lora import Lora

HERE = Path(__file__).resolve().parent
GROUPS = ("tiny", "small", "full")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What names of models look like."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A row of `models.toml`, or of a plug-in."""

    name: str
    family: str
    """A name of `families()`: what the transformer consists of and how the pipeline is called."""
    group: str
    """`tiny` and `small` (bundled with the package, the small ones of more tokens or fewer
    parameters) or `full`."""
    hub: str = ""
    """Repository on the Hugging Face hub; empty for bundled models."""
    revision: str = ""
    """Commit of that repository; empty: its main branch."""
    folder: str = ""
    """Of the weights and configurations of a model of one's own (`models.own`)."""
    base: str = ""
    """Model or family that a model of one's own is sampled as."""
    lora: tuple[Lora, ...] = ()
    """Low-rank updates that are merged into the transformer, in this order."""
    architecture: str = ""
    """File of `architectures/` with the published sizes; empty for bundled models, whose folder
    says it."""
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
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """In place of a file of `architectures/`, what it would hold: for models of plug-ins."""
    scheduler: str = ""
    """Class of diffusers to sample with, made from the configuration of the pipeline's own; empty:
    the pipeline's own."""
    negative_prompt: str = ""
    """What the unconditional pass reads."""
    small: str = ""
    """A model of the table with the same latents, text encoders and noise levels and a smaller
    transformer, which can take some of this one's steps (`stitch`)."""
    small_changes: dict[str, Any] = field(default_factory=dict)
    """Where no such model is in the table: the sizes by which a published one's transformer differs,
    as `part.key`. It can be counted, and weights are read from a folder."""
    world: str = ""
    """The world a bundled model was trained in: `class`, `scene` or `video`."""

    @property
    def is_bundled(self) -> bool:
        """Whether its weights come with the package."""
        return self.group in ("tiny", "small")


def _built_in() -> dict[str, Model]:
    rows = tomllib.loads((HERE / "models.toml").read_text(encoding="utf-8"))
    return {name: Model(name=name, **row) for name, row in rows.items()}


REGISTRY: Registry[Model] = Registry("model", "ditbench.models", Model, _built_in)


def models() -> dict[str, Model]:
    """Every model by name: ours, installed packages' and loaded plug-ins'."""
    return REGISTRY.rows()


def register_model(model: Model) -> Model:
    """Add a model to the table; ValueError for a name that is there already, is a group's, or
    cannot name files and stand in lists."""
    if not NAME.fullmatch(model.name):
        raise ValueError(
            f"{model.name!r} is no name for a model: letters, digits, dots, dashes and underscores"
        )
    if model.name in GROUPS:
        raise ValueError(f"{model.name!r} is a group of models; choose another name")
    REGISTRY.add(model.name, model, calling_module())
    return model


def select(text: str) -> list[Model]:
    """The models of a comma-separated list of names and groups, each once; ValueError with the
    nearest names for anything else."""
    table = models()
    chosen: dict[str, Model] = {}
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ValueError(
            f"no model given; name some (`list models`) or a group: {', '.join(GROUPS)}"
        )
    for word in words:
        if word in GROUPS:
            chosen |= {name: model for name, model in table.items() if model.group == word}
        elif word in table:
            chosen[word] = table[word]
        else:
            raise ValueError(f"no model {word!r}; {suggest(word, (*GROUPS, *table))}")
    return list(chosen.values())
