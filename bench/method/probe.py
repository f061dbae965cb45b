"""What calibrations attach to a pipeline: no method of the table, and the sampling stays as it
is."""

from __future__ import annotations

from typing import Any

from ditbench.method.traits import Stage, Traits


class Trainee:
    """What is attached to a pipeline for training alone: no method of the table, and it leaves the
    sampling as it is."""

    name = "trainee"
    traits = Traits(
        family="training", stage=Stage.SCHEDULE, claims=frozenset({"block-schedule"}),
        needs=frozenset(), conflicts=frozenset(),
        reversible=True, decides_per_batch=False, paper="",
    )  # fmt: skip

    def adapt(self, sampling: Any) -> Any:
        """As it is."""
        return sampling
