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
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditbench import ROOT
from ditbench.records.files import write_json
from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder

PROGRAM = str(ROOT / "run_bench.py")
STORE = 100 << 20
"""Bytes of each node's object store."""
MEMORY = 4 << 30
"""Bytes that each node says it has for tasks."""
POLL_S = 0.2


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

    of_each = {"num_cpus": 1, "memory": MEMORY, "object_store_memory": STORE}
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
                for process in victim.live_processes():
                    os.kill(process[1].pid, signal.SIGKILL)
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
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
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
    """Tasks that do nothing, as many at once as a cluster of 1,000 places would run: seconds to give
    them to nodes and to take their answers, one command doing both."""
    from ditbench.runner.cluster import Cluster

    nodes, _ = two_nodes()
    cluster = Cluster(nodes.address)
    try:
        node, tasks = cluster.nodes()[0], []
        cluster.result(cluster.submit(node, _nothing, cpus=0.0, gpus=0.0, memory=0.0))
        began = time.monotonic()
        waiting, over = number, 0
        while over < number:
            while waiting and len(tasks) < 1000:
                tasks.append(cluster.submit(node, _nothing, cpus=0.01, gpus=0.0, memory=0.0))
                waiting -= 1
            for task in cluster.wait(tasks, POLL_S):
                cluster.result(task)
                tasks.remove(task)
                over += 1
        seconds = time.monotonic() - began
    finally:
        cluster.close()
        nodes.shutdown()
    return {"tasks": number, "seconds": seconds, "tasks_a_second": number / seconds}


def _nothing() -> bytes:
    return b""


def _begin(out: Path, flags: Sequence[str]) -> subprocess.Popen[bytes]:
    with out.with_name(f"{out.name}.log").open("ab") as log:
        command = [sys.executable, PROGRAM, "run", *flags, "--out", str(out)]
        return subprocess.Popen(command, stdout=log, stderr=log)


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
