"""Two transformers of one sampling: which of them computes a step, for the whole batch or sample by
sample.

B rows of the batch (of all guidance passes), n samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ditbench.acceleration.guidance import predicted
from ditbench.method.generation import conditional_rows
from ditbench.models.calls import each_tensor, put_rows

if TYPE_CHECKING:
    from ditbench.method.attachment import Attachment


def by_step(pipeline: Any, at: Attachment, small: Any, share: float, small_first: bool) -> None:
    """`small` computes a share of the sampler's steps, the first or the last ones. Counts samples at
    each step as `small_steps` and `large_steps`."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        now = at.now
        taken = round(share * now.num_steps)
        its = now.step < taken if small_first else now.step >= now.num_steps - taken
        if now.branch == 0:
            at.count("small_steps" if its else "large_steps", now.batch // now.passes, idle=not its)
        return (small if its else run)(*args, **kwargs)

    run = at.patch(pipeline.transformer, "forward", forward)


def by_confidence(pipeline: Any, at: Attachment, small: Any, threshold: float) -> None:
    """`small` computes a sample's steps until the changes of its prediction from step to step, as
    shares of its norm, come to more than `threshold`; that step and all later ones are the
    pipeline's own.

    Counts as `by_step`, and as `small_steps_taken_again` those that both computed.
    """
    over = _Over(pipeline, at, small, threshold)
    over.run = at.patch(pipeline.transformer, "forward", over.forward)


class _Over:
    """Which samples went over, and the calls of both transformers."""

    def __init__(self, pipeline: Any, at: Attachment, small: Any, threshold: float) -> None:
        self.at, self.small, self.threshold = at, small, threshold
        self.channels = pipeline.transformer.config.in_channels
        self.run: Any = None
        self.samples: set[int] = set()
        """That went over in this generation."""
        self.before: dict[str, Tensor] = {}
        """`prediction`: the small model's conditional one at the last step, [n,...]; zeros of
        samples that went over."""
        self.ways: dict[int, float] = {}
        """Sum of the changes so far, by sample."""
        at.keeps(self.before, rows=False)
        at.on_start(self.samples.clear)
        at.on_start(self.ways.clear)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The transformer's forward."""
        at, now = self.at, self.at.now
        num = now.batch // now.passes
        staying = [i for i in range(num) if i not in self.samples]
        out = None
        if staying:
            part = at.run_samples(self.small, staying, args, kwargs)
            out = self._placed(part, staying, None)
            # of two separate guidance passes the conditional one, which comes first, decides
            if now.branch == 0:
                self._decide(part[0], staying, num)
        going = sorted(self.samples)
        if going:
            out = self._placed(at.run_samples(self.run, going, args, kwargs), going, out)
        if now.branch == 0:
            at.count("small_steps", num - len(going))
            at.count("large_steps", len(going), idle=True)
            at.count("small_steps_taken_again", len(staying) - (num - len(going)), idle=True)
        return out

    def _placed(self, part: Any, samples: list[int], out: Any) -> Any:
        """An output for the whole batch with that of some samples in it."""
        rows, batch = self.at.now.rows_of(samples), self.at.now.batch
        if rows == list(range(batch)):
            return part
        if out is None:
            out = each_tensor(lambda t: t.new_zeros(batch, *t.shape[1:]), part)
        return put_rows(out, rows, part)

    def _decide(self, output: Tensor, staying: list[int], num: int) -> None:
        """Have samples go over, by the small model's output for those that stayed so far."""
        now = self.at.now
        rows = slice(0, len(output))
        if now.guidance.startswith("batched"):
            rows = conditional_rows(now.guidance, len(output), now.passes)
        new = self._channels(output)[rows].float()
        before = self.before.get("prediction")
        where = torch.tensor(staying, device=new.device)
        if before is not None:
            change = (new - before[where]).flatten(1).norm(dim=1) / new.flatten(1).norm(dim=1)
            for i, moved in zip(staying, change.tolist(), strict=True):
                self.ways[i] = self.ways.get(i, 0.0) + moved
            self.samples.update(i for i in staying if self.ways[i] > self.threshold)
        kept = new.new_zeros(num, *new.shape[1:])
        self.before["prediction"] = kept.index_copy(0, where, new)

    def _channels(self, output: Tensor) -> Tensor:
        """Without the variance that DiT and PixArt predict besides; FLUX's tokens [B,N,C] have
        none."""
        return output if output.dim() == 3 else predicted(output, self.channels)
