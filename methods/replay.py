"""The most frequent schedule of a method that decides anew for every prompt, as a fixed one: the
control that its deciding has to beat (Golden Path Hypothesis, arXiv:2609.39343)."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ditbench.acceleration.caching.between_steps import (
    Between,
    compute_at,
    order_of,
    why_no_rule,
    why_uncapturable,
)
from ditbench.acceleration.caching.schedule import refuse_other_length
from ditbench.method import Attachment, Stage, knob, method
from ditbench.method.needs import training_of
from ditbench.method.prepare import unprepared
from ditbench.method.stack import Stack

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom
    from ditbench.models.sampling import Sampling
    from ditbench.models.table import Model

CLAIM = "block-schedule"


@method(
    "replay", family="cache", stage=Stage.SCHEDULE, claims={CLAIM}, role="fixed-schedule",
    paper="arXiv:2609.39343",
)  # fmt: skip
class Replay:
    """Compute the steps that another method computes for most prompts, whatever the prompt.

    `prepare` samples training prompts one at a time under the method and takes the schedule that is
    most frequent, of all guidance passes together. What stands for the blocks at the other steps is
    that of `schedule`: for a method that reuses the last residual, as `teacache` does, the two
    differ in nothing but who decides. The artefact's notes have the share of the prompts that had
    the schedule.
    """

    of: str = "teacache"
    """The method, with its knobs: `replay(of='teacache(threshold=0.2)')`. It has to decide by step,
    counting `passes_reused`."""
    between: Between | None = None
    """What stands for the blocks at steps that are not computed (see `schedule`); None is what the
    method names as its own (`between` of its class), else `reuse`."""
    order: int | None = knob(None, low=1, high=4)
    """Highest difference of `taylor` and `hermite`; None is 1 and 2."""
    prompts: int = knob(32, low=1)
    """Training prompts that are sampled."""
    tuned: Literal["stack", "alone"] = "stack"
    """Whether it was recorded on top of the methods below, or on the plain model."""
    training: int = knob(0, low=0, high=15)
    """Which recording: every number has requests and noise of its own, so that several show how far
    recordings differ."""

    def __post_init__(self) -> None:
        stack = Stack.parse(self.of)
        if len(stack.methods) != 1:
            raise ValueError(f"replay: of is one method, not {self.of!r}")
        if stack.methods[0].name == "replay" or CLAIM not in stack.methods[0].traits.claims:
            raise ValueError(f"replay: {stack.methods[0].name} does not decide what is computed")
        # every spelling of a method is one key
        object.__setattr__(self, "of", str(stack))
        order_of(self._between, self.order)

    @property
    def _of(self) -> Any:
        return Stack.parse(self.of).methods[0]

    @property
    def _between(self) -> Between:
        own: Between = getattr(self._of, "between", None) or "reuse"
        return self.between or own

    def recipe(self) -> dict[str, Any]:
        """What the recorded schedule depends on: the method, and what that was prepared with."""
        of: dict[str, Any] = {"of": self.of, "recipe": self._of.recipe()}
        if training := training_of(self._of):
            of["training"] = training
        return {"version": 1, **of, "prompts": self.prompts}

    def inputs(self) -> list[Path]:
        """The files that the method's knobs name."""
        files: list[Path] = self._of.inputs()
        return files

    def uncapturable(self) -> str | None:
        """A rule that watches the sampler."""
        return why_uncapturable(self._between)

    def check(self, pipeline: Any) -> str | None:
        """Where the method itself cannot run, nothing is recorded."""
        return Stack((self._of,)).refusal(pipeline) or why_no_rule(pipeline, self._between)

    def unpreparable(self, sampling: Sampling) -> str | None:
        """What the method says of itself."""
        reason: str | None = self._of.unfit(sampling) or self._of.unpreparable(sampling)
        return reason

    def unpreparable_for(self, model: Model) -> str | None:
        """What the method says of itself."""
        reason: str | None = self._of.unpreparable_for(model)
        return reason

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Record the method on training prompts, preparing it first where it has to be, and write
        the most frequent schedule as `steps.json`; returns notes for the manifest."""
        from ditbench.acceleration.caching.fixed_steps import text_of
        from ditbench.acceleration.caching.prepare_steps import write_steps
        from ditbench.acceleration.caching.record_steps import most_frequent, record_steps

        of = self._of
        if reason := self.check(room.pipe):
            raise ValueError(reason)
        with tempfile.TemporaryDirectory() as own:
            if of.recipe() is not None:
                of.prepare(Path(own), replace(room, training=training_of(of)))
            schedules = record_steps(room, of, self.prompts, Path(own))
        modal, notes = most_frequent(schedules)
        steps = room.calls
        if notes["mean_computed"] == steps:
            raise ValueError(
                f"replay: {self.of} computed every step of {self.prompts} prompts; it must reuse whole "
                "passes to be replayed"
            )
        if any(not chosen or chosen[0] for chosen in modal):
            raise ValueError(f"replay: {self.of} does not compute the first step")
        write_steps(folder, modal, steps)
        return {**notes, "steps": " ".join(map(text_of, modal))}

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute all blocks, or the transformer; a schedule of another number of steps is refused
        when the first step begins."""
        from ditbench.acceleration.caching.prepare_steps import read_steps

        if at.artifact is None:
            raise unprepared(self)
        schedules, length = read_steps(at.artifact)

        def computes(step: int, branch: int) -> bool:
            if not step:
                refuse_other_length(
                    "the schedule", length, at.now.num_steps, "python run_bench.py prepare replay"
                )
            return step in schedules[min(branch, len(schedules) - 1)]

        compute_at(pipeline, at, computes, self._between, self.order)
