"""GPUs: what they can do at most, by published figures. No torch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ditbench.suggest import suggest

TABLE = Path(__file__).with_name("gpus.toml")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A row of `gpus.toml`, or a file of one's own with the same keys."""

    title: str
    memory: float
    """Bytes, all that the card has."""
    bandwidth: float
    """Of its memory, bytes a second."""
    flops: Mapping[str, float]
    """Peak operations a second by number format: `float32`, `bfloat16`, `float16`, `float8`,
    `int8`; one that is absent has no tensor cores for it."""
    launch: float
    """Seconds from one kernel to the next, however small."""
    source: str
    """Where the figures are published."""

    def rate(self, dtype: str) -> float:
        """Operations a second of products in a number format, `float8_e4m3fn` as `float8`;
        ValueError where it has no such products."""
        name = "float8" if dtype.startswith("float8") else dtype
        if name not in self.flops:
            raise ValueError(f"{self.title} has no rate for products in {name}")
        return self.flops[name]


def gpu_named(name: str) -> Gpu:
    """The GPU of that name, or of a file `*.toml` with the keys of `Gpu`; ValueError, in one
    sentence, for a name there is not and a file that does not say all."""
    if not name.endswith(".toml"):
        table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
        if name not in table:
            raise ValueError(f"--gpu: no GPU {name!r} and no FILE.toml; {suggest(name, table)}")
        return Gpu(**table[name])
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"--gpu: there is no file {name!r}")
    try:
        return _checked(tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"--gpu: {name}: {error}") from None


BESIDES = re.compile(r"nvidia|geforce|tesla|sxm\d?|\d+gb|hbm\d?e?")
"""Words of a device's own name that say nothing of which row it is."""
MEMORY = (0.95, 1.05)
"""Bytes that a device has, over those of its row: torch is given a little less than nvidia-smi
says."""


def gpu_called(device: str, memory: int | None = None) -> Gpu | None:
    """The GPU of the table that a device's own name means ("NVIDIA H100 80GB HBM3"), with `memory`
    bytes, or the GB of its name where that is not known. None for one that is not there, for others
    of nearly its name (H100 PCIe, GH200, RTX 4090 D), with another memory (A100 40 GB), for parts of
    one (MIG), and where neither says how much memory it has."""
    words = [word for word in re.split(r"[^a-z0-9]+", device.lower()) if word]
    name = "".join(word for word in words if not BESIDES.fullmatch(word))
    row = tomllib.loads(TABLE.read_text(encoding="utf-8")).get(name)
    stated = [int(word[:-2]) * 2**30 for word in words if re.fullmatch(r"\d+gb", word)]
    size = memory or next(iter(stated), None)
    if row is None or size is None or not MEMORY[0] < size / row["memory"] < MEMORY[1]:
        return None
    return Gpu(**row)


def _checked(row: dict[str, Any]) -> Gpu:
    known = [f.name for f in fields(Gpu)]
    for key in row:
        if key not in known:
            raise ValueError(f"no key {key!r}; {suggest(key, known)}")
    if missing := [name for name in known if name not in row]:
        raise ValueError(f"it does not say {', '.join(missing)}")
    rates = row["flops"]
    if not isinstance(rates, dict) or not rates:
        raise ValueError("flops: a rate by number format is wanted, such as { bfloat16 = 1e15 }")
    numbers = {name: row[name] for name in ("memory", "bandwidth", "launch")}
    for name, value in {**numbers, **{f"flops.{k}": v for k, v in rates.items()}}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise ValueError(f"{name}: {value!r} is no number above 0")
    for name in ("title", "source"):
        if not isinstance(row[name], str):
            raise ValueError(f"{name}: {row[name]!r} is no text")
    return Gpu(**row)
