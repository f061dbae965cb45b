"""Costs that were simulated before: the bundled ones of full-size models, and the user's own. No torch.

`python -m ditbench.simulation.rebuild` makes the first again. A row is known by what it was simulated
for; changed code is not seen, but `tests/test_costs.py` simulates rows again and compares them.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditbench.method.stack import Stack
from ditbench.models.architecture import describe
from ditbench.models.sampling import Sampling
from ditbench.models.table import Model
from ditbench.records.files import replacing, user_cache
from ditbench.simulation.costs import Costs, from_document, to_document

HERE = Path(__file__).with_name("simulated")
FORMAT = 2
"""Of the files, and of what is simulated: rows of another number are not read."""
SIMULATED = ("ok", "at most")
"""States of a row with numbers."""


class Shelf:
    """The rows of one model."""

    def __init__(self, model: Model) -> None:
        """Tiny models have none, as they are simulated with what was prepared for them."""
        self.model = model
        self.sizes = _digest({"parts": describe(model), "family": model.family})
        self._rows: dict[str, Costs] | None = None

    def key(
        self, stack: Stack, adapted: Sampling, dtype: str, vae: str, row_kernels: str = "auto"
    ) -> str:
        """What a row is for; `adapted` is the sampling as the stack has it."""
        guided = "guided" if adapted.guidance > 1 else "unguided"
        size = f"{adapted.height}x{adapted.width}x{adapted.frames}"
        words = [
            str(stack),
            f"{adapted.steps} steps",
            guided,
            size,
            f"{adapted.text_tokens} tokens",
        ]
        rows = [] if row_kernels == "auto" else [f"rows by {row_kernels}"]
        return " | ".join([*words, self.model.scheduler or "own scheduler", dtype, vae, *rows])

    def get(self, key: str) -> Costs | None:
        """The row of a key; None where there is none."""
        if self._rows is None:
            self._rows = {**_read(_users(self.model), self.sizes), **self.shipped()}
        return self._rows.get(key)

    def shipped(self) -> dict[str, Costs]:
        """The bundled rows."""
        return _read(HERE / file_of(self.model), self.sizes)

    def add(self, key: str, costs: Costs) -> None:
        """Keep a row for the next time, where the user's cache folder can be written to."""
        if self._rows is not None:
            self._rows[key] = costs
        path = _users(self.model)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, self.sizes, {**_read(path, self.sizes), key: costs})
        except OSError:
            return


def write(path: Path, sizes: str, rows: Mapping[str, Costs]) -> None:
    """Write rows; the same rows give the same bytes."""
    document = {"format": FORMAT, "sizes": sizes, **to_document(rows)}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    with replacing(path) as partial:
        Path(partial).write_bytes(lzma.compress(text.encode(), preset=9))


def _read(path: Path, sizes: str) -> dict[str, Costs]:
    """Rows of a file; none where it is absent, damaged, or of other sizes of the model."""
    try:
        document = json.loads(lzma.decompress(path.read_bytes()))
        if (document["format"], document["sizes"]) != (FORMAT, sizes):
            return {}
        return from_document(document)
    except (OSError, lzma.LZMAError, ValueError, KeyError, TypeError, EOFError):
        return {}


def _users(model: Model) -> Path:
    return user_cache() / "simulated" / file_of(model)


def file_of(model: Model) -> str:
    """The name of a model's file."""
    return f"{model.name}.json.xz"


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
