"""After RAPID3: policies that decide for each sample and step whether to skip, reuse or attend
sparsely, trained by reinforcement (arXiv:2509.22323)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ditbench.acceleration.policies import HEADS
from ditbench.method import Attachment, Stage, knob, method
from ditbench.method.prepare import unprepared

if TYPE_CHECKING:
    from ditbench.acceleration.policies.train import Recipe
    from ditbench.method.prepare import Workroom
    from ditbench.models.table import Model

RULE = ("stride", "threshold", "level")


@method(
    "rapid3", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule", "attention-operator"},
    cost_by_sample=True, paper="after arXiv:2509.22323",
)  # fmt: skip
class Rapid3:
    """Three small heads decide for every sample and step; the model stays as it is.

    `skip` draws a of a Beta distribution by the transformer's output, and the next step is t ->
    floor(t a); `cache` decides by x - x_c, the transformer's input less that of its last computed
    step, whether x plus what it added then, G(x_c) - x_c, stands for its output; `attention` chooses
    dense attention or one of three masks (`top_tiles` with a mass of 0.95, 0.9 or 0.8) by x, where
    the output is not reused. In use the likeliest choice is taken, and the mean of a. Samples that
    decide alike run together as a sub-batch; those that skip or reuse are in none.

    Heads are trained by GRPO with clipping and without a KL term; the reward is (1/K) sum_k decay^(K-k)
    (q + omega d): K the computed steps, less what masks save; q the probability that the world's
    judge gives to what was asked for; d that of a discriminator, which is trained against the heads,
    that the sample is the un-accelerated model's.

    The paper's text was not to be had. Ours are: the grid (t -> floor(t a) goes to the sampler's step
    nearest to it, at least one ahead, and the output is held until there, which with DDIM and Euler is
    one long step, but not with DPM-Solver++); the masks; all sizes, rates and numbers of rollouts
    (`policies/train.py`); and the judge in place of ImageReward and CLIP, so that only models of a
    world can be trained.
    """

    heads: str = "skip+cache+attention"
    """Which of the three decide: one, or several with + between them."""
    decide: Literal["policy", "replay", "grid", "fixed"] = "policy"
    """Who decides. `policy`, the heads; `replay`, what they did for most of the held-out training
    requests, for every sample; `grid`, the best of a grid of fixed rules, tried with as many rollouts
    by the same reward (`prepare` first, all three); `fixed`, the rule of the knobs below."""
    reward: Literal["both", "quality", "discriminator"] = "both"
    """q + omega d, or one of them."""
    decay: float = knob(0.97, above=0, high=1)
    """lambda: the lower, the fewer steps; 1 pays for quality alone."""
    omega: float = knob(1.0, low=0)
    """Weight of d beside q."""
    stride: int = knob(1, low=1)
    """With `fixed`: every so-many-th step is taken, and the output held in between."""
    threshold: float = knob(0.0, low=0)
    """With `fixed`: mean |x - x_c| / mean |x_c| of a sample below which it reuses."""
    level: int = knob(0, low=0, high=3)
    """With `fixed`: the mask, 0 for dense attention."""
    scaled: bool = True
    """Whether advantages are divided by the spread of their group, as GRPO does; off (arXiv:2503.20783),
    groups that differ in little count little."""
    tuned: Literal["stack", "alone"] = "stack"
    """Whether it was trained on top of the methods below, or on the plain model."""
    training: int = knob(0, low=0, high=15)
    """Which training of this recipe: every number has requests and noise of its own."""
    off: ClassVar[dict[str, object]] = {"decide": "fixed"}

    def __post_init__(self) -> None:
        given = self.heads.split("+")
        if not set(given) <= set(HEADS) or len(set(given)) != len(given):
            raise ValueError(
                f"rapid3: heads are of {', '.join(HEADS)} with + between them, not {self.heads!r}"
            )
        # every spelling of the same heads is one key
        object.__setattr__(self, "heads", "+".join(n for n in HEADS if n in given))
        for name in RULE:
            if self.decide != "fixed" and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"rapid3: with decide={self.decide!r} {name} has no meaning")
        if self.decide == "fixed" and (named := self._other_than_default()):
            raise ValueError(f"rapid3: with decide='fixed' {named} has no meaning")

    def _other_than_default(self) -> str:
        names = ("heads", "reward", "decay", "omega", "training", "scaled")
        return next((n for n in names if getattr(self, n) != getattr(type(self), n)), "")

    def recipe(self) -> dict[str, Any] | None:
        """What was trained depends on it: the replay is of the policy, and made with it."""
        if self.decide == "fixed":
            return None
        recipe = {"version": 1, "heads": self.heads, "reward": self.reward, "decay": self.decay}
        if not self.scaled:
            recipe["scaled"] = False
        if self.reward == "both":
            recipe["omega"] = self.omega
        return recipe | ({"grid": True} if self.decide == "grid" else {})

    def unpreparable_for(self, model: Model) -> str | None:
        """Only what was asked of a world's models can be read back from their samples here."""
        if model.world:
            return None
        return (
            "its reward is what a world's judge finds in a sample, and there is none for "
            f"{model.name} (RAPID3 uses ImageReward and CLIP)"
        )

    def _trained(self) -> Recipe:
        from ditbench.acceleration.policies.prepare_policy import options_of
        from ditbench.acceleration.policies.train import Recipe

        return Recipe(
            options=options_of(self.heads.split("+")), reward=self.reward, decay=self.decay,
            omega=self.omega, scaled=self.scaled,
        )  # fmt: skip

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Train the heads, or try the grid; returns notes for the manifest."""
        from ditbench.acceleration.policies.acting import act_by_steps
        from ditbench.acceleration.policies.prepare_policy import (
            prepare_grid,
            prepare_policy,
            saved_by_level,
        )
        from ditbench.acceleration.policies.train import score_steps

        heads = self.heads.split("+")
        saved = saved_by_level(room) if "attention" in heads else [0.0]
        if self.decide == "grid":
            notes = prepare_grid(folder, room, self._trained(), heads, saved)
        else:
            notes = prepare_policy(folder, room, self._trained(), act_by_steps, score_steps, saved)
        if "attention" in heads:
            notes["saved_by_attention"] = " ".join(map(str, saved[1:]))
        return notes

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Patch the transformer's forward, and attention where it may be sparse; a replay of another
        number of steps is refused in the first one."""
        from ditbench.acceleration.policies.acting import act_by_steps
        from ditbench.acceleration.policies.deciding import ByRule
        from ditbench.acceleration.policies.prepare_policy import decider_of, options_of

        if self.decide == "fixed":
            rule = ByRule(self.stride, self.threshold, self.level)
            if rule.heads:
                act_by_steps(pipeline, at, rule)
            return
        if at.artifact is None:
            raise unprepared(self)
        options = options_of(self.heads.split("+"))
        act_by_steps(pipeline, at, decider_of(at.artifact, pipeline, options, self.decide))
