"""A pipeline call as a differentiable function: from call arguments to pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Decoded(Exception):
    """Carries what the autoencoder decoded out of a pipeline call."""


def paint(pipe: Any, arguments: dict[str, Any], *, decoded: bool = True) -> Tensor:
    """Pixels 0..1, [B,3,H,W] or [B,3,T,H,W], or, where not `decoded`, the latents that would be
    decoded, [B,C,h,w] or [B,C,t,h,w]; float32, with gradients where they are enabled.

    Noise generators are spent by a call: draw the arguments anew for the next.
    """
    kind: Any = type(pipe)
    call: Callable[..., Any] = kind.__call__.__wrapped__  # without its no_grad
    decode = pipe.vae.decode

    def stop(latents: Tensor, *_: Any, **__: Any) -> Any:
        # pixels are compared in full, whatever the transformer multiplies in
        with torch.autocast(latents.device.type, enabled=False):
            raise _Decoded((decode(latents).sample if decoded else latents).float())

    pipe.vae.decode = stop
    try:
        call(pipe, **arguments | {"output_type": "pt"})
    except _Decoded as carrier:
        samples: Tensor = carrier.args[0]
        return (samples / 2 + 0.5).clamp(0, 1) if decoded else samples
    finally:
        del pipe.vae.decode
    raise AssertionError(f"{kind.__name__} did not decode")
