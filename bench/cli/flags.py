"""Flags that several commands have: those of a run, what trades time for memory, plug-ins and
references."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ditbench.cli.usage import whole_number
from ditbench.records.settings import CHOICES, DEFAULTS
from ditbench.runner.spec import DTYPE_NAMES, DTYPES, Spec, read_toml


@cache
def _default() -> Spec:
    """Read once, for three commands have these flags."""
    return read_toml("default")


class Joined(argparse.Action):
    """Joins the values of a flag that is given several times by commas, as one may write them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Sets what was there before and `values`."""
        before = getattr(namespace, self.dest)
        replaces = before is None or before == self.default
        setattr(namespace, self.dest, values if replaces else f"{before},{values}")


def run_flags(command: argparse.ArgumentParser, methods: bool = True) -> None:
    """The flags of a run. Their defaults are the spec's, `default.toml` unless `--spec` is given."""
    spec = _default()

    def add(flag: str, about: str, metavar: str, default: object = None) -> None:
        command.add_argument(
            flag,
            action=Joined if "comma separated" in about else "store",
            type=whole_number if isinstance(default, int) else str,
            metavar=metavar,
            help=f"{about} (default: {default})",
        )

    command.add_argument(
        "--spec",
        metavar="FILE.toml",
        help="a file or a named spec with these settings; flags override it (default: default)",
    )
    add(
        "--models",
        "names or groups (tiny, small, full), comma separated",
        "MODELS",
        ",".join(spec.models),
    )
    if methods:
        about = "stacks beside none, comma separated, in quotes where they have knobs"
        add("--methods", about, "STACKS", ",".join(spec.methods))
    add(
        "--num-samples",
        "samples a cell; a video counts as four; prompts are gone through again, with other noise",
        "N",
        spec.num_samples,
    )
    command.add_argument(
        "--batch-size",
        type=whole_number,
        metavar="N",
        help="samples a pipeline call; a video counts as four (default: for full-size models chosen "
        f"by the GPU's memory, else {spec.batch_size})",
    )
    command.add_argument(
        "--gpu",
        help="the GPU that full-size models are planned for, as `estimate` has them (default: the "
        "one that is there, else h100)",
    )
    add(
        "--on-oom",
        "what becomes of a cell whose memory runs out: fail, or halve: measured again with half the "
        "batch; auto: halve where the batch size was chosen",
        "auto|halve|fail",
        spec.on_oom,
    )
    add("--rounds", "how often every cell is timed", "N", spec.rounds)
    add("--seed", "chooses the requests, their noise and the order in rounds", "N", spec.seed)
    command.add_argument(
        "--threads",
        type=whole_number,
        metavar="N",
        help="CPU threads of torch in every cell (default: torch's own number)",
    )
    add(
        "--process",
        "what has a process of its own: each cell, or each round of a model, which loads the model "
        "once; auto: round on a GPU, else cell",
        "cell|round|auto",
        spec.process,
    )
    add(
        "--stop-after",
        "seconds after which nothing more is begun, the same command going on later; 0: never",
        "SECONDS",
        spec.stop_after,
    )
    limit = "seconds a round, or a shard, of a cell may take"
    add("--time-limit", limit, "SECONDS", spec.time_limit)
    command.add_argument(
        "--profile",
        action="store_true",
        default=None,
        help="profile one more call of each cell, which is not timed: where the loop's time goes",
    )
    add("--device", "cpu, cuda or cuda:N", "DEVICE", spec.device)
    _sharing_flags(command)
    dtypes = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}; {', '.join(DTYPE_NAMES)} too"
    add("--dtype", f"of weights and activations: {dtypes}", "DTYPE", spec.dtype)
    add("--weights", "bundled, hub, random, or a local folder", "WEIGHTS", spec.weights)
    workload_flags(command)
    memory_flags(command)
    rows_flag(command)
    command.add_argument(
        "--prompts",
        metavar="FILE",
        help="prompts of full-size text models: a file, or a set of datasets/manifest.toml "
        "(default: the bundled prompts)",
    )
    command.add_argument(
        "--training-prompts",
        metavar="FILE",
        help="what full-size text models were asked for by `prepare --prompts` (default: the "
        "bundled training captions)",
    )
    command.add_argument(
        "--out",
        metavar="FOLDER",
        help="run folder; the same folder goes on with a run (default: a folder below runs/, "
        "named after the settings)",
    )
    plugin_flag(command)
    _own_flags(command)
    reference_flag(command)


def _sharing_flags(command: argparse.ArgumentParser) -> None:
    """How the samples of large cells are divided."""
    spec = _default()
    for flag, about, default in (
        (
            "--shard",
            "samples of a cell in one file; a larger cell is timed on the first",
            spec.shard,
        ),
        (
            "--workers",
            "processes that make shards on the CPU, after all was timed, and score cells",
            spec.workers,
        ),
    ):
        command.add_argument(
            flag, type=whole_number, metavar="N", help=f"{about} (default: {default})"
        )
    command.add_argument(
        "--devices",
        type=lambda text: [part for part in text.split(",") if part],
        metavar="CUDA:N,...",
        help="GPUs that make shards, a process each; the first of them times (default: that of "
        "--device)",
    )
    command.add_argument(
        "--engine",
        metavar="local|ray",
        help=f"what runs the cells: processes here, or tasks of a Ray cluster (default: {spec.engine})",
    )
    command.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of the Ray cluster (default: that of this machine, else one of its own)",
    )


def prepare_flags(prepare: argparse.ArgumentParser) -> None:
    """With what artefacts are prepared, and for what."""
    prepare.add_argument(
        "--weights",
        default="bundled",
        help="bundled (for a full-size model: hub), hub, random, or a local folder",
    )
    prepare.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    prepare.add_argument(
        "--dtype", default="float32", help="of weights and activations (default: float32)"
    )
    how = "train with products and attention in bfloat16 (torch.autocast), weights in float32; distill"
    prepare.add_argument("--autocast", action="store_true", help=how)
    prepare.add_argument(
        "--prompts",
        default="",
        metavar="FILE",
        help="what full-size text models are asked for meanwhile: a file, or a set of "
        "datasets/manifest.toml (default: the bundled training captions); a run names it as "
        "--training-prompts",
    )
    workload_flags(prepare)
    prepare.add_argument(
        "--out",
        type=Path,
        default=Path("artifacts"),
        help="folder for what is made; runs look in artifacts/ of the working directory",
    )
    plugin_flag(prepare)
    _own_flags(prepare)


def workload_flags(command: argparse.ArgumentParser) -> None:
    """What models are asked for in place of what their rows say."""
    for name, about in (
        ("steps", "sampler steps: 28, or flux-1-dev=28, or 20,flux-1-dev=28"),
        ("guidance", "guidance scale, likewise"),
        ("height", "pixels, likewise"),
        ("width", "pixels, likewise"),
        ("frames", "of videos, likewise"),
        ("scheduler", "class of diffusers to sample with, likewise"),
        ("negative_prompt", "what the unconditional pass reads: TEXT or MODEL=TEXT"),
    ):
        command.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="TEXT" if name == "negative_prompt" else "[MODEL=]VALUE",
            help=f"{about} (default: the model's own)",
        )


def memory_flags(command: argparse.ArgumentParser) -> None:
    """What trades time for memory."""
    for name, about in (
        ("text_encoding", "when text is encoded: auto is once, before sampling, at full size"),
        ("offload", "what waits in host memory until it is needed"),
        ("vae", "how samples are decoded"),
    ):
        choices = ", ".join(CHOICES[name])
        command.add_argument(
            f"--{name.replace('_', '-')}",
            metavar=name.rpartition("_")[2].upper(),
            help=f"{about}: {choices} (default: {DEFAULTS[name]})",
        )


def models_flag(command: argparse.ArgumentParser, default: str) -> None:
    """Models of the table, of commands that need no run."""
    command.add_argument(
        "--models", action=Joined, default=default,
        help="names or groups (tiny, small, full), comma separated",
    )  # fmt: skip


def methods_flag(command: argparse.ArgumentParser) -> None:
    """Stacks, of the same."""
    command.add_argument("--methods", action=Joined, help="stacks beside none, comma separated")


def rows_flag(command: argparse.ArgumentParser) -> None:
    """What computes some rows of a sub-layer."""
    command.add_argument(
        "--row-kernels",
        metavar="|".join(CHOICES["row_kernels"]),
        help="what computes some rows of a sub-layer: kernels in Triton on CUDA where the package is "
        f"there, or torch's operations everywhere (default: {DEFAULTS['row_kernels']})",
    )


def _own_flags(command: argparse.ArgumentParser) -> None:
    """Models and updates of one's own."""
    command.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=FAMILY:FOLDER",
        help="a diffusers folder of your own, sampled as the model or family it names is; may be "
        "given again",
    )
    command.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="[MODEL=]FILE[@SCALE]",
        help="low-rank updates to merge into transformers; may be given again",
    )


def plugin_flag(command: argparse.ArgumentParser) -> None:
    """Files with methods, models, families and metrics of one's own."""
    command.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="a file with methods, models, families or metrics of your own; may be given again",
    )


def reference_flag(command: argparse.ArgumentParser) -> None:
    """Reference sets of metrics that need one."""
    about = "a reference file (`reference build`) or npz of ADM's, for all models or one; may be given again"
    command.add_argument(
        "--reference", action="append", default=[], metavar="[MODEL=]FILE", help=about
    )


def sharing_flags(commands: Mapping[str, argparse.ArgumentParser]) -> None:
    """The arguments of the commands of `ditbench.cli.sharing`, by name."""
    commands["publish"].add_argument("run", type=Path, metavar="RUN")
    commands["publish"].add_argument(
        "--to",
        required=True,
        metavar="DIR|FILE.tar.zst|hf://datasets/OWNER/NAME",
        help="a folder, a file, or a data set of the Hugging Face hub (hf auth login)",
    )
    commands["pull"].add_argument("source", metavar="SOURCE", help="what `publish --to` takes")
    commands["merge"].add_argument("runs", type=Path, nargs="+", metavar="RUN")
    commands["leaderboard"].add_argument("runs", type=Path, nargs="+", metavar="RUN")
    commands["verify"].add_argument("runs", type=Path, nargs="+", metavar="RUN")
    for name, about in (
        ("pull", "folder for the run"),
        ("merge", "folder for the merged run"),
        ("leaderboard", "folder for the page"),
    ):
        commands[name].add_argument("--out", type=Path, required=True, metavar="DIR", help=about)
