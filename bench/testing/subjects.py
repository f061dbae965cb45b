"""Untrained pipelines of all families, small enough to try a method on in a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ditbench.models.family import families
from ditbench.models.requests import Request, call_arguments
from ditbench.models.sampling import Sampling
from ditbench.suggest import suggest

KINDS = tuple(name for name, family in families().items() if family.narrow is not None)
"""The families there is an untrained pipeline of."""
OUTPUT = {name: families()[name].raw_output for name in KINDS}
"""Family -> `output_type` of the least processed samples its pipeline can return."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a method is tried on."""

    pipeline: Any
    sampling: Sampling
    arguments: Callable[[Sampling, Sequence[int]], dict[str, Any]]
    """Keyword arguments of the pipeline that ask for the samples of those numbers (0, 1, ...),
    `output_type` np, pt or latent."""

    def generate(self, sampling: Sampling, which: Sequence[int]) -> Tensor:
        """The samples, [B,...]."""
        with torch.no_grad():
            samples: Tensor = torch.as_tensor(
                self.pipeline(**self.arguments(sampling, which))[0]
            ).clone()
            return samples


def tiny(kind: str, *, steps: int = 6) -> Subject:
    """An untrained two-layer pipeline of a family, of the real diffusers classes, with random weights
    (seed 0).

    Its samples are of `Family.raw_output`. ValueError for a family without one.
    """
    from ditbench.zoo import parts

    known = [name for name, family in families().items() if family.narrow is not None]
    if kind not in known:
        raise ValueError(f"no tiny pipeline {kind!r}; {suggest(kind, known)}")
    family = families()[kind]
    with _seeded(0):
        pipeline = cast(Any, family.narrow)(parts)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    sampling = Sampling(
        steps=steps, guidance=3.0, height=32, width=32 if family.class_labels else 48,
        frames=5 if family.video else 1,
        text_tokens=0 if family.class_labels else 16,
    )  # fmt: skip
    model = cast(Any, SimpleNamespace(family=kind, negative_prompt=""))
    prompts = "a small red circle", "a large blue square at the top", "a green triangle"

    def arguments(sampling: Sampling, which: Sequence[int]) -> dict[str, Any]:
        requests = [Request(id=str(i), seed=i, prompt=prompts[i % 3], label=i) for i in which]
        call: dict[str, Any] = call_arguments(model, sampling, requests)
        return call | {"output_type": family.raw_output}

    return Subject(pipeline=pipeline, sampling=sampling, arguments=arguments)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
