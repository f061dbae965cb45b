"""Whether a run that is killed again and again gives what an undisturbed one gives: `python -m
ditbench.testing.endurance FOLDER --kills 25 -- RUN FLAGS`.

Both runs are made with the flags after `--`, into FOLDER/undisturbed and FOLDER/killed. While the
second runs, at random moments its command or one of the processes that make shards, with `--engine
ray` also one of Ray's own, is killed (SIGKILL), and the command begun again. Then pixels, files and scores of both are compared. The
memory of the largest process is noted beside the samples that are there. The same command goes on
with what is there. Linux.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ditbench import ROOT
from ditbench.metrics.samples import Samples
from ditbench.records.files import write_json
from ditbench.records.record import read_run
from ditbench.records.run_folder import RunFolder
from ditbench.records.scores import read_scores
from ditbench.runner.leases import owner_of

PROGRAM = str(ROOT / "run_bench.py")
SAMPLING_S = 0.5
"""Seconds from one look at the memory of the processes to the next."""
WORKERS = 0.7
"""Share of the kills that are of a process that makes shards, or of Ray; they wait until there is
one."""
RAY = {"ray::": "worker", "raylet": "raylet", "gcs_server": "gcs"}
"""What the command lines of Ray's processes begin with, a folder aside, and what they are."""
TRIES = 3
"""How often the command is begun again, undisturbed, while cells of it fail."""
FINISHED = (0, 3)
"""Exit codes of a command that came to its end; with 3 a cell failed, which the next makes again."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Both runs and their comparison, which is printed and written to `endurance.json`; exits with 1
    where they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the processes")
    parser.add_argument("--mean", type=float, default=20.0, help="seconds from kill to kill")
    parser.add_argument("flags", nargs="+", help="of `run`, without --out, after --")
    args = parser.parse_args(arguments)
    args.folder.mkdir(parents=True, exist_ok=True)
    memory = args.folder / "memory.csv"
    if (code := _run(args.folder / "undisturbed", args.flags, memory)) not in FINISHED:
        raise ValueError(f"the undisturbed run ended with exit code {code}")
    kills = disturb(args.folder / "killed", args.flags, args.kills, args.mean, args.seed)
    result = compare(args.folder / "undisturbed", args.folder / "killed")
    result |= {"kills": kills, "flags": args.flags, "peak_bytes": _peaks(memory)}
    write_json(args.folder / "endurance.json", result)
    print(json.dumps(result, indent=1))  # noqa: T201
    sys.exit(1 if result["differing"] else 0)


def disturb(out: Path, flags: Sequence[str], kills: int, mean: float, seed: int) -> dict[str, int]:
    """Run into `out` and kill the command or a process of it so often, on average after `mean`
    seconds each; then let it come to its end, which it may before. How often which was killed, by
    `kills.jsonl` beside it; what was killed there before counts. ValueError where it cannot run."""
    log = out.with_name("kills.jsonl")
    memory = out.with_name("memory.csv")
    before = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    chance = random.Random(f"{seed}/{len(before)}")
    done, ended, by_ray = len(before), 0, 0
    while True:
        running = _begin(out, flags)
        while done < kills and running.poll() is None:
            _watch(running, out, chance.expovariate(1 / mean), memory)
            if running.poll() is not None:
                break
            victim, makers = running.pid, {}
            if chance.random() < WORKERS:
                while not (makers := _makers(out, running.pid)) and running.poll() is None:
                    _watch(running, out, SAMPLING_S, memory)
                if not makers:
                    break
                victim = chance.choice(sorted(makers))
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                kind = "command" if victim == running.pid else makers[victim]
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"killed": kind, "shards": _count(out)}) + "\n")
                done += 1
            if victim == running.pid:
                running.wait()
        _watch(running, out, float("inf"), memory)
        ended += done >= kills and running.returncode in FINISHED
        if running.returncode == 0 or ended == TRIES:
            break
        # Ray ends its driver, with code 1 and no word of ours, when the raylet beside it is gone; with 2
        # no cluster could be started, as right after one was killed
        by_ray += (lost := running.returncode in (1, 2) and "ray" in flags)
        if by_ray > kills or (not lost and running.returncode not in (*FINISHED, -signal.SIGKILL)):
            raise ValueError(f"the run ended with exit code {running.returncode}; see {out}.log")
    log.touch()
    lines = [json.loads(line)["killed"] for line in log.read_text(encoding="utf-8").splitlines()]
    return {kind: lines.count(kind) for kind in ("command", *dict.fromkeys(RAY.values()))}


def compare(one: Path, other: Path) -> dict[str, Any]:
    """What differs between two runs: statuses, pixels, samples files, scores."""
    differing: list[str] = []
    records = {r["key"]: r for r in read_run(one).records}
    theirs = {r["key"]: r for r in read_run(other).records}
    if records.keys() != theirs.keys():
        differing.append("keys of the cells")
    scores, their_scores = read_scores(one), read_scores(other)
    arrays = samples = 0
    for key in records.keys() & theirs.keys():
        mine, its = records[key], theirs[key]
        if (mine["status"], its["status"]) != ("ok", "ok"):
            differing.append(f"{key}: status {mine['status']}, {its['status']} ({its['reason']})")
            continue
        if mine.get("sample_files") != its.get("sample_files"):
            differing.append(f"{key}: samples files")
        pixels = [_pixels(RunFolder(folder).stored_samples(key)) for folder in (one, other)]
        samples += pixels[0][1]
        if pixels[0] != pixels[1]:
            differing.append(f"{key}: pixels")
        a, b = scores[key].arrays, their_scores[key].arrays
        if {*a} != {*b}:
            differing.append(f"{key}: names of scores")
        for name in {*a} & {*b}:
            arrays += 1
            if not np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f"):
                differing.append(f"{key}: {name}")
    return {"differing": differing, "cells": len(records), "samples": samples, "arrays": arrays}


def _pixels(path: Path) -> tuple[str, int]:
    """sha256 of all pixels of a cell, and how many samples they are."""
    total, samples = hashlib.sha256(), Samples(path)
    for chunk in samples.chunks():
        total.update(np.ascontiguousarray(chunk).tobytes())
    return total.hexdigest(), len(samples)


def _begin(out: Path, flags: Sequence[str]) -> subprocess.Popen[bytes]:
    with out.with_name(f"{out.name}.log").open("ab") as log:
        command = [sys.executable, PROGRAM, "run", *flags, "--out", str(out)]
        return subprocess.Popen(command, stdout=log, stderr=log)


def _run(out: Path, flags: Sequence[str], memory: Path) -> int:
    running = _begin(out, flags)
    _watch(running, out, float("inf"), memory)
    return running.returncode


def _watch(running: subprocess.Popen[bytes], out: Path, seconds: float, memory: Path) -> None:
    """Note the memory of a command and its processes until it ends, or for so long."""
    end = time.monotonic() + seconds
    with memory.open("a", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        while running.poll() is None and (left := end - time.monotonic()) > 0:
            largest = max(map(_peak, _below(running.pid)))
            rows.writerow([out.name, _count(out), _peak(running.pid), largest])
            with suppress(subprocess.TimeoutExpired):
                running.wait(min(SAMPLING_S, left))


def _count(out: Path) -> int:
    """Shards that are there."""
    return len(RunFolder(out).all_shards())


def _makers(out: Path, command: int) -> dict[int, str]:
    """The processes of a command that make shards now, by their leases, and those of Ray, each with
    what it is. Others are none of ours: a lease may be left over, and its number be another
    process's by now."""
    ours = {*_below(command)}
    owners = (owner_of(place).get("pid") for place in RunFolder(out).leases())
    kinds = {pid: "worker" for pid in owners if pid in ours}
    for pid in ours:
        with suppress(OSError):
            program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
            name = program.rpartition("/")[2] if program.startswith("/") else program
            for start, kind in RAY.items():
                if name.startswith(start):
                    kinds[pid] = kind
    return kinds


def _below(pid: int) -> Iterator[int]:
    """A process, and all that it, and what it started, has started."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    waiting = [pid]
    while waiting:
        process = waiting.pop()
        waiting += parents.get(process, [])
        yield process


def _peak(pid: int) -> int:
    with suppress(OSError, IndexError, ValueError):
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        return int(text.split("VmHWM:")[1].split()[0]) * 1024
    return 0


def _peaks(memory: Path) -> dict[str, int]:
    """Peak resident bytes of the command and of its largest process, in both runs."""
    rows = [
        row for row in csv.reader(memory.read_text(encoding="utf-8").splitlines()) if len(row) == 4
    ]
    return {
        "command": max((int(row[2]) for row in rows), default=0),
        "process": max((int(row[3]) for row in rows), default=0),
    }


if __name__ == "__main__":
    main()
