"""The command line's grammar: every command with its flags and help, as argparse has them. No
logic, no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

OK, GATE, USAGE, SOME_FAILED = 0, 1, 2, 3
"""Exit codes: all well, a gate failed, wrong usage, some cells failed or were inert, or a model's
baseline was refused."""

Do = Callable[[argparse.Namespace], int]


def parser(commands: Mapping[str, Do]) -> argparse.ArgumentParser:
    """The parser of all commands; the function of the one that was given is left as `do`."""
    from ditbench import __version__

    found = argparse.ArgumentParser(
        prog="ditbench", description="Measure ways of accelerating diffusion transformers."
    )
    found.add_argument("--version", action="version", version=__version__)
    under = found.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, about: str) -> argparse.ArgumentParser:
        sub = under.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        sub.add_argument(
            "--json",
            action="store_true",
            help="end stdout with one JSON document of what the table shows",
        )
        sub.set_defaults(do=commands[name])
        return sub

    run = command("run", "run models under methods, score and report (the default command)")
    _run_flags(run)
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    _run_flags(command("plan", "print the cells a run would have"))

    count = command("count", "count FLOPs over the real sampler loop, without weights")
    count.add_argument(
        "--models", default="full", help="names or groups, comma separated (default: full)"
    )
    count.add_argument("--methods", help="stacks, comma separated")
    count.add_argument(
        "--convention",
        default="flops",
        help="flops, macs, linear-macs, linear-macs-one-pass or toca",
    )
    for flag in ("height", "width", "frames", "steps", "text-tokens"):
        count.add_argument(f"--{flag}", type=int, help="instead of the model's own")
    count.add_argument("--plugin", action="append", default=[], metavar="FILE.py")

    prepare = command("prepare", "train or calibrate what a method needs beforehand")
    prepare.add_argument(
        "method", help="a method or stack, knobs included; what is below a method is prepared for"
    )
    prepare.add_argument("--models", default="tiny")
    prepare.add_argument("--weights", default="bundled", help="bundled, hub, or a local folder")
    prepare.add_argument(
        "--out", type=Path, default=Path("artifacts"), help="folder for what is made"
    )
    prepare.add_argument("--plugin", action="append", default=[], metavar="FILE.py")

    match = command("match", "set methods so that they save the same share of FLOPs")
    match.add_argument(
        "--saved",
        type=float,
        required=True,
        metavar="SHARE",
        help="share of FLOPs to save, between 0 and 1",
    )
    match.add_argument(
        "--methods", required=True, help="stacks, comma separated; the last method's dial is turned"
    )
    match.add_argument("--models", default="tiny")
    match.add_argument("--weights", default="bundled", help="bundled, hub, or a local folder")
    match.add_argument("--plugin", action="append", default=[], metavar="FILE.py")

    stack = command(
        "stack",
        "settle whether methods stack: alone, together, and against fewer steps at equal time",
    )
    stack.add_argument(
        "parts", nargs="+", metavar="METHOD", help="two or three methods or stacks, knobs included"
    )
    _run_flags(stack, methods=False)

    score = command("score", "score the samples of a run again")
    score.add_argument("run", type=Path, metavar="RUN")
    score.add_argument(
        "--metrics",
        help="names or their first words, comma separated (default: all that need no other environment)",
    )

    _reference_flag(score)

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

    recommend = command(
        "recommend",
        "say which stack of a run to use under limits, and why the others do not qualify",
    )
    recommend.add_argument("run", type=Path, metavar="RUN")
    recommend.add_argument(
        "--max-memory-gb", type=float, metavar="GB", help="peak memory, in 10^9 bytes"
    )
    recommend.add_argument("--max-seconds", type=float, metavar="S", help="per sample")
    recommend.add_argument(
        "--min-alignment",
        type=float,
        metavar="CHANGE",
        help="against none: the whole interval, e.g. -0.01",
    )
    recommend.add_argument(
        "--max-frechet", type=float, metavar="CHANGE", help="against none: the whole interval"
    )

    compare = command(
        "compare",
        "show what moved between two runs beyond noise; exits 1 on a regression past a gate",
    )
    compare.add_argument("before", type=Path, metavar="RUN_A")
    compare.add_argument("after", type=Path, metavar="RUN_B")
    compare.add_argument(
        "--max-alignment-loss",
        type=float,
        default=0.01,
        metavar="LOSS",
        help="default: %(default)s",
    )
    for name, what in (
        ("slowdown", "of the speed-up lost"),
        ("memory-growth", "of the peak"),
        ("flops-growth", "of FLOPs"),
    ):
        default = 0.01 if name == "flops-growth" else 0.05
        compare.add_argument(
            f"--max-{name}",
            type=float,
            default=default,
            metavar="SHARE",
            help=f"{what}; default: %(default)s",
        )

    reproduce = command(
        "reproduce", "print the command that makes a row again, and what differs on this machine"
    )
    reproduce.add_argument("run", type=Path, metavar="RUN")
    reproduce.add_argument(
        "row", metavar="ROW", help="record key, or a stack where one model alone has it"
    )

    listing = command("list", "list models, methods or metrics")
    listing.add_argument("what", choices=("models", "methods", "metrics"))
    listing.add_argument("-v", "--verbose", action="store_true", help="knobs, needs and claims too")
    listing.add_argument("--plugin", action="append", default=[], metavar="FILE.py")

    check = command("check", "put a method through the contract on models")
    check.add_argument("method", help="a method or stack, knobs included")
    check.add_argument("--models", default="tiny")
    check.add_argument("--plugin", action="append", default=[], metavar="FILE.py")

    command("doctor", "say what works on this machine and what is missing")
    return found


def _reference_flag(command: argparse.ArgumentParser) -> None:
    about = "a reference file (`reference build`) or npz of ADM's, for all models or one; may be given again"
    command.add_argument(
        "--reference", action="append", default=[], metavar="[MODEL=]FILE", help=about
    )


def _run_flags(command: argparse.ArgumentParser, methods: bool = True) -> None:
    command.add_argument(
        "--spec",
        metavar="FILE.toml",
        help="read the run from a file or a named spec; flags override it",
    )
    command.add_argument("--models", help="names or groups (tiny, full), comma separated")
    if methods:
        command.add_argument(
            "--methods", help="stacks, comma separated: fora,fora(interval=2)+int8"
        )
    command.add_argument(
        "--num-samples", type=int, metavar="N", help="samples a cell; a video counts as four"
    )
    command.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="samples a pipeline call; a video counts as four",
    )
    command.add_argument("--rounds", type=int, metavar="N", help="how often every cell is timed")
    command.add_argument("--seed", type=int, metavar="N")
    command.add_argument("--device", help="cpu, cuda or cuda:N")
    command.add_argument("--dtype", help="float32, bfloat16 or float16")
    command.add_argument("--weights", help="bundled, hub, random, or a local folder")
    command.add_argument(
        "--prompts",
        metavar="FILE",
        help="prompts of full-size text models: a file, or a set of datasets/manifest.toml",
    )
    command.add_argument(
        "--out", metavar="FOLDER", help="run folder; the same folder goes on with a run"
    )
    command.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="a file with methods, models, families or metrics of your own",
    )
    _reference_flag(command)
