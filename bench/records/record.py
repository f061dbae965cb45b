"""Records: one JSON document per cell, written atomically, and a run folder read back from
them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict, cast

from ditbench.records import checks
from ditbench.records.published_files import FILES
from ditbench.records.reading import decoded, parse_json, read_content, read_json
from ditbench.records.run_folder import RunFolder
from ditbench.records.text import one_line

SCHEMA = 1
"""Version of record.json and spec.json. A reader refuses any other."""
STATUSES = ("ok", "inert", "refused", "skipped", "failed", "oom")
SCHEDULE: Final = "schedule"
"""Field with what each sub-layer computed at each step."""
PARTS = {"sampling": checks.SAMPLED, SCHEDULE: checks.SCHEDULE, "prompts_cut": checks.CUT}
"""Parts of a record that are whole or empty."""
MEASURED = ("ok", "inert")
"""Statuses of cells that ran to the end and have samples and times."""
SHOWN = "ok"
"""The only status with numbers in a report: an inert method neither sped anything up nor changed
anything."""


RANDOM: Final = "the weights are random, so the samples show nothing"
"""Why there is no quality of a model with random weights."""


class TimedCall(TypedDict):
    """One timed pipeline call, seconds; the three stages add up to the call."""

    session: NotRequired[str]
    """The command that timed it, by its start (UTC). Two calls are compared where session, round and
    batch agree. Missing in records of before 2026-11-26."""
    round: int
    batch: int  # which batch of requests
    size: int  # samples in the batch
    call_s: float
    text_s: float  # from the call to the first transformer run
    denoise_s: float  # from the first transformer run to the decoder
    decode_s: float  # latents to pixels


class TimedOn(TypedDict, total=False):
    """The GPU while a round was timed (`ditbench.records.gpu_state`, `ditbench.profiling.probe`)."""

    session: str
    round: int
    dtype: str  # of the probe
    probe: dict[str, float | None]  # flops and copied, a second
    before: dict[str, Any]  # its state before the process used it
    after: dict[str, Any]  # its state after the last timed batch


class Done(TypedDict, total=False):
    """`run`: the settings a cell was made with, its own sample counts among them, and hashes of what
    went in."""

    num_samples: int  # samples made: a video counts once
    batch_size: int  # samples a pipeline call
    rounds: int
    seed: int
    device: str
    dtype: str
    weights: str
    prompts: str
    text_encoding: str  # this and the next three: missing in older records, where they are defaults
    offload: str
    vae: str
    row_kernels: str
    requests_sha256: str  # of the model's requests; "" where the cell failed before it knew
    model_sha256: str  # of the weights; "" where the cell failed before it knew


class Record(TypedDict):
    """The document record.json, one per cell. Where a cell did not run to the end, what it did not
    measure is empty."""

    schema: int  # SCHEMA
    key: str  # the cell's folder name: model, stack and a hash of all that changes its samples
    model: str  # name in models.toml
    family: str  # dit, pixart, flux or wan
    world: str  # class, scene or video for models of the shapes world; else ""
    stack: str  # canonical text; "none" for the baseline
    methods: list[dict[str, Any]]  # per method: name, knobs and traits (Stack.describe)
    status: str  # one of STATUSES
    reason: str  # why it is not ok, in one sentence; "" for ok
    traceback: str  # of the error that ended it; ""
    settings: NotRequired[dict[str, Any]]  # Settings as requested; missing in older records
    samples: NotRequired[int]  # samples made; missing in older records
    batch: NotRequired[int]  # samples a pipeline call; missing in older records
    run: Done
    depends_on: NotRequired[
        dict[str, Any]
    ]  # by content, what its samples depend on besides settings
    sampling: dict[
        str, Any
    ]  # Sampling as adapted; `calls` where the scheduler makes another number
    environment: dict[
        str, Any
    ]  # ditbench.records.environment.describe, of the round that made the samples
    environments: NotRequired[
        dict[str, dict[str, Any]]
    ]  # by session, of all that timed it; missing in older records
    load_s: float | None  # seconds to load the pipeline
    first_call_s: float | None  # seconds of the warm-up call
    compilation: NotRequired[
        dict[str, Any]
    ]  # of what compiles: seconds, graphs, later_graphs (ditbench.profiling.compiling)
    timing: list[TimedCall]
    host: NotRequired[list[TimedOn]]  # one a round on a GPU, none on the CPU
    memory: dict[str, Any]  # bytes: peak, weights, caches (ditbench.profiling.memory)
    flops: dict[str, Any]  # a sample's, by part (ditbench.profiling.flops)
    operations: NotRequired[
        dict[str, float]
    ]  # seconds of one profiled loop by kind, with `samples`
    counters: dict[str, Any]  # events by method.name, over all calls of the first round
    notes: dict[str, Any]  # facts that methods left
    schedule: Any  # what was computed at each step, where a method says so
    prompts_cut: dict[str, Any]  # prompts longer than the text encoders read
    artifacts: dict[str, Any]  # method -> what its preparation cost
    seconds: float  # wall-clock seconds of all rounds, loading included
    sample_files: NotRequired[
        dict[str, str]
    ]  # samples files, by path in the cell's folder, and their sha256; missing in older records
    left_behind: NotRequired[list[str]]  # what was not as before it after it was taken off


def sessions_of(record: Mapping[str, Any]) -> list[str]:
    """The commands that timed calls of a record, in order; [""] for those of older records."""
    return sorted({call.get("session", "") for call in record["timing"]})


def environment_of(record: Mapping[str, Any], session: str) -> dict[str, Any]:
    """The environment of the calls of one command; where a record does not say, as older ones, that
    of its samples."""
    environment: dict[str, Any] = record.get("environments", {}).get(session)
    return environment or record.get("environment") or {}


def environments_of(
    record: Mapping[str, Any], baseline: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The environments of a record's timed calls, each once, in order: of those that share a command
    with calls of `baseline`, where there are any. Never empty."""
    sessions = sessions_of(record)
    shared = [s for s in sessions if s in sessions_of(baseline)] if baseline else []
    distinct: list[dict[str, Any]] = []
    for session in shared or sessions or [""]:
        if (environment := environment_of(record, session)) not in distinct:
            distinct.append(environment)
    return distinct


def differing_beside(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The fields of `MACHINE` in which two records differ inside any command that timed both;
    without such a command, of the environments of their samples."""
    shared = {*sessions_of(one)} & {*sessions_of(other)}
    pairs = [(environment_of(one, s), environment_of(other, s)) for s in shared or {""}]
    from ditbench.records.environment import MACHINE, differing  # slow to import, and seldom asked

    apart = {name for pair in pairs for name in differing(*pair)}
    return [name for name in MACHINE if name in apart]


@dataclass(frozen=True)
class Run:
    """What a run folder holds."""

    folder: Path
    spec: dict[str, Any]
    records: list[Record]
    """In the order the cells were planned."""
    damaged: list[str] = field(default_factory=list)
    """One sentence for each record that could not be read."""


def read_record(path: Path) -> Record:
    """A cell's record, its texts fit to be shown; ValueError says what is wrong with the file, and
    never half of it is returned. Its key is the name of its folder."""
    record = _checked(read_json(path, path.parents[2], clean=True), str(path))
    if record["key"] != path.parent.name:
        raise ValueError(
            f"{path} is damaged (its key is {record['key']!r}, not the name of its folder)"
        )
    return record


def _checked(record: Any, place: str) -> Record:
    """The document as a record; ValueError says what is wrong with it, and where it stands."""
    if not isinstance(record, dict):
        raise ValueError(f"{place} is damaged (not a JSON object)")
    _check_schema(record, place)
    checks.check(record, checks.RECORD, place)
    _check_measured(record, place)
    return cast(Record, record)


def _check_measured(document: dict[str, Any], place: str) -> None:
    """ValueError for a status that there is not, and for parts of a record, or a round, that are
    only there where something was measured."""
    if document["status"] not in STATUSES:
        raise ValueError(
            f"{place} is damaged (status {document['status'][:40]!r} is none of {', '.join(STATUSES)})"
        )
    for name, shape in PARTS.items():
        if part := document.get(name):
            checks.check({name: part}, {name: shape}, place)


def read_round(path: Path) -> dict[str, Any]:
    """What a round of a cell measured, or why it did not; ValueError names the file and the field
    that is missing or of the wrong type."""
    document = read_json(path, path.parents[2], clean=True)
    checks.check(document, checks.ROUND, str(path))
    if document["status"] in MEASURED:
        first = path == RunFolder(path.parents[2]).round(path.parent.name, 0)
        checks.check(document, checks.FIRST_ROUND if first else checks.LATER_ROUND, str(path))
    _check_measured(document, str(path))
    return cast(dict[str, Any], document)


def read_shard(path: Path) -> dict[str, Any]:
    """What is on record of a shard of a cell's samples, or why it was not made; ValueError as
    `read_round`."""
    document = read_json(path, path.parents[3], clean=True)
    checks.check(document, checks.SHARD, str(path))
    if document["status"] in MEASURED:
        checks.check(document, checks.MADE_SHARD, str(path))
    _check_measured(document, str(path))
    return cast(dict[str, Any], document)


def read_spec(folder: Path) -> dict[str, Any]:
    """The spec a run folder was made with; ValueError when it is no run folder or of another schema
    version."""
    path = RunFolder(folder).spec
    if not path.exists():
        beside = sorted(
            (spec.parent for spec in folder.parent.glob("*/spec.json")),
            key=lambda run: -run.stat().st_mtime,
        )
        runs = f"; beside it {', '.join(map(str, beside[:3]))}" if beside else ""
        raise ValueError(f"{folder} is no run folder (it has no spec.json){runs}")
    spec = read_json(path, folder, clean=True)
    if not isinstance(spec, dict):
        raise ValueError(f"{path} is damaged (not a JSON object)")
    _check_schema(spec, str(path))
    checks.check(spec, checks.SPEC, str(path))
    return cast(dict[str, Any], spec)


def is_published(folder: Path) -> bool:
    """Whether a folder is a published run, even one that has lost its records: its spec.json lists
    the files it was published with."""
    files = RunFolder(folder)
    if files.published_records.is_file():
        return True
    try:
        return bool(read_json(files.spec, folder).get(FILES))
    except (OSError, ValueError, AttributeError):
        return False


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
        except (ValueError, FileNotFoundError) as error:
            damaged.append(one_line(str(error)))
    _read_lines(RunFolder(folder).published_records, records, damaged)
    return Run(folder, spec, records, damaged)


def _read_lines(path: Path, records: list[Record], damaged: list[str]) -> None:
    """Add the records of a published run, a line each; of two with one key the first counts."""
    try:
        lines = read_content(path, path.parent).splitlines()
    except FileNotFoundError:
        return
    except ValueError as error:
        damaged.append(one_line(str(error)))
        return
    keys = {record["key"] for record in records}
    for i, line in enumerate(lines, 1):
        place = f"{path}, line {i},"
        try:
            record = _checked(parse_json(decoded(line, place), place, clean=True), place)
            if record["key"] in keys:
                raise ValueError(f"{place} is damaged (its key {record['key']} is there already)")
        except ValueError as error:
            damaged.append(one_line(str(error)))
        else:
            keys.add(record["key"])
            records.append(record)


def check_not_published(folder: Path) -> None:
    """ValueError for a published run, which has no samples: nothing can be run or scored there."""
    if is_published(folder):
        raise ValueError(
            f"{folder} is a published run, without samples; report, compare, recommend and "
            "reproduce read it, and a run needs another folder (--out)"
        )


def _check_schema(document: dict[str, Any], path: str) -> None:
    version = document.get("schema")
    if version != SCHEMA:
        raise ValueError(
            f"{path} has schema version {one_line(repr(version), 40)} and this ditbench reads {SCHEMA}; use the "
            "version that wrote it, or run again"
        )
