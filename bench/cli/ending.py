"""How a command ends: the exit code and the one sentence of whatever went wrong, signals that stop
it, and output that nobody takes. No torch."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ditbench.cli.parser import BUG, INTERRUPTED, OK, USAGE
from ditbench.cli.usage import UsageError, sentence_of

if TYPE_CHECKING:
    from types import FrameType

TRACE = 4000
"""Characters of a traceback that are shown, its last ones."""
LONGEST = 2000
"""Characters of a sentence; most are a tenth as long."""
STOPPING = ("SIGTERM", "SIGHUP")
"""Signals that stop a command as Ctrl-C does, where they would end the process."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or a signal of STOPPING."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(do: Callable[[], int], words: Sequence[str]) -> int:
    """The exit code of a command: what `do` returns, or that of what it raised, which is told on
    stderr in one sentence. Only an error of ditbench itself is told with its traceback."""
    open_streams()
    try:
        code = do()
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        code = _code_of(error, words)
    _give_up_what_cannot_be_written()
    return code


BEGIN_ANEW = {"blocks", "count", "estimate", "match", "speed"}
"""Commands that keep nothing of what they have done."""


def _code_of(error: BaseException, words: Sequence[str]) -> int:
    """Tell what is wrong, and give its exit code."""
    if isinstance(error, BrokenPipeError):  # `| head`: enough was seen
        return OK
    if isinstance(error, KeyboardInterrupt) and not _of_plugin(error):
        import signal

        number = error.number if isinstance(error, Stopped) else int(signal.SIGINT)
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        anew = bool(words) and words[0] in BEGIN_ANEW
        after = "begins anew" if anew else "goes on from here"
        tell(f"interrupted{by}; the same command {after}")
        return INTERRUPTED + number
    if isinstance(error, SystemExit):
        if error.code in (0, None) and {"-h", "--help", "--version"} & {*words}:
            return OK
        tell(f"a plug-in or a library ended the program (SystemExit: {error.code})")
        return USAGE
    sentence = _sentence(error, words)
    if not sentence:
        import traceback

        from ditbench.records.text import clean

        trace = "".join(traceback.format_exception(error))
        print(clean(trace[-TRACE:]), file=sys.stderr)
        sentence = f"{type(error).__name__}, which is an error of ditbench itself: please report it"
        tell(sentence)
        return BUG
    tell(sentence)
    if isinstance(error, UsageError):
        print(error.usage, file=sys.stderr)
    return USAGE


def _sentence(error: BaseException, words: Sequence[str]) -> str:
    """What is wrong with what was given, or with the machine; "" where it is ditbench that is
    wrong."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}"
    if isinstance(error, (ValueError, OSError)):
        return sentence_of(error, words)
    if isinstance(error, MemoryError):
        return "memory ran out"
    if isinstance(error, RecursionError):
        return "what was given is nested too deeply"
    if place := _of_plugin(error):
        return f"a plug-in failed{place}: {type(error).__name__}: {_text(error)}"
    return ""


def _of_plugin(error: BaseException) -> str:
    """The line of a plug-in that raised an error; "" for all others, and for signals."""
    from ditbench.method.plugins import line_in_plugin

    return "" if isinstance(error, Stopped) else line_in_plugin(error)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # of a plug-in's own class
        return "its text is not available"


def tell(sentence: str) -> None:
    """Say something on stderr, on one line."""
    from ditbench.records.text import one_line

    with contextlib.suppress(OSError, ValueError):
        print(f"ditbench: {one_line(sentence, LONGEST)}", file=sys.stderr, flush=True)


def open_streams() -> None:
    """Standard streams that are closed lead nowhere from here on, or the next files that are opened
    would take their places; letters that an output has no code for are shown by number."""
    closed = []
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            closed.append(number)
            os.open(os.devnull, os.O_RDWR)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
    if 1 in closed:
        tell("stdout is closed, so that what is printed there is lost")


def _give_up_what_cannot_be_written() -> None:
    """Or Python would complain of it when it ends, and change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Signals that ask a process to end are raised as `Stopped`, so that everything is left as after
    Ctrl-C; what comes while that goes on changes nothing."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    before = {}
    for name in ("SIGINT", *STOPPING):
        if number := getattr(signal, name, None):
            handler = signal.getsignal(number)
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = handler  # nohup ignores SIGHUP, and so do we
                signal.signal(number, stop)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
