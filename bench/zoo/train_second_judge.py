"""Train the second judge: `python -m ditbench.zoo.train_second_judge still|video --steps 4000
[--out FOLDER]`.

Prints its held-out score and writes weights (fp16 safetensors), a loss curve and notes; a killed
training goes on. Everything differs from the first judge's training (`train.py`): scenes of the
split "check", initial weights, augmentations.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ditbench import ZOO
from ditbench.acceleration.distillation.training_loop import fit
from ditbench.shapes.second_judge import CheckJudge, weights_path
from ditbench.zoo.train import half, note, pictures, reading_loss, score_judge

SEED = 20_261
BATCH = 64
WORLDS = {"still": ("scene", "scene", "class"), "video": ("video",)}
"""Worlds whose pictures a kind sees, in turn."""
CARD = """# The second judge

`check-still.safetensors` and `check-video.safetensors` score samples and do nothing else: no method, schedule or student is
trained, chosen or calibrated through them. A small vision transformer on a convolutional stem
(`ditbench.shapes.second_judge`), where the first judge
(`still.safetensors`, `video.safetensors`, `judge.py`) is a convolutional network with batch norm. Made by
`python -m ditbench.zoo.train_second_judge still` and `video`. Seconds are the clock's, one thread on a busy machine: a step took
about .27 s (still) and .25 s (video) of one core of an x86-64 server with AMX, where bfloat16 was slower than float32.
"""


def disturbed(pixels: Tensor, step: int) -> Tensor:
    """[B, 3, ..., H, W] with gain and offset of each colour changed, moved by up to two pixels,
    half of them coarsened by half and back, and with noise that is smooth over several pixels, as a
    decoder leaves: none of it what the first judge is hardened by."""
    g = torch.Generator().manual_seed(step)
    wide = [1] * (pixels.dim() - 2)
    gain = 1 + 0.12 * (2 * torch.rand(len(pixels), 3, *wide, generator=g) - 1)
    offset = 0.06 * (2 * torch.rand(len(pixels), 3, *wide, generator=g) - 1)
    flat = pixels.mul(gain).add(offset).flatten(1, -3)  # [B, C, H, W]
    height, width = flat.shape[2:]
    right, down = torch.randint(-2, 3, (2,), generator=g).tolist()
    padded = F.pad(flat, (2, 2, 2, 2), mode="replicate")
    flat = padded[:, :, 2 + down : 2 + down + height, 2 + right : 2 + right + width]
    coarse = F.interpolate(
        F.avg_pool2d(flat, 2), size=(height, width), mode="bilinear", align_corners=False
    )
    flat = torch.where(torch.rand(len(flat), 1, 1, 1, generator=g) < 0.5, coarse, flat)
    noise = torch.randn(len(flat), flat.shape[1], height // 4, width // 4, generator=g)
    noise = F.interpolate(noise, size=(height, width), mode="bilinear", align_corners=False)
    flat = flat + 0.06 * torch.rand(len(flat), 1, 1, 1, generator=g) * noise
    return flat.clamp(0, 1).view_as(pixels)


def train(kind: str, out: Path, steps: int) -> None:
    """The second judge of still pictures (both still worlds) or of video."""
    torch.manual_seed(SEED)
    worlds = WORLDS[kind]
    judge = CheckJudge(worlds[0])

    def loss_of(step: int) -> Tensor:
        scenes, pixels = pictures(worlds[step % len(worlds)], BATCH, "check", step)
        answers = judge.answers(disturbed(pixels, step))
        attributes = judge.read_embedding(F.relu(judge.embedded(answers)))
        inner, outer = attributes.split([4 * sum(judge.quadrant_out), sum(judge.whole_out)], dim=1)
        by_quadrant = inner.unflatten(1, (4, -1)).split(judge.quadrant_out, dim=2)
        from_features = reading_loss(
            list(by_quadrant), list(outer.split(judge.whole_out, dim=1)), scenes
        )
        return reading_loss(*judge.logits(answers), scenes) + 0.5 * from_features

    folder = out / f"check-{kind}"
    spent = fit(judge, loss_of, steps=steps, lr=1e-3, folder=folder, average=0.99)
    scores = {world: score_judge(judge.eval(), world) for world in dict.fromkeys(worlds)}
    print(json.dumps(scores, indent=1))
    (out / "judge").mkdir(exist_ok=True)
    save_file(half(judge.state_dict()), weights_path(worlds[0], out / "judge"))
    note(
        folder,
        part=f"check-{kind}",
        steps=steps,
        batch=BATCH,
        seed=SEED,
        seconds=round(spent),
        accuracy=scores,
    )
    write_card(out)


def write_card(out: Path) -> None:
    """`out/judge/README.md`: how both kinds were trained and what they read of held-out renders,
    from the notes their trainings left."""
    notes = {
        kind: json.loads(path.read_text(encoding="utf-8"))
        for kind in WORLDS
        if (path := out / f"check-{kind}" / "notes.json").is_file()
    }
    lines = [CARD]
    for title, read in (
        ("Training", _facts),
        ("Accuracy on 4096 held-out renders of each world", _accuracy),
    ):
        columns = read(notes)
        heads = list(dict.fromkeys(head for column in columns.values() for head in column))
        lines += [
            f"## {title}\n",
            "| | " + " | ".join(columns) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        lines += [
            f"| {head} | "
            + " | ".join(str(column.get(head, "")) for column in columns.values())
            + " |"
            for head in heads
        ]
        lines.append("")
    (out / "judge" / "README.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _facts(notes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        kind: {name: value for name, value in facts.items() if name not in ("part", "accuracy")}
        for kind, facts in notes.items()
    }


def _accuracy(notes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        world: shares for facts in notes.values() for world, shares in facts["accuracy"].items()
    }


def main() -> None:
    """Train the kind named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=tuple(WORLDS))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=ZOO)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.kind, args.out, args.steps)


if __name__ == "__main__":
    main()
