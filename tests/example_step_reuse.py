"""A complete method: copy this file, change it, and try it with `--plugin FILE.py`."""

from typing import Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method


@method("step_reuse", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="none")
class StepReuse:
    """Run the transformer at every `every`-th step and return its last output in between."""

    every: int = knob(2, low=1)
    """Steps for each real run of the transformer; 1 changes nothing."""
    off: ClassVar[dict[str, object]] = {"every": 1}

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Patch the transformer's forward; everything done through `at` is taken back by itself."""
        last: dict[int, Any] = {}  # by guidance pass
        at.keeps(last)  # emptied before the next generation, counted as the method's memory

        def forward(*args: Any, **kwargs: Any) -> Any:
            if at.now.step % self.every and at.now.branch in last:
                # a method that counts nothing and changes nothing is reported as inert
                at.count("passes_reused")
                return last[at.now.branch]
            last[at.now.branch] = run(*args, **kwargs)
            return last[at.now.branch]

        run = at.patch(pipeline.transformer, "forward", forward)
