"""The command line's grammar: every command with its flags and help, as argparse has them. No
logic, no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from ditbench.cli.flags import (
    Joined,
    memory_flags,
    methods_flag,
    models_flag,
    plugin_flag,
    prepare_flags,
    reference_flag,
    rows_flag,
    run_flags,
    sharing_flags,
    workload_flags,
)
from ditbench.cli.timing_flags import block_flags, speed_flags
from ditbench.cli.usage import Parser, decimal_number, whole_number

OK, GATE, USAGE, SOME_FAILED, STOPPED, BUG = 0, 1, 2, 3, 4, 5
"""Exit codes: all well; a gate failed; wrong usage, or a file or machine that does not do; some cells
failed or were inert, or a model's baseline was refused; stopped by --stop-after; an error of ditbench
itself."""
INTERRUPTED = 128
"""Exit code of a command that a signal stopped, less the number of the signal: 130 after Ctrl-C, 143
after SIGTERM."""

Do = Callable[[argparse.Namespace], int]


def parsers(
    commands: Mapping[str, Do], given: str | None = None
) -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command line, and the parser of each command by name; the function of the
    command that was given is left as `do`. Where the command is `given`, the many flags of a run or
    of `prepare` are added to that one alone."""
    from ditbench import __version__

    top = Parser(
        prog="ditbench", description="Measure ways of accelerating diffusion transformers."
    )
    top.add_argument("--version", action="version", version=__version__)
    subparsers = top.add_subparsers(metavar="COMMAND", required=True)
    by_name: dict[str, Parser] = {}

    def command(name: str, about: str) -> Parser:
        sub: Parser = subparsers.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + "."
        )
        by_name[name] = sub
        sub.add_argument(
            "--json",
            action="store_true",
            help="end stdout with one JSON document of what the table shows",
        )
        sub.set_defaults(do=commands[name])
        return sub

    run = command("run", "run models under methods, score and report (the default command)")
    plan = command("plan", "print the cells a run would have")
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop")

    count = command("count", "count FLOPs over the real sampler loop, without weights")
    models_flag(count, "full")
    methods_flag(count)
    count.add_argument(
        "--convention",
        default="flops",
        help="flops, macs, linear-macs, linear-macs-one-pass or toca",
    )
    for flag in ("height", "width", "frames", "steps", "text-tokens"):
        count.add_argument(
            f"--{flag}", type=whole_number, help="in place of the model's (default: the model's)"
        )
    plugin_flag(count)

    estimate = command(
        "estimate", "say what models need of a GPU at full size, simulated: memory, time, batch"
    )
    models_flag(estimate, "full")
    methods_flag(estimate)
    estimate.add_argument(
        "--gpu", default="h100", help="h100, h200, a100, l20, rtx4090 or a FILE.toml of your own"
    )
    estimate.add_argument("--dtype", help="of weights and activations (default: bfloat16)")
    estimate.add_argument(
        "--steps", type=whole_number, help="in place of the model's (default: the model's)"
    )
    for flag, about in (
        (
            "batch-size",
            "samples a pipeline call; a video counts as four (default: as run chooses it)",
        ),
        ("num-samples", "samples of the run whose hours are told; a video counts as four"),
        ("rounds", "how often that run times every cell"),
    ):
        estimate.add_argument(f"--{flag}", type=whole_number, metavar="N", help=about)
    memory_flags(estimate)
    rows_flag(estimate)
    plugin_flag(estimate)

    blocks = command("blocks", "time blocks of full size on a device: dense, in part and reused")
    block_flags(blocks)

    speed = command(
        "speed",
        "time the sampler loops of stacks in turn, beside the FLOPs they execute",
    )
    speed_flags(speed)

    prepare = command("prepare", "train or calibrate what a method needs beforehand")
    prepare.add_argument(
        "method", help="a method or stack, knobs included; what is below a method is prepared for"
    )
    prepare.add_argument(
        "--models",
        help="names or groups (tiny, small, full), comma separated (default: tiny, or --model)",
    )

    convert = command("convert", "make safetensors of weights that are there as .bin only")
    convert.add_argument("folder", type=Path, help="a diffusers pipeline, or a folder of weights")

    match = command(
        "match", "set methods so that they save the same share of FLOPs, or compute as many steps"
    )
    goal = match.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--saved",
        type=decimal_number,
        metavar="SHARE",
        help="share of FLOPs to save, between 0 and 1",
    )
    goal.add_argument(
        "--computed-steps",
        type=decimal_number,
        metavar="N",
        help="steps to compute, within 0.3 in the mean over 50 training prompts: for methods that "
        "replace whole steps",
    )
    match.add_argument(
        "--methods", required=True, help="stacks, comma separated; the last method's dial is turned"
    )
    match.add_argument(
        "--models",
        action=Joined,
        default="tiny",
        help="names or groups (tiny, small, full), comma separated",
    )
    match.add_argument("--weights", default="bundled", help="bundled, hub, or a local folder")
    workload_flags(match)
    plugin_flag(match)

    stack = command(
        "stack",
        "settle whether methods stack: alone, together, and against fewer steps at equal time",
    )
    stack.add_argument(
        "parts", nargs="+", metavar="METHOD", help="two or three methods or stacks, knobs included"
    )
    stack.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    stack.add_argument(
        "--surface",
        nargs="+",
        metavar="KNOB=VALUES",
        help="instead of the factorial, all numbers of steps with all values of the other method's "
        "dial: steps=2,4,8 keep=0.3,0.5,0.7",
    )

    score = command("score", "score the samples of a run again")
    score.add_argument("run", type=Path, metavar="RUN")
    score.add_argument(
        "--metrics",
        help="names or their first words, comma separated (default: all that need no other environment)",
    )
    score.add_argument(
        "--workers", type=whole_number, default=1, metavar="N", help="cells scored side by side"
    )
    plugin_flag(score)
    reference_flag(score)

    reference = command(
        "reference", "make a reference set for metrics that look through an extractor"
    )
    reference.add_argument("what", choices=("build",))
    reference.add_argument(
        "source",
        type=Path,
        metavar="DIR",
        help="a folder of PNG and JPEG files, or an npz of ADM's",
    )
    reference.add_argument(
        "--extractor",
        required=True,
        help="a row of bench/extractors/extractors.toml, such as tf2015",
    )
    reference.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")

    report = command("report", "make tables, figures and the page of runs from their records")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    report.add_argument("--out", type=Path, help="folder for the report (default: RUN/report)")
    report.add_argument(
        "--only",
        choices=("pairs",),
        help="of the report only the matrix of all pairs of methods: run, refused or not run",
    )
    plugin_flag(report)

    recommend = command(
        "recommend",
        "say which stack of a run to use under limits, and why the others do not qualify",
    )
    recommend.add_argument("run", type=Path, metavar="RUN")
    recommend.add_argument(
        "--models", action=Joined, metavar="NAMES", help="of the run's models these alone"
    )
    recommend.add_argument(
        "--max-memory-gb", type=decimal_number, metavar="GB", help="peak memory, in 10^9 bytes"
    )
    recommend.add_argument("--max-seconds", type=decimal_number, metavar="S", help="per sample")
    recommend.add_argument(
        "--min-speedup",
        type=decimal_number,
        metavar="X",
        help="of the call against none: the whole interval, e.g. 2",
    )
    recommend.add_argument(
        "--min-alignment",
        type=decimal_number,
        metavar="CHANGE",
        help="against none: the whole interval, e.g. -0.01",
    )
    recommend.add_argument(
        "--max-frechet",
        type=decimal_number,
        metavar="CHANGE",
        help="against none: the whole interval",
    )
    plugin_flag(recommend)

    compare = command(
        "compare",
        "show what moved between two runs beyond noise; exits 1 on a regression past a gate",
    )
    compare.add_argument("before", type=Path, metavar="RUN_A")
    compare.add_argument("after", type=Path, metavar="RUN_B")
    compare.add_argument(
        "--max-alignment-loss",
        type=decimal_number,
        default=0.01,
        metavar="LOSS",
        help="alignment lost against the other run",
    )
    for name, what in (
        ("slowdown", "of the speed-up lost"),
        ("memory-growth", "of the peak"),
        ("flops-growth", "of FLOPs"),
    ):
        default = 0.01 if name == "flops-growth" else 0.05
        compare.add_argument(
            f"--max-{name}",
            type=decimal_number,
            default=default,
            metavar="SHARE",
            help=what,
        )
    plugin_flag(compare)

    reproduce = command(
        "reproduce", "print the command that makes a row again, and what differs on this machine"
    )
    reproduce.add_argument("run", type=Path, metavar="RUN")
    reproduce.add_argument(
        "row",
        metavar="ROW",
        help="MODEL/STACK, a record key, or a stack where one model alone has it",
    )
    plugin_flag(reproduce)

    shared = {
        name: command(name, about)
        for name, about in (
            ("publish", "send a run without secrets, folders and names of this machine"),
            ("pull", "fetch a published run"),
            ("merge", "put cells of several runs of one protocol into one published run"),
            ("leaderboard", "write a page of many runs, by model and machine"),
            ("verify", "derive every table of published runs again; exits 1 where one differs"),
        )
    }
    sharing_flags(shared)
    for name in ("publish", "merge", "leaderboard", "verify"):
        plugin_flag(shared[name])

    listing = command("list", "list models, methods or metrics")
    listing.add_argument("what", choices=("models", "methods", "metrics"))
    listing.add_argument("-v", "--verbose", action="store_true", help="knobs, needs and claims too")
    plugin_flag(listing)

    check = command("check", "put a method through the contract on models")
    check.add_argument("method", help="a method or stack, knobs included")
    check.add_argument(
        "--models",
        action=Joined,
        default="tiny",
        help="names or groups (tiny, small, full), comma separated",
    )
    plugin_flag(check)

    command("doctor", "say what works on this machine and what is missing")
    for name, sub in (("run", run), ("plan", plan), ("stack", stack)):
        if given in (None, name):
            run_flags(sub, methods=name != "stack")
    if given in (None, "prepare"):
        prepare_flags(prepare)
    for sub in by_name.values():
        _add_defaults(sub)
    return top, by_name


def _add_defaults(command: argparse.ArgumentParser) -> None:
    """End the help of every optional flag with its default."""
    for action in command._actions:
        takes_value = action.option_strings and action.nargs != 0
        if takes_value and not action.required and "default" not in (action.help or ""):
            default = "none" if action.default in (None, []) else "%(default)s"
            action.help = (
                f"{action.help} (default: {default})" if action.help else f"default: {default}"
            )
