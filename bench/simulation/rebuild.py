"""Simulates the bundled costs again: `python -m ditbench.simulation.rebuild [MODEL ...]`.

Rows that are there are kept unless `--all` is given; `--check` simulates them all again, writes
nothing and says which differ. Three to fifteen minutes a model.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from ditbench.method.registry import find, names
from ditbench.method.stack import Stack
from ditbench.models.sampling import Sampling, sampling_of
from ditbench.models.table import Model, select
from ditbench.simulation.costs import Costs
from ditbench.simulation.shelf import HERE, Shelf, file_of, write
from ditbench.simulation.simulate import Simulator, at_once

DTYPE, VAE = "bfloat16", "whole"
COMBINATIONS = (
    "fewer_steps(steps=4)", "fora(interval=2)", "fora+int8", "int8+teacache",
    "distill+int8", "distill+diffsparse", "distill+int8+diffsparse",
)  # fmt: skip
"""Stacks that are bundled beside every method at its defaults."""
FIRST = (
    "fewer_steps", "fora", "taylorseer", "teacache", "int8", "fp8", "distill",
    "distill+diffsparse", "diffsparse", "toca",
)  # fmt: skip
"""Those that are simulated, and shown, before the others."""
FIRST_ALONE = ("wan-2.1-1.3b", "sd3-medium", "flux-1-schnell")
"""Models of which no others are bundled: a row of a video takes minutes."""
MODELS = (
    "dit-xl-2-256", "dit-xl-2-512", "pixart-alpha-256", "pixart-alpha-512", "pixart-alpha-1024",
    "flux-1-dev", "flux-1-schnell", "sd3-medium", "wan-2.1-1.3b",
)  # fmt: skip
"""Models whose rows are bundled: all of full size but Wan 14B, of which a row takes a quarter of an
hour."""
SIMULATED_WHEN_ASKED = (
    "adaptive_guidance", "barycache", "cfg_cache", "clusca", "compile", "cudagraph", "dicache", "easycache",
    "fp8_attention", "fpsattention", "freqca", "frequency_tokens", "guidance_interval", "hicache",
    "l2p", "lazy_queries", "meancache", "modulation_ahead", "radial", "rapid3", "replay", "schedule", "seacache",
    "sparsecast", "speca", "stitch", "tile_window", "top_tiles", "w4a4", "w6a8", "zipr1",
)  # fmt: skip
"""Methods of which no rows are bundled yet: they are simulated where a plan or an estimate wants
them."""
SPEC_STEPS = {"flux-1-dev": 10, "wan-2.1-1.3b": 5}
"""Steps that the bundled spec `gpu` takes of models that take more by themselves."""
SPEC_STACKS = (
    "none", "fewer_steps", "fewer_steps(steps=4)", "fora", "taylorseer", "toca", "teacache",
    "diffsparse(allocator='transferred')", "diffsparse(allocator='transferred',keep=0.3)",
    "int8", "fp8", "fp8+diffsparse(allocator='transferred')",
)  # fmt: skip
"""Its stacks, bundled at those steps."""


def stacks(model: Model) -> list[Stack]:
    """The stacks whose rows are bundled at the model's own steps, with what runs in place of what
    would have to be prepared; those that a model's family rules out are not among them."""
    ours = [
        name
        for name in names()
        if find(name).__module__.startswith("ditbench.methods") and name not in SIMULATED_WHEN_ASKED
    ]
    more = () if model.name in FIRST_ALONE else (*sorted(ours), *COMBINATIONS)
    return _possible(model, ["none", *FIRST, *more])


def listed(model: Model) -> dict[str, tuple[Stack, Sampling]]:
    """Everything that is bundled of a model, by its key: stacks, and the sampling that they adapt."""
    shelf, sampling = Shelf(model), sampling_of(model)
    pairs = []
    if steps := SPEC_STEPS.get(model.name):  # first, since they take least
        of_spec = replace(sampling, steps=steps)
        pairs += [(stack, of_spec) for stack in _possible(model, SPEC_STACKS)]
    pairs += [(stack, sampling) for stack in stacks(model)]
    return {shelf.key(s, s.adapt(base), DTYPE, VAE): (s, base) for s, base in pairs}


def rows_of(model: Model) -> dict[str, Costs]:
    """The bundled rows of a model at its own steps, by stack; stacks without a row are left out."""
    there, sampling = Shelf(model).shipped(), sampling_of(model)
    return {
        str(stack): there[key]
        for key, (stack, base) in listed(model).items()
        if key in there and base == sampling
    }


def _possible(model: Model, texts: Sequence[str]) -> list[Stack]:
    parsed = [at_once(model, Stack.parse(text)) for text in texts]
    return list({str(s): s for s in parsed if not s.problems(model.family)}.values())


def rows(model: Model, before: dict[str, Costs]) -> dict[str, Costs]:
    """Every bundled row of a model; those of `before` are taken from there."""
    shelf, simulator, made = Shelf(model), Simulator(model, DTYPE, vae=VAE), dict[str, Costs]()
    for key, (stack, sampling) in listed(model).items():
        began = time.monotonic()
        costs = before.get(key) or simulator.costs(stack, sampling)
        assert costs is not None  # no limit was set
        if costs.status == "failed" or "is not installed" in costs.note:
            raise ValueError(f"{stack}: {costs.note}")
        made[key] = costs
        _say(f"{model.name} {key}: {costs.status}, {time.monotonic() - began:.0f} s {costs.note}")
        if key not in before:
            before = before | {key: costs}
            write(HERE / file_of(model), shelf.sizes, before)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild, or with `--check` say what differs; 1 where something does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=f"default: {', '.join(MODELS)}")
    parser.add_argument("--all", action="store_true", help="simulate rows that are there too")
    parser.add_argument("--check", action="store_true", help="simulate all, write nothing, compare")
    args = parser.parse_args(arguments)
    chosen = [m for name in args.models or MODELS for m in select(name)]
    differing = 0
    for model in chosen:
        shelf = Shelf(model)
        there = shelf.shipped()
        if args.check:
            differing += _check(model, shelf, there)
            continue
        made = rows(model, {} if args.all else there)
        write(HERE / file_of(model), shelf.sizes, made)
    return 1 if differing else 0


def _check(model: Model, shelf: Shelf, there: dict[str, Costs]) -> int:
    simulator, differing = Simulator(model, DTYPE, vae=VAE), 0
    for key, (stack, sampling) in listed(model).items():
        if simulator.costs(stack, sampling) != there.get(key):
            differing += 1
            _say(f"{model.name} {key}: differs")
    return differing


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
