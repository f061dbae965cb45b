"""Commands that work on models and methods without a run: `count`, `prepare`, `convert`, `match`,
`check`. They read flags, call and print."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ditbench.cli.parser import GATE, OK, SOME_FAILED


def count(args: argparse.Namespace) -> int:
    """FLOPs of models under stacks; SOME_FAILED where one could not be counted."""
    from ditbench.method.plugins import load_plugins
    from ditbench.method.stack import Stack, split_stacks
    from ditbench.models.table import select
    from ditbench.profiling.conventions import count_in
    from ditbench.reports.terminal.table import show_rows
    from ditbench.runner.progress import plain, progress

    load_plugins(args.plugin)
    models, texts = (
        select(args.models),
        ["none", *(split_stacks(args.methods) if args.methods is not None else [])],
    )
    stacks = list({str(stack): stack for stack in map(Stack.parse, texts)}.values())
    sizes = {
        name: getattr(args, name) for name in ("height", "width", "frames", "steps", "text_tokens")
    }
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: {value} is less than 1")
    with progress() as tell:
        rows, lines = count_in(args.convention, models, stacks, plain(tell), **sizes)
    show_rows(
        rows,
        args.json,
        lines,
        hide=["size", "text_tokens", "passes", "not_counted", "status", "note", "work"],
    )
    states = {row["status"] for row in rows}
    return SOME_FAILED if "failed" in states or "ok" not in states else OK


def prepare(args: argparse.Namespace) -> int:
    """Train or calibrate what a method needs."""
    from ditbench.method.plugins import load_plugins
    from ditbench.method.prepare import prepare as prepare_models
    from ditbench.method.preparing import Preparing
    from ditbench.method.stack import Stack
    from ditbench.models.own import register_own, with_lora
    from ditbench.models.table import select
    from ditbench.models.workload import with_workload
    from ditbench.reports.figures.training_curve import CARD, write_card
    from ditbench.reports.terminal.table import show_rows
    from ditbench.runner.plan import missing_device
    from ditbench.runner.progress import counting, progress
    from ditbench.runner.spec import Spec, from_table

    load_plugins(args.plugin)
    stack = Stack.parse(args.method)
    settings = from_table({"device": args.device, "dtype": args.dtype} | _workload(args), Spec())
    for text in args.model:
        register_own(text)
    named = args.models or ",".join([text.partition("=")[0] for text in args.model] or ["tiny"])
    models = [
        with_lora(with_workload(model, settings.requested()), args.lora) for model in select(named)
    ]
    preparing = Preparing(
        device=settings.device, dtype=settings.dtype, prompts=args.prompts, autocast=args.autocast
    )  # fmt: skip
    if reason := missing_device(preparing.device):
        raise ValueError(reason)
    weights = {  # nothing is bundled of a model that is published
        model.name: "hub" if args.weights == "bundled" and model.hub else args.weights
        for model in models
    }
    for model in models:
        for sentence in filter(None, (m.caution(model) for m in stack.methods)):
            print(f"ditbench: {model.name}: {sentence}", file=sys.stderr)
    rows = []
    with progress() as tell:
        for model in models:
            rows += prepare_models(
                [model],
                stack,
                weights[model.name],
                lambda need: counting(tell, f"{need.model} {need.method}"),
                args.out,
                args.plugin,
                preparing,
            )
    for row in rows:
        if not row["made"]:
            done = f"{row['model']}: {row['method']} was prepared before ({row['folder']})"
            print(f"ditbench: {done}; nothing was trained", file=sys.stderr)
        # what was there is left alone, but for a card that a full disk left out
        if row["made"] or not (Path(row["folder"]) / CARD).is_file():
            write_card(Path(row["folder"]))
    show_rows(rows, args.json, "")
    return OK


def _workload(args: argparse.Namespace) -> dict[str, str]:
    """What models are asked for in place of their own steps, guidance and sizes."""
    from ditbench.models.workload import WORKLOAD

    return {name: value for name in WORKLOAD if (value := getattr(args, name)) is not None}


def convert(args: argparse.Namespace) -> int:
    """Weights as safetensors."""
    from ditbench.models.converting import convert as convert_folder
    from ditbench.reports.terminal.table import show_rows
    from ditbench.runner.progress import plain, progress

    with progress() as tell:
        rows = convert_folder(args.folder, plain(tell))
    show_rows(rows, args.json, "tensors alone were read; each file names its source and its sha256")
    return OK


def match(args: argparse.Namespace) -> int:
    """Knobs that save the same fraction of FLOPs, or compute as many steps; SOME_FAILED where one has
    none."""
    from ditbench.method.plugins import load_plugins
    from ditbench.method.stack import Stack, split_stacks
    from ditbench.models.table import select
    from ditbench.models.workload import with_workload
    from ditbench.profiling.matched import match as match_model
    from ditbench.profiling.matched import match_steps
    from ditbench.reports.terminal.table import show_rows
    from ditbench.runner.spec import Spec, from_table

    load_plugins(args.plugin)
    if args.saved is not None and not 0 < args.saved < 1:
        raise ValueError(f"--saved: {args.saved} is not between 0 and 1")
    requested = from_table(_workload(args), Spec()).requested()
    models = [with_workload(model, requested) for model in select(args.models)]
    stacks = [Stack.parse(text) for text in split_stacks(args.methods)]
    rows = []
    for model in models:
        if args.saved is None:
            what = (
                "computed: steps in which the transformer is computed, mean over training prompts"
            )
            rows += match_steps(model, stacks, args.computed_steps, args.weights, args.plugin)
        else:
            what = "saved: share of the un-accelerated model's FLOPs, on training requests"
            rows += match_model(model, stacks, args.saved, args.weights, args.plugin)
    show_rows(rows, args.json, what)
    return SOME_FAILED if any(row["note"] for row in rows) else OK


def check(args: argparse.Namespace) -> int:
    """Try a method's contract; GATE when a clause fails."""
    from ditbench.method.plugins import load_plugins
    from ditbench.method.stack import Stack
    from ditbench.models.table import select
    from ditbench.reports.terminal.table import show_rows
    from ditbench.testing.trained import check_models

    load_plugins(args.plugin)
    stack, models = Stack.parse(args.method), select(args.models)
    rows = check_models(stack, models, args.plugin)
    failed = sum(row["result"] == "failed" for row in rows)
    refused = [row["model"] for row in rows if row["result"] == "refused"]
    tried = len(rows) - len(refused)
    caption = f"{tried - failed} of {tried} clauses passed"
    if refused:
        caption += f"; refused on {', '.join(refused)}"
    if failed:
        caption += "; clauses that need what a failed one would have given were not tried"
    show_rows(rows, args.json, caption)
    return GATE if failed else OK
