"""Outputs of sub-layers that are not run, on their way to gates and stream: all that a block reuses or
forecasts one after the other is added to the stream by one kernel.

The kernel (`row_kernels.added`) is used where those of `fused_rows` are, and rounds once, where the
block's code rounds after every operation.

B batch, N rows, D width.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ditbench.models.fused_rows import by_sample, kernel_of, seen_by_others, uncast
from ditbench.models.gated import OutputPending, StreamSum, is_by_sample
from ditbench.models.pending import ADD, MUL, Pending, promoted, real

AT_ONCE = 4
"""Outputs that one kernel adds at most, as `row_kernels` has it."""


def added(stream: Tensor, outputs: Sequence[Tensor], gates: Sequence[Tensor | None]) -> Tensor:
    """The stream [B,N,D] with each of the outputs [B,N,D] times its gate [B or 1,1,D], where it has
    one, in the type of the stream."""
    run: Any = torch.ops.ditbench.outputs_added
    if not seen_by_others(stream):
        from ditbench.models.row_kernels import added as run
    out = stream
    for first in range(0, len(outputs), AT_ONCE):
        out = run(out, [*outputs[first : first + AT_ONCE]], [*gates[first : first + AT_ONCE]])
    return out


def added_now(stream: Tensor, outputs: list[Tensor], gates: list[Tensor | None]) -> Tensor:
    """`added` of at most `AT_ONCE` outputs, where nobody looks at operations."""
    from ditbench.models.row_kernels import added as run

    out: Tensor = run(stream, outputs, gates)
    return out


@torch.library.custom_op("ditbench::outputs_added", mutates_args=())
def _added(stream: Tensor, outputs: list[Tensor], gates: list[Tensor | None]) -> Tensor:
    from ditbench.models.row_kernels import added

    return added(stream, outputs, gates)


@_added.register_fake
def _shape(stream: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(stream, memory_format=torch.contiguous_format)


def not_run(output: Any) -> Any:
    """The output of a sub-layer that was not run, tensor or tuple, in a block that runs on pending
    tensors: for the kernel, where that is used."""
    parts = output if isinstance(output, tuple) else (output,)
    if not all(isinstance(part, Tensor) for part in parts):
        return output
    if kernel_of(parts[0].device) != "triton":
        return output
    waiting = tuple(map(Unadded, parts))
    return waiting if isinstance(output, tuple) else waiting[0]


class Unadded(OutputPending):
    """An output, times its gate where that has come, that is to be added to a stream."""

    __slots__ = ("gate", "output")

    def __init__(self, output: Tensor, gate: Any = None) -> None:
        super().__init__(None, "output", None, (output,))
        self.output, self.gate = output, gate
        if gate is None:
            self._value = output

    @property
    def value(self) -> Tensor:
        """The product."""
        if self._value is None:
            self.settle(real(self.gate) * self.output)
        value: Tensor = self._value  # type: ignore[assignment]
        return value

    @property
    def shape(self) -> Any:
        """Of the output."""
        return self.output.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the output, times its gate."""
        own = self.output.dtype
        return own if self.gate is None else promoted(own, self.gate.dtype)

    def fits(self, shape: Any) -> bool:
        """Whether the kernel can add it to a stream of that shape."""
        if tuple(self.output.shape) != tuple(shape) or self.output.ndim != 3:
            return False
        rows = self.output.stride(-1) == 1
        return rows and (self.gate is None or by_sample(self.gate, shape))

    def __mul__(self, gate: Any) -> Pending:
        if self.gate is not None or not is_by_sample(gate, self.shape):
            return Pending(None, MUL, operator.mul, (self.value, gate))
        return Unadded(self.output, gate)

    __rmul__ = __mul__

    def __add__(self, stream: Any) -> Pending:
        if not self.is_added_to(stream):
            return Pending(None, ADD, operator.add, (stream, self.value))
        return Added(self, stream)

    __radd__ = __add__

    def float(self) -> Pending:
        """Itself: gate and sum are in float32."""
        return self


class Added(StreamSum):
    """The sum of a stream and of an `Unadded`; of a stream that is such a sum itself, one sum."""

    __slots__ = ()

    def by_kernel(self) -> Tensor | None:
        """The sum of all that are added one after the other."""
        outputs: list[Unadded] = []
        node: Any = self
        while isinstance(node, Added) and node.waits and node.dtype == self.dtype:
            stream, output = node.args
            if not output.fits(stream.shape):
                break
            outputs.append(output)
            node = uncast(stream, self.dtype)
        if not outputs or node.dtype != self.dtype:
            return None
        outputs.reverse()  # as the block adds them
        gates = [None if o.gate is None else real(o.gate) for o in outputs]
        return added(real(node), [o.output for o in outputs], gates)
