"""A complete method that decides for every sample of a batch alone whether to run the transformer."""

from typing import Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method


@method(
    "sample_cache",
    family="cache",
    stage=Stage.SCHEDULE,
    claims={"block-schedule"},
    paper="none",
)
class SampleCache:
    """Return a sample's last output at the step after it ran, if its latents have moved little."""

    threshold: float = knob(0.1, low=0)
    """|x - x_then| / |x_then| below which the output is used again; 0 changes nothing."""
    off: ClassVar[dict[str, object]] = {"threshold": 0.0}
    dial: ClassVar[tuple[str, float, float]] = ("threshold", 0, 4)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Patch the transformer's forward."""
        latents: dict[int, Any] = {}  # by sample, of the last step
        reused: dict[int, bool] = {}  # by sample, in this step
        outputs: dict[int, Any] = {}  # by transformer call of a step, for the whole batch
        at.keeps(latents, rows=False)
        at.keeps(outputs)
        at.on_start(reused.clear)

        def decide(sample: int, now: Any) -> bool:
            before = latents.get(sample, now)
            latents[sample] = now
            moved = float((now - before).norm() / before.norm())
            return at.now.step > 0 and not reused[sample] and moved < self.threshold

        def forward(*args: Any, **kwargs: Any) -> Any:
            if at.now.branch == 0:  # an unconditional call does what the conditional one decided
                hidden = args[0] if args else kwargs["hidden_states"]
                for sample, now in enumerate(hidden[at.now.conditional]):
                    reused[sample] = decide(sample, now)
            run_now = [sample for sample, same in reused.items() if not same]
            if len(run_now) < len(reused):
                at.count("samples_reused", len(reused) - len(run_now))
            out = at.run_samples(run, run_now, args, kwargs, outputs.get(at.now.branch))
            outputs[at.now.branch] = out
            return out

        run = at.patch(pipeline.transformer, "forward", forward)
