"""A fixed set of computed steps, and what stands between them: the schedule itself as a method (Golden
Path Hypothesis, arXiv:2609.39343; BudCache, arXiv:2606.13496)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ditbench.acceleration.caching.between_steps import (
    Between,
    compute_at,
    order_of,
    why_no_rule,
    why_uncapturable,
)
from ditbench.acceleration.caching.fixed_steps import (
    RULES,
    Steps,
    by_rule,
    count_of,
    is_published,
    misfit,
    published_for,
    refuse_unknown,
    text_of,
    written,
)
from ditbench.acceleration.caching.schedule import refuse_other_length
from ditbench.acceleration.caching.targets import (
    Target,
    TargetOrAuto,
    choose,
    chosen,
    why_no_target,
)
from ditbench.method import Attachment, Stage, knob, method
from ditbench.method.prepare import unprepared

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom
    from ditbench.models.sampling import Sampling

SEARCHED, PREPARE = "searched", "python run_bench.py prepare \"schedule(steps='searched')\""


@method(
    "schedule", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"},
    paper="arXiv:2609.39343",
)  # fmt: skip
class FixedSchedule:
    """Run all blocks at fixed steps, the same for every prompt, and put something else in their
    place at the others.

    With r the residual of all blocks (what they add to each stream), x what goes into them, t the
    step and t1 < t2 < ... the computed steps so far, the blocks' output is x plus, by `between`:
    `reuse`, the last r (BudCache, arXiv:2606.13496); `taylor`, the last r and its differences
    extended (arXiv:2503.06923); `hermite`, the same with scaled Hermite polynomials
    (arXiv:2508.16984); `twoanchor`, r' + c (r - r') of the last two (arXiv:2508.17356), where c is
    not measured on a probe, which is not run here, but is the time that passed, (t - t') / (t'' -
    t'), and like DiCache's at least 1 and at most 1.5 (2 on Wan). `meanvelocity` replaces the
    output of the transformer of a flow model by its last one and the change of the mean velocity
    over four steps (arXiv:2601.19961). A step with too few computed ones before it uses fewer.
    """

    steps: str = "uniform"
    """The computed steps: step numbers, `0-2-4-7-13`; a 1 (computed) or 0 for each step; a published
    schedule, such as `budcache-k41` (FLUX and Wan, 50 steps); or `uniform` (as in FORA), `geometric`
    (gaps that grow by one factor), `random`, `searched` (`prepare` first), of as many steps as `computed`
    says."""
    computed: int | float = knob(0.5, above=0)
    """How many steps are computed: a share of them up to 1.0, which computes all, or a whole number.
    Has no meaning where `steps` says which."""
    between: Between = "reuse"
    """What stands for the blocks at the other steps."""
    order: int | None = knob(None, low=1, high=4)
    """Highest difference of `taylor` and `hermite`; None is 1 and 2."""
    target: TargetOrAuto = "residual"
    """What `reuse` keeps and reuses, as in `teacache`. `auto`: `prepare` measures them, of steps that
    are not searched."""
    draw: int = knob(0, low=0)
    """Which of the `random` schedules."""
    search: Literal["annealing", "climbing", "dp"] = "annealing"
    """How `searched` looks for its schedule. `annealing`, then climbing, and `climbing` alone try
    `trials` schedules on training requests, with `between` as it is; `dp` solves for the least
    accumulated error of one un-accelerated generation (CEM, arXiv:2512.23258)."""
    trials: int = knob(100, low=1)
    """Schedules that a search tries."""
    tuned: Literal["stack", "alone"] = "stack"
    """Whether `searched` was searched on top of the methods below, or on the plain model."""
    training: int = knob(0, low=0, high=15)
    """Which search: every number has requests and noise of its own, so that several show how far
    searches differ."""
    off: ClassVar[dict[str, object]] = {"computed": 1.0}
    dial: ClassVar[tuple[str, float, float]] = ("computed", 0.05, 1.0)

    def __post_init__(self) -> None:
        refuse_unknown(self.steps, (SEARCHED,))
        order_of(self.between, self.order)
        if isinstance(self.computed, float) and self.computed > 1:
            raise ValueError(
                f"schedule: computed is a share up to 1.0 or a whole number of steps, not "
                f"{self.computed}"
            )
        if self.target != "residual" and self.between != "reuse":
            raise ValueError(f"schedule: between={self.between!r} has no target; 'reuse' has")
        if self.target != "residual" and self.steps == SEARCHED:
            raise ValueError(
                "schedule: steps='searched' is searched for the residual; write the steps out for "
                f"target={self.target!r}"
            )
        default = type(self)
        for name, rules in {
            "computed": (*RULES, SEARCHED), "draw": ("random",),
            "search": (SEARCHED,), "trials": (SEARCHED,), "training": (SEARCHED,),
        }.items():  # fmt: skip
            if self.steps not in rules and getattr(self, name) != getattr(default, name):
                raise ValueError(f"schedule: with steps={self.steps!r} {name} has no meaning")

    @property
    def _whole(self) -> bool:
        """Whether all steps are computed: 1.0 is a share, 1 a single step."""
        return isinstance(self.computed, float) and self.computed == 1

    def recipe(self) -> dict[str, Any] | None:
        """What a searched schedule depends on; None where nothing is searched."""
        if self._whole:
            return None
        if self.target == "auto":
            shown = ("steps", "computed", "draw")
            return {"version": 1, "target": 1} | {name: getattr(self, name) for name in shown}
        if self.steps != SEARCHED:
            return None
        recipe = {"version": 1, "search": self.search, "computed": self.computed}
        if self.search == "dp":
            return recipe
        order = order_of(self.between, self.order)
        return recipe | {"between": self.between, "order": order, "trials": self.trials}

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Search for the schedule, and write it as `steps.json`, or choose the target; returns notes
        for the manifest."""
        from ditbench.acceleration.caching.prepare_steps import prepare_steps

        if reason := self.check(room.pipe):
            raise ValueError(reason)
        if self.target == "auto":
            return choose(folder, room, lambda target: replace(self, target=target))
        return prepare_steps(
            folder, room, search=self.search, computed=self.computed, between=self.between,
            order=self.order, trials=self.trials,
        )  # fmt: skip

    def uncapturable(self) -> str | None:
        """A rule that watches the sampler, or a target that goes by the noise level of a step."""
        if self.target in ("residual", "auto"):
            return why_uncapturable(self.between)
        return "reads the noise level of a step, which a captured CUDA graph cannot; leave its target out"

    def check(self, pipeline: Any) -> str | None:
        """A published schedule is for its family, a mean velocity for flows."""
        from ditbench.models.family import family_of

        if is_published(self.steps):
            try:
                published_for(self.steps, family_of(pipeline.transformer).name)
            except ValueError as error:
                return str(error)
        return why_no_rule(pipeline, self.between) or why_no_target(pipeline, self.target)

    def unfit(self, sampling: Sampling) -> str | None:
        """Steps that are written out, or published, must be among those there are."""
        return misfit(self.steps, sampling.steps)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute all blocks, or the transformer; a schedule of another number of steps is refused
        when the first step begins."""
        from ditbench.models.family import family_of

        if self._whole:
            return
        family = family_of(pipeline.transformer).name
        searched = self._searched(at) if self.steps == SEARCHED else None
        if self.target == "auto" and at.artifact is None:
            raise unprepared(self)
        target: Target = chosen(at.artifact) if self.target == "auto" else self.target
        at.notes |= {"target": target} if self.target == "auto" else {}

        @cache
        def computed_of(steps: int) -> frozenset[int]:
            if searched is not None:
                computed, made_for = searched
                refuse_other_length("the schedule", made_for, steps, PREPARE)
            else:
                computed = self._computed(steps, family)
            at.notes["steps"] = text_of(computed)
            return frozenset(computed)

        compute_at(
            pipeline, at, lambda step, branch: step in computed_of(at.now.num_steps),
            self.between, self.order, target=target,
        )  # fmt: skip

    def _searched(self, at: Attachment) -> tuple[Steps, int]:
        from ditbench.acceleration.caching.prepare_steps import read_steps

        if at.artifact is None:
            raise unprepared(self)
        (steps,), length = read_steps(at.artifact)
        return steps, length

    def _computed(self, steps: int, family: str) -> Steps:
        """The computed ones of so many steps; ValueError where they do not fit."""
        if reason := misfit(self.steps, steps):
            raise ValueError(f"schedule: {reason}")
        if self.steps in RULES:
            return by_rule(self.steps, count_of(self.computed, steps), steps, self.draw)
        return written(self.steps) or published_for(self.steps, family).computed
