"""Training a model's own weights under a change of how it computes, by the loss that it was trained
with: no teacher, samples of its world (FPSAttention, arXiv:2506.04648, trains so).

B batch, T sampler steps. The state of level s is x = (1 - s) x_0 + s e; the model is to give e - x_0
(rectified flow, Liu et al. 2022; other predictions are converted, see `noise_process`).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditbench.acceleration.distillation.noise_process import Process, wide
from ditbench.acceleration.distillation.recordings import (
    Conditioning,
    Denoiser,
    guided_of,
    joined,
    levels_of,
    rows,
)
from ditbench.acceleration.distillation.training_loop import fit
from ditbench.method.probe import Trainee
from ditbench.models.requests import training_requests
from ditbench.shapes.scenes import Scenes, render

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment
    from ditbench.method.prepare import Workroom

WEIGHTS = "weights.safetensors"
SEED, HELD_OUT = 40_000, 50_000
"""First streams of requests: no recording's, no schedule's."""
CHUNK = 64
"""Requests rendered and encoded at once."""


@dataclass(frozen=True, kw_only=True)
class FlowRecipe:
    """How weights are finetuned. The numbers are ours: FPSAttention trains for a week on 128 GPUs."""

    examples: int = 4096
    """Samples of the world, each with noise of its own at every iteration."""
    held_out: int = 128
    iterations: int = 2000
    batch: int = 8
    rate: float = 3e-4
    """1e-4 was slower on held-out training samples of wan-tiny, 1e-3 as good after 300 iterations."""
    average: float = 0.99
    """Decay of the running average that is kept: the authors'."""
    warm_up: int = 50
    shift: float = 0.5
    """Mean of the logit of s, whose spread is 1 (Esser et al. 2024, section 3.1): that of the bundled
    models' own training."""
    dropped: float = 0.1
    """Share of the captions that are left out, for classifier-free guidance."""


@dataclass
class Place:
    """Which step of a sampling the states of a batch belong to."""

    step: int
    steps: int


class _During(Trainee):
    """The change, attached for training."""

    def __init__(self, install: Callable[[Attachment, Place], None], place: Place) -> None:
        self.install, self.place = install, place

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Under the step that training is at, not the generation's."""
        self.install(at, self.place)


def finetune(
    room: Workroom, install: Callable[[Attachment, Place], None], phase: Callable[[int], Any],
    folder: Path, recipe: FlowRecipe,
) -> dict[str, Any]:  # fmt: skip
    """Train all weights of the transformer under what `install(attachment, place)` puts in place,
    and write `weights.safetensors` (half precision) and `log.csv`; returns notes, of them the loss
    on held-out samples without the change (`loss_plain`), with it (`loss_before`) and in the end
    (`loss_after`).

    `phase(step)` says by any value which steps compute alike: the states of a batch are drawn in one
    of them, with the chance that states have to lie there. Raises ValueError for a model of no world.
    """
    if not room.model.world:
        raise ValueError(f"there are no samples to finetune {room.model.name} on")
    transformer, process = room.pipe.transformer, Process.of(room.pipe.scheduler)
    work = room.half_done or folder / "work"
    levels = levels_of(room)
    place = Place(0, len(levels) - 1)
    phases = [phase(step) for step in range(place.steps)]
    clean, conditioning = _examples(room, recipe.examples, SEED)
    held_out, held_out_conditioning = _examples(room, recipe.held_out, HELD_OUT)
    denoise = Denoiser(transformer, process)

    def step_of(s: Tensor) -> Tensor:
        """[B] the sampler step whose states have levels about s: levels fall from step to step."""
        return torch.searchsorted(-levels, -s, right=True).sub(1).clamp(0, place.steps - 1)

    def error(x0: Tensor, s: Tensor, noise: Tensor, conditioning: Conditioning) -> Tensor:
        x = (1 - wide(s, x0)) * x0 + wide(s, x0) * noise
        v = denoise(x, s, process.timestep(s), conditioning)
        return (v - (noise - x0)).square().flatten(1).mean(1)

    def drawn(g: torch.Generator) -> Tensor:
        """Levels of a batch, all of one phase."""
        s = torch.sigmoid(torch.randn(64 * recipe.batch, generator=g) + recipe.shift)
        steps = step_of(s).tolist()
        alike = [i for i, k in enumerate(steps) if phases[k] == phases[steps[0]]]
        place.step = steps[0]
        return s[alike[: recipe.batch]]

    def loss_of(iteration: int) -> Tensor:
        g = torch.Generator().manual_seed((room.training << 32) + iteration)
        s = drawn(g)
        which = torch.randint(len(clean), (len(s),), generator=g)
        noise = torch.randn(len(s), *clean.shape[1:], generator=g)
        left_out = torch.rand(len(s), generator=g) < recipe.dropped
        return error(clean[which], s, noise, _chosen(conditioning, which, left_out)).mean()

    @torch.no_grad()
    def look() -> float:
        """Mean loss on held-out samples, each under the phase that its level lies in."""
        g, total = torch.Generator().manual_seed(7), 0.0
        s = torch.sigmoid(torch.randn(len(held_out), generator=g) + recipe.shift)
        noise = torch.randn(held_out.shape, generator=g)
        steps = step_of(s)
        for one in dict.fromkeys(phases):
            which = torch.tensor([i for i, k in enumerate(steps.tolist()) if phases[k] == one])
            for part in which.split(CHUNK) if len(which) else ():
                place.step = int(steps[part[0]])
                conditioning = _chosen(
                    held_out_conditioning, part, torch.zeros(len(part), dtype=torch.bool)
                )
                total += float(error(held_out[part], s[part], noise[part], conditioning).sum())
        return total / len(held_out)

    notes: dict[str, Any] = asdict(recipe)
    with room.attached(_During(lambda at, place: None, place)) as attached:
        attached.start(place.steps)
        notes["loss_plain"] = look()
    with room.attached(_During(install, place)) as attached, _trained(transformer):
        attached.start(place.steps)
        notes["loss_before"] = look()
        with torch.enable_grad():
            fit(
                transformer, loss_of, steps=recipe.iterations, lr=recipe.rate, folder=work / "flow",
                average=recipe.average, weight_decay=0.0, warm_up=recipe.warm_up, every=20,
                tell=room.tell,
            )  # fmt: skip
        notes["loss_after"] = look()
    state = {name: p.detach().half().contiguous() for name, p in transformer.named_parameters()}
    save_file(state, folder / WEIGHTS)
    _, *log = csv.reader((work / "flow" / "loss.csv").open(newline="", encoding="utf-8"))
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([["step", "loss", "seconds", "loss_of"]])
        csv.writer(f).writerows([*row, "flow"] for row in log)
    return notes


def put_weights(folder: Path, pipeline: Any, at: Attachment) -> None:
    """The finetuned weights in the place of the transformer's, until detached. ValueError for those
    of another transformer."""
    own, weights = dict(pipeline.transformer.named_parameters()), load_file(folder / WEIGHTS)
    if {name: p.shape for name, p in own.items()} != {n: w.shape for n, w in weights.items()}:
        raise ValueError(f"the weights in {folder} are of another transformer than this one")
    for name, value in weights.items():
        at.replace(own[name], value)
        at.count("weights")


@contextmanager
def _trained(transformer: Any) -> Iterator[None]:
    """All parameters take gradients."""
    transformer.requires_grad_(True)
    try:
        yield
    finally:
        transformer.requires_grad_(False)


def _chosen(asked: tuple[Conditioning, ...], which: Tensor, left_out: Tensor) -> Conditioning:
    """The conditioning of some rows, for `left_out` ones that of the unconditional pass."""
    given = rows(asked[0], which)
    if len(asked) == 1 or not left_out.any():
        return given
    without = rows(asked[1], which)
    return {
        k: torch.where(left_out.view(-1, *[1] * (v.dim() - 1)), without[k], v)
        if isinstance(v, Tensor) and len(v) == len(which)
        else v
        for k, v in given.items()
    }


@torch.no_grad()
def _examples(room: Workroom, num: int, seed: int) -> tuple[Tensor, tuple[Conditioning, ...]]:
    """Latents of samples of the world [num,...] that training requests ask for, and how the
    transformer is asked for them, with and without the caption."""
    latents, asked = [], []
    for part in range(-(-num // CHUNK)):
        count = min(CHUNK, num - part * CHUNK)
        requests = training_requests(room.model, count, seed + part, room.training)
        scenes = Scenes.of([r.truth for r in requests if r.truth is not None])
        pixels = render(
            scenes, room.model.world, split="preparation", seed=seed + part,
            resolution=room.model.height, num_frames=room.model.frames,
        )  # fmt: skip
        latents.append(_encoded(room.pipe, pixels * 2 - 1))
        asked.append(guided_of(room.pipe, room.draw(seed + part, count)))
        room.tell({"done": min(num, (part + 1) * CHUNK), "of": num})
    passes = range(len(asked[0]))
    return torch.cat(latents), tuple(joined([a[i] for a in asked]) for i in passes)


def _encoded(pipe: Any, pixels: Tensor) -> Tensor:
    """Latents as the transformer's states have them, float32, in host memory."""
    vae = pipe.vae
    parts = (part.to(vae.device, vae.dtype) for part in pixels.split(8))
    encoded = torch.cat([vae.encode(part).latent_dist.mean.float().cpu() for part in parts])
    if mean := getattr(vae.config, "latents_mean", None):
        shape = (1, -1, *[1] * (encoded.dim() - 2))
        deviation = torch.tensor(vae.config.latents_std).view(shape)
        return (encoded - torch.tensor(mean).view(shape)) / deviation
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return (encoded - shift) * float(vae.config.scaling_factor)
