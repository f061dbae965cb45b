"""Files that are read, whoever made them: regular files of bounded size, and JSON that holds finite
numbers, Unicode text and no more levels than a document needs. What is not so is named in one
sentence (ValueError); only where nothing lies at all FileNotFoundError is raised. No torch."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import tomllib
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

from ditbench.records.text import UNSHOWN, cleaned, one_line

LARGEST = 1 << 28
"""Bytes of a document."""
DEEPEST = 60
"""Levels of lists and objects in a document."""
SUSPECT = re.compile(r"\\u[dD][89a-fA-F]|[eE]\+?\d{3}|\d{300}")
ESCAPED = r"00[01][0-9a-f]|007f|00[89][0-9a-f]|061c|200[ef]|202[89a-e]|206[6-9]|d[89a-f]|feff"
"""`UNSHOWN`, as JSON writes it in ASCII."""
UNCLEAN = re.compile(rf"\\[bfr]|\\u(?i:{ESCAPED})|{UNSHOWN.pattern}")
"""JSON in which there may be text that is not fit to be shown."""
BRACKET = re.compile(r"[\[\]{}]")
STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}
KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
}  # fmt: skip


def regular(path: Path, within: Path | None = None) -> Path:
    """`path` itself, where it is a file, or a link to one, inside of `within` if that is given;
    looked at before anything opens it, for opening a pipe waits for ever."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with NUL in it
        raise ValueError(f"{path} cannot be read ({_why(error)})") from error
    if kind != stat.S_IFREG:
        raise ValueError(f"{path} is damaged ({KINDS.get(kind, 'something else')}, not a file)")
    if within is not None:
        _check_inside(path, within)
    return path


def _check_inside(path: Path, folder: Path) -> None:
    if not is_inside(path, folder):
        raise ValueError(f"{path} is damaged (a link to a file outside of {folder})")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether what lies at `path`, or would be made there, lies in `folder`, all links followed."""
    try:
        return path.resolve().is_relative_to(_resolved(folder.absolute()))
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return False


@lru_cache(maxsize=8)
def _resolved(folder: Path) -> Path:
    return folder.resolve()


def read_content(path: Path, within: Path | None = None, largest: int = LARGEST) -> bytes:
    """The bytes of a file as `regular` has it."""
    regular(path, within)
    try:
        # what has become a pipe since `regular` looked is opened without waiting, and refused
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | O_BINARY)
        with open(descriptor, "rb") as f:
            if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
                raise ValueError(f"{path} is damaged (not a file)")
            content = f.read(largest + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({_why(error)})") from error
    if len(content) > largest:
        raise ValueError(f"{path} is damaged (larger than {largest >> 20} MiB)")
    return content


O_BINARY = getattr(os, "O_BINARY", 0)


def read_text(path: Path, within: Path | None = None, largest: int = LARGEST) -> str:
    """The text of a file in UTF-8, with or without a mark of it."""
    return decoded(read_content(path, within, largest), str(path))


def decoded(content: bytes, place: str) -> str:
    """Bytes as text; the sentence of a ValueError begins with `place`."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is damaged ({one_line(str(error))})") from error


def read_json(
    path: Path, within: Path | None = None, *, clean: bool = False, infinite: bool = False
) -> Any:
    """The document at `path`; `clean`: its texts are fit to be shown (`records.text`); `infinite`:
    NaN and infinity are numbers, as Python writes them (samplers' configurations have them)."""
    return parse_json(read_text(path, within), str(path), clean=clean, infinite=infinite)


def parse_json(text: str, place: str, *, clean: bool = False, infinite: bool = False) -> Any:
    """A JSON document; the sentence of a ValueError begins with `place`. `clean` and `infinite` as
    `read_json`."""
    try:
        document = json.loads(text, parse_constant=float if infinite else _no_number)
    except RecursionError as error:
        raise ValueError(f"{place} is damaged (more than {DEEPEST} levels deep)") from error
    except ValueError as error:
        raise ValueError(f"{place} is damaged ({one_line(str(error))})") from error
    if _may_be_unsound(text) and (trouble := unsound(document, infinite)):
        raise ValueError(f"{place} is damaged ({trouble})")
    return cleaned(document) if clean and UNCLEAN.search(text) else document


def _may_be_unsound(text: str) -> bool:
    """Whether JSON has an escaped surrogate, a number of very many digits or a large exponent, or
    brackets, in strings too, as deep as a document may not be. Walking through all of a document
    takes longer than reading it."""
    if SUSPECT.search(text):
        return True
    steps = map(STEPS.__getitem__, BRACKET.findall(text))
    return max(accumulate(steps), default=0) > DEEPEST


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file."""
    try:
        table = tomllib.loads(read_text(path))
    except RecursionError as error:
        raise ValueError(f"{path}: more than {DEEPEST} levels deep") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {one_line(str(error))}") from error
    if depth(table) > DEEPEST:
        raise ValueError(f"{path}: more than {DEEPEST} levels deep")
    return table


def depth(document: Any) -> int:
    """Levels of lists and objects of a parsed document."""
    level, inside = 0, [document]
    while inside := [
        value
        for part in inside
        if isinstance(part, (dict, list))
        for value in (part.values() if isinstance(part, dict) else part)
    ]:
        level += 1
    return level


def unsound(document: Any, infinite: bool = False) -> str:
    """What no document of ours holds, in words: a number beyond a double's range (unless such may be
    there), a lone surrogate, too many levels; "" where there is nothing of the kind."""
    waiting: list[tuple[Any, int]] = [(document, 1)]
    while waiting:
        part, level = waiting.pop()
        if isinstance(part, str):
            if not part.isprintable() and not _is_unicode(part):
                return "text that is not Unicode"
        elif isinstance(part, (dict, list)):
            if level > DEEPEST:
                return f"more than {DEEPEST} levels deep"
            if isinstance(part, dict):
                waiting += [(name, level) for name in part]
            waiting += [(v, level + 1) for v in (part.values() if isinstance(part, dict) else part)]
        elif (
            not infinite and isinstance(part, (int, float)) and not abs(part) <= sys.float_info.max
        ):
            return "a number that is not finite, or beyond a double's range"
    return ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _why(error: BaseException) -> str:
    return getattr(error, "strerror", None) or one_line(str(error))
