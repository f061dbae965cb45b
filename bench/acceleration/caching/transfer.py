"""Schedules of full-size models from the tables that were learned for the tiny model of their
family: something to run before a table of their own is prepared. No torch.

T steps, L sub-layers, S levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ditbench.acceleration.caching.budget import solve
from ditbench.acceleration.caching.knapsack import Costs, Weights
from ditbench.acceleration.caching.schedule import Schedule, nearest
from ditbench.method.artifact import Artifact, bundled
from ditbench.models.table import models


def sources(family: str) -> list[Artifact]:
    """The learned tables that come with ditbench for the tiny models of a family, those of a first
    training alone."""
    return [
        artifact
        for artifact in bundled("diffsparse")
        if artifact.manifest["recipe"].get("allocator") == "learned"
        and "training" not in artifact.manifest["recipe"]
        and (model := models().get(artifact.manifest["model"])) is not None
        and (model.family, model.group) == (family, "tiny")
    ]


def transferred(
    family: str, names: Sequence[str], weights: Weights, steps: int, keep: float
) -> Schedule:
    """The schedule of a model with sub-layers `names` and `weights` [L,S], solved for `keep` from a
    table of another model of its family.

    Each sub-layer has the costs of the one of its kind at the same share of the depth, each step
    those of the step at the same share of the sampling; of several tables that of the nearest
    number of steps, by ratio, is taken. ValueError where the family has no table, or none of a kind
    of sub-layer.
    """
    tables = sources(family)
    if not tables:
        raise ValueError(f"no schedule to transfer comes with ditbench for the family {family}")
    artifact = min(tables, key=lambda a: abs(log(a.manifest["steps"] / steps)))
    learned = Schedule.read(artifact.folder / "schedule.json")
    costs = load_file(artifact.folder / "cost.safetensors")["cost"].astype(np.float64)
    costs = costs.reshape(learned.steps, len(learned.sublayers), -1)
    rows = costs[nearest(learned.steps, steps)][:, same_kind(learned.sublayers, names)]
    below = artifact.manifest["below"]
    under = "" if below == "none" else f" under {below}"  # a student's few steps
    notes: dict[str, Any] = {
        "allocator": "transferred",
        "from": artifact.manifest["model"] + under,
        "from_steps": learned.steps,
        "keep": keep,
    }
    table: Costs = rows.reshape(steps * len(names), -1)
    return Schedule(sublayers=tuple(names), chosen=solve(table, weights, steps, keep), notes=notes)


def same_kind(of: Sequence[str], to: Sequence[str]) -> NDArray[np.int64]:
    """[len(to)]: for each sub-layer of `to` (names such as `3.self`) which of `of` is of its kind and
    nearest by share of the depth; ValueError for a kind that `of` lacks."""
    kinds: dict[str, list[int]] = {}
    for i, name in enumerate(of):
        kinds.setdefault(_kind(name), []).append(i)
    number = {kind: sum(_kind(name) == kind for name in to) for kind in map(_kind, to)}
    if missing := sorted(number.keys() - kinds.keys()):
        raise ValueError(f"no sub-layer to take the costs of {' and '.join(missing)} from")
    chosen, seen = [], dict.fromkeys(number, 0)
    for name in to:
        kind = _kind(name)
        chosen.append(kinds[kind][nearest(len(kinds[kind]), number[kind])[seen[kind]]])
        seen[kind] += 1
    return np.array(chosen, dtype=np.int64)


def _kind(name: str) -> str:
    return name.partition(".")[2]
