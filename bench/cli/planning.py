"""A plan before anything runs: the settings that flags give, its cells, what the command line says
of them, what this machine lacks, and what its verdicts would lack."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ditbench.cli.ending import tell
from ditbench.cli.parser import OK, SOME_FAILED

if TYPE_CHECKING:
    from ditbench.cli.forecasting import Forecast
    from ditbench.runner.plan import Cell
    from ditbench.runner.spec import Spec


def spec_of(args: argparse.Namespace) -> Spec:
    """The settings that the flags of a command give. ValueError for what is none."""
    from ditbench.method.stack import split_stacks
    from ditbench.runner.spec import Spec, from_table, read_toml

    of_own_kind = (
        "models", "methods", "plugins", "references", "own_models", "lora", "margins", "batches",
    )  # fmt: skip
    names = [f.name for f in fields(Spec) if f.name not in of_own_kind]
    table = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.models is not None:
        table["models"] = [part for part in args.models.split(",") if part]
    elif args.model:
        table["models"] = [text.partition("=")[0] for text in args.model]
    if getattr(args, "methods", None) is not None:
        table["methods"] = split_stacks(args.methods)
    for name, key in (
        ("plugin", "plugins"), ("reference", "references"), ("model", "own_models"), ("lora", "lora"),
    ):  # fmt: skip
        if getattr(args, name):
            table[key] = getattr(args, name)
    return from_table(table, read_toml(args.spec or "default"))


def begun_cells(spec: Spec) -> list[Cell]:
    """The plan of a run that can be begun: what it names is there and can be used. ValueError
    otherwise."""
    from ditbench.extractors.references import examine
    from ditbench.runner.engines import check_engine, devices_elsewhere
    from ditbench.runner.plan import plan
    from ditbench.runner.resume import with_threads
    from ditbench.runner.spec import check_writable

    check_engine(spec)
    spec = with_threads(spec)
    cells = devices_elsewhere(plan(spec))
    examine(spec.references, {cell.model.name for cell in cells})
    check_writable(spec.folder)
    full = any(cell.model.group == "full" for cell in cells)
    if full and spec.device.startswith("cuda") and spec.dtype == "float32":
        tell(
            "full-size models are published for bfloat16: float32 takes twice the memory (--dtype)"
        )
    return cells


def tell_plan(planned: Forecast, as_json: bool, elsewhere: bool = False) -> int:
    """Print the cells and what they need; `SOME_FAILED` where a model's baseline or everything is
    refused. `elsewhere`: it is planned for another machine, which has the GPU that this one lacks."""
    from ditbench.reports.terminal.table import show_rows
    from ditbench.runner.plan import describe
    from ditbench.runner.shards import disk_bytes, num_shards

    cells = planned.cells
    rows = describe(cells, planned.needs)
    for row, cell in zip(rows, cells, strict=True):
        row["shards"] = num_shards(cell) if num_shards(cell) > 1 else None
    disk = sum(disk_bytes(cell) for cell in cells if not cell.refusal or cell.wants_device)
    lines = [
        f"{len(cells)} cell{'' if len(cells) == 1 else 's'}, to be written to {cells[0].spec.folder}; samples take at most "
        f"{disk / 1e9:.2g} GB there"
    ]
    lines += sharing(cells)
    lines += [*filter(None, [planned.caption]), *planned.batches]
    if any(cell.model.frames > 1 for cell in cells):
        lines.append("a video counts as four of --num-samples and of --batch-size")
    lines += [
        f"{reason}: what is planned is refused here"
        for reason in dict.fromkeys(row["lacks"] for row in rows if row["lacks"])
    ]
    show_rows(rows, as_json, "\n".join([*lines, *unjudged(cells)]), hide=["key", "lacks"])
    refused = [c for c in cells if c.refusal and not (elsewhere and c.wants_device)]
    baseline_refused = any(not cell.stack.methods for cell in refused)
    return SOME_FAILED if baseline_refused or len(refused) == len(cells) else OK


def sharing(cells: list[Any]) -> list[str]:
    """A sentence about how cells are divided, where any is."""
    from ditbench.runner.shards import num_shards

    able = [cell for cell in cells if not cell.refusal or cell.wants_device]
    spec, shards = cells[0].spec, sum(num_shards(cell) - 1 for cell in able)
    if not shards:
        return []
    if spec.engine == "ray":
        return [f"{shards} shards of {spec.shard} samples are made by tasks of Ray"]
    several = f"on {', '.join(spec.devices)}" if spec.devices else f"{spec.workers} at a time"
    each = f" with --threads {spec.threads}" if spec.workers > 1 and spec.threads else ""
    return [
        f"{shards} shards of {spec.shard} samples are made beside those that are timed, {several}{each}"
    ]


def check_runnable(cells: list[Any]) -> None:
    """ValueError where this machine cannot run any model."""
    from ditbench.runner.plan import missing_device, too_slow

    baselines = [cell for cell in cells if not cell.stack.methods]
    reasons = [
        too_slow(cell.model, cell.spec.device) or missing_device(cell.spec.device)
        for cell in baselines
    ]
    if [cell.refusal for cell in baselines] == reasons and all(reasons):
        sentence = "; ".join(dict.fromkeys(reasons))
        raise ValueError(f"{sentence} (what would run: --dry-run)")


def unjudged(cells: list[Any]) -> list[str]:
    """A sentence for each combination that gets no stacking verdict, for its methods are not run
    alone."""
    from ditbench.analysis.alone import not_alone, sentences

    missing: dict[str, list[str]] = {}
    for model in dict.fromkeys(cell.model.name for cell in cells):
        mine = [cell.stack for cell in cells if cell.model.name == model]
        missing |= not_alone({str(stack): stack.describe() for stack in mine})
    return sentences(missing)
