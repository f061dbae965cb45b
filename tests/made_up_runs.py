"""Run folders of any number of cells and samples, made up without generating: for measuring what a
report costs at scale. `python tests/made_up_runs.py FOLDER --cells 100 --samples 50000`.

A cell has 8 samples to show, whatever its number of samples, n scores of every metric of the shapes
worlds, and features [n, 64] in the scores file, as older folders have them; or, with
`features=False`, the statistics of features that nobody made, random numbers.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    import conftest  # noqa: F401, which lets ditbench be imported
from report_runs import WORLDS, key_of, write_run

from ditbench.metrics.published_statistics import parts_of
from ditbench.records.run_folder import RunFolder
from ditbench.records.scores import Scores, read_file, write_cell, write_file
from ditbench.statistics.influence import Reading, summed

SHOWN = 8
ATTRIBUTES = ("shape", "colour", "size", "position", "texture", "motion")


def stacks_of(num):
    """`none` and other stacks, so many in all: caches, fewer steps, eight bits, and their pairs."""
    alone = [f"fora(interval={i})" for i in range(2, num + 2)]
    fewer = [f"fewer_steps(steps={i})" for i in range(49, 0, -1)]
    pairs = [f"int8+fora(interval={i})" for i in range(2, num + 2)]
    mixed = [stack for three in zip(alone, pairs, fewer * num, strict=False) for stack in three]
    return [(stack, "ok") for stack in ["none", "int8", *dict.fromkeys(mixed)][:num]]


def make_run(folder, cells, n, models=tuple(WORLDS), features=True, seed=0):
    """Write a run of so many cells, the same stacks for every model; returns the folder."""
    stacks = stacks_of(cells // len(models))
    write_run(folder, models=models, stacks=stacks, n=SHOWN, seed=seed)
    for number, (model, stack) in enumerate((m, s) for m in models for s, _ in stacks):
        make_cell(folder, model, stack, n, np.random.default_rng([seed, number]), features)
    return folder


def make_cell(folder, model, stack, n, rng, features):
    """Scores of n samples in place of those of the few that are shown."""
    path = RunFolder(folder).scores(key_of(model, stack))
    few = read_file(path)
    weaker = 0.02 * stack.count("+") + 0.01 * (stack != "none")
    asked = rng.integers(0, 8, (len(ATTRIBUTES), n)) > 0
    hit = rng.random(asked.shape) < 0.95 - weaker
    share = np.where(asked, hit, 0).sum(0) / np.maximum(asked.sum(0), 1)
    arrays = {
        "align.shapes_v1": share,
        "align.shapes_check_v1": np.clip(share - 0.01 * rng.random(n), 0, 1),
        **{
            f"align.shapes_v1.{name}": hit[i].astype(float)
            for i, name in enumerate(ATTRIBUTES)
        },
        "group": np.arange(n),
    }  # fmt: skip
    if stack != "none":
        mse = 0.01 * rng.random(n)
        arrays |= {
            "mse.vs_none": mse, "psnr.vs_none": -10 * np.log10(mse + 1e-10),
            "ssim.vs_none": 0.8 + 0.05 * rng.random(n),
            "perceptual.shapes_v1": 0.2 + 0.05 * rng.random(n),
        }  # fmt: skip
    if features:
        mixing = np.random.default_rng(0).standard_normal((64, 64)) / 8
        table = rng.standard_normal((n, 64)) @ mixing + 8 * weaker
        arrays["feature.shapes_v1"] = table.astype(np.float32)
    reasons = {**few.reasons, "align.shapes_check_v1": ""}
    scores = Scores(samples_sha256="", arrays=arrays, reasons=reasons)
    if features:
        write_file(path, scores)
    else:
        arrays |= statistics_of(n, rng, weaker)
        write_cell(RunFolder(folder), path.stem, scores)


def statistics_of(n, rng, weaker):
    """Statistics of the judge's features, made up: in the form, and of the sizes, that `score` gives
    them."""
    arrays = {"feature.shapes_v1@shape": np.array([n, 64]), "fd.shapes_v1@floor": np.array([0.6])}
    for metric, level in (("fd", 9), ("mmd", 5), ("precision", 0.9), ("recall", 0.8)):
        parts = rng.standard_normal(n) * level / n
        reading = Reading(value=level * (1 + weaker), parts=parts - parts.mean())
        if metric == "recall":
            draws = rng.standard_normal(64) * 0.001
            reading = Reading(value=level, parts=draws - draws.mean(), groups=n)
        stored = parts_of(summed(reading), "read")
        if metric == "fd":
            check = Reading(
                value=reading.value,
                parts=rng.standard_normal(50) / 50,
                unbiased=reading.value - 0.5,
            )
            stored |= parts_of(check, "check")
        arrays |= {f"{metric}.shapes_v1@{name}": array for name, array in stored.items()}
    arrays["precision.shapes_v1@each"] = (rng.random(n) < 0.9).astype(np.uint8)
    return arrays


def main(arguments=None):
    """Write the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--no-features", action="store_true")
    args = parser.parse_args(arguments)
    make_run(args.folder, args.cells, args.samples, features=not args.no_features)
    return 0


if __name__ == "__main__":
    sys.exit(main())
