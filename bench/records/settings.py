"""The settings that all cells of a run share: one list of their names for specs, keys, records,
reports and printed commands. No torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal


def _setting(
    default: Any,
    changes: Literal["samples", "times"],
    label: str,
    *,
    in_key: bool = True,
    in_rows: bool = True,
) -> Any:
    """`changes`: what another value makes other; `label`: what reports call it; `in_key`: whether
    it is part of a cell's key; `in_rows`: whether rows of reports have it."""
    return field(
        default=default,
        metadata={"changes": changes, "label": label, "in_key": in_key, "in_rows": in_rows},
    )


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
    process: str = _setting("auto", "times", "processes", in_key=False, in_rows=False)
    """`cell`: a fresh process for every round of a cell; `round`: one for all cells of a model and
    round, which loads the model once and takes each stack off again; `auto`: `round` on a GPU."""
    device: str = _setting("cpu", "samples", "device")
    """`cpu` or `cuda`, `cuda:1`."""
    dtype: str = _setting("float32", "samples", "precision")
    """Of weights and activations."""
    weights: str = _setting("bundled", "samples", "weights")
    """bundled, hub, random, or a local folder."""
    prompts: str = _setting("", "samples", "prompts", in_rows=False)
    """Prompt file, or a set of `datasets/manifest.toml`, for full-size text models; the bundled
    prompts when empty."""

    @property
    def process_of_device(self) -> str:
        """`process` with `auto` decided: `cell` or `round`."""
        on_gpu = self.device.startswith("cuda")
        return self.process if self.process != "auto" else "round" if on_gpu else "cell"

    def requested(self) -> dict[str, Any]:
        """Every setting by name."""
        return {name: getattr(self, name) for name in DEFAULTS}

    def settings(self) -> dict[str, Any]:
        """The settings that are part of a cell's key."""
        return {f.name: getattr(self, f.name) for f in fields(Settings) if f.metadata["in_key"]}


DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
"""Every setting, in order, with its default."""
ROW_SETTINGS = tuple(f.name for f in fields(Settings) if f.metadata["in_rows"])
"""Settings that rows of reports have."""
LABELS: dict[str, str] = {f.name: f.metadata["label"] for f in fields(Settings)} | {
    "model_sha256": "weights",
    "requests_sha256": "requests",
}
"""What reports call settings, and the hashes that stand for them in records."""
