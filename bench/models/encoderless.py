"""Pipelines of full-size models with random weights and without text encoders: all blocks of the
transformer or the first few of each list, at the width and the number of tokens of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ditbench.models.family import family_named
from ditbench.models.sampling import Sampling, sampling_of

if TYPE_CHECKING:
    from ditbench.models.table import Model


SEED = 0
"""Of the embeddings."""


def changes_of(model: Model, depth: int | None = None) -> dict[str, Any]:
    """Sizes of the architecture (`part.key`) that go by the size of the samples, and by `depth`, the
    most blocks of each list (None: all)."""
    from ditbench.models.architecture import describe

    parts = describe(model)
    changes = dict(family_named(model.family).resize(model.name, parts, sampling_of(model)))
    if depth is not None:
        for key in ("num_layers", "num_single_layers"):
            if layers := parts["transformer"].get(key):
                changes[f"transformer.{key}"] = min(depth, layers)
    return changes


def build_encoderless(model: Model, device: str, dtype: str, depth: int | None = None) -> Any:
    """The pipeline, on `device`; ValueError where its transformer does not fit into the machine's
    memory (where the device is the CPU)."""
    import torch

    from ditbench.models.architecture import build, build_transformer
    from ditbench.models.precision import step_in_float32
    from ditbench.quiet import quiet
    from ditbench.records.environment import memory_bytes

    kind, changes = getattr(torch, dtype), changes_of(model, depth)
    with quiet():
        if not device.startswith("cuda"):
            meta = build_transformer(model, device="meta", dtype=kind, changes=changes)
            size = sum(p.numel() * p.element_size() for p in meta.parameters())
            if 0 < memory_bytes() < size:
                raise ValueError(
                    f"{model.name}: its transformer has {size / 1e9:.1f} GB of weights in {dtype}, "
                    f"and this machine has {memory_bytes() / 1e9:.1f} GB of memory"
                )
        pipe = build(
            model, device=device, dtype=kind, parts=("transformer", "vae", "scheduler"),
            changes=changes,
        )  # fmt: skip
    if kind != torch.float32:
        step_in_float32(pipe.scheduler)
    return pipe


def call_encoderless(model: Model, pipe: Any, sampling: Sampling, batch: int) -> dict[str, Any]:
    """Arguments of the pipeline's call for `batch` samples, with random embeddings of text, which are
    the same in every call, and of all samples."""
    import torch

    transformer = pipe.transformer
    at = {"device": transformer.device, "dtype": transformer.dtype}
    random = torch.Generator(transformer.device).manual_seed(SEED)

    def some(*shape: int) -> Any:
        if len(shape) == 1:  # a mask, all of it text; or a pooled embedding
            return torch.ones(1, *shape, **at)
        return torch.randn(1, *shape, generator=random, **at)

    def several(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.repeat(batch, *[1] * (value.dim() - 1))
        return value * batch if isinstance(value, list) else value

    call = family_named(model.family).meta_call(sampling, transformer.config, some)
    return {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        **{key: several(value) for key, value in call.items()},
    }
