"""Published files that people bring: where they are looked for, and whether they are the ones that
were published. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ditbench.extractors.table import FOLDER, torch_hub
from ditbench.records.files import digest


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file as it was published."""

    extractor: str
    """What it is part of; the folder it may lie in."""
    name: str
    sha256: str
    """Empty where it is not on record: then no file is taken for it."""
    where: str
    """Where it is to be had."""


def located(file: Published, beside: Path | None = None) -> Path:
    """The file, its hash checked; ValueError says what is missing or wrong, and where it is
    published.

    It is looked for in `beside`, in the folder that DITBENCH_EXTRACTORS names and that folder's
    folder of the extractor's name, and where torch's hub keeps its downloads.
    """
    named = os.environ.get(FOLDER)
    folders = [
        *([beside] if beside else []),
        *([Path(named) / file.extractor, Path(named)] if named else []),
        torch_hub(),
    ]
    path = next((folder / file.name for folder in folders if (folder / file.name).is_file()), None)
    if path is None:
        raise ValueError(
            f"{file.name} is missing (sha256 {file.sha256 or 'not on record'}); published at "
            f"{file.where}; put it into the folder that "
            f"{FOLDER} names"
        )
    if not file.sha256:
        raise ValueError(
            f"{path} is taken for nothing: the sha256 of the published {file.name} ({file.where}) "
            "is not on record"
        )
    if (mine := digest(path)) != file.sha256:
        raise ValueError(
            f"{path} is not the published {file.name}: its sha256 is {mine}, expected {file.sha256}"
        )
    return path
