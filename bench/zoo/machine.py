"""What a training of a bundled model runs on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Machine:
    """What a training runs on. The draws of a step do not depend on it."""

    device: str = "cpu"
    bf16: bool = False
    """Autocast to bfloat16; else float32, on CUDA with TF32 products."""
    compiled: bool = False
    """torch.compile of the transformer."""
    workers: int = 1
    """Processes that render."""

    def put(self, tensor: Tensor) -> Tensor:
        """The tensor on the device; a copy to CUDA does not wait for what runs there."""
        if not self.device.startswith("cuda"):
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def facts(self) -> dict[str, Any]:
        """What a card says of it beside the processor."""
        facts: dict[str, Any] = {}
        if self.device.startswith("cuda"):
            facts["device"] = torch.cuda.get_device_name(self.device)
        return facts | {k: True for k in ("bf16", "compiled") if getattr(self, k)}

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of a forward pass."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.device.partition(":")[0], torch.bfloat16)
