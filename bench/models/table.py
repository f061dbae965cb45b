"""The models: a table of facts, and one way to load any of them. Imports torch only inside
`load`."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ditbench.suggest import suggest

HERE = Path(__file__).resolve().parent
GROUPS = ("tiny", "full")
PIPELINES = {
    "dit": "DiTPipeline",
    "pixart": "PixArtAlphaPipeline",
    "flux": "FluxPipeline",
    "wan": "WanPipeline",
}
"""Pipeline class of each family."""


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
    """File of `architectures/` with the published sizes; empty for tiny models, whose folder says
    it."""
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
    """The models of a comma-separated list of names and groups, each once; ValueError with the
    nearest names for anything else."""
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
