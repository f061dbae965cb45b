"""A command under attack: in this process, within a time limit, with a folder beside it that nothing
may touch."""

import faulthandler
import hashlib
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from command import Done, command

SECONDS = 30
"""A case takes less than one; one that waits for a pipe, or reads without end, takes all."""
CODES = (0, 1, 2, 3)
"""What a command may end with; 5 is an error of ditbench itself."""
LINE = 2100
"""Characters of a line on stderr."""
SECRET = "the secret of another folder"


class HangError(BaseException):
    """The time limit was over."""


@contextmanager
def time_limit(seconds):
    def over(number, frame):
        raise HangError

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    # where a library opens a pipe again after every signal, the process ends, and says where
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attack(*words, seconds=SECONDS) -> Done:
    """The command's answer, which is a good one: no traceback, no hang, no exit code of ditbench's
    own errors, short lines without control characters, and nothing of the secret."""
    with time_limit(seconds):
        done = command(*words)
    assert done.returncode in CODES, (words, done.returncode, done.stderr[-3000:])
    assert "Traceback" not in done.stderr + done.stdout, (words, done.stderr[-3000:])
    for line in done.stderr.splitlines():
        assert len(line) <= LINE and shown(line), (words, line[:200])
    assert shown(done.stdout), (words, done.stdout[-2000:])
    assert SECRET not in done.stderr + done.stdout, words
    return done


def shown(text):
    """Whether a terminal does nothing but show it."""
    return all(c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160) for c in text)


def digest(folder, but=()):
    """Names, kinds, contents and times of all that lies in a folder, but for what begins with one of
    `but`."""
    total = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder)
        if str(name).startswith(tuple(but)):
            continue
        status = path.lstat()
        total.update(f"{name} {status.st_mode} {status.st_size}".encode("utf-8", "replace"))
        if path.is_file() and not path.is_symlink():
            total.update(f"{status.st_mtime_ns}".encode() + path.read_bytes())
    return total.hexdigest()


def outside(folder):
    """A folder that no command has anything to do with."""
    folder.mkdir()
    for name in ("samples.safetensors", "record.json", "x.json", "profile", "x.safetensors"):
        (folder / name).write_text(SECRET)
    (folder / "cells").mkdir()
    (folder / "cells" / "record.json").write_text(f'{{"secret": "{SECRET}"}}')
    return folder
