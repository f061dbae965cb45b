"""What is pending as one function of tensors: the sums, norm and modulation before a sub-layer, which
whoever computes a block's regions then computes at once.

Linear layers are left out, as are parts of a chunk and joined tensors: what they give is an argument
of the function. The residual stream is needed again after its norm, so the function returns that
too, and it is not worked out twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ditbench.models.pending import ADD, ALIKE, CAST, MUL, VIEW, Pending, worked_out

FUSED = (ADD, MUL, CAST, ALIKE, VIEW)
NORMS = (F.layer_norm,)
LEAST = 2
"""Operations that are worth a function of their own; a single one is run as it is."""
OF_TOKENS = 3
"""Dimensions of what has a row for each token: embeddings of the time step are too small to gain."""


class Expression:
    """What a pending tensor is made of, as text: `source` and `operations` are the same for tensors
    that are made in the same way."""

    def __init__(self, root: Pending) -> None:
        self.arguments: list[Tensor] = []
        self.operations: list[Callable[..., Any]] = []
        self.streams: list[Pending] = []
        """What the function returns besides, in its order."""
        self._lines: list[str] = []
        self._names: dict[int, str] = {}
        result = self._name(root)
        returned = ", ".join([result, *(self._names[id(stream)] for stream in self.streams)])
        taken = ", ".join(f"a{i}" for i in range(len(self.arguments)))
        self.source = "\n    ".join([f"def region({taken}):", *self._lines, f"return {returned},"])

    @property
    def steps(self) -> int:
        """Its operations."""
        return len(self._lines)

    def function(self) -> Callable[..., tuple[Tensor, ...]]:
        """f(*arguments) -> its value, and those of `streams`."""
        made: Callable[..., tuple[Tensor, ...]] = _function(self.source, tuple(self.operations))
        return made

    def _name(self, given: Any) -> str:
        """The variable of a tensor or of what is pending; constants as they are written."""
        if not isinstance(given, Pending):
            return self._argument(given) if isinstance(given, Tensor) else _written(given)
        if id(given) not in self._names:
            if given.waits and is_fused(given):
                self._names[id(given)] = self._line(given)
            else:
                return self._argument(given.value)
        return self._names[id(given)]

    def _argument(self, tensor: Tensor) -> str:
        if id(tensor) not in self._names:
            self._names[id(tensor)] = f"a{len(self.arguments)}"
            self.arguments.append(tensor)
        return self._names[id(tensor)]

    def _line(self, node: Pending) -> str:
        operation: Any = node.operation
        named: dict[str, Any] = {}
        if isinstance(operation, partial):
            operation, named = operation.func, operation.keywords
        if operation in NORMS:
            self._return_stream(node.args[0])
        given = [self._name(arg) for arg in node.args]
        given += [f"{name}={self._name(arg)}" for name, arg in named.items()]
        if operation not in self.operations:
            self.operations.append(operation)
        line = f"v{len(self._lines)}"
        at = self.operations.index(operation)
        self._lines.append(f"{line} = f{at}({', '.join(given)})")
        return line

    def _return_stream(self, normed: Any) -> None:
        """What is normed is the stream, or the stream in float32."""
        while isinstance(normed, Pending) and normed.waits and normed.operation is Tensor.float:
            normed = normed.args[0]
        if isinstance(normed, Pending) and normed.waits and is_fused(normed):
            self._name(normed)
            if all(stream is not normed for stream in self.streams):
                self.streams.append(normed)


def is_fused(node: Pending) -> bool:
    """Whether it is an operation of the function, and not one of its arguments."""
    operation = node.operation
    if isinstance(operation, partial):
        operation = operation.func
    return node.kind in FUSED and getattr(operation, "__name__", "<lambda>") != "<lambda>"


def work_out(
    node: Pending, compute: Callable[[Callable[..., tuple[Tensor, ...]], list[Tensor]], Any]
) -> Tensor:
    """The value of what is pending, by `compute(function, arguments)` where it is several operations;
    what the function returns besides is worked out with it."""
    if is_fused(node) and _of_tokens(node):
        expression = Expression(node)
        if expression.steps >= LEAST:
            value, *others = compute(expression.function(), expression.arguments)
            for stream, other in zip(expression.streams, others, strict=True):
                stream.settle(other)
            out: Tensor = value
            return out
    made: Tensor = worked_out(node)
    return made


def _of_tokens(node: Pending) -> bool:
    """Whether a stream, or a sub-layer's output, is in it: looked for without working anything out,
    for most of what is pending is an embedding."""
    for arg in node.args:
        if isinstance(arg, Pending):
            if arg.waits:
                if is_fused(arg) and _of_tokens(arg):
                    return True
                continue
            arg = arg.value
        if isinstance(arg, Tensor) and arg.ndim >= OF_TOKENS:
            return True
    return False


def _written(constant: Any) -> str:
    if isinstance(constant, (tuple, list)):
        return f"({''.join(_written(item) + ', ' for item in constant)})"
    if not isinstance(constant, (int, float, str, slice, torch.dtype, type(None), type(...))):
        raise TypeError(f"{constant!r} is no constant of a pending tensor")
    return "..." if constant is ... else repr(constant)


@cache
def _function(source: str, operations: tuple[Callable[..., Any], ...]) -> Any:
    space = {"torch": torch} | {f"f{i}": operation for i, operation in enumerate(operations)}
    exec(compile(source, "<pending tensors>", "exec"), space)
    return space["region"]
