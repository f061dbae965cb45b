"""Records: one JSON document per cell, written whole or not at all, and a run folder read back from
them. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ditbench.records.files import read_json
from ditbench.records.run_folder import RunFolder

SCHEMA = 1
"""Version of record.json and spec.json. A reader refuses any other."""
STATUSES = ("ok", "inert", "refused", "skipped", "failed", "oom")
MEASURED = ("ok", "inert")
"""Statuses of cells that ran to the end and have samples and times."""
SHOWN = "ok"
"""The only status with numbers in a report: an inert method neither sped anything up nor changed
anything."""
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "key": str, "model": str, "family": str, "stack": str, "methods": list, "status": str,
    "reason": str, "run": dict,
    "sampling": dict, "environment": dict, "timing": list, "memory": dict, "flops": dict,
    "counters": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What a run folder holds."""

    folder: Path
    spec: dict[str, Any]
    records: list[dict[str, Any]]
    """In the order the cells were planned."""
    damaged: list[str] = field(default_factory=list)
    """One sentence for each record that could not be read."""


def read_record(path: Path) -> dict[str, Any]:
    """A cell's record; ValueError says what is wrong with the file, and never half of it is
    returned."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged (not a JSON object)")
    _check_schema(record, path)
    for key, kind in _REQUIRED.items():
        if not isinstance(record.get(key), kind):
            raise ValueError(f"{path} is damaged ({key} is missing or of the wrong type)")
    if record["status"] not in STATUSES:
        raise ValueError(
            f"{path} is damaged (status {record['status']!r} is none of {', '.join(STATUSES)})"
        )
    return record


def read_spec(folder: Path) -> dict[str, Any]:
    """The spec a run folder was made with; ValueError when it is no run folder or of another schema
    version."""
    path = RunFolder(folder).spec
    if not path.is_file():
        raise ValueError(f"{folder} is no run folder (it has no spec.json)")
    spec = read_json(path)
    if not isinstance(spec, dict):
        raise ValueError(f"{path} is damaged (not a JSON object)")
    _check_schema(spec, path)
    return spec


def read_run(folder: Path) -> Run:
    """Every record of a run, damaged ones named and left out; ValueError when it is no run
    folder."""
    spec, records, damaged = read_spec(folder), [], []
    order = {key: i for i, key in enumerate(spec.get("cells", []))}
    paths = sorted(
        RunFolder(folder).records(),
        key=lambda p: (order.get(p.parent.name, len(order)), p.parent.name),
    )
    for path in paths:
        try:
            records.append(read_record(path))
        except ValueError as error:
            damaged.append(str(error))
    return Run(folder, spec, records, damaged)


def _check_schema(document: dict[str, Any], path: Path) -> None:
    found = document.get("schema")
    if found != SCHEMA:
        raise ValueError(
            f"{path} has schema version {found!r} and this ditbench reads {SCHEMA}; use the "
            "version that wrote it, or run again"
        )
