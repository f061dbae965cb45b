"""Learning the scores of Learning-to-Cache (Ma et al. 2024, arXiv:2406.01733) along the model's own
sampling.

At every cache step (`output_cache.is_cache_step`) the output with each sub-layer mixed, score * new + (1 -
score) * kept, is compared with the dense output, and sampling goes on from the dense one. The
authors start from noised real pictures; here the states are those the sampler visits, so that no
pictures are needed.

B batch, T steps, L sub-layers.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.numpy import save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ditbench.acceleration.caching.output_cache import is_cache_step
from ditbench.method.probe import Trainee
from ditbench.models.family import family_named

if TYPE_CHECKING:
    from ditbench.method.prepare import Workroom

ITERATIONS, BATCH, RATE, CLAMP = 80, 8, 0.1, 5.0
"""Ours, but for the clamp: the authors train at 1e-3 for epochs on ImageNet; the scores here see a
thousandth of that."""


class Mixer(Trainee):
    """Every sub-layer reads its score; `loss` gathers the cache steps' squared errors of one
    sampling."""

    def __init__(self, checkpointed: bool = False) -> None:
        self.checkpointed = checkpointed
        self.scores: Tensor | None = None
        """[T,L] in 0..1, float32."""
        self.kept: dict[tuple[int, int], Any] = {}
        self.mixing = False
        self.loss: float = 0.0

    def attach(self, pipeline: Any, at: Any) -> None:
        """Reroute every sub-layer, and run the transformer twice at cache steps."""
        self.at = at
        at.on_start(self.kept.clear)
        for sublayer in at.sublayers:
            at.reroute(sublayer, self._route(sublayer))
        for block in at.blocks:
            at.reroute(block, self._recomputed)
        forward = pipeline.transformer.forward
        at.patch(
            pipeline.transformer,
            "forward",
            lambda *args, **kwargs: self._both(forward, *args, **kwargs),
        )

    def _both(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            before = dict(self.kept)
            dense = forward(*args, **kwargs)
        if self.scores is None or not is_cache_step(self.at.now.step, self.at.now.num_steps):
            return dense
        self.kept, after = before, self.kept
        self.mixing = True
        try:
            with torch.enable_grad():
                mixed = _first(forward(*args, **kwargs)).float()
                error = (mixed - _first(dense).float()).square().mean()
                error.backward()  # type: ignore[no-untyped-call]
        finally:
            self.mixing, self.kept = False, after
        self.loss += error.item()
        return dense

    def _recomputed(self, run: Any, streams: Any) -> Any:
        """A block whose activations are computed again in the backward pass, where there is one:
        those of all blocks of a full-size model do not fit beside it."""
        if not (self.mixing and self.checkpointed):
            return run(streams)
        return checkpoint(run, streams, use_reentrant=False)

    def _route(self, sublayer: Any) -> Any:
        def route(run: Any, _hidden: Tensor) -> Any:
            key, new = (sublayer.index, self.at.now.branch), run()
            if self.mixing and self.scores is not None:
                score, old = self.scores[self.at.now.step, sublayer.index], self.kept[key]
                score = score.to((old[0] if isinstance(old, tuple) else old).dtype)
                if isinstance(new, tuple):
                    return tuple(b + score * (a - b) for a, b in zip(new, old, strict=True))
                return old + score * (new - old)
            self.kept[key] = new
            return new

        return route


def _first(out: Any) -> Tensor:
    output: Tensor = out[0] if isinstance(out, tuple) else out.sample
    return output


def prepare_scores(folder: Path, room: Workroom, *, price: float) -> dict[str, Any]:
    """Learn the scores [T,L] of a model and write `scores.safetensors` and `log.csv`; returns
    notes."""
    mixer, steps, log = Mixer(checkpointed=not room.model.world), room.calls, []
    batch = room.at_once(BATCH)
    cached = torch.tensor([t for t in range(steps) if is_cache_step(t, steps)], device=room.device)
    for part in room.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    with room.attached(mixer) as attached:
        logits = torch.full(
            (steps, len(attached.attachments[mixer.name].sublayers)),
            CLAMP / 2,
            device=room.device,
            requires_grad=True,
        )
        optimiser = torch.optim.AdamW([logits], lr=RATE, weight_decay=0.0)
        for i in range(ITERATIONS):
            optimiser.zero_grad()
            mixer.scores, mixer.loss = logits.sigmoid(), 0.0
            # cache steps are back-propagated one by one
            leaf = mixer.scores.detach().requires_grad_(True)
            mixer.scores = leaf
            attached.start(steps, batch)
            room.pipe(**room.draw(i, batch), output_type=family_named(room.model.family).raw_output)
            (
                logits.sigmoid() * (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
            ).sum().backward()
            (price * logits.sigmoid()[cached].sum()).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                logits.clamp_(-CLAMP, CLAMP)
            log.append(
                {
                    "iteration": i,
                    "loss": mixer.loss,
                    "mean_score": float(leaf.detach()[cached].mean()),
                }
            )
            room.tell(log[-1] | {"done": i + 1, "of": ITERATIONS})
    save_file({"scores": logits.detach().sigmoid().cpu().numpy()}, folder / "scores.safetensors")
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(log[0]))
        writer.writeheader()
        writer.writerows(log)
    lowest = float(logits.detach().sigmoid()[cached].min())  # from this threshold on it reuses
    return {
        "mean_score": log[-1]["mean_score"],
        "lowest_score": lowest,
        "loss": log[-1]["loss"],
    }
