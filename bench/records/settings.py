"""The settings that all cells of a run share: one list of their names for specs, keys, records,
reports and printed commands. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal


def _setting(
    default: Any,
    changes: Literal["samples", "times"],
    label: str,
    *,
    in_key: bool = True,
    in_rows: bool = True,
    choices: tuple[str, ...] = (),
    workload: bool = False,
) -> Any:
    """`changes`: what another value makes other; `label`: what reports call it; `in_key`: whether
    it is part of a cell's key; `in_rows`: whether rows of reports have it; `choices`: the values it
    may have, such a setting being part of a key only where it is not the default; `workload`: whether
    it is what models are asked for, which is in a cell's key as its sampling."""
    return field(
        default=default,
        metadata={
            "changes": changes, "label": label, "in_key": in_key, "in_rows": in_rows,
            "choices": choices, "workload": workload,
        },
    )  # fmt: skip


def _asked(label: str) -> Any:
    return _setting("", "samples", label, in_key=False, in_rows=False, workload=True)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings as they were requested. A run folder has one value of each."""

    num_samples: int = _setting(80, "samples", "sample count")
    """Samples a cell; a video counts as four."""
    batch_size: int = _setting(16, "samples", "batch size")
    """Samples a pipeline call; a video counts as four."""
    rounds: int = _setting(3, "times", "rounds")
    """How often every cell is timed, in shuffled order, each time in a fresh process."""
    seed: int = _setting(0, "samples", "seed")
    """Chooses the requests and their noise, and the order within rounds."""
    threads: int = _setting(0, "times", "threads", in_key=False, in_rows=False)
    """CPU threads of torch in every cell; 0: torch's own number."""
    process: str = _setting(
        "auto", "times", "processes", in_key=False, in_rows=False,
        choices=("auto", "cell", "round"),
    )  # fmt: skip
    """`cell`: a fresh process for every round of a cell; `round`: one for all cells of a model and
    round, which loads the model once and takes each stack off again; `auto`: `round` on a GPU."""
    shard: int = _setting(512, "times", "shard size", in_key=False, in_rows=False)
    """Samples of a cell that lie in one file, and are made by one process without a break; a video
    counts as four. A cell of more is timed on its first shard. Fixed with the run folder."""
    device: str = _setting("cpu", "samples", "device")
    """`cpu` or `cuda`, `cuda:1`."""
    dtype: str = _setting("float32", "samples", "precision")
    """Of weights and activations."""
    weights: str = _setting("bundled", "samples", "weights")
    """bundled, hub, random, or a local folder."""
    prompts: str = _setting("", "samples", "prompts", in_rows=False)
    """Prompt file, or a set of `datasets/manifest.toml`, for full-size text models; the bundled
    prompts when empty."""

    steps: str = _asked("sampler steps")
    """Sampler steps: `28` for all models, `flux-1-dev=28` for one, `20,flux-1-dev=28` for one and the
    rest; empty: as the table of models has it. The next six likewise."""
    guidance: str = _asked("guidance")
    """Classifier-free guidance scale."""
    height: str = _asked("height")
    """Pixels."""
    width: str = _asked("width")
    """Pixels."""
    frames: str = _asked("frames")
    """Of videos."""
    scheduler: str = _asked("scheduler")
    """Class of diffusers, `DDPMScheduler`; made from the configuration of the model's own."""
    negative_prompt: str = _asked("negative prompt")
    """What the unconditional pass reads: one text, `MODEL=` before it or not."""
    text_encoding: str = _setting(
        "auto", "times", "text encoding", in_rows=False, choices=("auto", "once", "call")
    )
    """When text is encoded: `once` for all calls, before them, the encoders then leaving the GPU;
    `call`: in every call; `auto`: once for full-size models, in every call for tiny ones."""
    offload: str = _setting(
        "none", "times", "offload", in_rows=False, choices=("none", "text", "model", "sequential")
    )
    """What waits in host memory until it is needed: `text` encoders (encoded once, nothing else is
    on the GPU with them), every `model` of the pipeline but the one that runs, or (`sequential`)
    every layer."""
    vae: str = _setting(
        "whole", "samples", "decoding", in_rows=False,
        choices=("whole", "slicing", "tiling", "slicing+tiling"),
    )  # fmt: skip
    """How the decoder decodes: a batch as a whole, a sample at a time (`slicing`), in tiles that are
    blended (`tiling`), or both."""
    row_kernels: str = _setting(
        "auto", "samples", "row kernels", in_rows=False, choices=("auto", "torch")
    )
    """What computes some rows of a sub-layer (`models.fused_rows`): `auto`: kernels in Triton on CUDA
    where the package triton is there, whose samples differ in the last bits; `torch`: torch's
    operations."""

    @property
    def process_of_device(self) -> str:
        """`process` with `auto` decided: `cell` or `round`."""
        on_gpu = self.device.startswith("cuda")
        return self.process if self.process != "auto" else "round" if on_gpu else "cell"

    def requested(self) -> dict[str, Any]:
        """Every setting by name."""
        return {name: getattr(self, name) for name in DEFAULTS}

    def settings(self) -> dict[str, Any]:
        """The settings that can be part of a cell's key."""
        return {f.name: getattr(self, f.name) for f in fields(Settings) if f.metadata["in_key"]}

    def of_key(self) -> dict[str, Any]:
        """The settings that are part of this cell's key."""
        return {
            name: value
            for name, value in self.settings().items()
            if not CHOICES.get(name) or value != DEFAULTS[name]
        }


DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
"""Every setting, in order, with its default."""
CHOICES: dict[str, tuple[str, ...]] = {
    f.name: f.metadata["choices"] for f in fields(Settings) if f.metadata["choices"]
}
"""The values of the settings that have a few."""
WORKLOADS = tuple(f.name for f in fields(Settings) if f.metadata["workload"])
"""What models are asked for in place of what their rows say."""
OPTIONS = (*CHOICES, *WORKLOADS, "shard")
"""Settings that are said only where they are not the default."""
ROW_SETTINGS = tuple(f.name for f in fields(Settings) if f.metadata["in_rows"])
"""Settings that rows of reports have."""
LABELS: dict[str, str] = {f.name: f.metadata["label"] for f in fields(Settings)} | {
    "model_sha256": "weights",
    "requests_sha256": "requests",
}
"""What reports call settings, and the hashes that stand for them in records."""


def changed_settings(settings: Mapping[str, Any]) -> list[str]:
    """The settings with `CHOICES` that are not at their defaults, as reports say them; those that
    are missing, as in older records, are."""
    return [
        f"{LABELS[name]} {settings[name]}"
        for name in CHOICES
        if settings.get(name, DEFAULTS[name]) != DEFAULTS[name]
    ]
