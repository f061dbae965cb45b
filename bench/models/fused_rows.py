"""What a sub-layer that computes some rows does besides, as one kernel each: norm and modulation of the
rows it takes, and putting them back with gate and residual.

The kernels (`row_kernels`, Triton) are used on CUDA where the package triton is there; everywhere else
torch's operations are, one by one, as the block's code has them. The two differ in the last bits: a
kernel rounds once, where the block's code rounds after every operation.

B batch, N rows, K chosen rows, D width.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from ditbench.models.gated import OutputPending, StreamSum, is_by_sample
from ditbench.models.pending import ADD, ALIKE, CAST, MUL, Pending, promoted, real
from ditbench.models.regions import running_computer

_CHOSEN: list[str] = []


@contextmanager
def computed_by(kernel: str) -> Iterator[None]:
    """Inside, rows are computed by `torch`, as the setting `row_kernels` has it, or by `triton`,
    whatever the device: for tests, and for a simulated GPU. `auto`: by what the device has."""
    _CHOSEN.append(kernel)
    try:
        yield
    finally:
        _CHOSEN.pop()


def kernel_of(device: torch.device) -> str:
    """What computes rows there now: `triton`, or `torch` where that cannot, where gradients are wanted,
    and where somebody computes the regions of the block that runs (`regions.Computer`)."""
    if torch.is_grad_enabled() or running_computer() is not None:
        return "torch"
    if _CHOSEN and _CHOSEN[-1] != "auto":
        return _CHOSEN[-1]
    return "triton" if device.type == "cuda" and _triton_is_there() else "torch"


@cache
def _triton_is_there() -> bool:
    return find_spec("triton") is not None


def modulated(
    x: Tensor,
    rows: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Layer norm of `rows` [B,K] of x [B,N,D] (None: all), times 1 + scale, plus shift: [B,K,D] in the
    type of x. `scale` and `shift` [B or 1,1,D], `weight` and `bias` [D]."""
    run: Any = torch.ops.ditbench.rows_modulated
    if not seen_by_others(x):
        from ditbench.models.row_kernels import modulated as run
    out: Tensor = run(x, rows, weight, bias, eps, scale, shift)
    return out


def put_and_added(
    kept: Tensor,
    times: Tensor,
    order: Tensor,
    new: Tensor,
    now: float,
    first: bool,
    gate: Tensor | None,
    stream: Tensor,
) -> Tensor:
    """`new` [B,K,D] written into the rows order[:, :K] of `kept` [B,N,D], `now` into those of `times`
    [B,N]; where `first`, 0 into the others, which have no values yet. Returns the stream [B,N,D] with
    `kept` added, times `gate` [B or 1,1,D] where there is one. `order` [B,N] int64 has every row
    once."""
    run: Any = torch.ops.ditbench.rows_put_and_added
    if not seen_by_others(stream):
        from ditbench.models.row_kernels import put_and_added as run
    out: Tensor = run(kept, times, order, new, now, first, gate, stream)
    return out


def seen_by_others(x: Tensor) -> bool:
    """Whether somebody looks at operations: a simulated device, or a counter. Calling the kernel itself
    takes less of the host's time."""
    return isinstance(x, FakeTensor) or torch._C._len_torch_dispatch_stack() > 0


@torch.library.custom_op("ditbench::rows_modulated", mutates_args=())
def _modulated(
    x: Tensor, rows: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float,
    scale: Tensor | None, shift: Tensor | None,
) -> Tensor:  # fmt: skip
    from ditbench.models.row_kernels import modulated

    return modulated(x, rows, weight, bias, eps, scale, shift)


@_modulated.register_fake
def _modulated_shape(x: Tensor, rows: Tensor | None, *_: Any) -> Tensor:
    return x.new_empty(len(x), x.shape[1] if rows is None else rows.shape[1], x.shape[2])


@torch.library.custom_op("ditbench::rows_put_and_added", mutates_args=("kept", "times"))
def _put_and_added(
    kept: Tensor, times: Tensor, order: Tensor, new: Tensor, now: float, first: bool,
    gate: Tensor | None, stream: Tensor,
) -> Tensor:  # fmt: skip
    from ditbench.models.row_kernels import put_and_added

    return put_and_added(kept, times, order, new, now, first, gate, stream)


@_put_and_added.register_fake
def _sum_shape(*given: Any) -> Tensor:
    return torch.empty_like(given[-1], memory_format=torch.contiguous_format)


ROWS_READ = frozenset({torch.ops.ditbench.rows_modulated})
"""Operations that read of their first argument only the rows they give."""


def taken(x: Any, rows: Tensor | None) -> Tensor | None:
    """`rows` [B,K] (None: all) of a norm and its modulation that are pending, by the kernel; None where
    it is something else, or the kernel is not used."""
    if not isinstance(x, Pending) or not x.waits or kernel_of(x.device) != "triton":
        return None
    shift = scale = None
    node = uncast(x)
    if isinstance(node, Pending) and node.kind == ADD:
        node, shift = _normed_and_other(node)
    if isinstance(node, Pending) and node.kind == MUL:
        node, factor = _normed_and_other(node)
        scale = _less_one(factor)
        if scale is None:
            return None
    norm = _layer_norm(node, x.dtype)
    if norm is None:
        return None
    stream, weight, bias, eps = norm
    if not all(by_sample(t, stream.shape) for t in (scale, shift) if t is not None):
        return None
    if stream.dtype != x.dtype:
        return None
    return modulated(stream, rows, weight, bias, eps, real(scale), real(shift))


def uncast(node: Any, dtype: torch.dtype | None = None) -> Any:
    """Without casts that are pending; with `dtype` not beyond where it is of that type."""
    while isinstance(node, Pending) and node.waits and node.kind == CAST and node.dtype != dtype:
        node = node.args[0]
    return node


def _normed_and_other(node: Pending) -> tuple[Any, Any]:
    """The argument of a sum or product that is made of a norm, and the other one; (None, None) where
    neither is."""
    for normed, other in (node.args, node.args[::-1]):
        if normalised(normed):
            return uncast(normed), other
    return None, None


def normalised(given: Any) -> bool:
    """Whether it is made of a norm by arithmetic; a stream, which is needed whole, is not."""
    if not isinstance(given, Pending) or not given.waits:
        return False
    if given.kind in (ADD, MUL, CAST):
        return any(map(normalised, given.args))
    return given.kind == ALIKE


def _less_one(factor: Any) -> Any:
    """What 1 is added to; None where the factor is no such sum."""
    if isinstance(factor, Pending) and factor.waits and factor.kind == ADD:
        one, other = factor.args if factor.args[0] == 1 else factor.args[::-1]
        if isinstance(one, int) and one == 1 and isinstance(other, (Pending, Tensor)):
            return other
    return None


def _layer_norm(node: Any, dtype: torch.dtype) -> Any:
    """(stream [B,N,D], weight, bias, eps) of a layer norm over the last dimension that is pending;
    None where it is none."""
    if not isinstance(node, Pending) or not node.waits or node.kind != ALIKE:
        return None
    named = node.operation.keywords if isinstance(node.operation, partial) else {}
    function = node.operation.func if isinstance(node.operation, partial) else node.operation
    if function is not F.layer_norm or node.ndim != 3:
        return None
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    given = dict(zip(names, node.args, strict=False)) | named
    if len(given["normalized_shape"]) != 1:
        return None
    weight, bias = real(given.get("weight")), real(given.get("bias"))
    return real(uncast(given["input"], dtype)), weight, bias, float(given.get("eps", 1e-5))


def by_sample(given: Any, shape: Any) -> bool:
    """Whether it is [B or 1,1,D] beside a tensor of that shape [B,N,D], in memory row by row."""
    return is_by_sample(given, shape) and bool(real(given).stride(-1) == 1)


class PutRows(OutputPending):
    """A kept output into which rows are to be written, on its way to its gate and the stream, in a block
    that runs on pending tensors: all of it is one kernel where the block does what blocks do."""

    __slots__ = ("_gate", "_unwritten")

    def __init__(
        self, kept: Tensor, times: Tensor, order: Tensor, new: Tensor, now: float, first: bool,
        gate: Any = None, unwritten: list[Callable[[], object]] | None = None,
    ) -> None:  # fmt: skip
        """Arguments as of `put_and_added`; `unwritten`: called when the rows have been written."""
        super().__init__(None, "rows", None, (kept, times, order, new, now, first))
        self._gate = gate
        nobody: list[Callable[[], object]] = [lambda: None]
        self._unwritten = nobody if unwritten is None else unwritten
        """Empty once they have been: shared with the same output before its gate."""

    @property
    def value(self) -> Tensor:
        """The whole output."""
        if self._value is None:
            self.write()
            kept: Tensor = self.args[0]
            self.settle(kept if self._gate is None else real(self._gate) * kept)
        value: Tensor = self._value  # type: ignore[assignment]
        return value

    @property
    def shape(self) -> Any:
        """Of the whole output."""
        return (self._value if self._value is not None else self.args[0]).shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the output, times its gate."""
        known: torch.dtype = (self._value if self._value is not None else self.args[0]).dtype
        waits = self._value is None and self._gate is not None
        return promoted(known, self._gate.dtype) if waits else known

    def write(self) -> None:
        """Write the rows, unless they have been."""
        if self._unwritten:
            kept, times, order, new, now, first = self.args
            if first:
                times.zero_()
            rows = order[:, : new.shape[1]]
            kept.scatter_(1, rows.unsqueeze(-1).expand(-1, -1, kept.shape[-1]), new)
            times.scatter_(1, rows, now)
            self._unwritten.pop()()

    def added_to(self, stream: Tensor) -> Tensor | None:
        """The stream with it, by the kernel; None where that cannot."""
        if self._value is not None or not self._unwritten:
            return None
        kept, _, _, new, _, _ = self.args
        if new.dtype != kept.dtype or kept.stride(-1) != 1 or new.stride(-1) != 1:
            return None
        if stream.shape != kept.shape:
            return None
        if self._gate is not None and not by_sample(self._gate, kept.shape):
            return None
        return rows_added(self, real(self._gate), stream)

    @property
    def is_unwritten(self) -> bool:
        """Whether it waits, without a gate yet."""
        return self._value is None and self._gate is None and bool(self._unwritten)

    def taken_over(self) -> None:
        """Whoever is called by `unwritten` is, as the rows are about to be written."""
        self._unwritten.pop()()

    def __mul__(self, gate: Any) -> Pending:
        fits = self._value is None and self._gate is None
        if not fits or not is_by_sample(gate, self.shape):
            return Pending(None, MUL, operator.mul, (self, gate))
        kept, times, order, new, now, first = self.args
        return PutRows(kept, times, order, new, now, first, gate, self._unwritten)

    __rmul__ = __mul__

    def __add__(self, stream: Any) -> Pending:
        if not self.is_added_to(stream):
            return Pending(None, ADD, operator.add, (stream, self))
        return RowsAdded(self, stream)

    __radd__ = __add__

    def float(self) -> Pending:
        """Itself: gate and sum are in float32."""
        return self


def rows_added(rows: PutRows, gate: Tensor | None, stream: Tensor) -> Tensor:
    """`put_and_added` of rows that have not been written."""
    rows.taken_over()
    kept, times, order, new, now, first = rows.args
    return put_and_added(kept, times, order, new, now, first, gate, stream)


class RowsAdded(StreamSum):
    """The sum of a stream and of an output with new rows, a `PutRows`."""

    __slots__ = ()

    def by_kernel(self) -> Tensor | None:
        """The sum, by the kernel of the rows."""
        stream, rows = self.args
        bare = real(uncast(stream, self.dtype))
        added: Tensor | None = rows.added_to(bare) if bare.dtype == self.dtype else None
        return added
