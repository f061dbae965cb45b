"""Outputs of sub-layers that are kept with their gates: reused, one is a single addition.

A block multiplies an output by its gate and adds it to the stream. What is handed to it here notes the
product at a computed step, and at a reused one stands for the product itself, so that nothing asks
for the gate, nor, where a whole block is reused, for the layers that make it.

B batch, N rows, D width.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor

from ditbench.models.pending import ADD, MUL, RECORDED, Pending, promoted, real

Keep = Callable[[Tensor], None]
"""f(gate times output [B,N,D])."""


def is_by_sample(given: Any, shape: Any) -> bool:
    """Whether it is [B or 1,1,D] beside a tensor of that shape, [B,N,D]."""
    if not isinstance(given, (Pending, Tensor)) or given.ndim != 3 or len(shape) != 3:
        return False
    batch, rows, width = given.shape
    return rows == 1 and batch in (1, shape[0]) and bool(width == shape[2])


class OutputPending(Pending):
    """A sub-layer's output in a block that runs on pending tensors: products and sums with it, those
    by torch's functions too, are as its own `__mul__` and `__add__` say."""

    __slots__ = ()
    takes_sums = True

    def is_added_to(self, stream: Any) -> bool:
        """Whether the sum with that has its shape and its type."""
        if not isinstance(stream, (Pending, Tensor)) or tuple(stream.shape) != tuple(self.shape):
            return False
        return self.dtype == stream.dtype or promoted(self.dtype, stream.dtype) == stream.dtype

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kind = RECORDED.get(function)
        if kind in (ADD, MUL) and not kwargs and len(args) == 2:
            one, other = args if isinstance(args[0], cls) else (args[1], args[0])
            return one + other if kind == ADD else one * other
        return super().__torch_function__(function, types, args, kwargs)


class StreamSum(Pending):
    """The sum of a stream and of an output that has a kernel for it."""

    __slots__ = ("_target",)

    def __init__(
        self, output: OutputPending, stream: Any, target: torch.dtype | None = None
    ) -> None:
        """`target`: the type it is cast to; None: as arithmetic has it."""
        super().__init__(None, "sum with a stream", None, (stream, output))
        self._target = target

    def by_kernel(self) -> Tensor | None:
        """The sum; None where the kernel cannot make it, and torch's operations do."""
        raise NotImplementedError

    @property
    def value(self) -> Tensor:
        """The sum."""
        if self._value is None:
            out = self.by_kernel()
            if out is None:
                stream, output = self.args
                out = real(stream) + output.value
                out = out if self._target is None else out.to(self._target)
            self.settle(out)
        value: Tensor = self._value  # type: ignore[assignment]
        return value

    @property
    def shape(self) -> Any:
        """Of the stream."""
        return self._value.shape if self._value is not None else self.args[0].shape

    @property
    def dtype(self) -> torch.dtype:
        """The type it is cast to, or that of the stream."""
        if self._value is not None:
            return self._value.dtype
        known: torch.dtype = self._target or self.args[0].dtype
        return known

    def type_as(self, other: Any) -> Pending:
        """In another's type."""
        if self._value is not None or self._target is not None:
            return super().type_as(other)
        return type(self)(self.args[1], self.args[0], other.dtype)


class Gated(OutputPending):
    """A sub-layer's output, in a block that runs on pending tensors (`deferred.defer`): the first
    product of it is with its gate, the first sum with the stream."""

    __slots__ = ("_keep",)

    def __init__(self, value: Tensor, keep: Keep | None = None) -> None:
        """`keep` is given the product when the block has made it, or the output itself where the
        block adds it without a gate; None: `value` is a product that was kept."""
        super().__init__(value)
        self._keep = keep

    @property
    def is_product(self) -> bool:
        """Whether it is a product that was kept, which nothing is noted of."""
        return self._keep is None

    def __mul__(self, gate: Any) -> Pending:
        if self._keep is None:
            return self
        product: Tensor = real(gate) * self.value
        self._keep(product)
        return Gated(product, self._keep)  # which another number may follow

    __rmul__ = __mul__

    def __add__(self, stream: Any) -> Pending:
        if self._keep is not None:
            self._keep(self.value)
        return Pending(None, ADD, operator.add, (stream, self.value))

    __radd__ = __add__

    def float(self) -> Pending:
        """Itself: a product with a gate in float32 is in float32."""
        return self

    def type_as(self, other: Any) -> Pending:
        """Itself: it is cast with the stream."""
        return self


def keeping(store: MutableMapping[Any, tuple[Tensor, ...]], key: Any, output: Any) -> Any:
    """The output of a sub-layer that has run, a tensor or a tuple; what the block adds of it to its
    streams comes to be kept as `store[key]`, a tuple."""
    parts = output if isinstance(output, tuple) else (output,)
    store[key] = parts  # of what no stream takes, as the text of SD3's last block, it stays

    def keep_at(place: int) -> Keep:
        def keep(product: Tensor) -> None:
            kept = store[key]
            store[key] = (*kept[:place], product, *kept[place + 1 :])

        return keep

    gated = tuple(Gated(part, keep_at(i)) for i, part in enumerate(parts))
    return gated if isinstance(output, tuple) else gated[0]


def reused(kept: tuple[Tensor, ...]) -> Any:
    """What `keeping` kept, as the sub-layer's output."""
    gated = tuple(map(Gated, kept))
    return gated if len(gated) > 1 else gated[0]
