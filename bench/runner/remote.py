"""What a task does on a node of a cluster: say what the node is like, measure jobs, make a shard. No
torch (but in `probe`), and no Ray.

A task works in a folder of its own on the node's disk, in processes as they are on one machine. What
these leave there is written to the run folder where the node shares it, else it is returned, and
written by the command.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from ditbench.records.children import begin, starting
from ditbench.records.environment import VARIABLES
from ditbench.records.files import make_folder, replacing
from ditbench.records.reading import read_text
from ditbench.records.run_folder import RunFolder
from ditbench.runner.generating import BEGINS, ShardJob, make_shards
from ditbench.runner.processes import ENDING_S, context_for, ending_of, run_group
from ditbench.runner.spec import Spec
from ditbench.runner.worker import Job

OF_NODE = "CUDA_VISIBLE_DEVICES"
"""The variable by which Ray gives a task its GPU, and which says nothing about how it computes."""
SCRATCH = "ditbench-node-"
SOURCES = (".py", ".toml")
RAY_MAIN = "default_worker.py"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the command runs, as nodes are given it."""

    folder: str
    """The run folder."""
    token: Path
    """A file of it."""
    content: str
    """Of that file: a node that reads the same there shares the folder."""
    directory: str
    """Its working directory, in which paths of plug-ins and artefacts begin."""
    variables: Mapping[str, str]
    """Its environment variables of `VARIABLES`."""

    @property
    def shared(self) -> bool:
        """Whether this node shares the run folder."""
        try:
            return read_text(self.token) == self.content
        except (OSError, ValueError):
            return False


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a node is like."""

    environment: Mapping[str, Any]
    """`ditbench.records.environment.describe`."""
    sources: str
    """`sources_sha256`."""
    shared: bool
    """Whether it shares the run folder."""
    device_missing: str = ""
    """Why it cannot use the device, "" where it can."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job or a shard has left."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    """By path in the run folder, the document last; none where the node has written them itself."""
    seconds: float = 0.0
    ended: str = ""
    """How its process ended where it left no document, else ""."""
    late: bool = False
    """Whether it was ended because of the time limit."""


def probe(place: Place, device: str) -> Probe:
    """What this node is like. Imports torch."""
    from ditbench.records import environment
    from ditbench.runner.plan import missing_device

    _enter(place, device)
    missing = missing_device(device)
    return Probe(
        environment=environment.describe("cpu" if missing else device), sources=sources_sha256(),
        shared=place.shared, device_missing=missing,
    )  # fmt: skip


def measure(
    place: Place, spec: Spec, jobs: Sequence[Job], session: str, *inputs: Mapping[str, bytes]
) -> list[Outcome]:
    """Measure jobs one after another, as `run_group` does; `inputs`: files of the run folder that
    they read, by path."""
    with _scratch(place, spec.device, inputs) as folder:
        context = context_for(spec.device)
        # nothing is sent before the last has ended, or the next would be timed meanwhile
        measured = list(run_group(context, spec, jobs, session, folder))
        outcomes = []
        for job, (_, seconds) in zip(jobs, measured, strict=True):
            samples = [folder.samples(job.key), folder.shard(job.key, 0)]
            document = folder.round(job.key, job.round, session if job.again else "")
            files = [*(path for path in samples if path.exists()), document]
            outcomes.append(Outcome(files=_delivered(place, folder, files), seconds=seconds))
        return outcomes


def make_shard(
    place: Place, spec: Spec, job: ShardJob, session: str, *inputs: Mapping[str, bytes]
) -> Outcome:
    """Make the one shard of a job in a process of its own; `inputs` as those of `measure`."""
    (number,) = job.shards
    with _scratch(place, spec.device, inputs) as folder:
        began = time.monotonic()
        context = context_for(spec.device)
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_make, args=(spec, job, session, folder, theirs), daemon=True
        )
        with starting(tracked=True):
            process.start()
        theirs.close()
        try:
            late = _attend(ours, process, spec.time_limit)
        finally:
            if process.is_alive():
                process.kill()
            process.join()
        document, seconds = folder.shard_document(job.key, number), time.monotonic() - began
        if not document.exists():
            return Outcome(seconds=seconds, ended=ending_of(process), late=late)
        tar = folder.shard(job.key, number)
        made = [tar] if tar.exists() else []
        return Outcome(files=_delivered(place, folder, [*made, document]), seconds=seconds)


def _make(spec: Spec, job: ShardJob, session: str, folder: RunFolder, connection: Any) -> None:
    begin()
    make_shards(spec, job, session, folder, connection)


def _attend(connection: Any, process: Any, limit: float) -> bool:
    """Answer a process that makes a shard until it ends; whether it took too long."""
    end = time.monotonic() + limit
    while (left := end - time.monotonic()) > 0:
        if not wait([connection, process.sentinel], left):
            break
        try:
            if not connection.poll():
                return False
            word, _ = connection.recv()
        except (EOFError, OSError):
            process.join(ENDING_S)
            return False
        if word == BEGINS:
            end = time.monotonic() + limit  # what came before was starting
            connection.send(True)
    return True


def deliver(files: Mapping[str, bytes], folder: RunFolder) -> None:
    """Write files to a run folder, each whole or not at all, in order."""
    for name, content in files.items():
        path = folder.path / name
        make_folder(path.parent, folder.path)
        with replacing(path, synced=True) as partial:
            partial.write_bytes(content)


def _delivered(place: Place, folder: RunFolder, paths: Sequence[Path]) -> dict[str, bytes]:
    """What was left in a task's folder, by path, the last being the document; written to the run
    folder where the node shares it, and then nothing."""
    files = {path.relative_to(folder.path).as_posix(): path.read_bytes() for path in paths[:-1]}
    document = json.loads(paths[-1].read_text(encoding="utf-8"))
    document.get("environment", {}).get("variables", {}).pop(OF_NODE, None)
    name = paths[-1].relative_to(folder.path).as_posix()
    files[name] = json.dumps(document, indent=1, allow_nan=False).encode()
    if not place.shared:
        return files
    deliver(files, RunFolder(Path(place.folder)))
    return {}


@contextmanager
def _scratch(
    place: Place, device: str, inputs: Sequence[Mapping[str, bytes]]
) -> Iterator[RunFolder]:
    """A folder of this task's own with some files of the run folder; those of tasks that were killed
    here are removed."""
    _enter(place, device)
    for old in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        pid = old.name.removeprefix(SCRATCH).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-") as name, _main_hidden():
        folder = RunFolder(Path(name))
        for path, content in (entry for files in inputs for entry in files.items()):
            target = folder.path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        yield folder


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Processes import the main module of the one that starts them, and Ray's would import Ray."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if path is None or Path(path).name != RAY_MAIN:
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = path


def _enter(place: Place, device: str) -> None:
    """Work where the command works, if that folder is here, and with its variables, which are part
    of the environment of times; Ray sets some of them by itself."""
    with suppress(OSError):
        os.chdir(place.directory)
    for name in VARIABLES:
        if name == OF_NODE and device != "cpu":
            continue
        if name in place.variables:
            os.environ[name] = place.variables[name]
        else:
            os.environ.pop(name, None)


def here(folder: RunFolder, session: str) -> Place:
    """Where this process works; writes the file that shows which nodes share the run folder."""
    for old in folder.path.glob(".nodes-*"):  # of a command that was killed
        old.unlink(missing_ok=True)
    token = folder.path.resolve() / f".nodes-{session}"
    content = f"{platform.node()} {os.getpid()} {session}"
    with replacing(token) as partial:
        partial.write_text(content, encoding="utf-8")
    return Place(
        folder=str(folder.path.resolve()), token=token, content=content, directory=os.getcwd(),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )  # fmt: skip


def sources_sha256() -> str:
    """Of the code and tables of ditbench and its methods, as they are installed here or lie in the
    checkout; reports, which make no samples, aside."""
    total = hashlib.sha256()
    for package in ("ditbench", "ditbench.methods"):
        spec = find_spec(package)
        root = Path(next(iter(spec.submodule_search_locations or []))) if spec else Path()
        others = {root / name for name in ("methods", "reports", "datasets")}
        for path in sorted(p for p in root.rglob("*") if p.suffix in SOURCES):
            if others.isdisjoint(path.parents):
                total.update(f"{package} {path.relative_to(root).as_posix()}\n".encode())
                total.update(path.read_bytes())
    return total.hexdigest()
