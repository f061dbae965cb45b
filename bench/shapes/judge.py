"""The judge: a small network that reads shape, colour, size, position, background, texture (and
motion) back from pixels.

Trained on rendered scenes only, by `python -m ditbench.zoo.train judge`. What it reads on a model's
own samples is the alignment score `align.shapes_v1`; its embedding is the feature space of
`fd.shapes_v1`. It is no CLIP and no Inception, and never named so. Pictures of more pixels than it
was trained on are averaged down to its own, and of longer videos as many frames are taken, so that
models of one world are read alike whatever their size.

B batch, C channels, T frames, H height, W width, Q = 4 quadrants.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ditbench import ZOO
from ditbench.shapes import scenes as shapes

FRAMES = {"class": (0,), "scene": (0,), "video": (0, 2, 4)}
"""Frames of a sample of the world's own length that the judge looks at, by world."""
EMBEDDING = 64
SIDE = 16
"""Pixels a side that it needs: two of its trunk's, which are eight pixels apart."""


class Judge(nn.Module):
    """Reads attributes by quadrant; one set of weights for still worlds and one for video."""

    def __init__(self, world: str) -> None:
        super().__init__()
        self.frames = FRAMES[world]
        self.side = shapes.WORLDS[world].resolution
        self.num_frames = shapes.WORLDS[world].num_frames
        self.moving = len(self.frames) > 1

        def layer(inward: int, outward: int, stride: int) -> nn.Module:
            conv = nn.Conv2d(inward, outward, 3, stride, 1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outward), nn.ReLU(inplace=True))

        # [B, 96, H/8, W/8]
        self.trunk = nn.Sequential(
            *(layer(3 * len(self.frames), 24, 1), layer(24, 32, 2), layer(32, 48, 1)),
            *(layer(48, 64, 2), layer(64, 64, 1), layer(64, 96, 2), layer(96, 96, 1)),
        )
        self.embed = nn.Linear(4 * 2 * 96, EMBEDDING)
        self.quadrant_out = (len(shapes.SHAPES) + 1, len(shapes.COLOURS), len(shapes.SIZES))
        self.whole_out = (len(shapes.BACKGROUNDS), len(shapes.TEXTURES)) + (
            (len(shapes.MOTIONS),) if self.moving else ()
        )
        self.read_quadrant = nn.Linear(2 * 96, sum(self.quadrant_out))
        self.read_whole = nn.Linear(4 * 2 * 96, sum(self.whole_out))
        # training only
        self.read_embedding = nn.Linear(EMBEDDING, 4 * sum(self.quadrant_out) + sum(self.whole_out))

    def taken(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] or [B, 3, T, H, W] in 0..1 -> [B, 3 or 9, H, W] in -1..1: what the trunk
        looks at."""
        if self.moving:
            pixels = spread_over_time(pixels, self.num_frames)[:, :, list(self.frames)]
            pixels = pixels.flatten(1, 2)
        return averaged_down(pixels, self.side) * 2 - 1

    def pool(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] or [B, 3, T, H, W] in 0..1 -> [B, Q, 192]: mean and maximum over each
        quadrant."""
        seen = self.trunk(self.taken(pixels))
        half_h, half_w = seen.shape[2] // 2, seen.shape[3] // 2
        boxes = seen.unflatten(3, (2, half_w)).unflatten(2, (2, half_h))  # [B, 96, 2, h, 2, w]
        boxes = boxes.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)  # [B, Q, 96, h*w]
        return torch.cat([boxes.mean(3), boxes.amax(3)], 2)

    def features(self, pixels: Tensor) -> Tensor:
        """[B, 64] float32: the embedding distances are measured in."""
        features: Tensor = self.embed(self.pool(pixels).flatten(1))
        return features

    def logits(self, pooled: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Per quadrant ([B, Q, 1 + shapes], [B, Q, colours], [B, Q, sizes]; shape 0 is empty) and
        whole picture."""
        quadrant = self.read_quadrant(pooled).split(self.quadrant_out, dim=2)
        return list(quadrant), list(self.read_whole(pooled.flatten(1)).split(self.whole_out, dim=1))

    @torch.inference_mode()
    def read(self, pixels: Tensor) -> shapes.Scenes:
        """What the judge sees, as the ground truth is written."""
        return seen(*self.logits(self.pool(pixels)))


def averaged_down(pixels: Tensor, side: int) -> Tensor:
    """[B, C, H, W] -> [B, C, side, side] where H = W is a multiple of `side`, by the mean of each
    square of pixels; anything else as it is."""
    height, width = pixels.shape[2:]
    if height != width or height <= side or height % side:
        return pixels
    return F.avg_pool2d(pixels, height // side)


def spread_over_time(pixels: Tensor, num: int) -> Tensor:
    """[B, C, T, H, W] -> [B, C, num, H, W], frames at equal distances from the first to the last
    one where there are such; anything else as it is."""
    if pixels.dim() != 5 or num < 2 or pixels.shape[2] <= num or (pixels.shape[2] - 1) % (num - 1):
        return pixels
    return pixels[:, :, :: (pixels.shape[2] - 1) // (num - 1)]


def seen(quadrant: list[Tensor], whole: list[Tensor]) -> shapes.Scenes:
    """The likeliest attributes by a judge's logits (see `Judge.logits`), as the ground truth is
    written."""
    shape, empty = quadrant[0].argmax(2) - 1, torch.tensor(-1)
    colour, size = (torch.where(shape >= 0, logits.argmax(2), empty) for logits in quadrant[1:])
    background, texture = (logits.argmax(1) for logits in whole[:2])
    motion = whole[2].argmax(1) if len(whole) > 2 else empty.expand(len(shape))
    return shapes.Scenes(shape, colour, size, background, texture, motion)


def weights_path(world: str, folder: Path | None = None) -> Path:
    """Where the judge's weights for a world lie, whether they are there or not."""
    name = "video.safetensors" if world == "video" else "still.safetensors"
    return (folder or ZOO / "judge") / name


def load_judge(world: str, folder: Path | None = None) -> Judge:
    """The trained judge of a world, in evaluation mode on the CPU, float32."""
    judge, weights = Judge(world), load_file(weights_path(world, folder))
    judge.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    )
    return judge.eval()


def agreement(seen: shapes.Scenes, truth: shapes.Scenes, world: str) -> dict[str, Tensor]:
    """Which attributes came out as asked, [n] float64 in 0..1 each.

    Object attributes are averaged over the objects asked for, read in the quadrant they were asked
    in (an object that is not there has all its attributes wrong); `position` is 1 where exactly the
    quadrants asked for are occupied. In the `class` world only `class` is judged: colour and shape
    both right, wherever the object is, and no second object.
    """
    there = truth.shape >= 0
    if world == "class":
        one = (seen.shape >= 0).sum(1) == 1
        return {"class": ((seen.labels == truth.labels) & one).double()}
    num = there.sum(1)
    per_object = {
        name: ((getattr(seen, name) == getattr(truth, name)) & there).sum(1).double() / num
        for name in ("shape", "colour", "size")
    }
    shares = per_object | {
        "position": ((seen.shape >= 0) == there).all(1).double(),
        "background": (seen.background == truth.background).double(),
        "texture": (seen.texture == truth.texture).double(),
    }
    if world == "video":
        shares["motion"] = (seen.motion == truth.motion).double()
    return shares
