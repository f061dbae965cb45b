"""A smaller model of the same latents beside a pipeline's own: which one, whether it fits, and its
transformer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditbench.models.folders import class_of, sizes_of
from ditbench.models.origin import Origin, origin_of
from ditbench.models.table import Model, models
from ditbench.suggest import suggest

INTERFACE = (
    "in_channels", "out_channels", "patch_size", "sample_size", "num_embeds_ada_norm",
    "caption_channels", "joint_attention_dim", "pooled_projection_dim", "text_dim",
    "guidance_embeds", "use_additional_conditions",
)  # fmt: skip
"""Keys of a transformer's configuration that say what it is called with and returns."""
NOISE = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "prediction_type",
)  # fmt: skip
"""Keys of a sampler's configuration that say what noise levels mean and what is predicted."""


@dataclass(frozen=True)
class Small:
    """Where a smaller transformer comes from: a folder of weights, or the sizes of a model that is
    built at random."""

    name: str
    folder: Path | None
    """The transformer's; None: random weights, as the pipeline's own are."""
    model: Model | None = None
    changes: dict[str, Any] | None = None
    scheduler: Path | None = None
    """Configuration of the sampler that lies beside it, where there is one."""

    def sizes(self) -> dict[str, Any]:
        """The transformer's configuration; ValueError where its file cannot be read."""
        if self.folder is not None:
            return sizes_of(self.folder / "config.json")
        from ditbench.models.architecture import describe

        assert self.model is not None
        return describe(self.model, self.changes)["transformer"]

    def class_name(self) -> str:
        """The transformer's class; ValueError as `sizes`."""
        if self.folder is not None:
            return class_of(self.folder / "config.json")
        return str(self.sizes()["class"]).rpartition(".")[2]


def row_of(small: str, model: Model | None) -> Model | None:
    """The model of the table that is meant by a name, or for "" by the row of a model; None where
    that is none. ValueError, with the nearest names, for a name that is neither a model nor a
    folder."""
    table = models()
    if small:
        if Path(small).is_dir():
            return None
        if small not in table:
            raise ValueError(
                f"small: {small!r} is no folder, and no model; {suggest(small, table)}"
            )
        return table[small]
    return table[model.small] if model is not None and model.small else None


def find_small(pipeline: Any, small: str) -> Small:
    """The smaller model of a pipeline: of a folder (a transformer's, or a pipeline's), of a model's
    name, or for "" the one that the row of the pipeline's model names. ValueError in one sentence
    where there is none, or its weights cannot be found.

    Where the pipeline has random weights, or no values at all, so has the smaller one.
    """
    if small and Path(small).is_dir():
        return in_folder(Path(small))
    origin = origin_of(pipeline)
    row = row_of(small, origin.model if origin else None)
    random = _nowhere(pipeline) or (origin is not None and origin.weights == "random")
    if row is None and origin is not None and origin.model.small_changes and random:
        return _at_random(pipeline, origin.model, origin.model.small_changes)
    if row is None:
        raise ValueError(_none_known(origin))
    if random:
        return _at_random(pipeline, row, {})
    from ditbench.models.weights import check_folder, locate

    folder = locate(row, _weights(origin, row))
    check_folder(folder)
    return Small(row.name, folder / "transformer", scheduler=_scheduler(folder))


def _weights(origin: Origin | None, row: Model) -> str:
    """Where a model's weights are looked for: where the pipeline's own were, if it can be there."""
    if row.is_bundled:
        return "bundled"
    return origin.weights if origin and origin.weights != "bundled" else "hub"


def _none_known(origin: Origin | None) -> str:
    if origin is None:
        return "no smaller model of this pipeline is known; small='FOLDER' names one"
    if origin.model.small_changes:
        return (
            f"the smaller model of {origin.model.name} is not on the hub; small='FOLDER' names the "
            "folder of its transformer"
        )
    return f"no smaller model of {origin.model.name} is known; small='FOLDER' names one"


def _nowhere(pipeline: Any) -> bool:
    """Whether there are no values at all: torch's meta device, and the simulated one."""
    return pipeline.transformer.device.type in ("meta", "gpu")


def _at_random(pipeline: Any, row: Model, changes: dict[str, Any]) -> Small:
    """Sizes of a model, for latents as large as the pipeline's own transformer is made for."""
    size = pipeline.transformer.config.get("sample_size")
    same = {} if size is None else {"transformer.sample_size": size}
    return Small(row.name, None, model=row, changes={**changes, **same})


def in_folder(folder: Path) -> Small:
    """The transformer in a folder, or in the folder of a pipeline; ValueError where there is
    none."""
    inner = folder / "transformer"
    holds = inner if inner.is_dir() else folder
    if not (holds / "config.json").is_file() or not list(holds.glob("*.safetensors")):
        raise ValueError(f"small: {holds} holds no transformer: config.json and .safetensors files")
    return Small(str(folder), holds, scheduler=_scheduler(holds.parent))


def _scheduler(folder: Path) -> Path | None:
    file = folder / "scheduler" / "scheduler_config.json"
    return file if file.is_file() else None


def why_unfit(pipeline: Any, small: Small) -> str | None:
    """Why a smaller model cannot take a pipeline's steps, in one sentence; None where nothing in
    its configurations speaks against it. Whether autoencoder and text encoders are the same is not
    compared."""
    own, other = pipeline.transformer.config, small.sizes()
    name = type(pipeline.transformer).__name__
    if (kind := small.class_name()) != name:
        return f"{small.name} is a {kind or 'transformer of no class'}, and this model's a {name}"
    pairs = [(key, own.get(key), other[key]) for key in INTERFACE if key in other]
    if small.scheduler is not None:
        beside, levels = sizes_of(small.scheduler), pipeline.scheduler.config
        pairs += [(k, levels[k], beside[k]) for k in NOISE if k in beside and k in levels]
    for key, mine, theirs in pairs:
        if _plain(mine) != _plain(theirs):
            return f"{small.name} has {key}={theirs}, and this model {mine}"
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value


def load_transformer(pipeline: Any, small: Small) -> Any:
    """The smaller model's transformer where the pipeline runs, in the number format of its own."""
    own = pipeline.transformer
    if small.folder is None:
        from ditbench.models.architecture import build_transformer

        assert small.model is not None
        made = build_transformer(
            small.model, device=str(own.device), dtype=own.dtype, changes=small.changes
        )
    else:
        made = (
            type(own)
            .from_pretrained(
                small.folder, use_safetensors=True, local_files_only=True, dtype=own.dtype
            )
            .to(pipeline._execution_device)
        )
    return made.eval().requires_grad_(False)


def let_go(network: Any) -> None:
    """Free the memory of a network's weights at once: modules stand in circles of references, which
    Python takes apart at a time of its own."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.new_empty(0)
