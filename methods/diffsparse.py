"""DiffSparse: a learned schedule of how many tokens each sub-layer recomputes at each step
(arXiv:2604.03674, ICLR 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ditbench.acceleration.caching.token_settings import (
    DIFFSPARSE,
    SELECTORS,
    refuse_stride,
    relied_on,
    selector_files,
    without_settings,
)
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom
    from ditbench.models.sampling import Sampling
    from ditbench.models.sublayers import Route, Run, Sublayer
    from ditbench.models.table import Model

UNPREPARED = ("transferred", "uniform", "random", "joint")
"""Allocators that need no preparation."""
PREPARE = "python run_bench.py prepare diffsparse"
NO_STUDENT = (
    "allocator='joint' is the schedule of a student trained together with one, as in "
    "distill(joint=0.46)+diffsparse(allocator='joint'), and there is none in this stack"
)


@method(
    "diffsparse",
    family="sparsity",
    stage=Stage.SCHEDULE,
    claims={"block-schedule", "token-rows"},
    paper="arXiv:2604.03674",
)
class DiffSparse:
    """Recompute a share of the tokens of every sub-layer, 0, 1/4, 1/2, 3/4 or all, as a schedule
    over steps and sub-layers says.

    Kept are outputs before gate and residual (eq. 3); a sub-layer at 0 is not run at all, one at 1
    is dense. Which tokens: by a ranking (eq. 5) with ToCa's weights (`token_settings.DIFFSPARSE`). The
    schedule is the same for every prompt; no step but the first, which has nothing to reuse, is
    dense by rule.
    """

    keep: float = knob(0.46, above=0, high=1)
    """Share of the sub-layers' multiply-accumulates that is spent; 1 changes nothing."""
    schedule: str = ""
    """File of a schedule; empty: by `allocator`."""
    allocator: Literal[
        "learned", "sensitivity", "local", "transferred", "uniform", "random", "joint"
    ] = "learned"
    """Where the schedule comes from. Prepared for a model: `learned`, `sensitivity`, and `local`,
    which computes everything at the steps between which outputs move most, as measured in one dense
    generation, and reuses everything at the others. Without preparation:
    `transferred`, from what was learned on the tiny model of the family; `uniform`; `random`;
    `joint`, what a student below was trained together with (`distill(joint=0.46)`)."""
    selector: str = knob("attention", choices=lambda: SELECTORS)
    """What tokens are ranked by: `attention` (the paper's), `change`, `similarity`, `norm` or
    `shuffle`."""
    query_stride: int = knob(1, low=1, high=64)
    """Rank by the attention of one query in so many (`selector='attention'`), another one at every step
    and block; 1: of all, as the authors. The scores of all queries are made once more for the ranking
    alone. An odd number goes through all columns of the image."""
    by_macs: bool = True
    """Weigh the budget by multiply-accumulates; off: every sub-layer counts alike, as the paper's
    equation has it."""
    times: str = ""
    """File of times that `blocks --out` measured: `keep` is then the share of the sub-layers' seconds
    on that device, so that levels that do not pay there are not chosen. Nothing is prepared again."""
    learned_at: float | None = knob(None, above=0, high=1)
    """The share the table was learned at; None: at `keep`. Another one is solved again for
    `keep`."""
    tuned: Literal["stack", "alone"] = "stack"
    """Whether the table was prepared on top of the methods below, or on the plain model and its
    steps, and stretched over the steps there are; a table or file of another number of steps is
    refused otherwise."""
    training: int = knob(0, low=0, high=15)
    """Which training of this recipe: every number has requests and noise of its own, so that
    several show how far trainings differ."""
    off: ClassVar[dict[str, object]] = {"keep": 1.0}
    dial: ClassVar[tuple[str, float, float]] = ("keep", 0.3, 1)

    def __post_init__(self) -> None:
        refuse_stride("diffsparse", self.selector, self.query_stride)
        if self.times and (self.schedule or not self.by_macs):
            other = "a schedule" if self.schedule else "by_macs=False"
            raise ValueError(f"diffsparse: times decide what levels cost, which {other} rules out")
        if self.allocator in UNPREPARED and (self.training or self.learned_at is not None):
            knob_name = "training" if self.training else "learned_at"
            raise ValueError(
                f"diffsparse: nothing is learned with allocator={self.allocator!r}, so that "
                f"{knob_name} has no meaning"
            )

    @property
    def blind_to(self) -> frozenset[str]:
        """Integer products have no gradient, so that a learned table is learned in the model's own
        format."""
        return frozenset({"linear-precision"} if self.allocator == "learned" else ())

    def recipe(self) -> dict[str, Any] | None:
        """What the prepared table depends on; None where nothing has to be prepared."""
        if self.keep == 1 or self.schedule or self.allocator in UNPREPARED:
            return None
        if self.allocator == "local":
            return {"version": 2, "allocator": "local"}
        recipe = {
            "version": 3,
            "allocator": self.allocator,
            "selector": self.selector,
            "by_macs": self.by_macs,
        }
        # a measured table has no budget
        return recipe | {"keep": self._learned_at} if self.allocator == "learned" else recipe

    @property
    def _learned_at(self) -> float:
        return self.learned_at or self.keep

    def unpreparable(self, sampling: Sampling) -> str | None:
        """The first step is dense, which is all a budget of one step in so many would pay for."""
        if self.allocator != "learned" or self._learned_at * sampling.steps >= 1:
            return None
        return f"keep={self._learned_at} of {sampling.steps} steps does not pay for the first step, which is dense"

    def unfit(self, sampling: Sampling) -> str | None:
        """The budget has to pay for the first step, which is dense, whatever it is spent by; a
        schedule given as a file has a row for each step."""
        if self.schedule:
            return self._other_length(sampling.steps)
        if self.keep * sampling.steps >= 1 - 1e-9:
            return None
        return (
            f"keep={self.keep} of {sampling.steps} step{'s' if sampling.steps > 1 else ''} does not "
            "pay for the first step, which is dense"
        )

    def _other_length(self, steps: int) -> str | None:
        from ditbench.acceleration.caching.schedule import Schedule, refuse_other_length

        try:
            given = Schedule.read(Path(self.schedule))
            if self.tuned == "stack":
                refuse_other_length("the schedule", given.steps, steps, PREPARE)
        except ValueError as error:
            return str(error)
        return None

    def lacks(self, beside: Sequence[Any]) -> str | None:
        """Under `joint`, a student that was trained together with a schedule."""
        if self.allocator != "joint" or self.schedule or self.keep == 1:
            return None
        if any((getattr(other, "joint", None) or 1) < 1 for other in beside):
            return None
        return NO_STUDENT

    def inputs(self) -> list[Path]:
        """The files of the schedule and of times, and that of a selector from outside."""
        files = [Path(name) for name in (self.schedule, self.times) if name]
        return [*files, *selector_files(self.selector)]

    def check(self, pipeline: Any) -> str | None:
        """There must be settings for the family, and a schedule or times given as a file must be
        readable and fit."""
        if reason := without_settings("diffsparse", DIFFSPARSE, pipeline, self.query_stride):
            return reason
        if self.times:
            from ditbench.acceleration.caching.level_times import weights_in_time
            from ditbench.models.sublayers import sublayers

            try:
                weights_in_time(self.times, pipeline.transformer, sublayers(pipeline.transformer))
            except ValueError as error:
                return str(error)
        if self.allocator == "transferred" and not self.schedule:
            from ditbench.acceleration.caching.transfer import sources
            from ditbench.models.family import family_of

            family = family_of(pipeline.transformer).name
            return None if sources(family) else f"no schedule to transfer to the family {family}"
        if not self.schedule:
            return None
        from ditbench.acceleration.caching.schedule import Schedule
        from ditbench.models.sublayers import sublayers

        try:
            given = Schedule.read(Path(self.schedule))
            given.fitted([s.name for s in sublayers(pipeline.transformer)], given.steps, PREPARE)
        except ValueError as error:
            return str(error)
        return None

    def instead(self, model: Model) -> DiffSparse | None:
        """The transferred schedule, for a full-size model whose own has not been learned."""
        from ditbench.acceleration.caching.transfer import sources

        if self.allocator != "learned" or model.group != "full" or not sources(model.family):
            return None
        # what only a preparation has would stand in its name without a meaning
        return replace(self, allocator="transferred", learned_at=None, tuned="stack", training=0)

    def relies_on(self, family: str) -> dict[str, str]:
        """Nothing where everything is computed."""
        return {} if self.keep == 1 else relied_on(self.selector, DIFFSPARSE.get(family))

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Learn or measure the table of costs, keep it and the schedule it gives; returns notes for
        the manifest."""
        if self.allocator == "local":
            from ditbench.acceleration.caching.local_schedule import prepare_local

            return prepare_local(folder, room)
        from ditbench.acceleration.caching.learn_schedule import prepare_schedule

        return prepare_schedule(
            self.allocator,
            folder,
            room,
            keep=self._learned_at,
            selector=self.selector,
            by_macs=self.by_macs,
        )

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through the token cache."""
        from ditbench.acceleration.caching.budget import kept_rows
        from ditbench.acceleration.caching.schedule import looked_at
        from ditbench.acceleration.caching.token_cache import TokenCache
        from ditbench.models.family import family_of

        if self.keep == 1:
            return
        family = family_of(pipeline.transformer).name
        cache = TokenCache(
            at, self.selector, replace(DIFFSPARSE[family], query_stride=self.query_stride)
        )
        schedules: dict[tuple[int, ...], tuple[Any, Any]] = {}

        def now(sublayer: Sublayer) -> tuple[float, bool]:
            """The share to compute, and whether a ranking will look at what it shows."""
            size = at.now.num_steps, *at.now.grid, at.now.text_tokens
            if size not in schedules:
                keep = self._table(pipeline, at, family)
                schedules[size] = keep, looked_at(keep, [s.block for s in at.sublayers])
            keep, looked = schedules[size]
            return float(keep[at.now.step, sublayer.index]), bool(
                looked[at.now.step, sublayer.index]
            )

        cache.notes = lambda sublayer: now(sublayer)[1]

        def dense(sublayer: Sublayer) -> bool:
            return now(sublayer)[0] == 1 or sublayer not in cache

        def idle(sublayer: Sublayer) -> bool:
            return not now(sublayer)[0] and sublayer in cache

        def at_sublayer(sublayer: Sublayer) -> Route:
            def route(run: Run, hidden: Any) -> Any:
                if dense(sublayer):
                    return cache.compute(sublayer, run, hidden)
                if not (share := now(sublayer)[0]):
                    return cache.reuse(sublayer)  # not even its shape is asked for
                return cache.refresh(sublayer, run, hidden, kept_rows(share, hidden.shape[1]))

            return route

        for sublayer in at.sublayers:
            at.reroute_deferred(
                sublayer,
                at_sublayer(sublayer),
                partial(dense, sublayer),
                partial(idle, sublayer),
                outputs_only=partial(cache.goes_by_output, sublayer),
            )

    def _table(self, pipeline: Any, at: Attachment, family: str) -> Any:
        """Keep ratios [T,L] for this generation's sizes."""
        from ditbench.acceleration.caching.budget import solved, untrained, weights_of
        from ditbench.acceleration.caching.local_schedule import solved_locally
        from ditbench.acceleration.caching.schedule import Schedule
        from ditbench.method.prepare import unprepared

        names, steps, stretch = (
            [s.name for s in at.sublayers],
            at.now.num_steps,
            self.tuned == "alone",
        )
        if self.schedule:
            return (
                Schedule.read(Path(self.schedule))
                .fitted(names, steps, PREPARE, stretch=stretch)
                .keep
            )
        weights = self._times(pipeline, at) if self.times else weights_of(at, by_macs=self.by_macs)
        if self.allocator == "transferred":
            from ditbench.acceleration.caching.transfer import transferred

            schedule = transferred(family, names, weights, steps, self.keep)
            at.notes |= {"from": schedule.notes["from"], "from_steps": schedule.notes["from_steps"]}
            return schedule.keep
        if self.allocator == "joint":
            return solved(
                self._trained_with(at), names, weights, steps, self.keep, anew=bool(self.times)
            ).keep
        if self.allocator == "uniform" or self.allocator == "random":
            return untrained(self.allocator, names, weights, steps, self.keep).keep
        if at.artifact is None:
            raise unprepared(self)
        if self.allocator == "local":
            return solved_locally(
                at.artifact, names, weights, steps, self.keep, stretch=stretch
            ).keep
        return solved(
            at.artifact, names, weights, steps, self.keep, stretch=stretch, anew=bool(self.times)
        ).keep

    def _trained_with(self, at: Attachment) -> Path:
        """The folder of the student below that has a schedule."""
        for folder in at.artifacts.values():
            if (folder / "schedule.json").is_file() and folder != at.artifact:
                return folder
        raise ValueError("diffsparse: the student below has not been prepared, and has no schedule")

    def _times(self, pipeline: Any, at: Attachment) -> Any:
        """Nanoseconds [L,S]; where they are from is noted."""
        from ditbench.acceleration.caching.level_times import weights_in_time

        weights, at.notes["times"] = weights_in_time(self.times, pipeline.transformer, at.sublayers)
        return weights
