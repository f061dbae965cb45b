"""Where the parts of a pipeline lie: on its device, or in host memory until they are needed; and a
decoder that works in parts. By diffusers' own functions. Imports torch only inside functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditbench.models.table import Model


def encodes_once(when: str, model: Model) -> bool:
    """Whether a model's text is encoded before the pipeline is called for samples; `when` as in
    `records.settings`."""
    return model.group == "full" if when == "auto" else when == "once"


def text_encoders(pipe: Any) -> list[Any]:
    """The text encoders that are loaded."""
    return [
        part
        for name, part in pipe.components.items()
        if name.startswith("text_encoder") and part is not None
    ]


def place(pipe: Any, device: str, offload: str) -> None:
    """Bring a pipeline to a device. `offload`: `none`; `text`, all but the text encoders;
    `model` and `sequential`, nothing until it runs (diffusers' model and sequential CPU
    offload)."""
    from torch import nn

    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif offload == "text":
        encoders = {id(encoder) for encoder in text_encoders(pipe)}
        for part in pipe.components.values():
            if isinstance(part, nn.Module) and id(part) not in encoders:
                part.to(device)
    else:
        pipe.to(device)


def to_host(pipe: Any) -> None:
    """Move the text encoders to host memory, where there are any on a GPU."""
    import torch

    for encoder in text_encoders(pipe):
        encoder.to("cpu")
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def decode_in_parts(pipe: Any, vae: str) -> None:
    """Let the decoder decode a sample at a time (`slicing`) or in tiles (`tiling`), as `vae` names
    them; ValueError for a decoder that cannot."""
    for way in vae.split("+") if vae != "whole" else ():
        enable = getattr(pipe.vae, f"enable_{way}", None)
        if enable is None:
            raise ValueError(f"vae: {type(pipe.vae).__name__} has no {way}")
        enable()
