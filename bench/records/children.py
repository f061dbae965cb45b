"""Processes that are started for a part of the work: none outlives the command that started it, none
hears Ctrl-C (the command does, and ends them), and none imports what happens to lie in the working
directory. No torch."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait

PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h: the signal this process gets when its parent ends."""
SAFE_PATH = "PYTHONSAFEPATH"
"""Environment variable with which `python -c` does not look for modules in the working
directory."""


def end_with_parent() -> None:
    """End this process when the one that started it ends, killed or not: or it would go on
    measuring, and writing, beside the next command.

    A thread waits for the end of a pipe that the other end of is the parent's. On Linux the system
    kills it too, in whatever call it is, when its direct parent ends (`prctl`): that is the
    forkserver, which ends with the command.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def begin() -> None:
    """What a forked process does first: it ends with its parent and by SIGTERM, whatever the parent
    does on that signal."""
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()


@contextlib.contextmanager
def starting(tracked: bool = False) -> Iterator[None]:
    """What is started inside does not hear Ctrl-C, from its first moment on, and does not import
    from the working directory. `tracked`: not by forking, so that multiprocessing starts a process
    of its own beside it, which is done first: it lets Ctrl-C through again."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    if tracked and sys.platform != "win32":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()
    mask = None
    if hasattr(signal, "pthread_sigmask"):  # which a process inherits; Windows has none
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before
