"""Make a part of the embedded world again: `python -m ditbench.zoo.train
judge|video-judge|codec|video-codec`.

Each prints its held-out score and writes weights (fp16 safetensors), a loss curve and notes under
`--out`. See `models.py` in this folder for the four diffusion models themselves.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ditbench import ZOO
from ditbench.acceleration.distillation.training_loop import fit, steps_within
from ditbench.shapes import scenes as shapes
from ditbench.shapes.judge import Judge
from ditbench.zoo import parts


def pictures(
    world: str, n: int, split: str, seed: int, resolution: int | None = None,
    num_frames: int | None = None,
) -> tuple[shapes.Scenes, Tensor]:  # fmt: skip
    """n fresh scenes and their pictures, 0..1, of so many pixels a side and, of a video, so many
    frames (None: the world's own)."""
    scenes = shapes.draw(world, n, split=split, seed=seed)
    return scenes, shapes.render(
        scenes, world, split=split, seed=seed, resolution=resolution, num_frames=num_frames
    )


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in float16, the rest as they are."""
    return {
        k: v.half().contiguous() if v.is_floating_point() else v.contiguous()
        for k, v in tensors.items()
    }


def note(folder: Path, **facts: Any) -> None:
    """What a card needs to know of a training, as `notes.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    facts |= dict(
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        processor=platform.machine(),
        day=time.strftime("%Y-%m-%d"),
    )
    (folder / "notes.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def train_judge(world: str, out: Path, steps: int) -> None:
    """The judge of still pictures (trained on both still worlds) or of video."""
    torch.manual_seed(0)
    judge = Judge(world)
    worlds = ("video",) if world == "video" else ("scene", "scene", "class")

    def loss_of(step: int) -> Tensor:
        scenes, pixels = pictures(worlds[step % len(worlds)], 64, "train", 1_000_000 + step)
        pixels = _weather(pixels, step)
        pooled = judge.pool(pixels)
        quadrant, whole = judge.logits(pooled)
        loss = reading_loss(quadrant, whole, scenes)
        attributes = judge.read_embedding(F.relu(judge.embed(pooled.flatten(1))))
        inner, outer = attributes.split([4 * sum(judge.quadrant_out), sum(judge.whole_out)], dim=1)
        inner = inner.unflatten(1, (4, -1)).split(judge.quadrant_out, dim=2)
        return loss + 0.5 * reading_loss(
            list(inner), list(outer.split(judge.whole_out, dim=1)), scenes
        )

    judge.train()
    folder = out / f"judge-{'video' if world == 'video' else 'still'}"
    spent = fit(judge, loss_of, steps=steps, lr=2e-3, folder=folder, average=0.99)
    _settle_batchnorm(judge, worlds)
    scores = {w: score_judge(judge.eval(), w) for w in set(worlds)}
    print(json.dumps(scores, indent=1))
    (out / "judge").mkdir(exist_ok=True)
    save_file(
        half(judge.state_dict()),
        out / "judge" / ("video.safetensors" if world == "video" else "still.safetensors"),
    )
    note(
        folder,
        part="judge",
        world=world,
        steps=steps,
        batch=64,
        seconds=round(spent),
        accuracy=scores,
    )


def score_judge(judge: Any, world: str, n: int = 4096) -> dict[str, float]:
    """Held-out accuracy of every attribute that `judge` (with `read`) reads by quadrant (of objects
    that are there)."""
    right: dict[str, list[Tensor]] = {}
    for seed in range(n // 256):
        truth, pixels = pictures(world, 256, "test", 5000 + seed)
        seen, there = judge.read(pixels), truth.shape >= 0
        right.setdefault("position", []).append(((seen.shape >= 0) == there).flatten())
        for name in ("shape", "colour", "size"):
            right.setdefault(name, []).append((getattr(seen, name) == getattr(truth, name))[there])
        for name in ("background", "texture") + (("motion",) if world == "video" else ()):
            right.setdefault(name, []).append(getattr(seen, name) == getattr(truth, name))
    return {name: round(torch.cat(v).double().mean().item(), 4) for name, v in right.items()}


def reading_loss(quadrant: list[Tensor], whole: list[Tensor], scenes: shapes.Scenes) -> Tensor:
    """Cross-entropy of everything a judge reads, summed over attributes; see `Judge.logits`. A
    scalar."""
    loss = F.cross_entropy(quadrant[0].flatten(0, 1), (scenes.shape + 1).flatten())
    for logits, truth in zip(quadrant[1:], (scenes.colour, scenes.size), strict=True):
        loss = loss + F.cross_entropy(logits.flatten(0, 1), truth.flatten(), ignore_index=-1)
    for logits, truth in zip(
        whole, (scenes.background, scenes.texture, scenes.motion), strict=False
    ):
        loss = loss + F.cross_entropy(logits, truth)
    return loss


def _weather(pixels: Tensor, step: int) -> Tensor:
    """Blur and noise, so that the judge does not lean on crispness that a decoder cannot give."""
    g = torch.Generator().manual_seed(step)
    strength = torch.rand(len(pixels), *[1] * (pixels.dim() - 1), generator=g)
    flat = pixels.flatten(1, -3) if pixels.dim() == 5 else pixels
    blurred = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, 1).view_as(pixels)
    noise = (
        0.08
        * torch.rand(len(pixels), *[1] * (pixels.dim() - 1), generator=g)
        * torch.randn(pixels.shape, generator=g)
    )
    return (pixels + strength * (blurred - pixels) + noise).clamp(0, 1)


@torch.no_grad()
def _settle_batchnorm(judge: Judge, worlds: tuple[str, ...]) -> None:
    """Running statistics of the averaged weights, over fresh batches."""
    for m in judge.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.reset_running_stats()
            m.momentum = None
    for seed in range(30):
        judge.pool(
            _weather(pictures(worlds[seed % len(worlds)], 64, "train", 2_000_000 + seed)[1], seed)
        )


ROUGHNESS = 0.05
"""Noise on the latents a decoder is trained with: what a sampler leaves over must not show."""


def small(pixels: Tensor) -> Tensor:
    """The picture four times smaller, [n, 3, H/4, W/4]; of a video the first and then every fourth
    frame, [n, 3, T', H/4, W/4]."""
    if pixels.dim() == 4:
        return F.avg_pool2d(pixels, 4)
    strided = pixels[:, :, ::4]
    return F.avg_pool3d(strided, (1, 4, 4))


def train_codec(
    video: bool, out: Path, steps: int | None, *, resolution: int | None = None,
    num_frames: int | None = None, start: Path | None = None, batch: int | None = None,
    lr: float = 2e-3, device: str = "cpu", seconds: float = 0.0,
) -> None:  # fmt: skip
    """The autoencoder of still pictures (both still worlds) or of video; latents scaled to unit
    spread. Pictures of so many pixels a side and frames (None: the world's own), `start`: folder of
    an autoencoder whose weights to go on from. `steps`: None: as many as `seconds` have room for.

    Three of the four latent channels are held to the picture itself, four times smaller, and the
    fourth is free: latents in which a small transformer learns fast, and whose errors look like
    errors of a picture.
    """
    torch.manual_seed(0)
    codec: Any = parts.video_codec() if video else parts.image_codec()
    if start is not None:
        codec.load_state_dict(type(codec).from_pretrained(start).float().state_dict())
    codec.to(device)
    if not video:
        codec.to(memory_format=torch.channels_last)
    worlds = ("video",) if video else ("scene", "scene", "class")
    batch = batch or (4 if video else 8)

    def seen(world: str, n: int, split: str, seed: int) -> Tensor:
        return pictures(world, n, split, seed, resolution, num_frames)[1].to(device) * 2 - 1

    def loss_of(step: int) -> Tensor:
        x = seen(worlds[step % len(worlds)], batch, "train", 3_000_000 + step)
        posterior = codec.encode(x).latent_dist
        g = torch.Generator().manual_seed(step)
        noise = ROUGHNESS * torch.randn(posterior.mean.shape, generator=g)
        y = codec.decode(posterior.mean + noise.to(device)).sample
        edges = (y.diff(dim=-1) - x.diff(dim=-1)).abs().mean() + (
            y.diff(dim=-2) - x.diff(dim=-2)
        ).abs().mean()
        anchor = (posterior.mean[:, :3] - small(x)).square().mean()
        # The square leads, not the absolute error: it makes small bright objects count against wide
        # backgrounds.
        loss: Tensor = (
            10 * (y - x).square().mean()
            + (y - x).abs().mean()
            + 0.5 * edges
            + 10 * anchor
            + 1e-4 * posterior.kl().mean()
        )
        return loss

    folder = out / ("video-codec" if video else "codec")
    steps = steps or steps_within(seconds, codec, loss_of)
    spent = fit(codec, loss_of, steps=steps, lr=lr, folder=folder, average=0.99)
    codec.eval()
    x = seen(worlds[0], 64 if video else 256, "test", 7000)
    with torch.no_grad():
        z = torch.cat([codec.encode(part).latent_dist.mean for part in x.split(16)])
        y = torch.cat([codec.decode(part).sample for part in z.split(16)]).clamp(-1, 1)
    psnr = _psnr(x, y).item()
    if video:
        frames = zip(x.unbind(2), y.unbind(2), strict=True)
        by_frame = [round(_psnr(a, b).item(), 2) for a, b in frames]
        print(f"by frame, dB: {by_frame}")
    print(
        f"reconstruction {psnr:.2f} dB, latent std {z.std().item():.3f} mean {z.mean().item():.3f}"
    )
    dims = tuple(d for d in range(z.dim()) if d != 1)
    if video:
        codec.register_to_config(
            latents_mean=z.mean(dims).tolist(), latents_std=z.std(dims).tolist()
        )
    else:
        codec.register_to_config(scaling_factor=1 / z.std().item(), shift_factor=None)
    codec.cpu().half().save_pretrained(folder / "weights")
    note(
        folder,
        part="codec",
        world=worlds[0],
        **({"resolution": resolution} if resolution else {}),
        **({"frames": num_frames} if num_frames else {}),
        steps=steps,
        batch=batch,
        seconds=round(spent),
        psnr_db=round(psnr, 2),
    )


def _psnr(x: Tensor, y: Tensor) -> Tensor:
    """Mean over pictures of the peak signal-to-noise ratio, dB, of values in -1..1."""
    return -10 * torch.log10(((y - x) / 2).square().flatten(1).mean(1)).mean()


def flags() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("judge", "video-judge", "codec", "video-codec"))
    long = parser.add_mutually_exclusive_group(required=True)
    long.add_argument("--steps", type=int)
    long.add_argument("--seconds", type=float, help="of a codec: as many steps as it has room for")
    parser.add_argument("--out", type=Path, default=ZOO)
    parser.add_argument("--threads", type=int, default=2)
    codec = parser.add_argument_group("codecs only")
    codec.add_argument("--resolution", type=int, help="pixels a side")
    codec.add_argument("--frames", type=int, help="frames of a video")
    codec.add_argument("--start", type=Path, help="folder of the weights to go on from")
    codec.add_argument("--batch", type=int)
    codec.add_argument("--lr", type=float, default=2e-3)
    codec.add_argument("--device", default="cpu", help="as torch names it (default: cpu)")
    return parser


def main() -> None:
    """Train the part named on the command line."""
    parser = flags()
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if "judge" in args.part:
        if args.steps is None:
            parser.error("a judge is trained for --steps")
        train_judge("video" if args.part == "video-judge" else "scene", args.out, args.steps)
    else:
        train_codec(
            args.part == "video-codec", args.out, args.steps, resolution=args.resolution,
            num_frames=args.frames, start=args.start, batch=args.batch, lr=args.lr,
            device=args.device, seconds=args.seconds or 0.0,
        )  # fmt: skip


if __name__ == "__main__":
    main()
