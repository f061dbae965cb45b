"""What learning a schedule goes by at a model's size: how samples are compared, how many requests
are sampled at once, and what it takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ditbench.method.probe import Trainee
from ditbench.profiling.memory import tensors_of
from ditbench.shapes.judge import load_judge
from ditbench.shapes.perceptual import Perceptual

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom

PICTURE = 1 << 20
"""Pixels of a full-size model that are sampled at once: a picture of 1024x1024."""


@dataclass(frozen=True)
class Distance:
    """How far two batches of samples are from each other."""

    name: str
    between: Callable[[Tensor, Tensor], Tensor]
    """[B] of two batches; differentiable."""
    decoded: bool = True
    """Whether it compares pixels, else the latents that would be decoded."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """[B]."""
        return self.between(a, b)


def distance_for(room: Workroom) -> Distance:
    """The judge's perceptual distance for models of a world; LPIPS for pictures it can compare,
    where its published files are there; else the mean squared distance of the latents that would
    be decoded.

    Of a video the decoder's activations do not fit beside the model.
    """
    model, device = room.model, room.device
    if model.world:
        perceptual = Perceptual(load_judge(model.world).to(device))
        return Distance(perceptual.name, perceptual)
    from ditbench.extractors.networks import lpips
    from ditbench.extractors.networks.tensors import read_tensors
    from ditbench.extractors.pinned_files import located

    if model.frames == 1 and min(model.height, model.width) >= lpips.SMALLEST:
        try:
            backbone, heads = located(lpips.BACKBONE), located(lpips.HEADS, lpips.heads_path())
        except ValueError:
            return Distance("mse.latents", _squared, decoded=False)
        net = lpips.distance(read_tensors(backbone), read_tensors(heads)).to(device)
        return Distance("lpips.alex_v0_1", net)
    return Distance("mse.latents", _squared, decoded=False)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).mean(1)


def settings_for(room: Workroom, batch: int) -> dict[str, Any]:
    """Settings of the recipe that go by the model's size, of which `batch` is the most at once.

    The activations of a tiny model's whole sampling fit in memory (2.6 GB at eight pictures), and a
    third of the time is saved.
    """
    if room.model.world:
        return {"checkpointed": False}
    batch = room.at_once(batch, PICTURE)
    return {"checkpointed": True, "batch": batch, "trials": 4, "trial_batch": batch}


def demands(room: Workroom, recipe: Any, kept: int = 1) -> str:
    """What learning by a `learn_schedule.Recipe` takes, in a sentence: bytes of weights and of what
    is kept, `kept` times the outputs of a step, and time in samplings. Runs the transformer for one
    step."""
    outputs, steps = _Outputs(), room.calls
    with room.attached(outputs) as attached, torch.no_grad():
        attached.start(room.sampling.steps, 1)
        with suppress(_Enough):
            room.pipe(**room.draw(0, 1))
        layers = len(attached.attachments[outputs.name].sublayers)
    parts = [p for p in room.pipe.components.values() if isinstance(p, torch.nn.Module)]
    weights = sum(t.nbytes for part in parts for t in tensors_of(part))
    learned = recipe.allocator == "learned"
    # a checkpoint of each transformer call has what both guidance passes keep; without gradients
    # the sampling goes on from what the last step kept
    states = steps * outputs.calls if learned else 2
    output_bytes = outputs.bytes * recipe.batch * states * kept
    on_host = learned and recipe.checkpointed and room.device.type != "cpu"
    if learned:
        # a teacher's sampling and a student's, which is run again for its gradient, and whose
        # checkpointed blocks are too; a gradient counts as two
        each = 1 + 3 + (2 if recipe.checkpointed else 0)
        looks = recipe.trials * (2 + (recipe.stage1 + recipe.stage2) // 10)
        samplings = each * (recipe.stage1 + recipe.stage2) + looks
    else:
        samplings = 4 * layers * (steps - 1) // 2
    where = "in the host's memory" if on_host else f"on {room.device}"
    return (
        f"{room.model.name}: weights {weights / 1e9:.3g} GB; kept outputs of {states} transformer "
        f"calls {output_bytes / 1e9:.3g} GB {where}; as long as {samplings} samplings of {recipe.batch} "
        "requests"
    )


class _Enough(Exception):
    """The first step is over, which is all that was wanted."""


class _Outputs(Trainee):
    """Adds up the bytes that all sub-layers give in a step, guidance passes included."""

    def __init__(self) -> None:
        self.bytes = 0
        self.calls = 1
        """Of the transformer in a step."""

    def attach(self, pipeline: Any, at: Any) -> None:
        """Reroute every sub-layer."""

        def route(run: Any, _hidden: Tensor) -> Any:
            if at.now.step:
                raise _Enough
            out = run()
            self.calls = max(self.calls, at.now.branch + 1)
            self.bytes += sum(t.nbytes for t in (out if isinstance(out, tuple) else (out,)))
            return out

        for sublayer in at.sublayers:
            at.reroute(sublayer, route)
