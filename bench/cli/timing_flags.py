"""The flags of `blocks` and `speed`, which time models on a device. No torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from ditbench.cli.flags import methods_flag, models_flag, plugin_flag, rows_flag
from ditbench.cli.usage import decimal_number, whole_number


def block_flags(blocks: argparse.ArgumentParser) -> None:
    """The flags of `blocks`."""
    models_flag(blocks, "tiny")
    blocks.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    blocks.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    for flag, default, about in (
        ("batch-size", 1, "samples of a call; a video counts as one here"),
        ("repeats", 10, "calls of which the least is taken"),
    ):
        blocks.add_argument(
            f"--{flag}", type=whole_number, default=default, metavar="N", help=about
        )
    blocks.add_argument(
        "--keep", type=decimal_number, default=0.46, metavar="SHARE",
        help="share that the schedules spend, of multiply-accumulates or of time",
    )  # fmt: skip
    blocks.add_argument("--selector", default="attention", help="what ranks tokens")
    rows_flag(blocks)
    blocks.add_argument(
        "--compile", action="store_true", help="time the dense block by torch.compile too"
    )
    blocks.add_argument(
        "--whole", action="store_true", help="of tiny models, run the schedules whole too"
    )
    blocks.add_argument(
        "--out", type=Path, metavar="FILE.json",
        help="write the times of one model, for diffsparse(times=FILE.json)",
    )  # fmt: skip


def speed_flags(speed: argparse.ArgumentParser) -> None:
    """The flags of `speed`."""
    models_flag(speed, "tiny")
    methods_flag(speed)
    speed.add_argument(
        "--against", metavar="STACK",
        help="a second baseline, beside none (default: what compiles in a stack, alone)",
    )  # fmt: skip
    speed.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    speed.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    for flag, default, about in (
        ("batch-size", 1, "samples of a call; a video counts as one here"),
        ("rounds", 3, "how often every stack is timed"),
        ("depth", None, "blocks of each list of a full-size model that are built (default: all)"),
        ("steps", None, "in place of the model's (default: the model's)"),
        ("threads", None, "CPU threads of torch (default: torch's own number)"),
    ):
        speed.add_argument(f"--{flag}", type=whole_number, default=default, metavar="N", help=about)
    rows_flag(speed)
    speed.add_argument(
        "--out", type=Path, metavar="FILE.json",
        help="write the rows and the environment, after each model (default: none)",
    )  # fmt: skip
    plugin_flag(speed)
