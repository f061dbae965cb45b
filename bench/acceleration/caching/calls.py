"""Calls of the transformer, computed or replaced as a whole: what caches share that work on what goes
into it and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.method.attachment import Attachment


def reroute_calls(
    at: Attachment,
    transformer: Any,
    replace: Callable[[Tensor], Tensor | None],
    observe: Callable[[Tensor, Tensor], None],
) -> None:
    """Where `replace(hidden)` gives an output, it stands for that of the transformer, of which nothing
    runs; else it runs, and `observe(hidden, output)` is told.

    `hidden` are the hidden states of the call and `output` what it returns, tensors as the pipeline
    has them, of all guidance passes in the batch; `at.now.branch` tells separate ones apart. A pass
    that has not run yet in a generation runs, and `replace` is asked all the same. Counts
    `passes_reused` and `passes_computed`.
    """
    kinds: dict[int, type] = {}
    at.on_start(kinds.clear)

    def forward(*args: Any, **kwargs: Any) -> Any:
        branch = at.now.branch
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        output, kind = replace(hidden), kinds.get(branch)
        if output is not None and kind is not None:
            at.count("passes_reused")
            return (output,) if kind is tuple else kind(sample=output)
        at.count("passes_computed", idle=True)
        result = run(*args, **kwargs)
        kinds[branch] = type(result)
        observe(hidden, result[0])
        return result

    run = at.patch(transformer, "forward", forward)


def as_wide(hidden: Tensor, output: Tensor) -> Tensor:
    """Hidden states [B,C,...] or [B,N,C] with zeros for the channels that an output has besides, such
    as those of a learned variance."""
    from torch.nn.functional import pad

    axis = 1 if hidden.dim() > 3 else 2
    missing = output.shape[axis] - hidden.shape[axis]
    return pad(hidden, [0, 0] * (hidden.dim() - 1 - axis) + [0, missing]) if missing else hidden
