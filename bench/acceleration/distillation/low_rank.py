"""Students that differ from their teacher by low-rank updates of the linear layers of attention and
MLP (LoRA, arXiv:2106.09685): its weights are there once, and what is trained and kept is small."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ditbench.models.sublayers import sublayers


class LowRankLinear(nn.Linear):
    """A linear layer with an update of its weight, up [O,R] times down [R,I] in float32."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """The layer, and its update in the number format of its input."""
        down, up = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        return super().forward(x) + functional.linear(functional.linear(x, down), up)


def low_rank_copy(teacher: Any, rank: int, seed: int) -> Any:
    """The teacher's transformer with an update of zero on every linear layer of its sub-layers; all
    other parameters are the very ones of the teacher, and are not trained."""
    shared = itertools.chain(teacher.parameters(), teacher.buffers())
    student = copy.deepcopy(teacher, {id(tensor): tensor for tensor in shared})
    generator = torch.Generator().manual_seed(seed)
    for part in sublayers(student):
        for linear in part.linears:
            down = torch.randn(rank, linear.in_features, generator=generator)
            linear.__class__ = LowRankLinear
            device = linear.weight.device
            linear.lora_A = nn.Parameter((down / math.sqrt(linear.in_features)).to(device))
            linear.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))
    train(student)
    return student


def train(student: Any) -> None:
    """Have the parameters of a student that are trained take gradients: its updates, or all of a
    student without any."""
    low_rank = any(isinstance(module, LowRankLinear) for module in student.modules())
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(not low_rank or name.endswith((".lora_A", ".lora_B")))


def state_of(student: Any) -> dict[str, Tensor]:
    """What is kept of a student, in half precision on the CPU: its state, or the updates alone,
    named as diffusers names those of a transformer."""
    layers = {n: m for n, m in student.named_modules() if isinstance(m, LowRankLinear)}
    updates = {
        f"transformer.{name}.{which}.weight": getattr(layer, which).detach()
        for name, layer in layers.items()
        for which in ("lora_A", "lora_B")
    }
    state = updates or student.state_dict()
    return {name: value.cpu().half().contiguous() for name, value in state.items()}
