"""What a model is asked for in place of what its row says: steps, guidance, size, sampler and
negative prompt, for all models of a run or for one. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from ditbench.models import table
from ditbench.models.family import family_named
from ditbench.models.table import Model
from ditbench.suggest import suggest

WORKLOAD: dict[str, Callable[[str], Any]] = {
    "steps": int, "guidance": float, "height": int, "width": int, "frames": int,
    "scheduler": str, "negative_prompt": str,
}  # fmt: skip
"""What can be asked for, and what kind of value it has."""
RANGES = {"steps": (1, 1000), "height": (16, 8192), "width": (16, 8192), "frames": (1, 1000)}
FIXED_SIZE = "makes samples of {height}x{width} pixels alone"


def as_text(value: Any) -> str:
    """A value of a TOML file (a number, a text, or a table of them by model) as the text that a flag
    has; ValueError for anything else."""
    if isinstance(value, Mapping):
        return ",".join(f"{model}={as_text(of)}" for model, of in value.items())
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected a value, or a table of values by model, got {value!r}")
    return str(value)


def values_of(name: str, text: str) -> dict[str, str]:
    """`28`, `flux-1-dev=28` or `20,flux-1-dev=28` by model, "" for the models that are not named;
    ValueError for a model that there is not, and for two values of one. A negative prompt is one
    text, with the name of one model before it or none.
    """
    if name == "negative_prompt":
        model, mark, rest = text.partition("=")
        return {model: rest} if mark and model in table.models() else {"": text}
    values: dict[str, str] = {}
    for part in text.split(","):
        model, mark, value = part.strip().rpartition("=")
        if mark and model not in table.models():
            raise ValueError(f"{name}: no model {model!r} in {part.strip()!r}")
        if model in values:
            raise ValueError(f"{name}: two values for {model or 'all models'}")
        values[model] = value
    return values


def with_workload(model: Model, asked: Mapping[str, str]) -> Model:
    """The model's row with what is asked for it (`WORKLOAD` name -> text, "" for nothing) in place of
    its own; ValueError, naming the setting, for values that are none and models that cannot."""
    changes: dict[str, Any] = {}
    for name, kind in WORKLOAD.items():
        if not (text := asked.get(name, "")):
            continue
        values = values_of(name, text)
        value = values.get(model.name, values.get("", ""))
        if value == "":
            continue
        try:
            changes[name] = kind(value)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{name}: expected {what}, got {value!r}") from None
    for name, value in changes.items():
        if reason := _impossible(model, name, value):
            raise ValueError(f"{name}: {reason}")
    return replace(model, **changes)


def _impossible(model: Model, name: str, value: Any) -> str:
    """Why a model cannot be asked for a value; "" where it can."""
    family = family_named(model.family)
    low, high = RANGES.get(name, (0, 0))
    if name in RANGES and not low <= value <= high:
        return f"{value} is not between {low} and {high}"
    if name == "guidance" and not (isfinite(value) and 0 <= value <= 100):
        return f"{value} is not between 0 and 100"
    if value == getattr(model, name):
        return ""
    if name in ("height", "width"):
        if model.world or family.class_labels:
            return f"{model.name} {FIXED_SIZE.format(height=model.height, width=model.width)}"
        if value % 16:
            return f"{value} is no multiple of 16"
    if name == "frames":
        if model.world or not family.video:
            return f"{model.name} makes {model.frames} of them alone"
        if (value - 1) % 4:
            return f"{value} is none of 1, 5, 9, ...: videos are coded in groups of four after one"
    if name == "scheduler" and value not in (known := _schedulers()):
        return f"diffusers has no {value!r}; {suggest(value, known)}"
    if name == "negative_prompt" and (
        model.world or family.class_labels or family.guidance == "embedded"
    ):
        return f"{model.name} takes none"
    return ""


@cache
def _schedulers() -> tuple[str, ...]:
    """Names of diffusers' samplers, by the list of what it can import, which imports nothing."""
    spec = find_spec("diffusers")
    text = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return tuple(dict.fromkeys(re.findall(r'"(\w+Scheduler)"', text)))


def flags_of(model: Model) -> tuple[str, ...]:
    """Flags that ask for a model as this one is, where it differs from its row of the table."""
    row = table.models().get(model.name)
    words: list[str] = []
    for name in WORKLOAD if row is not None else ():
        if (value := getattr(model, name)) != getattr(row, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return tuple(words)


def sampler_of(model: Model) -> dict[str, str]:
    """What is asked for beside `Sampling`: `scheduler` and `negative_prompt`, where they are."""
    return {
        name: text for name in ("scheduler", "negative_prompt") if (text := getattr(model, name))
    }
