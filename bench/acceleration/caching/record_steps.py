"""Which steps a method computes that decides anew for every prompt: recorded, and the most frequent
schedule of them.

T steps, P guidance passes with a call of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.acceleration.caching.fixed_steps import Steps
from ditbench.method.probe import Trainee

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment
    from ditbench.method.prepare import Workroom

REUSED = "passes_reused"
"""The event that a method counts when it does not compute a pass."""
Branches = tuple[Steps, ...]
"""The computed steps of each guidance pass."""


class Recorded(Trainee):
    """A method, and what it computes: every call of the transformer in which it does not count
    `passes_reused` is computed."""

    def __init__(self, method: Any, artifact: Path | None = None) -> None:
        """`artifact`: the folder of what the method was prepared with."""
        self.method, self.artifact = method, artifact
        self.calls: dict[tuple[int, int], bool] = {}
        """(Step, guidance pass) of the transformer calls since it was last emptied: whether each was
        computed."""

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Attach the method, seeing what it counts."""
        count = at.count

        def counted(event: str, by: int = 1, *, idle: bool = False) -> None:
            if event == REUSED:
                self.calls[at.now.step, at.now.branch] = False
            count(event, by, idle=idle)

        def called(*_: Any) -> None:
            self.calls.setdefault((at.now.step, at.now.branch), True)

        at.count = counted  # type: ignore[method-assign]
        at.artifact = self.artifact
        self.method.attach(pipeline, at)
        # after the call: where a method decides in a hook of its own, it has decided then
        at.undo(pipeline.transformer.register_forward_hook(called).remove)

    def computed(self) -> Branches:
        """The computed steps, by guidance pass."""
        passes = 1 + max(branch for _, branch in self.calls)
        return tuple(
            tuple(sorted(t for (t, b), ran in self.calls.items() if ran and b == branch))
            for branch in range(passes)
        )


def record_steps(room: Workroom, method: Any, num: int, artifact: Path | None) -> list[Branches]:
    """The computed steps of `num` training requests under a method, which are sampled one at a
    time, so that each decides for itself."""
    import torch

    from ditbench.models.family import family_named
    from ditbench.models.requests import call_arguments, training_requests

    recorded = Recorded(method, artifact)
    requests = training_requests(room.model, num, 0, room.training, room.prompts)
    output = family_named(room.model.family).raw_output
    schedules = []
    with room.attached(recorded) as attached, torch.no_grad():
        for i, request in enumerate(requests):
            recorded.calls.clear()
            attached.start(room.sampling.steps, 1)
            arguments = call_arguments(room.model, room.sampling, [request])
            room.pipe(**arguments, output_type=output)
            schedules.append(recorded.computed())
            room.tell({"done": i + 1, "of": num})
    return schedules


def most_frequent(schedules: Sequence[Branches]) -> tuple[Branches, dict[str, float | int]]:
    """The schedule that most of the prompts had, the earlier one where two are as frequent; and what
    is to be noted: its share, how many there are, the share of the three most frequent, and how many
    steps are computed on average, of all prompts and in that schedule."""
    tally = Counter(schedules)
    (modal, times), num = tally.most_common(1)[0], len(schedules)

    def steps_of(branches: Branches) -> float:
        return sum(map(len, branches)) / len(branches)

    return modal, {
        "samples": num,
        "share": round(times / num, 4),
        "distinct": len(tally),
        "share_of_three": round(sum(n for _, n in tally.most_common(3)) / num, 4),
        "mean_computed": round(sum(map(steps_of, schedules)) / num, 3),
        "computed": steps_of(modal),
    }
