"""Plug-ins: Python files with methods of people's own, and the source a method comes from. Never
imports torch by itself."""

from __future__ import annotations

import hashlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from ditbench.method.registry import METHODS
from ditbench.records.files import file_sha256

SHA256 = "__source_sha256__"
"""Where the module of a plug-in keeps the hash of the source it was made of."""


def load_plugin(path: str | Path) -> list[str]:
    """Run a Python file that declares methods, and return their names; ValueError when it cannot be
    run or declares none.

    A file that was run before is run again only when its text has changed. It is compiled from the
    bytes that are hashed, never read from a cache of bytecode, which a change within one second and
    of no other length would leave as it was.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ValueError(f"plug-in {path} is not a file")
    source = path.read_bytes()
    sha256 = hashlib.sha256(source).hexdigest()
    name = f"ditbench_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if getattr(sys.modules.get(name), SHA256, None) != sha256:
        _forget(name)
        module = ModuleType(name)
        module.__file__ = str(path)
        setattr(module, SHA256, sha256)
        sys.modules[name] = module
        try:
            exec(compile(source, path, "exec"), vars(module))
        except (
            Exception,
            SystemExit,
        ) as error:  # a plug-in that leaves with code 0 would look like success
            _forget(name)
            first_line = next(iter(str(error).splitlines()), "")
            line = _line_of(error, path)
            raise ValueError(
                f"plug-in {path}{f', line {line},' if line else ''} failed: "
                f"{type(error).__name__}: {first_line}"
            ) from error
    if not (found := [n for n, cls in METHODS.items() if cls.__module__ == name]):
        _forget(name)
        raise ValueError(f"plug-in {path} declares no method: put @method(...) on a class")
    return found


def source_sha256(method: Any) -> str:
    """sha256 of the file a method is declared in; "" for those that come with ditbench, and where
    there is no file."""
    name = type(method).__module__
    if name.partition(".")[0] == "ditbench":
        return ""
    module = sys.modules.get(name)
    if sha256 := getattr(module, SHA256, ""):
        return str(sha256)
    file = Path(getattr(module, "__file__", None) or "")
    return file_sha256(file) if file.is_file() else ""


def line_in_plugin(error: BaseException) -> str:
    """` (FILE.py, line N)`: the innermost line of a plug-in that an error passed through; "" when it
    passed through none."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if SHA256 in frame.f_globals:
            place = f" ({Path(frame.f_code.co_filename).name}, line {line})"
    return place


def _line_of(error: BaseException, path: Path) -> int | None:
    """The innermost line of the file at `path` in an error's traceback, or that of its syntax
    error."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == str(path)
    ]
    return lines[-1] if lines else None


def _forget(module: str) -> None:
    sys.modules.pop(module, None)
    for name in [n for n, cls in METHODS.items() if cls.__module__ == module]:
        del METHODS[name]
