"""Pictures a model is trained on, rendered by several processes, and their latents.

n pictures, C channels, T frames, H height, W width; h, w and t of the latents.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditbench.records.children import begin
from ditbench.shapes import scenes as shapes
from ditbench.zoo.train import pictures

EXAMPLES = {"class": 16384, "scene": 32768, "video": 8192}
CHUNK = 256
"""Pictures that are drawn and rendered together, with one seed."""
SPARE = 2
"""Chunks that are rendered beyond one for each process, so that none waits for the codec."""

_buffers: list[mmap.mmap] = []
"""In a process that renders: the chunks' memory, which it shares with the one that started it."""


def _begin_rendering(buffers: list[mmap.mmap]) -> None:
    begin()
    torch.set_num_threads(1)
    _buffers[:] = buffers


def _view(buffer: mmap.mmap, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(buffer, dtype=torch.float32).view(shape)


def _render_into(
    buffer: int, shape: tuple[int, ...], world: str, seed: int, resolution: int | None,
    num_frames: int | None,
) -> None:  # fmt: skip
    made = pictures(world, shape[0], "train", seed, resolution, num_frames)[1]
    _view(_buffers[buffer], shape).copy_(made)


def rendered(
    world: str, n: int, *, resolution: int | None = None, num_frames: int | None = None,
    workers: int = 1, chunk: int = CHUNK,
) -> Iterator[Tensor]:  # fmt: skip
    """The first n training pictures of a world in order, `chunk` at a time: float32
    [chunk, 3, H, W] or [chunk, 3, T, H, W] in 0..1, to be used before the next are asked for.

    `workers`: processes that render, one thread each, where the system can fork; the pictures do
    not depend on it. At most `workers + SPARE` chunks are in memory.
    """
    seeds = range(n // chunk)
    workers = min(workers, len(seeds))
    if workers <= 1 or "fork" not in multiprocessing.get_all_start_methods():
        for seed in seeds:
            yield pictures(world, chunk, "train", seed, resolution, num_frames)[1]
        return
    w = shapes.WORLDS[world]
    side, frames = resolution or w.resolution, num_frames or w.num_frames
    shape = (chunk, 3, *((frames,) if frames > 1 else ()), side, side)
    # memory of no name: what torch shares lies in /dev/shm, which containers keep small
    buffers = [mmap.mmap(-1, 4 * math.prod(shape)) for _ in range(workers + SPARE)]
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), _begin_rendering, (buffers,)
    ) as pool:

        def ask(seed: int) -> Any:
            args = (shape, world, seed, resolution, num_frames)
            return pool.submit(_render_into, seed % len(buffers), *args)

        asked = deque(ask(seed) for seed in seeds[: len(buffers)])
        for seed in seeds:
            asked.popleft().result()
            yield _view(buffers[seed % len(buffers)], shape)
            if seed + len(buffers) < len(seeds):
                asked.append(ask(seed + len(buffers)))


@torch.no_grad()
def latents(
    world: str, codec: Any, folder: Path, resolution: int | None, n: int,
    num_frames: int | None = None, device: str = "cpu", workers: int = 1,
) -> tuple[Tensor, list[str], Tensor]:  # fmt: skip
    """Normalised latents, float32 [n, C, h, w] or [n, C, t, h, w] on the CPU, of the first n
    training pictures of so many pixels a side (and frames), encoded on a device and kept in one
    file of the folder, with their captions and class labels; ValueError unless n is a multiple of
    256."""
    if n < CHUNK or n % CHUNK:
        raise ValueError(
            f"examples: pictures are drawn {CHUNK} at a time, which {n} is no multiple of"
        )
    name = f"latents-{world}-{resolution}" if resolution else f"latents-{world}"
    name += f"x{num_frames}" if num_frames else ""
    name += f"-first-{n}" if n != EXAMPLES[world] else ""
    path = folder / f"{name}.safetensors"
    texts: list[str] = []
    labels = []
    for seed in range(n // CHUNK):
        scenes = shapes.draw(world, CHUNK, split="train", seed=seed)
        texts += shapes.captions(scenes)
        labels.append(scenes.labels)
    if path.exists():
        tensor = load_file(path)["latents"]
    else:
        made = []
        together = 16 if device == "cpu" else 64
        for pixels in rendered(
            world, n, resolution=resolution, num_frames=num_frames, workers=workers
        ):
            codec.to(device)  # after the processes have been forked, which get no part of it
            for part in pixels.split(together):
                made.append(codec.encode(part.to(device) * 2 - 1).latent_dist.mean.half().cpu())
        codec.cpu()
        tensor = torch.cat(made).contiguous()
        save_file({"latents": tensor}, path)
    tensor = tensor.float()
    if world == "video":
        mean, std = (
            torch.tensor(getattr(codec.config, f"latents_{k}")).view(1, -1, 1, 1, 1)
            for k in ("mean", "std")
        )
        return (tensor - mean) / std, texts, torch.cat(labels)
    return tensor * codec.config.scaling_factor, texts, torch.cat(labels)
