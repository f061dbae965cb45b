"""Rounds of a cell put together to its record. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from ditbench.records.record import MEASURED, SCHEMA, Done, Record, read_record
from ditbench.records.run_folder import RunFolder
from ditbench.runner.plan import Cell


def extended(folder: RunFolder, key: str, again: Sequence[dict[str, Any]]) -> Record:
    """The record of a cell whose rounds are gone, and what was timed again since."""
    record = read_record(folder.record(key))
    known = {(call.get("session", ""), call["round"]) for call in record["timing"]}
    new = [
        r
        for r in again
        if r["status"] in MEASURED and r.get("timing")
        and (r["timing"][0]["session"], r["round"]) not in known
    ]  # fmt: skip
    environments = record.get("environments") or {
        session: record["environment"] for session, _ in sorted(known)
    }
    return {
        **record,
        "timing": [*record["timing"], *(call for r in new for call in r["timing"])],
        "environments": _environments(new) | environments,
        "host": [*record.get("host", []), *(r["host"] for r in new if r.get("host"))],
        "seconds": record["seconds"] + sum(r["seconds"] for r in new),
    }


def record_of(cell: Cell, rounds: list[dict[str, Any]]) -> Record:
    """The record of a cell of which these are the rounds, or the one that went wrong."""
    first = rounds[0]
    batch = first.get("batch", cell.batch_size)
    done = cell.own.settings() | {"num_samples": cell.num_samples, "batch_size": batch}
    done |= {
        "requests_sha256": first.get("requests_sha256", ""),
        "model_sha256": first.get("model_sha256", ""),
    }
    left = list(dict.fromkeys(name for r in rounds for name in r.get("left_behind", [])))
    record = {
        "schema": SCHEMA,
        "key": cell.key,
        "model": cell.model.name,
        "family": cell.model.family,
        "world": cell.model.world,
        "stack": str(cell.stack),
        "methods": cell.stack.describe(),
        "status": first["status"],
        "reason": first["reason"],
        "traceback": first.get("traceback", ""),
        "settings": cell.own.requested(),
        "samples": cell.num_samples,
        "batch": batch,
        "run": cast(Done, done),
        "depends_on": cell.depends,
        "sampling": first.get("sampling", {}),
        "environment": first.get("environment", {}),
        "environments": _environments(rounds),
        "load_s": first.get("load_s"),
        "first_call_s": first.get("first_call_s"),
        "timing": [entry for r in rounds for entry in r.get("timing", [])],
        "host": [r["host"] for r in rounds if r.get("host")],
        "memory": first.get("memory", {}),
        "flops": first.get("flops", {}),
        "counters": first.get("counters", {}),
        "notes": first.get("notes", {}),
        "schedule": first.get("schedule"),
        "prompts_cut": first.get("prompts_cut", {}),
        "artifacts": first.get("artifacts", {}),
        "seconds": sum(r.get("seconds", 0.0) for r in rounds),
    }
    return cast(Record, record | ({"left_behind": left} if left else {}))


def _environments(rounds: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The environment of each command's first round, by session."""
    environments: dict[str, dict[str, Any]] = {}
    for r in rounds:
        if r.get("timing") and r.get("environment"):
            environments.setdefault(r["timing"][0].get("session", ""), r["environment"])
    return dict(sorted(environments.items()))
