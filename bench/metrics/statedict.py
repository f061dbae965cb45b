"""Tensors out of published `.pth` files, without unpickling them: their pickle is read as data, and nothing it names is ever called.

Such a file is a pickle program that builds a dictionary of tensors, beside the tensors' bytes, in a zip archive or (before torch 1.6)
one stream of pickles. `pickletools` lists the program's instructions; the few that a dictionary of tensors needs are followed here, and
any other is refused.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

TYPES = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ByteStorage": np.dtype("u1"),
}
TENSORS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
WHOLE = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None}
PLAIN = ("BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "BINSTRING", "BININT", "BININT1", "BININT2", "LONG1")
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
Array = NDArray[Any]


class _Name(str):
    """A class or function the program names."""


class _Storage(tuple[Any, ...]):
    """Key and element type of a tensor's bytes."""


class _Tensor(tuple[Any, ...]):
    """Storage, offset, size and stride."""


def read_state_dict(path: Path, prefix: str = "") -> dict[str, Array]:
    """Tensors of a state dictionary by name, those whose names begin with `prefix`; ValueError for anything else or a damaged file."""
    try:
        with path.open("rb") as f:
            if zipfile.is_zipfile(f):
                return _from_archive(f, prefix)
            f.seek(0)
            return _from_stream(f, prefix)
    except (ValueError, LookupError, EOFError, TypeError, AttributeError, StopIteration, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged, or no file of tensors ({error})") from error


def _from_archive(f: IO[bytes], prefix: str) -> dict[str, Array]:
    with zipfile.ZipFile(f) as archive:
        program = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = program.removesuffix("data.pkl")
        told = _follow(io.BytesIO(archive.read(program)))
        return _tensors(told, prefix, lambda key: archive.read(f"{root}data/{key}"))


def _from_stream(f: IO[bytes], prefix: str) -> dict[str, Array]:
    """Magic number, protocol, machine, the dictionary, the order of the storages, and each one's length and bytes."""
    for _ in range(3):
        _follow(f)
    told, keys, places, width = _follow(f), _follow(f), {}, {}
    for tensor in told.values():
        key, dtype = tensor[0]
        width[key] = dtype.itemsize
    for key in keys:
        num = int.from_bytes(f.read(8), "little")
        places[key] = (f.tell(), num * width[key])
        f.seek(num * width[key], io.SEEK_CUR)

    def read(key: str) -> bytes:
        at, size = places[key]
        f.seek(at)
        return f.read(size)

    return _tensors(told, prefix, read)


def _tensors(told: Any, prefix: str, read: Callable[[str], bytes]) -> dict[str, Array]:
    if not isinstance(told, dict) or not all(isinstance(value, _Tensor) for value in told.values()):
        raise ValueError("it holds something else than a dictionary of tensors")
    found = {}
    for name, ((key, dtype), offset, size, stride) in told.items():
        if name.startswith(prefix):
            flat = np.frombuffer(read(key), dtype)
            last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if 0 not in size else 0
            if last >= len(flat) + (0 in size):
                raise ValueError(f"{name} reaches beyond its bytes")
            steps = [step * dtype.itemsize for step in stride]
            found[name] = np.lib.stride_tricks.as_strided(flat[offset:], size, steps).copy()
    return found


def _follow(f: IO[bytes]) -> Any:
    """What one pickle program builds, with storages and tensors as descriptions."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        taken = stack[at:]
        del stack[at:]
        return taken

    for instruction, argument, _ in pickletools.genops(f):
        name = instruction.name
        if name in ("PROTO", "FRAME"):
            pass
        elif name == "STOP":
            return stack.pop()
        elif name in PLAIN:
            stack.append(argument)
        elif name in WHOLE:
            stack.append(WHOLE[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in TUPLES:
            num = TUPLES[name]
            taken = stack[len(stack) - num :]
            del stack[len(stack) - num :]
            stack.append(tuple(taken))
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("SETITEM", "SETITEMS"):
            taken = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(taken[::2], taken[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            taken = since_mark() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(taken)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_Name(argument))
        elif name == "BINPERSID":
            _, kind, key = stack.pop()[:3]
            stack.append(_Storage((key, TYPES[kind])))
        elif name == "REDUCE":
            given, what = stack.pop(), stack.pop()
            stack.append(_build(what, given))
        elif name == "BUILD":
            stack.pop()  # attributes beside a dictionary's entries: the version of each layer
        else:
            raise ValueError(f"a file of tensors has no use for the instruction {name}")
    raise EOFError("it ends early")


def _build(what: Any, given: tuple[Any, ...]) -> Any:
    if not isinstance(what, _Name):
        raise ValueError("it calls what it has not named")
    if what == "collections OrderedDict":
        return dict(*given)  # of nothing, or, as Python 2 wrote it, of a list of pairs
    if what in TENSORS and isinstance(given[0], _Storage):
        return _Tensor(given[:4])
    if what == "torch._utils _rebuild_parameter":
        return given[0]
    raise ValueError(f"a file of tensors has no use for {what.replace(' ', '.')}")
