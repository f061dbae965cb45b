"""Rounds and shards of a cell put together to its record. No torch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

from ditbench.records.environment import differing
from ditbench.records.files import write_json
from ditbench.records.record import MEASURED, SCHEMA, Done, Record, read_record, read_round
from ditbench.records.run_folder import RunFolder
from ditbench.runner.plan import Cell
from ditbench.runner.shards import is_divided, missing_shards, read_shards

PUTTING_TOGETHER = threading.Lock()
"""Rounds and shards of one cell may end at the same time."""


def put_together(cell: Cell, folder: RunFolder) -> str:
    """Write the record when the cell has all its rounds and shards, or as soon as one of them went
    wrong; its status, "" while some are missing."""
    with PUTTING_TOGETHER:
        rounds = [read_round(path) for path in folder.rounds(cell.key)]
        wrong = [r for r in rounds if r["status"] not in MEASURED]
        again = [read_round(path) for path in folder.timed_again(cell.key)]
        shards = [] if wrong else read_shards(cell, folder)
        failed = [shard for shard in shards if shard["status"] not in MEASURED]
        if not wrong and not (rounds and failed):
            whole = not is_divided(cell, folder) or not missing_shards(cell, folder)
            if len(rounds) < cell.spec.rounds or not whole:
                if folder.record(cell.key).exists():
                    write_json(folder.record(cell.key), extended(folder, cell.key, again))
                return ""
        timed = [*rounds, *(r for r in again if r["status"] in MEASURED)]
        record = record_of(cell, wrong[:1] or timed, shards)
        write_json(folder.record(cell.key), record)
        if wrong:
            folder.samples(cell.key).unlink(missing_ok=True)
        return str(record["status"])


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


def record_of(
    cell: Cell, rounds: list[dict[str, Any]], shards: Sequence[dict[str, Any]] = ()
) -> Record:
    """The record of a cell of which these are the rounds, or the one that went wrong, and the shards
    of its samples beside the first; a shard that failed fails the cell."""
    first = rounds[0]
    wrong = next((shard for shard in shards if shard["status"] not in MEASURED), first)
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
        "status": wrong["status"],
        "reason": wrong["reason"],
        "traceback": wrong.get("traceback", ""),
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
        "operations": first.get("operations", {}),
        "counters": first.get("counters", {}),
        "notes": first.get("notes", {}) | _unlike(first, shards),
        "schedule": first.get("schedule"),
        "prompts_cut": first.get("prompts_cut", {}),
        "artifacts": first.get("artifacts", {}),
        "seconds": sum(r.get("seconds", 0.0) for r in [*rounds, *shards]),
        "sample_files": dict(
            entry for r in [*rounds, *shards] for entry in r.get("sample_files", {}).items()
        ),
    }
    if "compilation" in first:
        record["compilation"] = compiled = dict(first["compilation"])
        compiled["later_graphs"] = sum(r["compilation"]["later_graphs"] for r in rounds)
    return cast(Record, record | ({"left_behind": left} if left else {}))


def _unlike(first: dict[str, Any], shards: Sequence[dict[str, Any]]) -> dict[str, str]:
    """A note where samples of a cell were made in unlike environments."""
    made = [shard["environment"] for shard in shards if shard.get("environment")]
    names = differing(first["environment"], *made) if made and first.get("environment") else []
    return {"shards": f"made in environments that differ in {', '.join(names)}"} if names else {}


def _environments(rounds: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The environment of each command's first round, by session."""
    environments: dict[str, dict[str, Any]] = {}
    for r in rounds:
        if r.get("timing") and r.get("environment"):
            environments.setdefault(r["timing"][0].get("session", ""), r["environment"])
    return dict(sorted(environments.items()))
