"""Scale, shift and gate of all blocks for all steps, worked out before the first step."""

from __future__ import annotations

from typing import Any

from ditbench.method import Attachment, Stage, method


@method(
    "modulation_ahead", family="compilation", stage=Stage.OPERATOR, claims={"modulation"},
    needs={"model:dit|flux|sd3"},
    paper="as cache_modulation_params of https://github.com/argmaxinc/DiffusionKit",
)  # fmt: skip
class ModulationAhead:
    """Make what blocks scale, shift and gate by once for all steps, and look it up at each.

    The blocks of DiT, FLUX and SD3 make it of the time and the condition by weights of their own, 2 to 9
    times D x D for each norm (DiT: 6), which every step reads for a few rows. The times are known ahead and
    the condition stays, so that they are read once a generation. The samples differ by rounding. The table,
    which enters the memory ledger, has as many rows as steps times rows of the batch. Training runs without
    it. A time that the scheduler did not set, or a condition that changes, ends the generation with an error
    after its last step; a generation that is broken off earlier is not checked.
    """

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Put the table between the embedding and the norms."""
        from ditbench.acceleration.modulation_table import look_modulation_up

        look_modulation_up(pipeline, at)
