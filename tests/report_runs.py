"""Run folders of the record's schema, written by hand: every status, small random samples and
scores. For the report's tests."""

import csv
import json
import re

import numpy as np
from safetensors.numpy import save_file

from ditbench.metrics.margins import MARGINS
from ditbench.records.files import write_json
from ditbench.records.record import SCHEMA
from ditbench.records.scores import Scores, write_file

WORLDS = {"dit-tiny": "class", "pixart-tiny": "scene", "flux-tiny": "scene", "wan-tiny": "video"}
FAMILIES = {
    "none": "baseline",
    "fewer_steps": "control",
    "fora": "cache",
    "firstblock": "cache",
    "int8": "quantisation",
    "noop": "other",
}
REASONS = {
    "refused": "DiTTransformer2DModel has no first block that diffusers can watch <see & read>",
    "inert": "noop changed nothing and counted no event",
    "skipped": "its trained schedule is missing; run `prepare diffsparse` first",
    "failed": "RuntimeError: the | matrix is singular",
    "oom": "OutOfMemoryError: tried to allocate 3.00 GiB",
}
STACKS = (
    ("none", "ok"), ("fewer_steps(steps=10)", "ok"), ("fora(interval=3)", "ok"), ("int8", "ok"),
    ("int8+fora(interval=3)", "ok"),
    ("firstblock", "refused"), ("noop", "inert"), ("diffsparse(keep=0.46)", "skipped"),
    ("int8+fewer_steps(steps=5)", "failed"),
    ("fora(interval=9)", "oom"),
)  # fmt: skip
ENVIRONMENT = {
    "ditbench": "0.1.0", "python": "3.11.9", "system": "Linux x86_64",
    "processor": "Imaginary 3000", "cores": 2, "threads": 2,
    "memory_bytes": 8 << 30, "packages": {"torch": "2.13.0+cpu"}, "variables": {}, "device": "cpu",
}  # fmt: skip
PROMPT = "a large red <b>circle</b> top-left & a small blue square bottom-right on striped grey"


SCHEDULE = {
    "sublayers": ["0.self", "0.mlp", "1.self", "1.mlp"],
    "keep": [[1, 1, 1, 1], [0, 0.5, 0.25, 0]],
}
"""What a scheduled cell's record says of its schedule."""


def edit(run, change, stack=None, model=None):
    """Apply `change` to the records of a run: all, or a stack's, or a model's."""
    for path in (run / "cells").glob("*/record.json"):
        record = json.loads(path.read_text())
        if stack in (None, record["stack"]) and model in (None, record["model"]):
            change(record)
            path.write_text(json.dumps(record))


def lines_of(path):
    """The lines of a CSV, as dictionaries."""
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def key_of(model, stack):
    return f"{model}--" + "".join(c if c.isalnum() else "-" for c in stack)


def write_run(
    folder,
    models=("dit-tiny",),
    stacks=STACKS,
    n=12,
    rounds=3,
    seed=0,
    drift=0.01,
    resolution=16,
    prompt=PROMPT,
    environment=ENVIRONMENT,
):
    """Write a run folder; returns it."""
    folder.mkdir(parents=True)
    cells = [(model, stack, status) for model in models for stack, status in stacks]
    spec = {"margins": dict(MARGINS)}
    write_json(
        folder / "spec.json",
        {"schema": SCHEMA, "cells": [key_of(m, s) for m, s, _ in cells], "spec": spec},
    )
    (folder / "command.txt").write_text("python run_bench.py --methods 'fora(interval=3)'\n")
    (folder / "requests").mkdir()
    for model in models:
        asked = [
            {"id": f"{i:05d}", "seed": i, "truth": None}
            | ({"prompt": None, "label": i} if "dit" in model else {"prompt": f"{prompt} {i}", "label": None})
            for i in range(n)
        ]  # fmt: skip
        write_json(folder / "requests" / f"{model}.json", asked)
    for i, (model, stack, status) in enumerate(cells):
        write_cell(
            folder,
            model,
            stack,
            status,
            np.random.default_rng([seed, i]),
            n,
            rounds,
            drift,
            resolution,
            environment,
        )
    return folder


def described(part):
    """A method of a stack as a record holds it, its knobs as text."""
    name, knobs = part.partition("(")[0], re.findall(r"(\w+)=([^,)]+)", part)
    told = {"name": name, "knobs": {knob: value.strip("'") for knob, value in knobs}}
    return told | {"family": FAMILIES.get(name, "sparsity"), "stage": "schedule", "paper": ""}


def write_cell(folder, model, stack, status, rng, n, rounds, drift, resolution, environment):
    key, world, ran = key_of(model, stack), WORLDS[model], status in ("ok", "inert")
    methods = [part.partition("(")[0] for part in stack.split("+")]
    cost = np.prod([{"fora": 0.5, "int8": 0.7, "fewer_steps": 0.35}.get(m, 1.0) for m in methods])
    weaker = 0.04 * sum(m not in ("none", "noop") for m in methods) + 0.02 * rng.random()
    cost *= 1 + 0.2 * rng.random() * (stack != "none")
    run = {
        "num_samples": n,
        "batch_size": 4,
        "seed": 0,
        "rounds": rounds,
        "device": "cpu",
        "dtype": "float32",
        "weights": "bundled",
    }
    sampling = {
        "steps": 50,
        "guidance": 4.0,
        "height": resolution,
        "width": resolution,
        "text_tokens": 0,
    }
    memory = {
        "weights_bytes": 9_000_000,
        "cache_bytes": 400_000,
        "before_bytes": 500_000_000,
        "peak_bytes": 612_000_000,
    }
    flops = {
        "flops": 4e10 * float(np.round(cost, 2)),
        "linear_macs": 1.8e10,
        "attention_macs": 2e9,
        "conv_macs": 0.0,
    }
    record = {
        "schema": SCHEMA, "key": key, "model": model, "family": model.split("-")[0], "world": world,
        "stack": stack,
        "methods": [described(part) for part in stack.split("+")],
        "status": status, "reason": REASONS.get(status, ""), "traceback": "", "seconds": 12.3,
        "run": run | {"requests_sha256": "same", "model_sha256": "same"},
        "sampling": sampling | {"frames": 9 if world == "video" else 1},
        "environment": environment if ran else {}, "load_s": 0.5 if ran else None,
        "first_call_s": 1.2 if ran else None,
        "timing": [_timing(r, b, cost, drift, rng) for r in range(rounds) for b in range(3)] if ran else [],
        "memory": memory | {"reserved_bytes": 0, "source": "rss"} if ran else {},
        "flops": flops | {"forwards": 50, "uncounted": {}} if ran else {},
        "counters": {"fora.reused": 1234} if ran else {},
        "schedule": SCHEDULE if ran and "fora" in methods else None,
    }  # fmt: skip
    at = folder / "cells" / key
    at.mkdir(parents=True)
    write_json(at / "record.json", record)
    if not ran:
        return
    grain = 1 if resolution <= 16 else 4  # large samples are not noise in every pixel
    side = resolution // grain
    samples = rng.integers(
        0, 256, (n, 9, side, side, 3) if world == "video" else (n, side, side, 3), dtype=np.uint8
    )
    save_file({"samples": samples.repeat(grain, -3).repeat(grain, -2)}, at / "samples.safetensors")
    align = np.clip(0.97 - weaker + 0.05 * rng.standard_normal(n), 0, 1)
    arrays = {
        "align.shapes_v1": align, "align.shapes_v1.shape": align,
        "align.shapes_v1.colour": np.clip(align + 0.01, 0, 1),
        "feature.shapes_v1": (rng.standard_normal((n, 64)) + 8 * weaker).astype(np.float32),
        "group": np.arange(n),
    }  # fmt: skip
    if stack != "none":
        arrays |= {
            "mse.vs_none": np.full(n, 0.01),
            "psnr.vs_none": 25 + rng.standard_normal(n),
            "ssim.vs_none": 0.8 + 0.05 * rng.random(n),
            "perceptual.shapes_v1": 0.2 + 0.05 * rng.random(n),
        }
    against = "" if stack != "none" else "this is the baseline itself"
    reasons = {
        "align.shapes_v1": "",
        "fd.shapes_v1": "",
        "mmd.shapes_v1": "",
        "precision.shapes_v1": "",
        "recall.shapes_v1": "",
        "psnr.vs_none": against,
        "ssim.vs_none": against,
        "perceptual.shapes_v1": against,
    }
    write_file(
        folder / "scores" / f"{key}.safetensors",
        Scores(samples_sha256="", arrays=arrays, reasons=reasons),
    )


def _timing(round_, batch, cost, drift, rng):
    call = 1.6 * cost * (1 + drift * round_) * (1 + 0.01 * rng.random())
    return {
        "round": round_,
        "batch": batch,
        "size": 4,
        "call_s": call,
        "text_s": 0.02 * call,
        "denoise_s": 0.9 * call,
        "decode_s": 0.08 * call,
    }
