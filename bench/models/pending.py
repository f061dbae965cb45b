"""Tensors that are worked out when somebody asks for them: a block runs on these, so that the norm
and the modulation of a sub-layer that is not run are not run either.

The block's own code says what is to be done, an operation at a time, and no forward is copied; what
is worked out is worked out by the operations that the code names, in their order, so that the values
are the same bits. What nobody asks for is never worked out.

Some rows of what is pending: `token_rows.take`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from ditbench.models.regions import running_computer

ADD, MUL, CAST, ALIKE = "add", "multiply", "cast", "alike"
CHUNK, PART, VIEW, LINEAR, JOIN = "chunk", "part", "view", "linear", "join"


class Pending:
    """A tensor that is not worked out before it is used.

    `shape`, `dtype`, `device`, `len` and `ndim` are known without that; every other attribute, and every
    function of torch that is not recorded, has it worked out and goes by its value.
    """

    __slots__ = ("_dtype", "_shape", "_value", "args", "kind", "operation")
    takes_sums = False
    """Whether a sum with it is as its own `__add__` says, whatever the other is."""

    def __init__(
        self,
        value: Tensor | None,
        kind: str = "",
        operation: Any = None,
        args: tuple[Any, ...] = (),
    ) -> None:
        self._value = value
        self.kind, self.operation, self.args = kind, operation, args
        self._shape: Any = None
        self._dtype: Any = None

    @property
    def value(self) -> Tensor:
        """The tensor."""
        if self._value is None:
            computer = running_computer()
            self.settle(worked_out(self) if computer is None else computer.work_out(self))
        value: Tensor = self._value  # type: ignore[assignment]
        return value

    def settle(self, value: Tensor) -> None:
        """It is worked out, and this is its value."""
        self._value, self.args = value, ()

    def know(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """These are its shape and type, which need not be found out."""
        self._shape, self._dtype = shape, dtype

    @property
    def shape(self) -> Any:
        """Its shape, a tuple of ints."""
        if self._value is not None:
            return self._value.shape
        if self._shape is None:
            self._shape = _shape_of(self)
        return self._shape

    @property
    def ndim(self) -> int:
        """Its number of dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Its type."""
        if self._value is not None:
            return self._value.dtype
        if self._dtype is None:
            self._dtype = _dtype_of(self)
        known: torch.dtype = self._dtype
        return known

    @property
    def device(self) -> torch.device:
        """Where it is, or will be."""
        if self._value is not None:
            return self._value.device
        first = self.args[0]
        while isinstance(first, (tuple, list)):
            first = first[0]
        other = first if isinstance(first, (Pending, Tensor)) else self.args[1]
        known: torch.device = other.device
        return known

    @property
    def waits(self) -> bool:
        """Whether it has not been worked out yet."""
        return self._value is None

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.value, name)

    def __add__(self, other: Any) -> Pending:
        if isinstance(other, Pending) and other.takes_sums:
            sum_: Pending = other.__radd__(
                self
            )  # Python asks it only where it is of a class below ours
            return sum_
        return Pending(None, ADD, operator.add, (self, other))

    def __radd__(self, other: Any) -> Pending:
        return Pending(None, ADD, operator.add, (other, self))

    def __mul__(self, other: Any) -> Pending:
        return Pending(None, MUL, operator.mul, (self, other))

    def __rmul__(self, other: Any) -> Pending:
        return Pending(None, MUL, operator.mul, (other, self))

    def __getitem__(self, at: Any) -> Pending:
        return Pending(None, VIEW, operator.getitem, (self, at))

    def __iter__(self) -> Any:
        return iter(self.value)

    def unsqueeze(self, dim: int) -> Pending:
        """As of a tensor."""
        return Pending(None, VIEW, torch.unsqueeze, (self, dim))

    def reshape(self, *shape: Any) -> Pending:
        """As of a tensor."""
        return Pending(None, VIEW, Tensor.reshape, (self, *shape))

    def chunk(self, chunks: int, dim: int = 0) -> list[Pending]:
        """As of a tensor that has so many parts."""
        whole = Pending(None, CHUNK, _chunks, (self, chunks, dim))
        return [Pending(None, PART, operator.getitem, (whole, i)) for i in range(chunks)]

    def float(self) -> Pending:
        """As of a tensor."""
        return Pending(None, CAST, Tensor.float, (self,))

    def type_as(self, other: Any) -> Pending:
        """As of a tensor."""
        return Pending(None, CAST, Tensor.to, (self, other.dtype))

    def to(self, *where: Any, **more: Any) -> Any:
        """As of a tensor; recorded where it is to another type alone."""
        types = [*where, *more.values()]
        if len(types) == 1 and isinstance(types[0], torch.dtype):
            return Pending(None, CAST, Tensor.to, (self, types[0]))
        return self.value.to(*where, **more)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kind = RECORDED.get(function)
        if kind is None:
            return function(*real(args), **real(kwargs or {}))
        if kind == ADD and len(args) == 2 and not kwargs:
            for one, other in (args, args[::-1]):
                if isinstance(other, Pending) and other.takes_sums:
                    return other + one
        if kind == CHUNK:
            return args[0].chunk(*args[1:], **(kwargs or {}))
        if kind == JOIN:
            return Pending(None, JOIN, torch.cat, _joined(*args, **(kwargs or {})))
        return Pending(None, kind, _with(function, kwargs), args)


def _by_value(operation: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    def of_values(*operands: Any) -> Any:
        return operation(*real(operands[::-1] if reflected else operands))

    return of_values


# Python looks operators up on the class, where `__getattr__` is not asked
for _name in ("sub", "truediv", "floordiv", "mod", "pow", "matmul"):
    setattr(Pending, f"__{_name}__", _by_value(getattr(operator, _name)))
    setattr(Pending, f"__r{_name}__", _by_value(getattr(operator, _name), reflected=True))
for _name in ("neg", "abs", "invert", "lt", "le", "gt", "ge", "and_", "or_"):
    setattr(Pending, f"__{_name.strip('_')}__", _by_value(getattr(operator, _name)))


RECORDED: Mapping[Any, str] = {
    torch.add: ADD, Tensor.add: ADD, Tensor.__add__: ADD,
    torch.mul: MUL, Tensor.mul: MUL, Tensor.__mul__: MUL,
    torch.chunk: CHUNK, F.linear: LINEAR, torch.cat: JOIN,
    F.layer_norm: ALIKE, F.silu: ALIKE, torch.sin: ALIKE, torch.cos: ALIKE,
}  # fmt: skip
"""Functions of torch that wait, and what they are. `ALIKE`: a tensor of the first argument's shape
and type, made of each last-dimension row alone."""


def real(given: Any) -> Any:
    """The same with tensors in place of what is pending, inside tuples, lists and dicts too."""
    if isinstance(given, Pending):
        return given.value
    if isinstance(given, (tuple, list)):
        return type(given)([real(item) for item in given])
    if isinstance(given, dict):
        return {key: real(item) for key, item in given.items()}
    return given


def _chunks(x: Tensor, chunks: int, dim: int) -> tuple[Tensor, ...]:
    parts = x.chunk(chunks, dim)
    if len(parts) != chunks:
        raise ValueError(f"{list(x.shape)} has no {chunks} parts along dimension {dim}")
    return parts


def _joined(parts: Any, dim: int = 0) -> tuple[Any, int]:
    return parts, dim


def _with(function: Callable[..., Any], kwargs: Any) -> Callable[..., Any]:
    if not kwargs:
        return function
    return partial(function, **real(kwargs))


def worked_out(pending: Pending) -> Any:
    """Its value, by the operation it is, but for casts to float32 that arithmetic does by itself."""
    kind, args = pending.kind, pending.args
    if kind in (ADD, MUL):
        args = _uncast(*args)
    elif kind == CAST and not torch.is_grad_enabled():
        inner, target = args[0], pending.dtype
        if isinstance(inner, Pending) and inner._value is None and inner.kind == ADD:
            # rounded where it is written
            a, b = real(_uncast(*inner.args))
            if isinstance(a, Tensor) and isinstance(b, Tensor) and inner.dtype != target:
                return torch.add(a, b, out=a.new_empty(inner.shape, dtype=target))
    return pending.operation(*real(args))


def _uncast(a: Any, b: Any) -> tuple[Any, Any]:
    """Two operands without a cast to float32 that the other's type asks for anyway: the operation
    reads the value, which is rounded nowhere, and nothing is written in between."""
    return _bare(a, b), _bare(b, a)


def _bare(one: Any, other: Any) -> Any:
    if (
        isinstance(one, Pending)
        and one._value is None
        and one.operation is Tensor.float
        and isinstance(other, (Pending, Tensor))
        and one.args[0].dtype != torch.float64
        and other.dtype == torch.float32
        and not (isinstance(other, Pending) and other.operation is Tensor.float)
        and other.ndim
    ):
        return one.args[0]
    return one


@cache
def promoted(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The type of a sum or product of tensors of these, neither a number."""
    with _disable_current_modes():  # no operation of the block's
        return torch.promote_types(one, other)


def _dtype_of(pending: Pending) -> torch.dtype:
    kind, args = pending.kind, pending.args
    if kind == CAST:
        target: torch.dtype = torch.float32 if pending.operation is Tensor.float else args[1]
        return target
    if kind in (ADD, MUL):
        operands = [x for x in args if isinstance(x, (Pending, Tensor))]
        types = [x.dtype for x in operands]
        if len({*types}) == 1:
            return types[0]
        if all(x.ndim for x in operands):
            return promoted(*types)
    if kind in (ALIKE, LINEAR, VIEW, CHUNK):
        known: torch.dtype = args[0].dtype
        return known
    if kind == PART and args[0]._value is None:
        return _dtype_of(args[0])
    if kind == JOIN and len({part.dtype for part in args[0]}) == 1:
        joined: torch.dtype = args[0][0].dtype
        return joined
    return pending.value.dtype


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """As torch.broadcast_shapes of shapes that fit, in a tenth of its time."""
    if len(a) < len(b):
        a, b = b, a
    behind = len(a) - len(b)
    return a[:behind] + tuple(y if x == 1 else x for x, y in zip(a[behind:], b, strict=True))


def _shape_of(pending: Pending) -> tuple[int, ...]:
    kind, args = pending.kind, pending.args
    if kind in (ALIKE, CAST):
        return tuple(args[0].shape)
    if kind in (ADD, MUL):
        a, b = (tuple(x.shape) if isinstance(x, (Pending, Tensor)) else () for x in args)
        return a if a == b or not b else b if not a else _broadcast(a, b)
    if kind == LINEAR:
        return (*args[0].shape[:-1], args[1].shape[0])
    if kind == PART:
        whole, chunks, dim = args[0].args if args[0].args else (None, 0, 0)
        if whole is not None and (shape := list(whole.shape))[dim] % chunks == 0:
            shape[dim] //= chunks
            return tuple(shape)
    if kind == VIEW and pending.operation is torch.unsqueeze and args[1] >= 0:
        shape = list(args[0].shape)
        return (*shape[: args[1]], 1, *shape[args[1] :])
    if kind == VIEW and args[1:] == ((slice(None), None),):
        first, *rest = args[0].shape
        return (first, 1, *rest)
    if kind == JOIN and args[1] >= 0:
        shapes = [tuple(part.shape) for part in args[0]]
        dim, first = args[1], shapes[0]
        return (*first[:dim], sum(s[dim] for s in shapes), *first[dim + 1 :])
    return tuple(pending.value.shape)
