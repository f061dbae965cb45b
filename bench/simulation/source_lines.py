"""Which line of a method, a library or a test asked for what the device does."""

from __future__ import annotations

import sys
from typing import Any


def source_line() -> str:
    """Where the operation under way was asked for, as `module:line`: the innermost line that is
    neither torch's nor ours here."""
    name, line = frame()
    return f"{name}:{line}"


def frame() -> tuple[str, int]:
    """Module and line of the same."""
    caller: Any = sys._getframe(1)
    while caller is not None:
        name = caller.f_globals.get("__name__", "")
        if name.partition(".")[0] not in _PLUMBING and not name.startswith("ditbench.simulation"):
            return name, caller.f_lineno
        caller = caller.f_back
    return "?", 0


_PLUMBING = frozenset({"torch", "weakref", "contextlib", "functools"})
