"""Which row of the table a pipeline in memory was made of, and with which weights."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditbench.models.table import Model


@dataclass(frozen=True)
class Origin:
    """What a pipeline was loaded or built as."""

    model: Model
    weights: str
    """As `weights.locate` takes it, or `random`."""


_ORIGINS: weakref.WeakKeyDictionary[Any, Origin] = weakref.WeakKeyDictionary()


def note_origin(pipeline: Any, model: Model, weights: str) -> None:
    """Remember, as long as the pipeline is there, what it is."""
    _ORIGINS[pipeline] = Origin(model, weights)


def origin_of(pipeline: Any) -> Origin | None:
    """What a pipeline was loaded or built as; None for one that came about in another way."""
    return _ORIGINS.get(pipeline)
