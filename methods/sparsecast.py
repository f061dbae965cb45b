"""Sparsecast: a learned schedule of which sub-layers run, whose skipped outputs are forecast with
learned coefficients. Ours."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom
    from ditbench.models.sampling import Sampling
    from ditbench.models.sublayers import Route, Run, Sublayer

PREPARE = "python run_bench.py prepare sparsecast"


@method(
    "sparsecast",
    family="cache",
    stage=Stage.SCHEDULE,
    claims={"block-schedule"},
    paper="none",
)
class Sparsecast:
    """At every step run some sub-layers on all tokens, and forecast the outputs of the others from
    what they gave when they ran last, as last + c (last - before) (t - t0) / (t0 - t1).

    Which run, and c for every step, sub-layer and guidance pass, are learned together through the
    whole sampling. Between reuse (DiffSparse; c = 0) and extrapolation (TaylorSeer; c = 1). On the
    tiny models it is c that learning changes: of the schedule it starts from, at the steps of least
    local error or even ones, at most 7 % of the entries move (LOG.md).
    """

    keep: float = knob(0.46, above=0, high=1)
    """Share of the sub-layers' multiply-accumulates that is spent; 1 changes nothing."""
    learns: Literal["both", "schedule", "coefficients", "nothing"] = "both"
    """What is learned. `schedule`: under coefficients that stay (`local`, `zero` or `one`).
    `coefficients`: for evenly spaced steps at which everything runs, or for the file `schedule`.
    `nothing`: the steps that leave least to be forecast by one dense generation, or the file, as they
    are, under coefficients that stay; prepared without a gradient, in seconds."""
    coefficients: Literal["learned", "local", "zero", "one"] = "learned"
    """What skipped outputs are forecast with: `local`, least squares on one dense generation; `zero`,
    reuse; `one`, the Taylor or Newton series. With learns='both' they take the place of those that
    were learned with the schedule."""
    order: int = knob(1, low=0, high=2)
    """Highest divided difference of the forecast. Each costs as much memory as the cache itself."""
    groups: int = knob(1, low=1, high=64)
    """Groups of channels with coefficients of their own; their number has to divide the width."""
    begin: Literal["squares", "best"] | None = None
    """What learning starts from. `squares`: the steps that leave least to be forecast, and half of the
    coefficients, by least squares on one dense generation; `best`: in one training these, in another
    whichever of these, reuse and extrapolation at these steps and at even ones is nearest on held-out
    training requests, on which the better training is chosen; None: `best` where schedule and
    coefficients are both learned without a file, else `squares`."""
    schedule: str = ""
    """File of a schedule (of DiffSparse's, say), rounded to all or nothing: what learning starts
    from, or with learns='coefficients' what is run."""
    times: str = ""
    """File of times that `blocks --out` measured: `keep` is then the share of the sub-layers' seconds
    that is spent, by the learned scores rounded again."""
    learned_at: float | None = knob(None, above=0, high=1)
    """The share it was learned at; None: at `keep`. For another one the scores are rounded again, and
    the coefficients are those of the schedule that was learned."""
    tuned: Literal["stack", "alone"] = "stack"
    """Whether it was prepared on top of the methods below, or on the plain model and its steps, and
    stretched over the steps there are."""
    training: int = knob(0, low=0, high=15)
    """Which training of this recipe: every number has requests and noise of its own."""
    off: ClassVar[dict[str, object]] = {"keep": 1.0}
    dial: ClassVar[tuple[str, float, float]] = ("keep", 0.3, 1)
    keeps_projected: ClassVar[bool] = True
    """What is forecast is what attention gives after its output projection (see `taylorseer`)."""

    def __post_init__(self) -> None:
        if self.learns in ("schedule", "nothing") and self.coefficients == "learned":
            raise ValueError(
                f"sparsecast: learns={self.learns!r} leaves the coefficients as they are; choose "
                "coefficients='local', 'zero' or 'one'"
            )
        if self.begin == "best" and (self.learns != "both" or self.schedule):
            raise ValueError(
                "sparsecast: begin='best' chooses schedule and coefficients; it wants learns='both' "
                "and no file of a schedule"
            )
        if self.times and self.schedule:
            raise ValueError(
                "sparsecast: times decide what sub-layers cost, which a file of a schedule rules out"
            )
        usual = {"training": 0, "learned_at": None, "groups": 1}
        given = [name for name, value in usual.items() if getattr(self, name) != value]
        if given and self.recipe() is None and self.keep != 1:
            raise ValueError(
                f"sparsecast: nothing is learned with learns={self.learns!r} and "
                f"coefficients={self.coefficients!r}, so that {given[0]} has no meaning"
            )

    @property
    def blind_to(self) -> frozenset[str]:
        """Integer products have no gradient, so that it is learned in the model's own format."""
        return frozenset({"linear-precision"})

    @property
    def _begin(self) -> Literal["squares", "best"]:
        return self.begin or ("best" if self.learns == "both" and not self.schedule else "squares")

    @property
    def _learned_at(self) -> float:
        return self.learned_at or self.keep

    def recipe(self) -> dict[str, Any] | None:
        """What is prepared depends on it; None where nothing has to be prepared."""
        fixed = self.learns == "coefficients"
        coefficients = {"both": "learned", "nothing": "local"}.get(self.learns, self.coefficients)
        if self.keep == 1 or (fixed and self.coefficients in ("zero", "one")):
            return None
        recipe: dict[str, Any] = {
            "version": 1,
            "learns": self.learns,
            "coefficients": coefficients,
            "order": self.order,
            "keep": self._learned_at,
        }
        if self.groups != 1:
            recipe["groups"] = self.groups
        if self._begin != "squares":
            recipe["begin"] = self._begin
        if self.schedule:
            recipe["schedule"] = _content(self.schedule)
        return recipe

    def unpreparable(self, sampling: Sampling) -> str | None:
        """The first step is dense, which is all a budget of one step in so many would pay for."""
        if self._learned_at * sampling.steps > 1:
            return None
        return f"keep={self._learned_at} of {sampling.steps} steps does not pay for more than the first step, which is dense"

    def unfit(self, sampling: Sampling) -> str | None:
        """The budget has to pay for the first step, which is dense."""
        if self.keep * sampling.steps >= 1 - 1e-9:
            return None
        return (
            f"keep={self.keep} of {sampling.steps} step{'s' if sampling.steps > 1 else ''} does not "
            "pay for the first step, which is dense"
        )

    def inputs(self) -> list[Path]:
        """The files of the schedule and of times."""
        return [Path(name) for name in (self.schedule, self.times) if name]

    def check(self, pipeline: Any) -> str | None:
        """Groups must divide the width; a schedule or times given as a file must be readable and
        fit."""
        from ditbench.acceleration.caching.schedule import Schedule
        from ditbench.models.sublayers import sublayers

        if self.groups != 1:
            config = pipeline.transformer.config
            width = config.num_attention_heads * config.attention_head_dim
            if width % self.groups:
                return f"groups={self.groups} does not divide the {width} channels of this model"
        if self.times:
            from ditbench.acceleration.caching.level_times import weights_in_time

            try:
                weights_in_time(self.times, pipeline.transformer, sublayers(pipeline.transformer))
            except ValueError as error:
                return str(error)
        if not self.schedule:
            return None
        try:
            given = Schedule.read(Path(self.schedule))
            given.fitted([s.name for s in sublayers(pipeline.transformer)], given.steps, PREPARE)
        except ValueError as error:
            return str(error)
        return None

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Learn it and write `schedule.json`, `forecast.safetensors` and `log.csv`; returns notes
        for the manifest."""
        from ditbench.acceleration.caching.forecast_recipe import Recipe
        from ditbench.acceleration.caching.learn_forecast import prepare_forecast

        recipe = Recipe(
            learns=self.learns,
            coefficients=(self.recipe() or {})["coefficients"],
            keep=self._learned_at,
            order=self.order,
            groups=self.groups,
            begin=self._begin,
        ).for_steps(room.calls)
        return prepare_forecast(folder, room, recipe, self.schedule)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through its forecast."""
        from ditbench.acceleration.caching.forecast import ForecastCache
        from ditbench.acceleration.caching.forecast_plan import ForecastPlan

        if self.keep == 1:
            return
        plans: dict[tuple[int, ...], ForecastPlan] = {}

        def plan() -> ForecastPlan:
            size = at.now.num_steps, *at.now.grid, at.now.text_tokens
            if size not in plans:
                plans[size] = self._plan(pipeline, at)
            return plans[size]

        order = 0 if self.coefficients == "zero" else self.order
        cache = ForecastCache(
            at,
            order,
            lambda sublayer, device: plan().at(at.now.step, sublayer.index, device),
            lambda sublayer: plan().extends(at.now.step, sublayer.index),
        )

        def dense(sublayer: Sublayer) -> bool:
            return sublayer not in cache or bool(plan().mask[at.now.step, sublayer.index])

        def idle(sublayer: Sublayer) -> bool:
            return not dense(sublayer)

        def at_sublayer(sublayer: Sublayer) -> Route:
            def route(run: Run, _hidden: Any) -> Any:
                if dense(sublayer):
                    return cache.compute(sublayer, run)
                return cache.forecast(sublayer)

            return route

        for sublayer in at.sublayers:
            at.reroute_deferred(
                sublayer,
                at_sublayer(sublayer),
                partial(dense, sublayer),
                partial(idle, sublayer),
                outputs_only=lambda: True,
            )

    def _plan(self, pipeline: Any, at: Attachment) -> Any:
        """Which sub-layers run, and the coefficients, for this generation's sizes."""
        from ditbench.acceleration.caching import forecast_plan
        from ditbench.acceleration.caching.budget import DENSE, weights_of
        from ditbench.method.prepare import unprepared

        names, steps = [s.name for s in at.sublayers], at.now.num_steps
        weights = (self._times(pipeline, at) if self.times else weights_of(at))[:, DENSE]
        stretch = self.tuned == "alone"
        if self.recipe() is None:
            return forecast_plan.unlearned(
                names, weights, steps, self.keep, self.schedule, self.coefficients, self.order
            )
        if at.artifact is None:
            raise unprepared(self)
        return forecast_plan.learned(
            at.artifact, names, weights, steps, self.keep, self.coefficients, stretch=stretch,
            anew=bool(self.times),
        )  # fmt: skip

    def _times(self, pipeline: Any, at: Attachment) -> Any:
        """Nanoseconds [L,S]; where they are from is noted."""
        from ditbench.acceleration.caching.level_times import weights_in_time

        weights, at.notes["times"] = weights_in_time(self.times, pipeline.transformer, at.sublayers)
        return weights


def _content(path: str) -> str:
    """sha256 of a file; "" for one that cannot be read, which `check` says."""
    from ditbench.records.files import file_sha256

    try:
        return file_sha256(Path(path))
    except OSError:
        return ""
