"""What becomes of the files of a run folder in hostile hands: another field, other bytes, another
kind of file, other arrays. Everything by a random number generator that is given."""

import copy
import json
import os
import shutil

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

DEEP = 20_000
VALUES = (
    None, True, -1, 0, 1, 2.5, -0.0, 1e308, -1e308, 5e-324, 2**63, 10**25, -(10**25), 10**400, "",
    "x", "none", "ok", "x" * 10_000, "\ud800", "\x1b]0;title\x07\x1b[31m", "<script>alert(1)</script>",
    "=1+1", "\\input{x}", "\x00", "../../outside/x", "..", "/", "a/b", "\u202e", "é" * 300, [], {},
    [[]], [None], {"": None}, {"x": {}}, [1, "x"], {"outside": "../outside"}, float("nan"),
    float("inf"), 2.0**70, "1" * 5000, "NaN", "dit-tiny", "pixart-tiny", "int8+fora", "(((",
)  # fmt: skip
"""What stands in place of a field."""
BYTES = (
    b"", b"\x00", b"\xff\xfe", b"null", b"[]", b"{}", b"3", b'"x"', b"[" * DEEP, b'{"x":' * DEEP,
    b"\x80" * 100, b"{" + b'"a":1,' * 1000, b"NaN", b"\xef\xbb\xbf{}", b"9" * 5000,
    b"\xff" * 8 + b"{}", (2**62).to_bytes(8, "little") + b"{}", b"PK\x03\x04" + b"\x00" * 60,
    b'{"schema": 1}', b'[{"id": "0"}]', b'{"schema": 1, "cells": ["../../outside"]}',
)  # fmt: skip
"""What stands in place of a file."""


def fields(document, at=()):
    """The paths of all fields of a document, of lists the first two entries."""
    entries = []
    if isinstance(document, dict):
        entries = list(document.items())
    elif isinstance(document, list):
        entries = list(enumerate(document))[:2]
    for name, value in entries:
        yield (*at, name)
        yield from fields(value, (*at, name))


def with_field(document, path, value):
    """The document with another value there; with `...` without the field."""
    document = copy.deepcopy(document)
    inside = document
    for name in path[:-1]:
        inside = inside[name]
    if value is ...:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return document


def other_field(content, rng):
    document = json.loads(content)
    paths = list(fields(document))
    value = rng.choice([*VALUES, ...])
    return json.dumps(with_field(document, rng.choice(paths), value)).encode()


def other_bytes(content, rng):
    """Cut, zeroed, flipped, doubled, or something else altogether."""
    what = rng.randrange(5)
    if what == 0:
        return content[: rng.randrange(len(content) + 1)]
    if what == 1:
        return bytes(len(content))
    if what == 2:
        changed = bytearray(content)
        for _ in range(rng.randrange(1, 9)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed)
    return content * 2 if what == 3 else rng.choice(BYTES)


def other_header(content, rng):
    """A safetensors file with another field in its header."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if (scores := header.get("__metadata__", {}).get("scores")) and rng.random() < 0.6:
        header["__metadata__"]["scores"] = other_field(scores.encode(), rng).decode()
    else:
        header = json.loads(other_field(json.dumps(header).encode(), rng))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def other_arrays(content, rng):
    """A safetensors file with one array of other values, of another shape, or gone."""
    arrays = load(content)
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__")
    name = rng.choice(sorted(arrays))
    array = arrays.pop(name)
    makers = (
        lambda a: None,
        lambda a: a[:1],
        lambda a: a[:0],
        lambda a: np.concatenate([a, a]),
        lambda a: np.full(a.shape, np.nan, np.float32),
        lambda a: np.full(a.shape, np.inf),
        lambda a: np.full(a.shape, 1e300),
        lambda a: np.zeros(a.shape, a.dtype),
        lambda a: a.reshape(1, *a.shape),
        lambda a: a.reshape(-1),
        lambda a: np.array(3),
        lambda a: a.astype(np.int8),
        lambda a: a.astype(np.float16),
        lambda a: a.astype(bool),
        lambda a: np.full(a.shape, -5, np.int64),
    )
    other = rng.choice(makers)(array)
    if other is not None:
        arrays[name] = np.ascontiguousarray(other)
    return save(arrays, metadata)


def mutate(path, rng, elsewhere, kinds=True):
    """Change one file in place, and say how."""
    content = path.read_bytes()
    if kinds and rng.random() < 0.2:
        return _other_kind(path, rng, elsewhere)
    if path.suffix == ".safetensors" and (changing := rng.randrange(3)):
        change = other_header if changing == 1 else other_arrays
    elif path.suffix == ".json" and rng.random() < 0.75:
        change = other_field
    else:
        change = other_bytes
    try:
        path.write_bytes(change(content, rng))
    except (ValueError, SafetensorError, KeyError, UnicodeError, RecursionError):
        path.write_bytes(other_bytes(content, rng))
        return "other bytes"
    return change.__name__


def _other_kind(path, rng, elsewhere):
    kind = rng.choice(
        ("folder", "pipe", "link", "link in a circle", "device", "nothing", "dangling")
    )
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(elsewhere / rng.choice(sorted(p.name for p in elsewhere.iterdir())))
    elif kind == "link in a circle":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/dev/full")))
    elif kind == "dangling":
        path.symlink_to(elsewhere / "not there")
    return kind


def restore(path, content):
    """Put back what `mutate` changed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(content)
