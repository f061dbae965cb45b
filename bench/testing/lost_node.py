"""Whether a run on a cluster that loses a node gives what one machine gives: `python -m
ditbench.testing.lost_node FOLDER -- RUN FLAGS`.

The same flags are run into FOLDER/local, and into FOLDER/cluster on a Ray cluster of two nodes that
this machine plays (two raylets, one CPU each). When half of the shards are made the second node is
killed (SIGKILL). Then the samples files of both are compared, and what was begun and finished is
counted by the log of the nodes. With --empty it measures instead how many tasks a second the
command's side manages, by tasks that do nothing. Linux; Ray (`ditbench[ray]`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ditbench import ROOT
from ditbench.records.files import file_sha256, write_json
from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder

PROGRAM = str(ROOT / "run_bench.py")
STORE = 100 << 20
"""Bytes of each node's object store."""
MEMORY = 4 << 30
"""Bytes that each node says it has for tasks."""
POLL_S = 0.2
ABREAST = 1000
"""Empty tasks that wait at a time."""
SIZES = (2_200_000, 1000)
"""Bytes of a shard of 512 samples of 64 pixels, and of its document."""
WRITTEN = 100
"""Shards that are written to measure how fast that is."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Both runs and what differs between them, printed and written to `lost_node.json`; exits with 1
    where files differ, or more was made again than was in flight."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--empty", type=int, default=0, help="tasks that do nothing")
    parser.add_argument("flags", nargs="*", help="of `run`, without --out, after --")
    args = parser.parse_args(arguments)
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.empty:
        result = empty_tasks(args.empty)
    else:
        local, cluster = args.folder / "local", args.folder / "cluster"
        if code := _begin(local, args.flags).wait():
            sys.exit(f"the run on one machine ended with exit code {code}")
        result = {
            "flags": args.flags,
            **lose_a_node(cluster, args.flags),
            **compare(local, cluster),
        }
    write_json(args.folder / "lost_node.json", result)
    print(json.dumps(result, indent=1))  # noqa: T201
    sys.exit(1 if result.get("differing") or result.get("made_again", 0) > 1 else 0)


def two_nodes() -> tuple[Any, Any]:
    """A Ray cluster of two nodes with a CPU each, and the one of them that can be killed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    of_each: dict[str, Any] = {"num_cpus": 1, "memory": MEMORY, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=of_each)
    return cluster, cluster.add_node(**of_each)


def lose_a_node(out: Path, flags: Sequence[str]) -> dict[str, Any]:
    """Run into `out` on two nodes and kill one when half of the shards are made; events of the log,
    counted."""
    cluster, victim = two_nodes()
    try:
        running = _begin(out, [*flags, "--engine", "ray", "--address", cluster.address])
        killed_after = 0
        while running.poll() is None:
            time.sleep(POLL_S)
            finished = _events(out)["finished"]
            if not killed_after and finished and finished >= _wanted(out) / 2:
                for pid in [
                    pid for _, started in victim.live_processes() for pid in _below(started.pid)
                ]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                killed_after = finished
        code = running.returncode
    finally:
        cluster.shutdown()
    events = _events(out)
    return {
        "exit_code": code, "killed_after": killed_after, "events": dict(sorted(events.items())),
        "made_again": events["begun"] - events["finished"],
    }  # fmt: skip


def compare(one: Path, other: Path) -> dict[str, Any]:
    """Samples files that are not in both, or differ; how many there are, and statuses."""
    hashes = [
        {
            path.relative_to(folder).as_posix(): file_sha256(path)
            for path in RunFolder(folder).all_shards()
        }
        for folder in (one, other)
    ]
    names = sorted(hashes[0].keys() | hashes[1].keys())
    statuses = Counter(record["status"] for record in read_run(other).records)
    return {
        "files": len(names),
        "differing": [name for name in names if hashes[0].get(name) != hashes[1].get(name)],
        "statuses": dict(statuses),
    }


def empty_tasks(number: int) -> dict[str, Any]:
    """What the command's side manages a second: tasks that do nothing, 1,000 of them waiting at a
    time, and results of `SIZES` bytes that are written to the disk."""
    from ditbench.runner.cluster import Cluster
    from ditbench.runner.remote import deliver

    nodes, _ = two_nodes()
    cluster = Cluster(nodes.address)
    try:
        node = cluster.nodes()[0]
        tasks: set[Any] = set()
        cluster.result(cluster.submit(node, _nothing, cpus=1.0, gpus=0.0, memory=0.0))
        began, begun, over = time.monotonic(), 0, 0
        while over < number:
            while begun < number and len(tasks) < ABREAST:
                tasks.add(cluster.submit(node, _nothing, cpus=1.0, gpus=0.0, memory=0.0))
                begun += 1
            for task in cluster.wait(list(tasks), POLL_S):
                cluster.result(task)
                tasks.remove(task)
                over += 1
        seconds = time.monotonic() - began
    finally:
        cluster.close()
        nodes.shutdown()
    with tempfile.TemporaryDirectory() as name:
        folder, contents = RunFolder(Path(name)), [os.urandom(size) for size in SIZES]
        began = time.monotonic()
        for i in range(WRITTEN):
            paths = folder.shard("cell", i), folder.shard_document("cell", i + 1)
            names = [path.relative_to(folder.path).as_posix() for path in paths]
            deliver(dict(zip(names, contents, strict=True)), folder)
        written = WRITTEN / (time.monotonic() - began)
    return {"tasks": number, "tasks_a_second": number / seconds, "written_a_second": written}


def _nothing() -> bytes:
    return b""


def _begin(out: Path, flags: Sequence[str]) -> subprocess.Popen[bytes]:
    with out.with_name(f"{out.name}.log").open("ab") as log:
        command = [sys.executable, PROGRAM, "run", *flags, "--out", str(out)]
        return subprocess.Popen(command, stdout=log, stderr=log)


def _below(pid: int) -> list[int]:
    """A process and all that it, and what it started, has started: its workers would finish what
    they are at."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    tree = [pid]
    for process in tree:
        tree += parents.get(process, [])
    return tree


def _events(out: Path) -> Counter[str]:
    """How often what is in the log of the nodes."""
    path = RunFolder(out).ray_log
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return Counter(json.loads(line)["event"] for line in lines if line.endswith("}"))


def _wanted(out: Path) -> int:
    """Shards that tasks make of the run, by its settings: all but the first of each cell."""
    spec = json.loads(RunFolder(out).spec.read_text(encoding="utf-8"))
    settings = spec["settings"]
    each = -(-settings["num_samples"] // settings["shard"]) - 1
    return int(each * len(spec["cells"]))


if __name__ == "__main__":
    main()
