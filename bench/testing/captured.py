"""What CUDA graphs of whole calls do, on a CPU: the operations of a capture, done again in the same memory
(`acceleration.call_graphs`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ditbench.acceleration.call_graphs import CannotCaptureError, Run, capture_calls
from ditbench.method.attached import Attached
from ditbench.method.probe import Trainee
from ditbench.method.registry import find
from ditbench.method.stack import Stack
from ditbench.method.traits import Stage, Traits
from ditbench.models.operation_list import HOST_READS

WAITS = frozenset({
    torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default
})  # fmt: skip
"""What no CUDA graph can have in it: the host would wait for a number."""


class UncapturableError(CannotCaptureError):
    """The host waits for a number while its operations are captured."""


class OperationCapture:
    """As `call_graphs.Capture`: raises `UncapturableError` where CUDA would refuse."""

    def __call__(self, run: Run) -> tuple[Any, Run]:
        """What `run()` returns, and what does its operations again."""
        noted = _Noted()
        with noted, _Waiting():
            out = run()
        return out, noted.again


class _Noted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._lines: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in WAITS:
            raise UncapturableError(f"{func} while capturing")
        out = func(*args, **kwargs)
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        views = all(tensor.untyped_storage()._cdata in given for tensor in _tensors(out))
        if func._schema.is_mutable or not views:
            self._lines.append((func, args, kwargs, out))
        return out

    def again(self) -> None:
        """All of it, in the same memory; what is a view of other memory stays one."""
        for func, args, kwargs, out in self._lines:
            new = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for stays, value in zip(_tensors(out), _tensors(new), strict=True):
                    stays.copy_(value)


class _Waiting(TorchFunctionMode):
    """Refuses what reads numbers without an operation, as `item` does in inference mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in HOST_READS:
            raise UncapturableError(f"{func.__name__} while capturing")
        return func(*args, **(kwargs or {}))


def _tensors(given: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


class _Captured(Trainee):
    """`cudagraph`, with operations that are done again in place of CUDA graphs."""

    name = "captured"
    traits = Traits(
        family="compilation", stage=Stage.COMPILE, claims=frozenset({"launches"}),
        needs=frozenset(), conflicts=frozenset(), reversible=True, decides_per_batch=False, paper="",
    )  # fmt: skip

    def attach(self, pipeline: Any, at: Any) -> None:
        """Put it round the transformer's forward."""
        capture_calls(pipeline, at, OperationCapture)


def gives_the_same(
    stack: Stack,
    pipeline: Any,
    artifacts: Mapping[str, Path] | None,
    generate: Callable[[Attached, int], Tensor],
    first: Tensor,
) -> tuple[bool, str]:
    """Whether sample 0, `first`, is the same in a generation that is replayed, after one that was
    captured for another sample; and why it was not tried. What refuses to be captured is no
    fault: its users are told."""
    kind: Any = find("cudagraph")
    whole = Stack((*stack.methods, kind()))
    if problems := whole.problems():
        return True, f"not with cudagraph: {problems[0]}"
    try:
        with Stack((*stack.methods, _Captured())).attached(pipeline, artifacts) as attached:
            for which in (0, 1):  # as it is, and captured
                generate(attached, which)
            again = generate(attached, 0)
    except CannotCaptureError as error:
        return True, f"not with cudagraph: {error}"
    apart = float((again.double() - first.double()).norm() / first.double().norm())
    return torch.equal(again, first), f"relative {apart:.1e}"
