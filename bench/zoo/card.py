"""Score a tiny model on held-out requests and write its card: `python -m ditbench.zoo.card
pixart-tiny --training FOLDER`.

The card says how the model was made (from the training's notes and loss log), how good it is at its
default steps and at a fifth of them, and shows the loss curve and samples. Everything on it is
measured here or was noted by the training.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditbench import ZOO
from ditbench.method.stack import Stack
from ditbench.models import loading
from ditbench.models import table as models
from ditbench.models.requests import Request, batches, make_requests
from ditbench.models.sampling import sampling_of
from ditbench.profiling import latency as measure
from ditbench.quiet import quiet
from ditbench.shapes import scenes as shapes
from ditbench.shapes.judge import agreement, load_judge
from ditbench.zoo.pipelines import HALF_OF


def samples_of(
    model: Any, pipe: Any, requests: list[Request], steps: int, batch: int
) -> np.ndarray:
    """uint8 samples of the requests at a number of steps."""
    sampling = replace(sampling_of(model), steps=steps)
    with quiet(), torch.inference_mode(), Stack().attached(pipe) as attached:
        sampler = measure.Sampler(pipe, model, sampling, attached, "cpu")
        return np.concatenate([sampler(part)[0] for part in batches(requests, batch)])


def alignment(world: str, samples: np.ndarray, requests: list[Request]) -> dict[str, float]:
    """Mean agreement by attribute, and over attributes."""
    truth = shapes.Scenes.of([r.truth for r in requests if r.truth is not None])
    pixels = torch.from_numpy(samples).movedim(-1, 1).float() / 255
    numbers = {
        k: v.mean().item()
        for k, v in agreement(load_judge(world).read(pixels), truth, world).items()
    }
    return numbers | {"alignment": sum(numbers.values()) / len(numbers)}


def main() -> None:
    """Write `README.md`, `loss.png` and `samples.png` into the model's folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument(
        "--training",
        type=Path,
        required=True,
        help="folder `models.py` left notes.json and loss.csv in",
    )
    parser.add_argument("--num", type=int, default=256)
    args = parser.parse_args()
    model = models.select(args.name)[0]
    pipe = loading.load(model, weights="bundled", device="cpu", dtype="float32")
    num = args.num if model.frames == 1 else args.num // 4
    requests = make_requests(model, num, seed=77)
    few = max(1, model.steps // 5)
    made = {
        steps: samples_of(model, pipe, requests, steps, 16 if model.frames == 1 else 4)
        for steps in (model.steps, few)
    }
    scores = {steps: alignment(model.world, samples, requests) for steps, samples in made.items()}
    folder = ZOO / model.name
    notes = json.loads((args.training / "notes.json").read_text(encoding="utf-8"))
    curves = [
        p
        for p in (
            args.training / "loss.csv",
            args.training.with_name(args.training.name + "-guidance") / "loss.csv",
        )
        if p.exists()
    ]
    _plot_loss(curves, folder / "loss.png")
    for path in curves:
        shutil.copy(path, folder / f"{path.parent.name}.csv")
    _plot_samples(made, requests, folder / "samples.png")
    parameters = sum(p.numel() for p in pipe.transformer.parameters())
    (folder / "README.md").write_text(
        _card(model, notes, scores, num, parameters), encoding="utf-8"
    )
    print(json.dumps(scores, indent=1))


def _card(
    model: Any,
    notes: dict[str, Any],
    scores: dict[int, dict[str, float]],
    num: int,
    parameters: int,
) -> str:
    rows = "\n".join(
        f"| {name} | " + " | ".join(f"{values[name]:.3f}" for values in scores.values()) + " |"
        for name in next(iter(scores.values()))
    )
    head = " | ".join(f"{steps} steps" for steps in scores)
    table = "\n".join(f"| {key} | {value} |" for key, value in notes.items())
    begun = {"started from", HALF_OF} & notes.keys()
    how = "trained" if begun else "trained from scratch"
    return f"""# {model.name}

A `{model.family}` pipeline of diffusers' own classes, transformer of {parameters / 1e6:.2f} M parameters, {how} on the
`{model.world}`
dataset `ditbench.shapes`. Made again with `python -m ditbench.zoo.train` (codec, judge) and `python -m ditbench.zoo.models {model.name}`.

## Training

| | |
|---|---|
{table}

![loss](loss.png)

## Quality on {num} held-out requests (seed 77), default guidance {model.guidance}, read by the judge

| attribute | {head} |
|---|---|{"---|" * (len(scores) - 1)}
{rows}

Upper rows of the picture: {next(iter(scores))} steps; lower rows: {list(scores)[-1]} steps, same requests and noise.

![samples](samples.png)
"""


def _plot_loss(curves: list[Path], to: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    start = 0
    for path in curves:
        rows = list(csv.DictReader(path.open(encoding="utf-8")))
        label = "guidance distillation" if path.parent.name.endswith("-guidance") else "training"
        axes.plot(
            [start + int(r["step"]) for r in rows], [float(r["loss"]) for r in rows], label=label
        )
        start += int(rows[-1]["step"])
    axes.set(xlabel="step", ylabel="loss (running mean)", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(to, dpi=100)
    plt.close(figure)


def _plot_samples(made: dict[int, np.ndarray], requests: list[Request], to: Path) -> None:
    from PIL import Image

    rows = []
    for samples in made.values():
        if samples.ndim == 5:
            rows += [
                np.concatenate(
                    [np.concatenate(list(video[::4]), 1) for video in samples[i : i + 4]], 1
                )
                for i in (0, 4)
            ]
        else:
            rows += [np.concatenate(list(samples[i : i + 10]), 1) for i in (0, 10)]
    picture = Image.fromarray(np.concatenate(rows, 0))
    picture = picture.reduce(max(1, picture.width // 1280))
    scale = max(1, 1280 // picture.width)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(
        to, optimize=True
    )


if __name__ == "__main__":
    main()
