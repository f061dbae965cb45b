"""What a function does to tensors, as a flat list of operations that is a function itself.

A dispatch mode notes the operations of torch as they are run, in their order. What the outcome does
not need is left out, and what is made of no argument is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ditbench.models.fused_rows import PutRows, rows_added
from ditbench.models.fused_sums import added_now
from ditbench.models.pending import Pending

aten = torch.ops.aten
DIRECT: Mapping[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add,
    aten.mul.Tensor: torch.mul,
    aten.addmm.default: torch.addmm,
    aten.linear.default: torch._C._nn.linear,
    aten.silu.default: torch._C._nn.silu,
    aten.t.default: torch.t,
    aten.to.dtype: Tensor.to,
    aten.chunk.default: torch.chunk,
    aten.reshape.default: torch.reshape,
    aten.view.default: Tensor.view,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.select.int: torch.select,
    aten.cat.default: torch.cat,
    aten.sin.default: torch.sin,
    aten.cos.default: torch.cos,
    aten.embedding.default: torch.embedding,
    aten.layer_norm.default: torch.layer_norm,
    aten.native_layer_norm.default: torch.native_layer_norm,
    aten.split_with_sizes.default: torch.split_with_sizes,
    torch.ops.ditbench.outputs_added.default: added_now,
}
"""Functions that do an operation and nothing else, and take less of the host's time to call."""
ADD_ROWS = torch.ops.ditbench.rows_put_and_added.default
UNFILLED = (aten.new_empty.default, aten.empty.memory_format)
"""Operations whose result has no values yet, and may be written into."""
UNSTEADY = frozenset(
    {
        torch.Tag.nondeterministic_seeded,
        torch.Tag.data_dependent_output,
        torch.Tag.dynamic_output_shape,
    }
)
"""Tags of operations that go by random numbers, or whose outcome's form goes by values."""
HOST_READS = frozenset({
    Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.item, Tensor.__bool__,
    Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.is_nonzero,
})  # fmt: skip
"""Functions that give the numbers in a tensor to the host, and are no operations: in inference mode `item`
is none either."""
PLAIN = frozenset({bool, int, float, str, torch.dtype})
"""Types of arguments of what is called in between that are the same in every call that is alike."""
MOST_NUMBERS = 1 << 14
"""Of a constant that a list may hold; what is larger is made anew."""


class Unknown(Exception):
    """It cannot be known that a later call does the same."""


class Operations(TorchDispatchMode):
    """Notes operations on tensors, and where their arguments are from: `inputs`, the parameters and
    buffers of a block, or other operations."""

    def __init__(self, block: nn.Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.lines: list[tuple[str, Any, Any, Any]] = []
        """(name of the result, operation, args, kwargs), tensors as their `Name`."""
        self.names: dict[int, str] = {}
        self.constants: dict[str, Tensor] = {}
        self.why = ""
        """Why there is no list."""
        self._alive: list[Any] = [*inputs]  # or another tensor might get an id that is known
        self._unfilled: set[str] = set()
        self._rows: dict[int, Name] = {}
        """Of what is kept by a `PutRows` that was returned, which that is."""
        for i, tensor in enumerate(inputs):
            if id(tensor) in self.names:
                self.names[id(tensor)] = ""  # one tensor in two places: which one is meant?
            else:
                self.names[id(tensor)] = f"i{i}"
        self.parameters: dict[str, tuple[dict[str, Any], str]] = {}
        own = [
            (store, name)
            for part in block.modules()
            for store in (part._parameters, part._buffers)
            for name, tensor in store.items()
            if tensor is not None
        ]
        for i, (store, name) in enumerate(own):
            stored: Any = store[name]
            if type(stored) in (Tensor, nn.Parameter):
                self.names[id(stored)] = "" if id(stored) in self.names else f"p{i}"
                self.parameters[f"p{i}"] = store, name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self.why:
            try:
                self._note(func, args, kwargs, out)
            except Unknown as error:
                self.why = str(error)
        return out

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if UNSTEADY & {*func.tags}:
            raise Unknown(f"{func} goes by random numbers or by values")
        if func is ADD_ROWS and (rows := self._rows.pop(id(args[0]), None)):
            self.names[id(out)] = made = Name(f"v{len(self.lines)}")
            self.lines.append((made, rows_added, (rows, *self.named(args[-2:])), {}))
            self._alive.append(out)
            return
        if func._schema.is_mutable:
            self._note_written(func, args, kwargs, out)
            return
        named_args, named_kwargs = self.named(args), self.named(kwargs)
        if any(out is arg for arg in args):  # a cast to the type that it has
            return
        results = out if isinstance(out, (tuple, list)) else (out,)
        if not all(type(result) is Tensor for result in results):
            raise Unknown(f"{func} returns no tensor")
        name = f"v{len(self.lines)}"
        made_of = [leaf for leaf in tree_leaves((named_args, named_kwargs)) if _is(leaf)]
        small = sum(result.numel() for result in results) <= MOST_NUMBERS
        fixed = small and all(leaf in self.constants for leaf in made_of) and func not in UNFILLED
        if any(id(result) in self.names for result in results):
            raise Unknown(f"{func} returns what is known")
        self.lines.append((name, func, named_args, named_kwargs))
        for i, result in enumerate(results):
            whole = result is out
            own = Name(name if whole else f"{name}_{i}")
            self.names[id(result)] = own
            if fixed:
                self.constants[own] = result
        if func in UNFILLED:
            self._unfilled.add(name)
        self._alive.append(out)

    def _note_written(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """An operation that writes into a tensor made for it, `out=`."""
        target = self.named(kwargs.get("out"))
        if (
            not isinstance(out, Tensor)
            or out is not kwargs.get("out")
            or target not in self._unfilled
        ):
            raise Unknown(f"{func} writes into a tensor")
        self._unfilled.discard(target)
        name = Name(f"v{len(self.lines)}")
        self.lines.append((name, func, self.named(args), self.named(kwargs)))
        self.names[id(out)] = name

    def note_made(self, made: Any, by: Callable[..., Any], given: Sequence[Tensor]) -> None:
        """An object that is no tensor, made of these tensors by a function."""
        try:
            name = Name(f"v{len(self.lines)}")
            self.lines.append((name, by, self.named(tuple(given)), {}))
            self.names[id(made)] = name
            self._alive.append(made)
        except Unknown as error:
            self.why = self.why or str(error)

    def note_called(self, place: int, given: Any, output: Any) -> None:
        """What is called in between, for it does not do the same every time: number `place`, with these
        arguments, a tuple. Its outcome is a tensor or a `PutRows`, or a tuple of these and None."""
        if self.why:
            return
        try:
            named = self.named(given)
            leaves = tree_leaves(named)
            if any(leaf in self.constants for leaf in leaves if _is(leaf)):
                raise Unknown("what is called in between might write into a constant")
            if not all(_is(leaf) or leaf is None or type(leaf) in PLAIN for leaf in leaves):
                raise Unknown("what is called in between is given something unknown")
            name = f"v{len(self.lines)}"
            for i, part in enumerate(output if isinstance(output, tuple) else (output,)):
                if part is None:
                    continue
                own = Name(f"{name}_{i}" if isinstance(output, tuple) else name)
                if type(part) is PutRows:
                    self._rows[id(part.args[0])] = own
                elif type(part) is not Tensor or id(part) in self.names:
                    raise Unknown("what is called in between returns no tensor of its own")
                self.names[id(part)] = own
            self.lines.append((name, Called(place), named, {}))
            self._alive.append(output)
        except Unknown as error:
            self.why = str(error)

    def named(self, given: Any) -> Any:
        """The same with `Name`s in place of tensors and of what was made."""
        if isinstance(given, (Tensor, Pending)):
            if not (name := self.names.get(id(given), "")) or given.dtype.is_complex:
                raise Unknown("a tensor that is none of the block's, or one in two places")
            return Name(name)
        if isinstance(given, (tuple, list)):
            return type(given)([self.named(item) for item in given])
        if isinstance(given, dict):
            return {key: self.named(item) for key, item in given.items()}
        return given


class HostReads(TorchFunctionMode):
    """Has no list made of what reads numbers in a way that `Operations` does not see."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self._operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in HOST_READS:
            self._operations.why = f"{func.__name__} reads numbers"
        return func(*args, **(kwargs or {}))


class Name(str):
    """The variable of a tensor."""


class Called(int):
    """The number of what is called in between, in place of an operation."""


def _is(leaf: Any) -> bool:
    return isinstance(leaf, Name)


def needed(operations: Operations, returned: Any) -> tuple[list[Any], set[str]]:
    """The operations that the outcome is made of, in their order, and the variables they use. Raises
    `Unknown` for an outcome that is a constant, which whoever is given it might write into."""
    if any(leaf in operations.constants for leaf in tree_leaves(returned)):
        raise Unknown("it returns a constant")
    used = {leaf for leaf in tree_leaves(returned) if _is(leaf)}
    lines: list[Any] = []
    for name, func, args, kwargs in reversed(operations.lines):
        parts = [u for u in used if u == name or u.startswith(f"{name}_")]
        unneeded = not parts or all(part in operations.constants for part in parts)
        if unneeded and not isinstance(func, Called):
            continue
        lines.append((name, func, args, kwargs, sorted(parts)))
        used |= {leaf for leaf in tree_leaves((args, kwargs)) if _is(leaf)}
    return lines[::-1], used


def function_of(
    lines: Sequence[Any], returned: Any, parameters: Sequence[str], constants: Mapping[str, Tensor]
) -> Callable[[list[Tensor], list[Any], Any], Any]:
    """f(inputs, parameters, called) -> what the block returns, `called[i]` being number `i` of what is
    called in between; a variable goes with its last use."""
    space: dict[str, Any] = {}
    values: dict[int, str] = {}

    def written(given: Any) -> str:
        if _is(given):
            if given in constants:
                space[given] = constants[given]
            return f"i[{given[1:]}]" if given[0] == "i" else str(given)
        if isinstance(given, (tuple, list)):
            inside = "".join(f"{written(item)}, " for item in given)
            return f"[{inside}]" if isinstance(given, list) else f"({inside})"
        if isinstance(given, dict):
            return f"{{{', '.join(f'{key!r}: {written(item)}' for key, item in given.items())}}}"
        if given is None or type(given) in (bool, int, str):
            return repr(given)
        name = values.setdefault(id(given), f"c{len(values)}")
        space[name] = given  # a number, a type or a device
        return name

    last: dict[str, int] = {}
    for at, (name, _, args, kwargs, parts) in enumerate(lines):
        for leaf in (*tree_leaves((args, kwargs)), Name(name), *parts):
            if _is(leaf) and leaf[0] == "v" and leaf not in constants:
                last[leaf] = at
    for leaf in tree_leaves(returned):
        last.pop(leaf, None)
    source = [f"{', '.join(parameters)}, = p"] if parameters else []
    for at, (name, func, args, kwargs, parts) in enumerate(lines):
        what = f"r[{func}]" if isinstance(func, Called) else f"f{at}"
        space[f"f{at}"] = func if kwargs else DIRECT.get(func, func)
        given = [written(arg) for arg in args]
        given += [f"{key}={written(arg)}" for key, arg in kwargs.items()]
        source.append(f"{name} = {what}({', '.join(given)})")
        source += [f"{part} = {name}[{part.partition('_')[2]}]" for part in parts if part != name]
        if gone := sorted(leaf for leaf, end in last.items() if end == at):
            source.append(f"del {', '.join(gone)}")
    source.append(f"return {written(returned)}")
    exec(_compiled("def run(i, p, r):\n    " + "\n    ".join(source)), space)
    run: Callable[[list[Tensor], list[Any], Any], Any] = space["run"]
    return run


@cache
def _compiled(source: str) -> Any:
    return compile(source, "<a block that is reused>", "exec")
