"""After ZipR1: the share of tokens that is computed, chosen for each sample and step by a policy that
is trained by reinforcement (arXiv:2504.18579)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ditbench.acceleration.caching.token_settings import (
    DIFFSPARSE,
    SELECTORS,
    relied_on,
    selector_files,
    without_settings,
)
from ditbench.acceleration.policies import RATIO, RATIOS
from ditbench.method import Attachment, Stage, knob, method
from ditbench.method.prepare import unprepared

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom
    from ditbench.models.table import Model


@method(
    "zipr1", family="sparsity", stage=Stage.SCHEDULE, claims={"block-schedule", "token-rows"},
    cost_by_sample=True, paper="after arXiv:2504.18579",
)  # fmt: skip
class ZipR1:
    """A head chooses, for every sample and step, the share of its tokens that all sub-layers compute:
    1, 3/4, 1/2, 1/4 or none. The other tokens keep their outputs, as in DiffSparse, which has one
    schedule for every prompt and a share for each sub-layer.

    The head looks at the transformer's input, as those of `rapid3` do, and is trained as they are, by
    another reward: 1 where the world's judge reads everything that was asked for in the sample, plus
    `price` times the share of tokens that was left out, the latter only where some rollout of the
    same prompt is right (else leaving out all would be the best there is). Samples that choose alike
    run as a sub-batch. The first step is whole.

    ZipR1 is about language models, and trains their weights with sparse attention; here the model
    stays as it is, there is no KL term, and the policy chooses a share of tokens in place of a mass of
    attention. Sizes, rates and numbers of rollouts are ours (`policies/train.py`).
    """

    decide: Literal["policy", "replay", "fixed"] = "policy"
    """Who decides: the head (`prepare` first); what it did for most of the held-out training requests,
    for every sample; or `ratio`, always."""
    ratio: float = knob(1.0, low=0, high=1)
    """With `fixed`: the share of the tokens that is computed after the first step."""
    price: float = knob(1.0, above=0)
    """What leaving out all tokens is worth beside being right."""
    selector: str = knob("attention", choices=lambda: SELECTORS)
    """What tokens are ranked by, as in `diffsparse`."""
    scaled: bool = True
    """Whether advantages are divided by the spread of their group, as GRPO does; off (arXiv:2503.20783),
    groups that differ in little count little."""
    tuned: Literal["stack", "alone"] = "stack"
    """Whether it was trained on top of the methods below, or on the plain model."""
    training: int = knob(0, low=0, high=15)
    """Which training of this recipe: every number has requests and noise of its own."""
    off: ClassVar[dict[str, object]] = {"decide": "fixed"}

    def __post_init__(self) -> None:
        if self.ratio not in RATIOS:
            raise ValueError(
                f"zipr1: ratio is one of {', '.join(map(str, RATIOS))}, not {self.ratio}"
            )
        default = type(self)
        without = ("price", "training", "scaled") if self.decide == "fixed" else ("ratio",)
        for name in without:
            if getattr(self, name) != getattr(default, name):
                raise ValueError(f"zipr1: with decide={self.decide!r} {name} has no meaning")

    def recipe(self) -> dict[str, Any] | None:
        """What was trained depends on it: the replay is of the policy, and made with it."""
        if self.decide == "fixed":
            return None
        recipe = {"version": 1, "selector": self.selector, "price": self.price}
        return recipe if self.scaled else recipe | {"scaled": False}

    def inputs(self) -> list[Path]:
        """The file of a selector from outside."""
        return selector_files(self.selector)

    def check(self, pipeline: Any) -> str | None:
        """There must be settings of the token cache for the family."""
        return without_settings("zipr1", DIFFSPARSE, pipeline)

    def relies_on(self, family: str) -> dict[str, str]:
        """What the selector looks at."""
        return relied_on(self.selector, DIFFSPARSE.get(family))

    def unpreparable_for(self, model: Model) -> str | None:
        """Only what was asked of a world's models can be read back from their samples here."""
        if model.world:
            return None
        return f"its reward is what a world's judge reads in a sample, and there is none for {model.name}"

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Train the head; returns notes for the manifest."""
        from ditbench.acceleration.policies.acting import act_by_tokens
        from ditbench.acceleration.policies.prepare_policy import prepare_policy
        from ditbench.acceleration.policies.train import Recipe, score_tokens

        recipe = Recipe(
            options={RATIO: len(RATIOS)}, reward="quality", price=self.price, scaled=self.scaled
        )
        saved = [1 - ratio for ratio in RATIOS]
        return prepare_policy(
            folder, room, recipe, act_by_tokens(self.selector), score_tokens, saved
        )

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Patch the transformer's forward, and reroute every sub-layer through the token cache."""
        from ditbench.acceleration.policies.acting import act_by_tokens
        from ditbench.acceleration.policies.deciding import ByRatio
        from ditbench.acceleration.policies.prepare_policy import decider_of

        act = act_by_tokens(self.selector)
        if self.decide == "fixed":
            if self.ratio != 1:
                act(pipeline, at, ByRatio(level=RATIOS.index(self.ratio)))
            return
        if at.artifact is None:
            raise unprepared(self)
        act(pipeline, at, decider_of(at.artifact, pipeline, {RATIO: len(RATIOS)}, self.decide))
