"""The un-accelerated model once more, differing only in what must not matter (noise floor), or in
its noise (ceiling)."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from ditbench.method import CLAIMS, Attachment, Stage, knob, method


@method("rerun", family="control", stage=Stage.COMPILE, claims=CLAIMS, decides_per_batch=True)
class Rerun:
    """The un-accelerated model again: the batch in parts or other attention (noise floor), or other
    noise (ceiling)."""

    split: int | None = knob(None, low=1)
    """Parts the transformer is given a batch in, as another batch size would; a lone sample is
    given beside a copy of itself. 1: whole. None: 2, or 1 where another knob is turned."""
    attention: str | None = None
    """"math": attention by products and a softmax instead of torch's fused operation."""
    seed: int = knob(0, low=0)
    """Above 0: other initial noise for every sample, a different one for each number."""
    off: ClassVar[dict[str, object]] = {"split": 1}

    def __post_init__(self) -> None:
        if self.attention not in (None, "math"):
            raise ValueError(f"rerun knows the attention 'math', not {self.attention!r}")

    @property
    def label(self) -> str:
        """What its row is for."""
        return "ceiling" if self.seed else "noise floor"

    @property
    def parts(self) -> int:
        """Parts a batch is given in."""
        return self.split or (1 if self.attention or self.seed else 2)

    def check(self, pipeline: Any) -> str | None:
        """With a seed, a pipeline that does not draw its noise by diffusers' `randn_tensor` is
        refused."""
        if self.seed and not hasattr(_module(pipeline), "randn_tensor"):
            return f"{type(pipeline).__name__} does not draw its noise by diffusers' randn_tensor, so that it cannot be exchanged"
        return None

    def attach(self, pipeline: Any, at: Attachment) -> None:
        """Patch the transformer's forward and the module function that draws noise."""
        if self.parts > 1:
            self._split(pipeline.transformer, at)
        if self.attention == "math":
            self._exchange_attention(pipeline.transformer, at)
        if self.seed:
            self._exchange_noise(pipeline, at)

    def _split(self, transformer: Any, at: Attachment) -> None:
        import torch

        from ditbench.models.calls import batch_of, change_rows, each_tensor

        def forward(*args: Any, **kwargs: Any) -> Any:
            batch = batch_of(args, kwargs)

            def run_on(change: Any) -> Any:
                positional, named = change_rows(transformer, args, kwargs, change)
                return run(*positional, **named)

            if batch == 1:
                at.count("passes_doubled")
                twice = run_on(lambda x: torch.cat([x, x]))
                return each_tensor(lambda whole: whole[:1], twice)
            at.count("passes_split")
            size = -(-batch // self.parts)
            outs = [run_on(lambda x, i=i: x[i : i + size]) for i in range(0, batch, size)]
            return each_tensor(lambda *pieces: torch.cat(pieces), *outs)

        run = at.patch(transformer, "forward", forward)

    def _exchange_attention(self, transformer: Any, at: Attachment) -> None:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def forward(*args: Any, **kwargs: Any) -> Any:
            at.count("passes_by_math")
            with sdpa_kernel(SDPBackend.MATH):
                return run(*args, **kwargs)

        run = at.patch(transformer, "forward", forward)

    def _exchange_noise(self, pipeline: Any, at: Attachment) -> None:
        import torch

        def randn_tensor(shape: Any, generator: Any = None, **options: Any) -> Any:
            at.count("draws_exchanged")
            if generator is None:
                raise ValueError(
                    "rerun exchanges the noise of seeded generators, and this generation has none"
                )
            given = generator if isinstance(generator, list) else [generator]
            seeds = [(g.initial_seed() + 0x9E3779B1 * self.seed) % 2**32 for g in given]
            other = [
                torch.Generator(g.device).manual_seed(s) for g, s in zip(given, seeds, strict=True)
            ]
            return draw(shape, other if isinstance(generator, list) else other[0], **options)

        draw = at.patch(_module(pipeline), "randn_tensor", randn_tensor)


def _module(pipeline: Any) -> Any:
    """The module the pipeline's class is written in."""
    return sys.modules[type(pipeline).__module__]
