"""What `prepare rapid3` and `prepare zipr1` make: a trained policy with its most frequent actions, or
the best rule of a grid that was tried with as many rollouts; and the files they are kept in.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ditbench.acceleration.policies import ATTENTION, CACHE, MASSES, SKIP
from ditbench.acceleration.policies.acting import Act, act_by_steps
from ditbench.acceleration.policies.deciding import (
    Actions,
    ByHeads,
    ByRecord,
    ByRule,
    Decider,
)
from ditbench.acceleration.policies.heads import channels_of, read_heads, write_heads
from ditbench.acceleration.policies.train import (
    Actor,
    Recipe,
    Score,
    Studio,
    held_out,
    most_frequent_actions,
    score_steps,
    train,
    write_log,
)

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom

HEADS_FILE, RECORD_FILE, RULE_FILE = "heads.safetensors", "actions.json", "rule.json"
FORMAT = "ditbench actions 1"
OPTIONS = {SKIP: 0, CACHE: 2, ATTENTION: len(MASSES)}
"""Of each head: 0 is a Beta distribution."""
STRIDES, THRESHOLDS = (1, 2, 3, 4, 5), (0.0, 0.1, 0.2, 0.4)
"""The grid's; its levels are those of attention. Ours."""


def options_of(heads: Sequence[str]) -> dict[str, int]:
    """RAPID3's heads by name, in their order."""
    return {name: n for name, n in OPTIONS.items() if name in heads}


def saved_by_level(room: Workroom) -> list[float]:
    """C_sparse by level: the share of the transformer's FLOPs that a generation with that level of
    attention at every step saves, less what choosing costs; on a small model below 0."""
    from ditbench.models.family import family_named
    from ditbench.profiling.counting import count_generation

    counts = []
    for level in range(len(MASSES)):
        with room.attached(Actor(act_by_steps, ByRule(level=level))) as attached, torch.no_grad():
            attached.start(room.sampling.steps, 1)
            output = family_named(room.model.family).raw_output
            call = room.draw(0, 1) | {"output_type": output}
            counts.append(count_generation(room.pipe, lambda call=call: room.pipe(**call)).flops)  # type: ignore[misc]
    return [round(1 - count / counts[0], 4) for count in counts]


def prepare_policy(
    folder: Path, room: Workroom, recipe: Recipe, act: Act, score: Score, saved: Sequence[float]
) -> dict[str, Any]:
    """Train, and write `heads.safetensors`, `actions.json` (what most of the held-out requests did)
    and `log.csv`; returns notes."""
    studio = Studio(room, act, recipe, saved)
    heads, log = train(studio, score)
    write_log(log, folder / "log.csv")
    means, actions = held_out(studio, ByHeads(heads), score)
    modal, notes = most_frequent_actions(actions)
    write_heads(heads, folder / HEADS_FILE)
    write_actions(folder, modal, room.calls)
    return {
        "rollouts": recipe.rollouts, "samples": recipe.rollouts,
        "iterations": recipe.iterations, "held_out": recipe.held_out, **means,
        **{f"modal_{name}": value for name, value in notes.items()},
    }  # fmt: skip


def rules_of(heads: Sequence[str]) -> list[ByRule]:
    """The grid, over what the heads decide."""
    axes = (
        STRIDES if SKIP in heads else (1,),
        THRESHOLDS if CACHE in heads else (0.0,),
        range(len(MASSES)) if ATTENTION in heads else (0,),
    )
    return [ByRule(*point) for point in itertools.product(*axes)]


def prepare_grid(
    folder: Path, room: Workroom, recipe: Recipe, heads: Sequence[str], saved: Sequence[float]
) -> dict[str, Any]:
    """Try every rule of the grid on training requests, with as many rollouts in all as the policy's
    training has, by the same reward; write the best as `rule.json`, and returns notes.

    The first half of the rollouts teaches the discriminator, the second is rewarded. All rules are
    tried on the same requests.
    """
    studio, rules, rows = Studio(room, act_by_steps, recipe, saved), rules_of(heads), []
    each = max(1, recipe.rollouts // len(rules) // 2)
    taught, tried = (studio.requests(each, seed) for seed in (1, 2))
    discriminator = studio.discriminator
    if recipe.reward != "quality":
        real = discriminator.features(studio.paint(taught, None).pixels)
        discriminator.remember(real, "real")
    for i, rule in enumerate(rules):
        if recipe.reward != "quality":
            discriminator.remember(
                discriminator.features(studio.paint(taught, rule).pixels), "rollout"
            )
            discriminator.update()
        room.tell({"done": i + 1, "of": 2 * len(rules)})
    for i, rule in enumerate(rules):
        _, means = score_steps(studio, tried, studio.paint(tried, rule))
        rows.append({"iteration": i, **vars(rule), **means})
        room.tell({"done": len(rules) + i + 1, "of": 2 * len(rules), **means})
    write_log(rows, folder / "log.csv")
    best = rules[max(range(len(rules)), key=lambda i: rows[i]["reward"])]
    (folder / RULE_FILE).write_text(json.dumps(vars(best)) + "\n", encoding="utf-8")
    means, _ = held_out(studio, best, score_steps)
    return {
        "rollouts": 2 * each * len(rules), "samples": 2 * each * len(rules), "rules": len(rules),
        "held_out": recipe.held_out, **vars(best), **means,
    }  # fmt: skip


def write_actions(folder: Path, actions: Actions, steps: int) -> None:
    """Write a record of actions over T steps."""
    document = {"format": FORMAT, "steps": steps, "actions": [list(action) for action in actions]}
    (folder / RECORD_FILE).write_text(json.dumps(document) + "\n", encoding="utf-8")


def read_actions(folder: Path) -> tuple[Actions, int]:
    """What `write_actions` wrote: the actions and T. ValueError, naming the file, for anything else."""
    path = folder / RECORD_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        actions = tuple((int(s), bool(r), int(v), int(t)) for s, r, v, t in document["actions"])
        return actions, int(document["steps"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no actions ({error})") from None


def decider_of(folder: Path, pipeline: Any, options: dict[str, int], decide: str) -> Decider:
    """Who decides by what was prepared; ValueError, naming the file, where that is not there."""
    if decide == "grid":
        path = folder / RULE_FILE
        try:
            return ByRule(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no rule ({error})") from None
    if decide == "replay":
        actions, steps = read_actions(folder)
        return ByRecord(actions, frozenset(options), steps)
    transformer = pipeline.transformer
    heads = read_heads(folder / HEADS_FILE, options, channels_of(transformer))
    return ByHeads(heads.to(transformer.device))
