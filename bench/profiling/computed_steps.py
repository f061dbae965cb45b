"""How many steps of the transformer a stack computes, the others being replaced whole."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ditbench.method.stack import Stack

if TYPE_CHECKING:
    from ditbench.models.sampling import Request
    from ditbench.models.table import Model

PROMPTS = 50
"""Training prompts over which the computed steps of a method are averaged, as arXiv:2609.39343
calibrates."""
ALIKE = 4
"""Of a method that does not decide per batch, prompts of as many computed steps that do for all."""
REUSED = ".passes_reused"
"""How the counters end by which methods say that they did not compute a pass."""


def sampler_steps(model: Model, pipe: Any) -> int:
    """Steps of one un-accelerated generation, as many as the scheduler makes of those asked for."""
    from ditbench.models.requests import training_requests
    from ditbench.models.sampling import sampling_of

    _sample(model, pipe, sampling_of(model), training_requests(model, 1, 0)[0])
    return len(pipe.scheduler.timesteps)


def computed_steps(
    model: Model, pipe: Any, stack: Stack, weights: str, plugins: Sequence[str] = ()
) -> float:
    """Mean over `PROMPTS` training prompts, each sampled alone, of the steps that a stack computes:
    the share of the transformer's calls that no method counts as `passes_reused`, times the steps of
    the sampler.

    Raises ValueError for a stack that counts no passes and takes as many steps as the model.
    """
    from ditbench.method.needs import resolve
    from ditbench.models.requests import training_requests
    from ditbench.models.sampling import sampling_of
    from ditbench.profiling.flops import decides_per_batch

    own = sampling_of(model)
    sampling, counts, calls = stack.adapt(own), [], []
    prepared = {name: a.folder for name, a in resolve(model, stack, weights, plugins).items()}
    with ExitStack() as undo:
        attached = undo.enter_context(stack.attached(pipe, prepared))
        hook = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
        undo.callback(hook.remove)

        def reused() -> int:
            return sum(n for name, n in attached.counters().items() if name.endswith(REUSED))

        for request in training_requests(model, PROMPTS, 0):
            before = reused()
            calls.clear()
            attached.start(sampling.steps, 1)
            _sample(model, pipe, sampling, request)
            share = 1 - (reused() - before) / len(calls)
            counts.append(share * len(pipe.scheduler.timesteps))
            alike = len(counts) == ALIKE and len(set(counts)) == 1
            if alike and not decides_per_batch(stack):
                break
        counters = attached.counters()
    if not any(".passes_" in name for name in counters) and sampling.steps == own.steps:
        raise ValueError(
            f"{stack} replaces no whole step that it counts, so that steps cannot be matched; match it "
            "by --saved"
        )
    return sum(counts) / len(counts)


def _sample(model: Model, pipe: Any, sampling: Any, request: Request) -> None:
    """One request, as far as the latents where the pipeline can leave out decoding."""
    import torch

    from ditbench.models.family import family_named
    from ditbench.models.requests import call_arguments
    from ditbench.quiet import quiet

    output = family_named(model.family).raw_output
    with quiet(), torch.inference_mode():
        pipe(**call_arguments(model, sampling, [request]), output_type=output)
