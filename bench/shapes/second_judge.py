"""The second judge: reads the same attributes as the first (`judge.py`), and is used for scoring
only, never to train or choose anything.

Schedules and students are learned through the first judge's layers, so that its scores may flatter
them. This one shares nothing with it but the question: other architecture, other initial weights,
other scenes (the split "check"), other augmentations. No module that trains, calibrates or matches
a method may import it (tests/test_check.py).

A small vision transformer on a convolutional stem (Xiao et al. 2021, arXiv:2106.14881) with five
learned query tokens, one for each quadrant and one for the whole picture. B batch, C channels, H
height, W width, N = H W / 64 patches, D width, Q = 4 quadrants.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ditbench import ZOO
from ditbench.shapes import scenes as shapes
from ditbench.shapes.judge import averaged_down, seen, spread_over_time

WIDTH, HEADS, DEPTH = 96, 4, 3
EMBEDDING = 64
SIDES = {"class": 64, "scene": 64, "video": 48}
"""Pixels of a picture's side, by world."""


class Block(nn.Module):
    """Self-attention and MLP with layer norm before each."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, D] -> the same."""
        # [3, B, heads, tokens, D / heads]
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y


class CheckJudge(nn.Module):
    """Reads attributes by quadrant; one set of weights for still worlds and one for video, of which
    it sees every frame."""

    def __init__(self, world: str) -> None:
        super().__init__()
        self.side = SIDES[world]
        self.num_frames = shapes.WORLDS[world].num_frames
        self.moving = self.num_frames > 1

        def layer(inward: int, outward: int, size: int) -> nn.Module:
            conv = nn.Conv2d(inward, outward, size, 2, 1, bias=False)
            return nn.Sequential(conv, nn.GroupNorm(8, outward), nn.GELU())

        self.stem = nn.Sequential(
            layer(3 * self.num_frames, 24, 4),
            layer(24, 48, 3),
            nn.Conv2d(48, WIDTH, 3, 2, 1),
        )
        self.place = nn.Parameter(0.02 * torch.randn((SIDES[world] // 8) ** 2, WIDTH))
        self.queries = nn.Parameter(0.02 * torch.randn(5, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.quadrant_out = (len(shapes.SHAPES) + 1, len(shapes.COLOURS), len(shapes.SIZES))
        self.whole_out = (len(shapes.BACKGROUNDS), len(shapes.TEXTURES)) + (
            (len(shapes.MOTIONS),) if self.moving else ()
        )
        self.read_quadrant = nn.Linear(WIDTH, sum(self.quadrant_out))
        self.read_whole = nn.Linear(WIDTH, sum(self.whole_out))
        self.embed = nn.Linear(5 * WIDTH, EMBEDDING)
        # training only
        self.read_embedding = nn.Linear(EMBEDDING, 4 * sum(self.quadrant_out) + sum(self.whole_out))

    def answers(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] or [B, 3, T, H, W] in 0..1 -> [B, 5, D]: the queries' answers, quadrants
        first."""
        pixels = spread_over_time(pixels, self.num_frames)
        pixels = averaged_down(pixels.flatten(1, -3), self.side)
        # [B, N, D]
        patches = self.stem(pixels * 2 - 1).float().flatten(2).transpose(1, 2) + self.place
        x = torch.cat([self.queries.expand(len(pixels), -1, -1), patches], 1)
        for block in self.blocks:
            x = block(x)
        answers: Tensor = self.norm(x[:, :5])
        return answers

    def features(self, pixels: Tensor) -> Tensor:
        """[B, 64] float32: the embedding distances are measured in."""
        return self.embedded(self.answers(pixels))

    def embedded(self, answers: Tensor) -> Tensor:
        """The embedding [B, 64] of the queries' answers [B, 5, D]."""
        features: Tensor = self.embed(answers.flatten(1))
        return features

    def logits(self, answers: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Per quadrant ([B, Q, 1 + shapes], [B, Q, colours], [B, Q, sizes]; shape 0 is empty) and
        whole picture."""
        quadrant = self.read_quadrant(answers[:, :4]).split(self.quadrant_out, dim=2)
        return list(quadrant), list(self.read_whole(answers[:, 4]).split(self.whole_out, dim=1))

    @torch.inference_mode()
    def read(self, pixels: Tensor) -> shapes.Scenes:
        """What the judge sees, as the ground truth is written."""
        return seen(*self.logits(self.answers(pixels)))


def weights_path(world: str, folder: Path | None = None) -> Path:
    """Where the second judge's weights for a world lie, whether they are there or not."""
    name = "check-video.safetensors" if world == "video" else "check-still.safetensors"
    return (folder or ZOO / "judge") / name


def load_check(world: str, folder: Path | None = None) -> CheckJudge:
    """The trained second judge of a world, in evaluation mode on the CPU, float32."""
    judge = CheckJudge(world)
    judge.load_state_dict(
        {name: value.float() for name, value in load_file(weights_path(world, folder)).items()}
    )
    return judge.eval()
