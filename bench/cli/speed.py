"""`speed`: the sampler loops of stacks timed in turn beside their FLOPs, at full width without weights."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from ditbench.cli.blocks import warn_if_long
from ditbench.cli.parser import OK, SOME_FAILED

if TYPE_CHECKING:
    from ditbench.method.stack import Stack
    from ditbench.models.table import Model

SAID = (
    "{device}, {dtype}, batch {batch}, {steps}, rounds {rounds}, all stacks in turn in each. gflop: of the "
    "loop and the batch, all guidance passes (FLOPs = 2 MACs); loop_s: the least of the rounds; speedup: "
    "median of the rounds' ratios to none, lowest and highest of them; realised: speedup by flops_ratio"
)
AGAINST = "against: a second baseline; speedup_against, realised_against: to that, where the others are to none"
RANDOM = "random weights and text embeddings, which methods that decide by values decide by"
SHALLOW = (
    "at most {depth} block{s} of each list: the whole model's FLOPs ratios may be others (count)"
)
AT_LEAST_ONE = ("batch_size", "rounds", "depth", "threads", "steps")


def speed(args: argparse.Namespace) -> int:
    """Print the sampler loops' times; SOME_FAILED where a stack broke down or did nothing, or the
    un-accelerated model could not be timed."""
    from ditbench.method.plugins import load_plugins
    from ditbench.method.stack import Stack
    from ditbench.models.fused_rows import computed_by
    from ditbench.profiling.loops import loop_rows, time_loops
    from ditbench.profiling.probe import probe
    from ditbench.quiet import quiet
    from ditbench.records.allocator import keep_freed_memory
    from ditbench.records.environment import describe
    from ditbench.records.files import check_file, write_json
    from ditbench.reports.terminal.table import show_rows
    from ditbench.runner.plan import missing_device
    from ditbench.runner.progress import plain, progress
    from ditbench.runner.spec import Spec, from_table

    load_plugins(args.plugin)
    asked = {"device": args.device, "dtype": args.dtype}
    if args.row_kernels is not None:
        asked["row_kernels"] = args.row_kernels
    spec, models = from_table(asked, Spec()), _models(args)
    against = Stack.parse(args.against) if args.against is not None else None
    against = against if against and against.methods else None  # all are compared with none
    stacks = _stacks(args.methods, against)
    if args.out:
        check_file(args.out)
    if reason := missing_device(spec.device):
        raise ValueError(reason)
    if spec.device == "cpu":
        keep_freed_memory()
    settings = {
        "dtype": spec.dtype, "batch": args.batch_size, "rounds": args.rounds, "depth": args.depth,
        "steps": args.steps, "row_kernels": spec.row_kernels,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    unwritten: OSError | None = None
    with ExitStack() as during:
        for inside in (_threads(args.threads), quiet(), computed_by(spec.row_kernels)):
            during.enter_context(inside)
        here = describe(spec.device)
        tell = plain(during.enter_context(progress()))
        rate = probe(spec.device, spec.dtype)["flops"]
        for model in models:
            _announce(model, len(stacks), args, rate)
            loops = time_loops(
                model, stacks, device=spec.device, dtype=spec.dtype, batch=args.batch_size,
                rounds=args.rounds, depth=args.depth, plugins=args.plugin, tell=tell,
            )  # fmt: skip
            rows += loop_rows(model, loops, against)
            if args.out:  # after each model, so that a kill loses one
                document = {"environment": here, "settings": settings, "rows": rows}
                try:
                    write_json(args.out, document)
                except OSError as error:  # the rows are still wanted
                    unwritten = error
    caption = "\n".join(_lines(rows, models, here, settings))
    show_rows(rows, args.json, caption, hide=["status", "reason", "rounds_s"])
    if unwritten:
        raise unwritten
    states = {row["status"] for row in rows}
    untimed = any(row["stack"] == "none" and row["status"] != "ok" for row in rows)
    return SOME_FAILED if untimed or states & {"failed", "inert"} else OK


def _models(args: argparse.Namespace) -> list[Model]:
    from ditbench.models.table import select
    from ditbench.models.workload import with_workload
    from ditbench.profiling.loops import weights_of

    for flag in AT_LEAST_ONE:
        if (value := getattr(args, flag)) is not None and value < 1:
            raise ValueError(f"--{flag.replace('_', '-')}: {value} is less than 1")
    steps = {} if args.steps is None else {"steps": str(args.steps)}
    models = [with_workload(model, steps) for model in select(args.models)]
    if args.depth and (own := [m.name for m in models if weights_of(m) != "random"]):
        raise ValueError(f"--depth: it is for full-size models, and {own[0]} is none")
    return models


def _stacks(methods: str | None, against: Stack | None) -> list[Stack]:
    """None first, and what the others are compared with last."""
    from ditbench.method.stack import Stack, split_stacks

    stacks = [Stack(), *map(Stack.parse, split_stacks(methods) if methods else [])]
    stacks += [against] if against else filter(None, [s.compiled_alone() for s in stacks])
    return list({str(stack): stack for stack in stacks}.values())


def _announce(model: Model, stacks: int, args: argparse.Namespace, rate: float | None) -> None:
    from ditbench.profiling.loops import least_seconds, weights_of

    if rate and weights_of(model) == "random":
        seconds = least_seconds(model, stacks, args.batch_size, args.rounds, args.depth, rate)
        given = {"--depth 2": args.depth, "--steps 6": args.steps, "--rounds 1": args.rounds == 1}
        fewer = " or ".join(flag for flag, there in given.items() if not there)
        warn_if_long(model.name, seconds, args.device, "all loops", fewer or "another model")


def _lines(
    rows: Sequence[Mapping[str, Any]], models: Sequence[Model], here: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Iterator[str]:  # fmt: skip
    from ditbench.profiling.loops import weights_of

    on_cpu, threads = here["device"] == "cpu", here["threads"]
    many = f"{here['processor']}, {threads} thread{'' if threads == 1 else 's'}"
    steps = f"steps {settings['steps'] or 'of the model'}"
    device = many if on_cpu else here["device"]
    yield SAID.format(device=device, **{**settings, "steps": steps})
    if any(row["against"] for row in rows):
        yield AGAINST
    if any(weights_of(model) == "random" for model in models):
        yield RANDOM
    if settings["depth"]:
        depth = settings["depth"]
        yield SHALLOW.format(depth=depth, s="" if depth == 1 else "s")
    for row in rows:
        if row["reason"]:
            state = "" if row["status"] == "ok" else f"{row['status']}: "
            yield f"{row['model']} {row['stack']}: {state}{row['reason']}"


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
