"""`blocks`: how long a block of each kind takes on a device, dense, in part and reused."""

from __future__ import annotations

import argparse
import sys

from ditbench.cli.parser import OK

MEASURED = (
    "{device}, {dtype}, batch {batch}, the least of {repeats}. A block (plain: nothing "
    "attached; dense: computed and kept; reused), or what a sub-layer adds to a reused block at a "
    "level. of_flops and of_bandwidth: shares of what the device did in one large product ({flops}) "
    "and one large copy ({copied}). realised: speed-up over FLOPs ratio. On a GPU host_ms: until it is "
    "launched; device_ms: of the GPU, all being launched beforehand"
)
PREDICTED = (
    "seconds of the transformer's calls for {batch} samples, by the times above; flops_ratio of the "
    "sub-layers; partial: share of rows computed in part"
)
LONG = 60
"""Seconds from which on it is said beforehand how long the blocks take."""


def blocks(args: argparse.Namespace) -> int:
    """Print the times of blocks, and what schedules would take by them."""
    from ditbench.acceleration.caching.block_benchmark import (
        block_rows,
        least_seconds,
        run_schedules,
        schedule_rows,
        schedules_of,
        subject_of,
        summary_line,
        times_of,
    )
    from ditbench.acceleration.caching.token_settings import selector_class
    from ditbench.models.fused_rows import computed_by
    from ditbench.models.table import select
    from ditbench.profiling.probe import probe
    from ditbench.records.files import check_file
    from ditbench.reports.terminal.table import show_rows
    from ditbench.runner.plan import missing_device
    from ditbench.runner.progress import plain, progress
    from ditbench.runner.spec import Spec, from_table

    models = select(args.models)
    asked = {"device": args.device, "dtype": args.dtype}
    if args.row_kernels is not None:
        asked["row_kernels"] = args.row_kernels
    spec = from_table(asked, Spec())
    if reason := missing_device(spec.device):
        raise ValueError(reason)
    selector_class(args.selector)
    if args.out and len(models) != 1:
        raise ValueError(f"--out: it takes the times of one model, not of {len(models)}")
    if args.out:
        check_file(args.out)
    if not 0 < args.keep <= 1:
        raise ValueError(f"--keep: {args.keep} is not above 0 and at most 1")
    for flag in ("batch_size", "repeats"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag.replace('_', '-')}: {getattr(args, flag)} is less than 1")
    ceilings = probe(spec.device, spec.dtype)
    if rate := ceilings["flops"]:
        for model in models:
            seconds = least_seconds(model, args.batch_size, args.repeats, rate)
            warn_if_long(model.name, seconds, spec.device)
    timed, predicted = [], []
    with progress() as show, computed_by(spec.row_kernels):
        tell = plain(show)
        for model in models:
            tell(f"{model.name}: loading", 0, 1)
            subject = subject_of(model, spec.device, spec.dtype, args.batch_size)
            tell(f"{model.name}: blocks", 0, 1)
            times = times_of(
                subject, args.batch_size, args.repeats, args.selector, compiled=args.compile
            )
            if args.out:
                times.write(args.out)
            schedules = schedules_of(subject, times, args.keep)
            measured = {}
            if args.whole and subject.whole:
                tell(f"{model.name}: whole runs", 0, 1)
                measured = run_schedules(
                    subject, schedules, args.batch_size, args.repeats, args.selector
                )
            timed += block_rows(times, ceilings)
            predicted += schedule_rows(subject, times, schedules, measured)
    device = {
        "device": spec.device, "dtype": spec.dtype, "batch": args.batch_size,
        "repeats": args.repeats, "flops": _rate(ceilings["flops"], "FLOP/s"),
        "copied": _rate(ceilings["copied"], "byte/s"),
    }  # fmt: skip
    show_rows(timed, False, MEASURED.format(**device))
    foot = "\n".join(filter(None, [PREDICTED.format(**device), summary_line(predicted)]))
    show_rows([*timed, *predicted] if args.json else predicted, args.json, foot)
    return OK


def warn_if_long(
    name: str, seconds: float, device: str, what: str = "its blocks", shorter: str = "--repeats 1"
) -> None:
    """Say on stderr how long `what` of a model takes, where that is more than `LONG` seconds, and the
    flag that makes it `shorter`."""
    if seconds < LONG:
        return
    minutes = max(1, round(seconds / 60))
    other = ", --device cuda times a GPU" if device == "cpu" else ""
    print(
        f"ditbench: {name}: {what} take at least {minutes} min on {device}, by the product just "
        f"timed; {shorter} takes fewer calls{other}",
        file=sys.stderr,
    )


def _rate(value: float | None, unit: str) -> str:
    return f"{value:.3g} {unit}" if value else f"no {unit}"
