"""Load the diffusers pipeline of a model."""

from __future__ import annotations

from typing import Any

from ditbench.models.family import family_named
from ditbench.models.origin import note_origin
from ditbench.models.table import Model
from ditbench.models.weights import _first_line, check_folder, locate, variant_of
from ditbench.suggest import suggest


def load(
    model: Model,
    *,
    weights: str,
    device: str,
    dtype: str,
    changes: dict[str, Any] | None = None,
    offload: str = "none",
    vae: str = "whole",
) -> Any:
    """The model's diffusers pipeline, on `device` in `dtype` (`float32`, `bfloat16`, `float16`),
    silent and ready to be called. In another dtype than float32 the sampler still steps in that,
    and so does what `Family.float32_parts` names.

    `weights` is `bundled` (tiny models), `hub`, `random` (the whole architecture with random
    weights, for speed and memory only) or a folder, see `locate`. `changes` overrides sizes of a
    random model, as `part.key`; `offload` and `vae` are as in `records.settings`. Only safetensors
    are read, nothing is unpickled. Raises ValueError in one sentence for weights that cannot be
    found, reached or read, naming the file, and for a decoder without what `vae` asks for. A GPU
    becomes the current device: events and streams that name none are of that one.
    """
    import torch

    from ditbench.quiet import quiet

    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype: {dtype!r} is no floating-point type of torch")
    if (index := torch.device(device).index) is not None:
        torch.cuda.set_device(index)
    with quiet():
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        from ditbench.models.lora import merge
        from ditbench.models.placement import decode_in_parts, place
        from ditbench.models.precision import step_in_float32

        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        if weights == "random":
            from ditbench.models.architecture import build

            made_on = device if offload == "none" else "cpu"
            pipe = build(model, device=made_on, dtype=kind, changes=changes)
        else:
            folder, family = locate(model, weights), family_named(model.family)
            check_folder(folder, family.pipeline)
            dtypes = {"default": kind} | dict.fromkeys(family.float32_parts, torch.float32)
            try:
                only = {"use_safetensors": True, "local_files_only": True}
                variant = variant_of(folder)
                pipe = DiffusionPipeline.from_pretrained(
                    folder, dtype=dtypes, variant=variant, **only
                )
            except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{folder} cannot be loaded as {model.name}: {_first_line(error)}"
                ) from error
        if model.lora:
            merge(pipe, model.lora)
        decode_in_parts(pipe, vae)
        place(pipe, device, offload)
    if model.scheduler:
        pipe.scheduler = _scheduler(model.scheduler, pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if kind in (torch.bfloat16, torch.float16):
        step_in_float32(pipe.scheduler)
    note_origin(pipe, model, weights)
    return pipe


def _scheduler(name: str, config: Any) -> Any:
    """The sampler of diffusers with that name, from another's configuration; ValueError where there
    is none of that name, or it cannot take the configuration."""
    import diffusers

    cls = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        known = [n for n in dir(diffusers) if n.endswith("Scheduler")]
        raise ValueError(f"scheduler: diffusers has no {name!r}; {suggest(name, known)}")
    try:
        return cls.from_config(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"scheduler: {name}: {_first_line(error)}") from error
