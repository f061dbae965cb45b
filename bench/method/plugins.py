"""Plug-ins: Python files that declare methods, families, models and metrics, and the source a
method comes from. Never imports torch by itself."""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from ditbench.declarations import Registry
from ditbench.method.registry import METHODS
from ditbench.records.files import file_sha256
from ditbench.records.reading import read_content
from ditbench.records.text import one_line

SHA256 = "__source_sha256__"
"""Where the module of a plug-in keeps the hash of the source it was made of."""


def load_plugins(paths: Iterable[str | Path]) -> None:
    """Run several Python files; ValueError as `load_plugin`."""
    for path in paths:
        load_plugin(path)


def load_plugin(path: str | Path) -> list[str]:
    """Run a Python file that declares methods, families, models or metrics, and return their names;
    ValueError, with file and line, when it cannot be run, or declares nothing.

    A file that was run before is run again only when its text has changed. It is compiled from the
    bytes that are hashed, never read from a cache of bytecode, which a change within one second and
    of no other length would leave as it was.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ValueError(f"plug-in {path} is not a file")
    source = read_content(path)
    sha256 = hashlib.sha256(source).hexdigest()
    name = f"ditbench_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if getattr(sys.modules.get(name), SHA256, None) != sha256:
        forget(name)
        module = ModuleType(name)
        module.__file__ = str(path)
        setattr(module, SHA256, sha256)
        sys.modules[name] = module
        try:
            with _no_way_out():
                exec(compile(source, str(path), "exec"), vars(module))
        # a plug-in that leaves with code 0 would look like success
        except (Exception, SystemExit) as error:
            forget(name)
            raise ValueError(
                f"plug-in {path}{_line(error, path)} failed: {type(error).__name__}: {_text(error)}"
            ) from error
    declared = [n for n, cls in METHODS.items() if cls.__module__ == name]
    declared += [row for registry in Registry.ALL for row in registry.declared_by(name)]
    if not declared:
        forget(name)
        raise ValueError(
            f"plug-in {path} declares no method, family, model or metric: put @method(...) on a "
            "class, or call register_family, register_model or register_metric"
        )
    return declared


@contextmanager
def _no_way_out() -> Iterator[None]:
    """`os._exit` ends no process while a plug-in is read, but is the error that `sys.exit` is."""
    leave, process, reading = os._exit, os.getpid(), [True]

    def refuse(status: int) -> NoReturn:
        if reading and os.getpid() == process:
            raise SystemExit(status)
        leave(status)  # what it forked, or a name of it that was kept

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = leave
        reading.clear()


def _text(error: BaseException) -> str:
    try:
        return one_line(next(iter(str(error).splitlines()), ""))
    except Exception:  # of a plug-in's own class
        return "its text is not available"


def _line(error: BaseException, path: Path) -> str:
    """Where in a plug-in an error came from, as the end of "plug-in PATH"; "" where that cannot be
    known."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno},"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    return f", line {lines[-1]}," if lines else ""


def source_sha256(method: Any) -> str:
    """sha256 of the file a method is declared in; "" for those that come with ditbench, and where
    there is no file."""
    return module_sha256(type(method).__module__)


def module_sha256(name: str) -> str:
    """sha256 of the file of a module; "" for "", for ditbench's own, and where there is no file."""
    if name.partition(".")[0] in ("", "ditbench"):
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


def forget(module: str) -> None:
    """Take back a plug-in: its module and the methods it declared."""
    sys.modules.pop(module, None)
    for registry in Registry.ALL:
        registry.forget(module)
    for name in [n for n, cls in METHODS.items() if cls.__module__ == module]:
        del METHODS[name]
