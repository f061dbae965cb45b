"""Features of a run on disk, computed once per extractor and cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ditbench.extractors.table import Table, extractors, find, verified


class Shelf:
    """Extractors and where their files lie, with the networks that have been loaded; one for a
    whole scoring."""

    def __init__(self, table: Table | None = None, folder: Path | None = None) -> None:
        self.table = extractors() if table is None else table
        self.folder = folder
        self._loaded: dict[str, Any] = {}

    def refuse(self, name: str) -> str:
        """Why an extractor cannot be used, or ""."""
        try:
            verified(find(name, self.table), self.folder)
        except ValueError as error:
            return str(error)
        return ""

    def network(self, name: str) -> Any:
        """The `ditbench.extractors.networks.Network` of an extractor, loaded once; ValueError says
        why there is none."""
        from ditbench.extractors.networks import load

        if name not in self._loaded:
            self._loaded[name] = load(find(name, self.table), self.folder)
        return self._loaded[name]
