"""Trains a policy by its own rollouts, and searches a grid of fixed rules with as many.

n rollouts, G of a group, T steps.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ditbench.acceleration.policies.deciding import Actions, ByHeads, Decider
from ditbench.acceleration.policies.discriminator import Discriminator
from ditbench.acceleration.policies.grpo import loss_of
from ditbench.acceleration.policies.heads import channels_of, make_heads
from ditbench.acceleration.policies.reward import advantages, compute_of, discounted, judged
from ditbench.method.probe import Trainee
from ditbench.models.requests import call_arguments, training_requests
from ditbench.shapes.judge import agreement, load_judge
from ditbench.shapes.scenes import Scenes

if TYPE_CHECKING:
    from ditbench.acceleration.policies.acting import Act
    from ditbench.acceleration.policies.per_sample import PerSample
    from ditbench.method.attachment import Attachment
    from ditbench.method.prepare import Workroom
    from ditbench.models.sampling import Request

Reward = Literal["both", "quality", "discriminator"]
HELD_OUT_SEED = 100_000
"""Of training requests that no iteration draws."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a policy is trained. RAPID3 states lambda and omega; everything else is ours."""

    options: dict[str, int]
    """Heads by name, with how many options each has (0: a Beta distribution)."""
    reward: Reward = "both"
    decay: float = 0.97
    """lambda: each computed step costs."""
    omega: float = 1.0
    """Weight of the discriminator beside the quality."""
    price: float = 1.0
    """Of zipr1's reward: what leaving out all tokens is worth beside being right."""
    scaled: bool = True
    """Whether advantages are divided by the spread of their group."""
    iterations: int = 60
    prompts: int = 4
    group: int = 8
    """Rollouts of one prompt, from the same noise: the sampler is deterministic, so that they differ
    in their decisions alone."""
    epochs: int = 2
    """Updates on one batch of rollouts."""
    rate: float = 3e-3
    """Of Adam, at first; it falls to zero evenly."""
    held_out: int = 32

    @property
    def rollouts(self) -> int:
        """In all."""
        return self.iterations * self.prompts * self.group


@dataclass(frozen=True)
class Rollouts:
    """What came of one batch of requests."""

    pixels: Tensor
    """[n,3,H,W] or [n,3,T,H,W] in 0..1."""
    actions: list[Actions]
    """[n]."""


class Actor(Trainee):
    """A pipeline that acts as whoever is set decides; nobody: the un-accelerated model."""

    def __init__(self, act: Act, decider: Decider) -> None:
        self.act, self.decider = act, decider
        self.acts: PerSample | None = None

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Put in place what carries decisions out."""
        self.acts = self.act(pipeline, at, self.decider)


class Studio:
    """Samples of training requests, and what they are worth."""

    def __init__(self, room: Workroom, act: Act, recipe: Recipe, saved: Sequence[float]) -> None:
        self.room, self.act, self.recipe, self.saved = room, act, recipe, saved
        self.judge = load_judge(room.model.world).to(room.device)
        self.discriminator = Discriminator(self.judge, room.training)

    def requests(self, num: int, seed: int) -> list[Request]:
        """Training requests of a stream."""
        room = self.room
        return training_requests(room.model, num, seed, room.training, room.prompts)

    def paint(self, requests: Sequence[Request], decider: Decider | None) -> Rollouts:
        """Sample them, as `decider` has it; None: the un-accelerated model on the stack below."""
        room = self.room
        actor = Trainee() if decider is None else Actor(self.act, decider)
        if decider is None:
            actor.attach = lambda pipeline, at: None  # type: ignore[attr-defined]
        with room.attached(actor) as attached, torch.no_grad():
            attached.start(room.sampling.steps, len(requests))
            arguments = call_arguments(room.model, room.sampling, requests)
            made = room.pipe(**arguments, output_type="np")
            history = actor.acts.history if isinstance(actor, Actor) and actor.acts else {}
            actions = [tuple(history.get(i, ())) for i in range(len(requests))]
        shown = np.asarray(made.frames if room.model.frames > 1 else made.images)
        pixels = torch.from_numpy(shown).movedim(-1, 1).float().to(room.device)
        return Rollouts(pixels, actions)

    def quality(self, requests: Sequence[Request], pixels: Tensor) -> Tensor:
        """q [n]."""
        truths = [request.truth or {} for request in requests]
        return judged(self.judge, pixels, truths, self.room.model.world)

    def worth(self, quality: Tensor, realness: Tensor) -> Tensor:
        """[n] q + omega d, or one of them, as the recipe has it."""
        recipe = self.recipe
        parts = {"quality": quality, "discriminator": recipe.omega * realness.cpu()}
        if recipe.reward == "both":
            return parts["quality"] + parts["discriminator"]
        return parts[recipe.reward]


Score = Callable[[Studio, Sequence["Request"], Rollouts], tuple[Tensor, dict[str, float]]]
"""f(studio, requests, rollouts) -> rewards [n], and means for the log."""


def score_steps(
    studio: Studio, requests: Sequence[Request], made: Rollouts
) -> tuple[Tensor, dict[str, float]]:
    """RAPID3's reward."""
    quality = studio.quality(requests, made.pixels)
    realness = studio.discriminator.realness(studio.discriminator.features(made.pixels)).cpu()
    compute = [compute_of(actions, studio.saved) for actions in made.actions]
    worth = studio.worth(quality, realness)
    rewards = [
        discounted(float(w), k, studio.recipe.decay) for w, k in zip(worth, compute, strict=True)
    ]
    total = torch.tensor(rewards, dtype=torch.float64)
    return total, {
        "reward": float(total.mean()), "compute": float(np.mean(compute)),
        "quality": float(quality.mean()), "realness": float(realness.mean()),
    }  # fmt: skip


def score_tokens(
    studio: Studio, requests: Sequence[Request], made: Rollouts
) -> tuple[Tensor, dict[str, float]]:
    """ZipR1's reward: 1 where a sample is right, and the share of the tokens left out, where a rollout
    of the same request is right."""
    truth = Scenes.of([request.truth or {} for request in requests])
    read = studio.judge.read(made.pixels)
    seen = Scenes(*(getattr(read, f.name).cpu() for f in fields(Scenes)))
    attributes = agreement(seen, truth, studio.room.model.world)
    right = torch.stack(list(attributes.values())).amin(0)
    steps = studio.room.calls
    computed = [compute_of(actions, studio.saved) / steps for actions in made.actions]
    some = {r.id: False for r in requests}
    for request, correct in zip(requests, right.tolist(), strict=True):
        some[request.id] |= correct == 1
    solved = torch.tensor([float(some[request.id]) for request in requests])
    total = right + studio.recipe.price * solved * (1 - torch.tensor(computed))
    return total, {
        "reward": float(total.mean()), "compute": float(np.mean(computed)) * steps,
        "quality": float(right.mean()),
    }  # fmt: skip


def train(studio: Studio, score: Score) -> tuple[nn.ModuleDict, list[dict[str, Any]]]:
    """Train heads; returns them and a row for each iteration."""
    room, recipe = studio.room, studio.recipe
    heads = make_heads(recipe.options, channels_of(room.pipe.transformer), room.training)
    heads.to(room.device)
    optimiser = torch.optim.Adam(heads.parameters(), recipe.rate)
    draw = torch.Generator().manual_seed(room.training)
    against = recipe.reward != "quality"
    log = []
    for i in range(recipe.iterations):
        each = studio.requests(recipe.prompts, 1 + i)
        requests = [request for request in each for _ in range(recipe.group)]
        decider = ByHeads(heads, draw)
        made = studio.paint(requests, decider)
        optimiser.param_groups[0]["lr"] = recipe.rate * (1 - i / recipe.iterations)
        row: dict[str, Any] = {"iteration": i}
        if against:
            discriminator = studio.discriminator
            discriminator.remember(discriminator.features(studio.paint(each, None).pixels), "real")
            discriminator.remember(discriminator.features(made.pixels), "rollout" if i else "first")
            row["discriminator_loss"] = discriminator.update()
        rewards, means = score(studio, requests, made)
        advantage = advantages(rewards, recipe.group, recipe.scaled)
        for _ in range(recipe.epochs):
            loss = loss_of(heads, decider.drawn, advantage)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(heads.parameters(), 1.0)
            optimiser.step()
        log.append(row | means)
        room.tell({"done": i + 1, "of": recipe.iterations, **means})
    return heads.eval().requires_grad_(False), log


def held_out(
    studio: Studio, decider: Decider, score: Score
) -> tuple[dict[str, float], list[Actions]]:
    """Means over held-out training requests without drawing, and what each of them did."""
    requests = studio.requests(studio.recipe.held_out, HELD_OUT_SEED)
    made = studio.paint(requests, decider)
    _, means = score(studio, requests, made)
    return {f"held_out_{name}": round(x, 4) for name, x in means.items()}, made.actions


def most_frequent_actions(actions: Sequence[Actions]) -> tuple[Actions, dict[str, float | int]]:
    """What most samples did, from the first step to the last (the earlier where two are as frequent),
    and what is to be noted of it."""
    tally = Counter(actions)
    modal, times = tally.most_common(1)[0]
    return modal, {"share": round(times / len(actions), 4), "distinct": len(tally)}


def write_log(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write `log.csv`."""
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[-1]))
        writer.writeheader()
        writer.writerows(rows)
