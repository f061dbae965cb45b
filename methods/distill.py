"""Step distillation: a student of the model that takes a few steps and no guidance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ditbench.acceleration.distillation.checkpoints import (
    TABLE,
    checkpoint,
    checkpoints,
    count_in_place,
    local_files,
)
from ditbench.method import Attachment, Stage, knob, method
from ditbench.method.prepare import unprepared
from ditbench.models.requests import takes_prompts
from ditbench.models.sampling import Sampling

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom
    from ditbench.models.table import Model

LOW_RANK = ("trajectory", "lcm")
"""Objectives of students that are updates: the others add parameters, or train by stages."""


@method(
    "distill", family="distillation", stage=Stage.WEIGHTS, claims={"weights", "num-steps", "guidance", "scheduler"},
    paper="arXiv:2202.00512, arXiv:2310.04378, arXiv:2405.14867",
)  # fmt: skip
class Distill:
    """Run a student distilled from the model's own guided sampling: its weights, its few timesteps,
    no second guidance pass.

    A student belongs to the very weights it was distilled from; on others it is refused.
    """

    autocasts = True

    steps: int | None = knob(None, low=1)
    """Sampler steps of the student; None: four, or what the checkpoint was made for. One is trained
    for each number."""
    objective: Literal["trajectory", "progressive", "lcm", "scm", "meanflow", "dmd2"] = "trajectory"
    """What it was trained to do: `trajectory` regresses the teacher's mean velocity between its
    states, `progressive` halves the steps stage by stage, `lcm` is latent consistency distillation,
    `scm` its continuous-time form, `meanflow` the mean velocity's identity, `dmd2` matches the
    distribution of the teacher's samples (without the paper's GAN term)."""
    rank: int = knob(0, low=0, high=512)
    """Of updates of the linear layers, which are then all that is trained (LoRA): full-size models
    fit on a GPU so. 0: all weights are trained."""
    student: str = ""
    """Folder of a student; empty: the one that was prepared."""
    checkpoint: str = ""
    """Name of a published checkpoint instead (bench/acceleration/distillation/checkpoints.toml),
    for full-size models; those that need a sampler or layers of their own can be counted only."""
    training: int = knob(0, low=0, high=15)
    """Which training of this recipe: every number has requests and noise of its own, so that
    several show how far trainings differ."""
    joint: float | None = knob(None, above=0, high=1)
    """Share of the sub-layers' multiply-accumulates at which a last stage trains the student together
    with a schedule of token sparsity, through its own sparse sampling; `diffsparse(allocator='joint')`
    on top samples by that schedule. 1: the same stage without sparsity, the control of equal
    training. None: no such stage."""

    @staticmethod
    def more() -> str:
        """The published checkpoints and their licences, for `list methods -v`."""
        return "; ".join(
            f"{row.name} ({row.hub}: {row.licence or 'licence on its page'})"
            for row in checkpoints().values()
        )

    def __post_init__(self) -> None:
        if self.student and self.checkpoint:
            raise ValueError("distill takes a student or a checkpoint, not both")
        if self.rank and (self.student or self.checkpoint):
            raise ValueError("distill takes a rank or a given student, not both")
        if self.rank and self.objective not in LOW_RANK:
            raise ValueError(
                f"rank: updates are trained to {' or '.join(LOW_RANK)}, not to {self.objective}"
            )
        if self.joint is not None and (
            self.student or self.checkpoint or self.rank or self.objective != "trajectory"
        ):
            raise ValueError(
                "distill: joint is of students that are trained here, in all weights, to their "
                "teacher's trajectory"
            )
        if self.training and (self.student or self.checkpoint):
            raise ValueError("distill takes a training or a given student, not both")
        if self.checkpoint:
            checkpoint(self.checkpoint)

    @property
    def _steps(self) -> int:
        return self.steps or (checkpoint(self.checkpoint).steps if self.checkpoint else 4)

    def adapt(self, sampling: Sampling) -> Sampling:
        """Few steps; guidance is in the weights."""
        guidance = checkpoint(self.checkpoint).guidance if self.checkpoint else 1.0
        return replace(sampling, steps=self._steps, guidance=guidance)

    def recipe(self) -> dict[str, Any] | None:
        """What the prepared student depends on."""
        if self.student or self.checkpoint:
            return None
        # 2: captions are held out; MeanFlow weighs its errors by `objectives.MEANFLOW_POWER` as well
        version = 3 if self.objective == "meanflow" else 2
        rank = {"rank": self.rank} if self.rank else {}
        joint = {} if self.joint is None else {"joint": self.joint}
        return {
            "version": version, "objective": self.objective, "steps": self._steps, **rank, **joint
        }  # fmt: skip

    def unpreparable(self, sampling: Sampling) -> str | None:
        """A student takes fewer steps than its teacher, and what it spends pays for its first step,
        which is dense."""
        if self._steps < sampling.steps:
            if self.joint is None or self.joint * self._steps >= 1:
                return None
            return f"joint={self.joint} of {self._steps} steps does not pay for the first step, which is dense"
        return f"a student of {self._steps} steps is no shorter than its teacher's {sampling.steps}"

    def unpreparable_for(self, model: Model) -> str | None:
        """All weights of a full-size text model do not fit on a GPU with their gradients, moments
        and recordings; updates of low rank do, and published checkpoints are there for most."""
        if self.joint is not None and not model.world:
            return "students are trained together with a schedule of the tiny models alone"
        if self.rank or model.group != "full" or not takes_prompts(model):
            return None
        names = [
            row.name
            for row in checkpoints().values()
            if row.family == model.family and not row.refusal
        ]
        reason = (
            "all weights are trained of the tiny models and of class-conditional ones; train updates "
            f"of low rank, distill(rank=32{'' if self.steps is None else f', steps={self.steps}'})"
        )
        if not names:
            return f"{reason}; no published checkpoint of {model.family} is in the table"
        usable = " or ".join(f"distill(checkpoint='{name}')" for name in names)
        return f"{reason}, or use a published checkpoint: {usable}"

    def inputs(self) -> list[Path]:
        """The files of the student; of a checkpoint its row's table, and its files where they lie
        in a folder."""
        if self.checkpoint:
            return [TABLE, *local_files(checkpoint(self.checkpoint))]
        return (
            [Path(self.student) / name for name in ("student.json", "student.safetensors")]
            if self.student
            else []
        )

    def check(self, pipeline: Any) -> str | None:
        """A student given as a folder must be one of this very transformer; a checkpoint must be
        there and fit."""
        if self.checkpoint:
            from ditbench.acceleration.distillation.checkpoints import unfit

            return None if _nowhere(pipeline) else unfit(checkpoint(self.checkpoint), pipeline)
        if not self.student:
            return None
        from ditbench.acceleration.distillation.student_files import unfit as other

        return other(Path(self.student), pipeline.transformer, self._steps)

    def prepare(self, folder: Path, room: Workroom) -> dict[str, Any]:
        """Train the student; returns notes for the manifest."""
        from ditbench.acceleration.distillation.students import Recipe, prepare_student

        recipe = Recipe(
            objective=self.objective, steps=self._steps, rank=self.rank, joint=self.joint
        )
        dense = None if self.joint is None else room.prepared_for(replace(self, joint=None))
        return prepare_student(folder, room, recipe, dense)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Put weights and sampler in place. Without weights anywhere (counting on the meta device)
        only the steps are few."""
        from ditbench.acceleration.distillation.checkpoints import put_in_place as put_checkpoint
        from ditbench.acceleration.distillation.student_files import put_in_place

        folder = Path(self.student) if self.student else at.artifact
        if _nowhere(pipeline) and folder is None:
            if self.checkpoint:
                count_in_place(checkpoint(self.checkpoint), pipeline, at)
            else:
                at.count("weights")
            return
        if self.checkpoint:
            put_checkpoint(checkpoint(self.checkpoint), pipeline, at)
            return
        if folder is None:
            raise unprepared(self)
        put_in_place(folder, pipeline, at)


def _nowhere(pipeline: Any) -> bool:
    """Whether there are no values at all: torch's meta device, and the simulated one."""
    return pipeline.transformer.device.type in ("meta", "gpu")
