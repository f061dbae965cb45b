"""Linear layers in E4M3 whose inputs are scaled by calibrated numbers: no pass over the activations
looks for their range.

L linear layers of attention and MLP, T sampler steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditbench.acceleration.quantization import BATCH, linears_of, quantize
from ditbench.method.probe import Trainee

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment
    from ditbench.method.prepare import Workroom

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max
FILE = "ranges.safetensors"


class _Ranges(Trainee):
    """Sees the largest input of every linear layer at every step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.largest = torch.empty(0)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Hook the linear layers."""
        linears = linears_of(at.sublayers)
        self.largest = torch.zeros(self.steps, len(linears), device=linears[0].weight.device)
        for i, linear in enumerate(linears):

            def see(_module: Any, inputs: tuple[Tensor], i: int = i) -> None:
                largest = inputs[0].detach().abs().amax().float()
                row = self.largest[at.now.step]
                row[i] = torch.maximum(row[i], largest)

            at.undo(linear.register_forward_pre_hook(see).remove)


def prepare_ranges(folder: Path, room: Workroom) -> dict[str, Any]:
    """Sample training requests and write the largest input by step and layer, float32 [T,L], to
    `ranges.safetensors`; returns notes."""
    ranges = _Ranges(room.calls)
    samples = room.at_once(BATCH)
    room.generate(ranges, samples)
    room.tell({"done": 1, "of": 1})
    largest = ranges.largest.cpu()
    save_file({"largest": largest}, folder / FILE)
    by_step = largest.amax(0) / largest.amin(0).clamp(min=1e-12)
    return {"samples": samples, "largest_over_smallest_step": round(float(by_step.median()), 2)}


def quantize_calibrated(pipeline: Any, at: Attachment, folder: Path, by_step: bool) -> None:
    """Multiply in E4M3 on every linear layer of attention and MLP: one scale for a layer's weights,
    one for its inputs, of all steps or (`by_step`) of each.

    ValueError where the calibration is of other layers than these.
    """
    largest = load_file(folder / FILE)["largest"]
    linears = linears_of(at.sublayers)
    if largest.shape[1] != len(linears):
        raise ValueError(
            f"{folder / FILE} is of {largest.shape[1]} linear layers, and the model has {len(linears)}"
        )
    rows = largest if by_step else largest.amax(0, keepdim=True)
    scales = (rows.clamp(min=1e-12) / LARGEST).to(linears[0].weight.device)
    places = {id(linear): i for i, linear in enumerate(linears)}

    def change(linear: nn.Linear) -> None:
        _scale(linear, at, scales[:, places[id(linear)]].contiguous())

    quantize(pipeline, at, change)


def _scale(linear: nn.Linear, at: Attachment, scales: Tensor) -> None:
    """Have a layer multiply in E4M3; `scales` [T], or [1] for all steps."""
    weight = linear.weight.detach()
    scale = (weight.abs().amax().float() / LARGEST).clamp(min=1e-12)
    rounded = (weight / scale.to(weight.dtype)).clamp(-LARGEST, LARGEST).to(FORMAT)
    linear.weight = nn.Parameter(rounded, requires_grad=False)
    one_for_all = len(scales) == 1

    def forward(x: Tensor) -> Tensor:
        of_inputs = scales[0 if one_for_all else at.now.step]
        a = (x / of_inputs).clamp(-LARGEST, LARGEST).to(FORMAT)
        product: Tensor = torch._scaled_mm(
            a.flatten(0, -2), linear.weight.t(), scale_a=of_inputs, scale_b=scale,
            bias=linear.bias, out_dtype=x.dtype,
        )  # fmt: skip
        return product.view(*x.shape[:-1], -1)

    at.patch(linear, "forward", forward)
