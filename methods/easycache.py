"""EasyCache: skip whole transformer calls while the output is predicted to change little (Zhou et al.
2025, arXiv:2507.02860)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.acceleration.caching.calls import as_wide, reroute_calls
from ditbench.acceleration.caching.targets import Keeper, Target, why_no_target
from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from torch import Tensor


@method(
    "easycache", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, decides_per_batch=True,
    paper="arXiv:2507.02860",
)  # fmt: skip
class EasyCache:
    """Predict how much the transformer's output changes from how much its input does; while the sum
    stays below `threshold`, add to the input what the transformer added last.

    With x the transformer's input and y its output, | | the mean absolute value over the whole batch,
    every step adds k |x_t - x_(t-1)| / |y_c| to the sum, where c is the last computed step and k =
    |y_c - y_b| / |x_c - x_b| of it and the computed step b before. A skipped step gives x_t + (y_c -
    x_c). The rule and its numbers are those of the authors' code for Wan2.1: the first 10 of 50 steps
    and the last are computed, and of two separate guidance passes the conditional one decides for
    both, each with a y_c - x_c of its own. Passes that share a batch decide together, and the
    channels of a learned variance, which the input does not have, are reused as they are: both ours,
    as is the threshold of the other families: what the authors have for twice the speed.
    """

    threshold: float | None = knob(None, low=0)
    """Predicted relative change up to which calls are skipped; 0 skips none, None is the authors' 0.05
    on Wan and 0.1 on the other families."""
    retain: float = knob(0.2, low=0, high=1)
    """Share of the steps at the beginning that are never skipped."""
    target: Target = "residual"
    """What is kept of a computed call and reused: y - x, or the prediction said otherwise, as in
    `teacache`."""
    off: ClassVar[dict[str, object]] = {"threshold": 0.0}
    dial: ClassVar[tuple[str, float, float]] = ("threshold", 0, 2)

    def check(self, pipeline: Any) -> str | None:
        """Another target than the residual wants a model of noise or of a flow."""
        return why_no_target(pipeline, self.target)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute the transformer; its first call in a step decides for all."""
        from ditbench.models.family import family_of

        theirs = 0.05 if family_of(pipeline.transformer).name == "wan" else 0.1
        threshold = theirs if self.threshold is None else self.threshold
        added: dict[int, Tensor] = {}  # by guidance pass
        deciding: dict[str, Tensor] = {}  # of the pass that decides: x_(t-1), x_c and y_c
        numbers: dict[str, float] = {}  # the sum, k, and whether this step is skipped
        for store in (added, deciding):
            at.keeps(store)
        at.on_start(numbers.clear)
        keeper = None if self.target == "residual" else Keeper(pipeline, at, self.target)

        def skips(hidden: Tensor) -> bool:
            before, now = deciding.get("before"), at.now
            deciding["before"] = hidden
            early = now.step < self.retain * now.num_steps
            if early or now.step == now.num_steps - 1 or before is None or "rate" not in numbers:
                numbers["sum"] = 0.0
                return False
            change = _mean(hidden - before) / _mean(deciding["output"])
            numbers["sum"] += numbers["rate"] * float(change.item())
            if numbers["sum"] < threshold:
                return True
            numbers["sum"] = 0.0
            return False

        def replace(hidden: Tensor) -> Tensor | None:
            branch = at.now.branch
            if branch == 0:
                numbers["skips"] = skips(hidden)
            if keeper and numbers["skips"] and branch in keeper.kept:
                return keeper.made(hidden, hidden.dtype)
            if not numbers["skips"] or branch not in added:
                return None
            return added[branch] + as_wide(hidden, added[branch])

        def observe(hidden: Tensor, output: Tensor) -> None:
            if keeper:
                keeper.keep(hidden, output)
            else:
                added[at.now.branch] = output - as_wide(hidden, output)
            if at.now.branch:
                return
            if "output" in deciding:
                moved = _mean(hidden - deciding["input"])
                # steps of one noise level, such as Heun's, have one input and say nothing
                rate = float((_mean(output - deciding["output"]) / moved).item())
                if 0 <= rate < float("inf"):
                    numbers["rate"] = rate
            deciding.update(input=hidden, output=output)

        reroute_calls(at, pipeline.transformer, replace, observe)


def _mean(x: Tensor) -> Tensor:
    return x.abs().mean()
