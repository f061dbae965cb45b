"""`speed`: how much of the FLOPs that stacks save arrives as seconds, at full width, without weights."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from ditbench.cli.blocks import warn_if_long
from ditbench.cli.parser import OK, SOME_FAILED

SAID = (
    "{device}, {threads}, {dtype}, batch {batch}, rounds {rounds}, all stacks in turn in each. loop_s: "
    "the sampler loop, the least; speedup: median of the rounds' ratios to none, lowest and highest of "
    "them; realised: speed-up over FLOPs ratio"
)
AGAINST = "against: what is also compared with, in place of none"
RANDOM = "random weights and text embeddings, which methods that decide by values decide by"


def speed(args: argparse.Namespace) -> int:
    """Print the sampler loops' times; SOME_FAILED where a stack broke down or none could be timed."""
    from ditbench.method.plugins import load_plugins
    from ditbench.method.stack import Stack, split_stacks
    from ditbench.models.fused_rows import computed_by
    from ditbench.models.table import select
    from ditbench.models.workload import with_workload
    from ditbench.profiling.loops import least_seconds, loop_rows, time_loops, weights_of
    from ditbench.profiling.probe import probe
    from ditbench.records.allocator import keep_freed_memory
    from ditbench.reports.terminal.table import show_rows
    from ditbench.runner.plan import missing_device
    from ditbench.runner.progress import plain, progress
    from ditbench.runner.spec import Spec, from_table

    load_plugins(args.plugin)
    asked = {"device": args.device, "dtype": args.dtype}
    if args.row_kernels is not None:
        asked["row_kernels"] = args.row_kernels
    spec = from_table(asked, Spec())
    for flag in ("batch_size", "rounds", "depth", "threads", "steps"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise ValueError(f"--{flag.replace('_', '-')}: {value} is less than 1")
    steps = {} if args.steps is None else {"steps": str(args.steps)}
    models = [with_workload(model, steps) for model in select(args.models)]
    if args.depth and (own := [m.name for m in models if weights_of(m) != "random"]):
        raise ValueError(f"--depth: it is for full-size models, and {own[0]} is none")
    against = Stack.parse(args.against) if args.against else None
    stacks = [Stack(), *map(Stack.parse, split_stacks(args.methods) if args.methods else [])]
    stacks += [against] if against else filter(None, [s.compiled_alone() for s in stacks])
    stacks = list({str(stack): stack for stack in stacks}.values())
    if reason := missing_device(spec.device):
        raise ValueError(reason)
    if spec.device == "cpu":
        keep_freed_memory()
    rows = []
    with _threads(args.threads) as threads, progress() as show, computed_by(spec.row_kernels):
        rate = probe(spec.device, spec.dtype)["flops"]
        for model in models:
            if rate and weights_of(model) == "random":
                seconds = least_seconds(
                    model, len(stacks), args.batch_size, args.rounds, args.depth, rate
                )
                warn_if_long(model.name, seconds, spec.device, "all loops", "--rounds 1")
            loops = time_loops(
                model, stacks, device=spec.device, dtype=spec.dtype, batch=args.batch_size,
                rounds=args.rounds, depth=args.depth, plugins=args.plugin, tell=plain(show),
            )  # fmt: skip
            rows += loop_rows(model, loops, against)
    many = f"{threads} thread{'' if threads == 1 else 's'}"
    about = {"device": spec.device, "dtype": spec.dtype, "threads": many}
    lines = [SAID.format(batch=args.batch_size, rounds=args.rounds, **about)]
    if any(row["against"] for row in rows):
        lines.append(AGAINST)
    if any(weights_of(model) == "random" for model in models):
        lines.append(RANDOM)
    if args.depth:
        lines.append(f"at most {args.depth} blocks of each list")
    lines += [
        f"{row['model']} {row['stack']}: {row['status']}: {row['reason']}"
        for row in rows
        if row["status"] != "ok"
    ]
    show_rows(rows, args.json, "\n".join(lines), hide=["status", "reason"])
    states = {row["status"] for row in rows}
    return SOME_FAILED if "failed" in states or "ok" not in states else OK


@contextmanager
def _threads(number: int | None) -> Iterator[int]:
    """That many threads of torch inside (None: as many as there were); gives how many there are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
