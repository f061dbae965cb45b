"""Learning-to-Cache: learn which sub-layers every second step may reuse (Ma et al. 2024,
arXiv:2406.01733)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.caching.output_cache import is_cache_step, reuse_outputs
from ditbench.acceleration.caching.schedule import refuse_other_length
from ditbench.method import Attachment, Stage, knob, method
from ditbench.method.prepare import unprepared

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom
    from ditbench.models.sublayers import Sublayer
    from ditbench.models.table import Model

REUSED_NOWHERE = ("flux-tiny", "wan-tiny")
"""Models where no score came out at or below 0.1 at the authors' price (LOG.md, 2026-11-21)."""
SCORES, PREPARE = "scores.safetensors", "python run_bench.py prepare l2c"


@method(
    "l2c", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="arXiv:2406.01733"
)
class L2C:
    """Compute every second step wholly; in the others recompute only the sub-layers whose learned
    score is above `threshold`.

    The scores, one per (such step, sub-layer) and the same for every prompt, are learned by
    `prepare`: the mixture score * new + (1 - score) * kept shall equal the dense output of that
    step, at a price per score. Which steps these are: `output_cache.is_cache_step`.
    """

    threshold: float = knob(0.1, low=0, high=1)
    """Scores up to this are reused (the authors' 0.1); 1 reuses every sub-layer of every second
    step."""
    price: float = knob(1e-6, low=0)
    """What each score costs in training (the authors' 1e-6 for 50 DDIM steps, 5e-6 for 20): higher
    caches more."""
    training: int = knob(0, low=0, high=15)
    """Which training of this recipe: every number has requests and noise of its own, so that
    several show how far trainings differ."""
    router: str = ""
    """File of scores in place of the prepared ones: safetensors with `scores` [T,L], a row for each
    sampler step in order, a column for each sub-layer in the order they run. Of the authors'
    routers for DiT row t is sigmoid(routers["(T-1-t).prob"])."""
    off: ClassVar[dict[str, object]] = {"threshold": 0.0}
    dial: ClassVar[tuple[str, float, float]] = ("threshold", 0, 1)

    def recipe(self) -> dict[str, Any] | None:
        """What the scores depend on; at threshold 0 nothing is reused and nothing has to be
        prepared, nor at 1, nor with a router."""
        return (
            None if self.router or self.threshold in (0, 1) else {"version": 2, "price": self.price}
        )

    def caution(self, model: Model) -> str | None:
        """Where a training at the authors' price left nothing to reuse at their threshold."""
        cls = type(self)
        if (
            model.name not in REUSED_NOWHERE
            or self.recipe() is None
            or self.price > cls.price
            or self.threshold > cls.threshold
        ):
            return None
        return (
            f"at price={cls.price:g} no score of l2c came out at or below {cls.threshold:g} here, "
            "and nothing was reused; a higher price or threshold reuses more"
        )

    def inputs(self) -> list[Path]:
        """The file of the router."""
        return [Path(self.router)] if self.router else []

    def check(self, pipeline: Any) -> str | None:
        """A router must be readable, and have a column for each sub-layer."""
        if not self.router:
            return None
        from ditbench.models.sublayers import sublayers

        try:
            _read(Path(self.router), len(sublayers(pipeline.transformer)))
        except ValueError as error:
            return str(error)
        return None

    def prepare(self, folder: Any, room: Workroom) -> dict[str, Any]:
        """Learn the scores and write them as `scores.safetensors`; returns notes for the
        manifest."""
        from ditbench.acceleration.caching.learn_router import prepare_scores

        return prepare_scores(folder, room, price=self.price)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through the cache; scores of another number of steps are refused
        when the first step begins."""
        if self.threshold == 0:
            return
        if self.threshold == 1:
            reuse_outputs(at, lambda step, _: is_cache_step(step, at.now.num_steps))
            return
        if not self.router and at.artifact is None:
            raise unprepared(self)
        path = Path(self.router) if self.router else at.artifact / SCORES  # type: ignore[operator]
        reused = _read(path, len(at.sublayers)) <= self.threshold  # [T,L]

        def reuses(step: int, sublayer: Sublayer) -> bool:
            refuse_other_length(f"the table of {path.name}", len(reused), at.now.num_steps, PREPARE)
            return is_cache_step(step, at.now.num_steps) and bool(reused[step, sublayer.index])

        reuse_outputs(at, reuses)


def _read(path: Path, layers: int) -> Any:
    """Scores [T,L] of a file; ValueError in one sentence when it holds none for `layers`
    sub-layers."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        scores = load_file(path)["scores"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"{path} holds no scores of l2c ({type(error).__name__})") from None
    if scores.ndim != 2 or scores.shape[1] != layers:
        raise ValueError(
            f"{path} has scores {list(scores.shape)}, and the model has {layers} sub-layers"
        )
    return scores
