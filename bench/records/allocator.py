"""What the C library does with freed memory, which decides how long the same operations take on a CPU.

glibc gives memory at the top of its heap back to the system when enough of it is free, and maps large
blocks anew each time. Every page of the next tensor is then made by the kernel when it is first
written: an addition takes two to four times as long. Whether that happens depends on what lies behind
the block, so that a method that keeps tensors from step to step may pay for it and the plain model not.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # malloc.h
KEPT = {
    # the most that glibc takes. Tensors above 32 MB are mapped anew by each operation; without any
    # mapping (M_MMAP_MAX 0) they are not, but blocks of many sizes then take several times the memory
    # that is in use: torch wants blocks aligned, and what is cut off keeps freed ones apart
    MMAP_THRESHOLD: 32 << 20,
    TRIM_THRESHOLD: 2**31 - 1,
    TOP_PAD: 64 << 20,
}
CHOSEN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""How variables begin by which the user has chosen another allocator or other settings."""
_state = {"kept": False}


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for the next tensor, in this process from now on. Returns
    whether it does: not where it is none of glibc's, and not where the user has chosen otherwise."""
    if not _state["kept"] and not any(name.startswith(CHOSEN) for name in os.environ):
        library = _library()
        _state["kept"] = library is not None and all(
            library.mallopt(name, value) == 1 for name, value in KEPT.items()
        )
    return _state["kept"]


def give_back_freed_memory() -> None:
    """Give what is free now back to the system, so that the resident memory is what is in use."""
    if (library := _library()) is not None:
        library.malloc_trim(0)


def allocator() -> str:
    """What tensors on a CPU are allocated by, for a record; "" where it is as the system has it."""
    return "glibc keeps freed memory" if _state["kept"] else ""


def _library() -> Any:
    """glibc; None for another C library."""
    try:
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version, library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return library
