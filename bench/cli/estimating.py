"""`estimate`: what models and stacks need of a GPU, simulated."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ditbench.cli.parser import OK, SOME_FAILED

if TYPE_CHECKING:
    from ditbench.models.table import Model
    from ditbench.runner.spec import Spec

HIDDEN = ("note", "seconds", "peaks", "copies_by_line", "syncs_by_line")
CAPTION = (
    "simulated, not measured. GB are 10^9 bytes that tensors ask for (weights, kept outputs and "
    "ranking as they are at the sampler loop's peak); peak_in: the stage of the call with the "
    "largest peak. step_ms and call_s: the least time at "
    "published peaks; kernels and copies from the host: a step's, and the sampler loop's. hours: of "
    "the calls of a run of one cell; max_batch: the largest that nine tenths of the memory have room for"
)


def estimate(args: argparse.Namespace) -> int:
    """Print a row for every model and stack; `SOME_FAILED` where one broke down, or none has
    numbers."""
    from ditbench.method.plugins import load_plugins
    from ditbench.method.stack import Stack, split_stacks
    from ditbench.models.table import select
    from ditbench.profiling.gpus import gpu_named
    from ditbench.records.settings import CHOICES, changed_settings
    from ditbench.reports.terminal.table import show_rows
    from ditbench.runner.progress import plain, progress
    from ditbench.runner.spec import from_table, read_toml
    from ditbench.simulation.estimate import estimate as rows_of

    load_plugins(args.plugin)
    models, gpu = select(args.models), gpu_named(args.gpu)
    texts = ["none", *(split_stacks(args.methods) if args.methods is not None else [])]
    stacks = list({str(stack): stack for stack in map(Stack.parse, texts)}.values())
    if args.steps is not None and args.steps < 1:
        raise ValueError(f"--steps: {args.steps} is less than 1")
    table = {
        name: value
        for name in ("batch_size", "num_samples", "rounds", "dtype", *CHOICES)
        if (value := getattr(args, name, None)) is not None
    }
    full_size = {"dtype": "bfloat16", "device": "cuda"}
    spec = from_table(full_size | table, read_toml("default"))
    rows = []
    with progress() as tell:
        step = plain(tell)
        done = rows_of(
            models, stacks, gpu, batch=table.get("batch_size"), dtype=spec.dtype, steps=args.steps,
            samples=spec.num_samples, rounds=spec.rounds,
            text_encoding=spec.text_encoding, offload=spec.offload, vae=spec.vae,
            row_kernels=spec.row_kernels,
        )  # fmt: skip
        of = len(models) * len(stacks)
        step("simulating", 0, of)
        for row in done:
            rows.append(row)
            step(f"{row['model']}/{row['stack']}", len(rows), of)
    reasons = [f"{r['model']} {r['stack']} {r['status']}: {r['note']}" for r in rows if r["note"]]
    head = f"{gpu.title}, {spec.dtype}, --num-samples {spec.num_samples}"
    head = ", ".join([head, *changed_settings(spec.requested())])
    reasons.append(
        "samples of a cell take at most "
        + ", ".join(f"{_disk(model, spec)} ({model.name})" for model in models)
        + f" on the disk, in files of {spec.shard} samples"
    )
    show_rows(rows, args.json, "\n".join([f"{head}; {CAPTION}", *reasons]), HIDDEN)
    states = {row["status"] for row in rows}
    return SOME_FAILED if "failed" in states or not states & {"ok", "at most"} else OK


def _disk(model: Model, spec: Spec) -> str:
    from ditbench.models.sampling import count_for
    from ditbench.runner.shards import bytes_of_sample

    return f"{count_for(model, spec.num_samples) * bytes_of_sample(model) / 1e9:.2g} GB"
