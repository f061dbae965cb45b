"""Learning-to-Cache: learn which sub-layers every second step may reuse (Ma et al. 2024, arXiv:2406.01733)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.method import Attachment, Stage, knob, method

if TYPE_CHECKING:
    from ditbench.anatomy import Route, Run, Sublayer
    from ditbench.prepare import Workroom


@method("l2c", family="cache", stage=Stage.SCHEDULE, claims={"block-schedule"}, paper="arXiv:2406.01733")
class L2C:
    """Compute every second step wholly; in the others recompute only the sub-layers whose learned score is above `threshold`.

    The scores, one per (odd step, sub-layer) and the same for every prompt, are learned by `prepare`: the mixture score * new +
    (1 - score) * kept shall equal the dense output of that step, at a price per score.
    """

    threshold: float = knob(0.1, low=0, high=1)
    """Scores up to this are reused (the authors' 0.1); 1 reuses every sub-layer of every second step."""
    price: float = knob(1e-6, low=0)
    """What each score costs in training (the authors' 1e-6 for 50 DDIM steps, 5e-6 for 20): higher caches more."""
    off: ClassVar[dict[str, object]] = {"threshold": 0.0}

    def recipe(self) -> dict[str, Any] | None:
        """What the scores depend on; at threshold 0 nothing is reused and nothing has to be prepared, nor at 1."""
        return None if self.threshold in (0, 1) else {"version": 1, "price": self.price}

    def prepare(self, folder: Any, room: Workroom) -> dict[str, Any]:
        """Learn the scores and write them as `scores.safetensors`; returns notes for the manifest."""
        from ditbench.mixing import prepare_scores

        return prepare_scores(folder, room, price=self.price)

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Reroute every sub-layer through the cache."""
        kept: dict[tuple[int, int], Any] = {}
        at.on_start(kept.clear)
        at.holds(kept.values)
        scores: Any = None
        if at.artifact is not None:
            from safetensors.numpy import load_file

            scores = load_file(at.artifact / "scores.safetensors")["scores"]  # [T,L]

        def reuses(step: int, index: int) -> bool:
            if step % 2 == 0 or self.threshold == 0:
                return False
            return self.threshold == 1 or float(scores[step, index]) <= self.threshold

        def at_sublayer(sublayer: Sublayer) -> Route:
            def route(run: Run, _hidden: Any) -> Any:
                key = sublayer.index, at.now.branch
                if reuses(at.now.step, sublayer.index) and key in kept:
                    at.computes(sublayer, 0.0)
                    at.count("reused")
                    return kept[key]
                at.computes(sublayer, 1.0)
                at.count("computed", idle=True)
                out = run()
                if self.threshold > 0:
                    kept[key] = out
                return out

            return route

        for sublayer in at.sublayers:
            at.reroute(sublayer, at_sublayer(sublayer))
