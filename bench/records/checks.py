"""What the JSON documents of a run folder look like, and what is wrong with one that does not: a
file may be whole JSON and still have lost a field, or a digit. No torch.

A shape is a type or several (`NUMBER`: a finite number, no truth value; numbers are bounded by
`LARGEST`), `COUNT` and `AMOUNT` for those that are not negative, `NAME` for the name of a file, a list
of one shape
(`[TEXT]`), a mapping with the shapes of its fields (`{"round": int}`; a name with a question mark
may be missing; others may be there), or `Values(shape)`: a mapping whose every value has the shape.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditbench.records.reading import read_json
from ditbench.records.text import one_line

NUMBER = (int, float)
MAYBE = type(None)
LARGEST = 1e60
"""Of all numbers that are measured: its square, and sums of those, are finite."""
WHOLE = 1 << 63
"""No integer of a document is as large: libraries take those below."""


class COUNT(int):
    """A whole number that is not negative."""


class AMOUNT(float):
    """A number that is not negative: seconds, bytes, operations."""


class NAME(str):
    """The name of a file or folder, no path: what is read or written under it stays where it
    belongs."""


@dataclass(frozen=True)
class Values:
    """A mapping of whatever names to values of one shape."""

    of: Any


@dataclass(frozen=True)
class Names(Values):
    """The same, each name being a `NAME`."""


@dataclass(frozen=True)
class Matching(Values):
    """The same, each name being all of what a regular expression describes."""

    names: str


CALL = {
    "session?": str, "round": COUNT, "batch": COUNT, "size": COUNT, "call_s": AMOUNT,
    "text_s": AMOUNT,
    "denoise_s": AMOUNT, "decode_s": AMOUNT,
}  # fmt: skip
HOST = {
    "session?": str, "round?": COUNT, "dtype?": str, "probe?": (dict, MAYBE),
    "before?": (dict, MAYBE), "after?": (dict, MAYBE),
}  # fmt: skip
ENVIRONMENT = {
    "device?": str, "processor?": str, "cores?": (COUNT, MAYBE), "threads?": (COUNT, MAYBE),
    "packages?": Values((str, MAYBE)), "variables?": Values(str),
}  # fmt: skip
SAMPLING = {
    "steps?": COUNT, "guidance?": NUMBER, "height?": COUNT, "width?": COUNT, "frames?": COUNT,
    "text_tokens?": COUNT, "calls?": COUNT, "scheduler?": str,
}  # fmt: skip
COMPILATION = {"seconds": AMOUNT, "graphs": COUNT, "later_graphs": COUNT}
SIZES = ("weights", "cache", "peak", "before", "reserved")
SAMPLE_FILES = Matching(str, r"samples\.safetensors|samples/\d{1,9}\.tar")
"""sha256 by the file's path in the cell's folder."""
COUNTS = (
    "flops", "linear_macs", "attention_macs", "conv_macs", "text_flops", "decoder_flops",
    "forwards", "passes",
)  # fmt: skip
MEASURED_OF = {
    "sampling": SAMPLING, "environment": ENVIRONMENT, "timing": [CALL],
    "memory": {f"{name}_bytes?": (AMOUNT, MAYBE) for name in SIZES},
    "flops": {f"{name}?": (AMOUNT, MAYBE) for name in COUNTS}, "counters": Values(NUMBER),
    "operations?": Values(AMOUNT), "notes?": dict, "artifacts?": Names({"key?": NAME, "below?": str}),
    "prompts_cut?": (dict, MAYBE), "load_s?": (AMOUNT, MAYBE), "first_call_s?": (AMOUNT, MAYBE),
    "left_behind?": [str], "sample_files?": SAMPLE_FILES, "compilation?": COMPILATION,
}  # fmt: skip
"""What a round that ran to the end and a record share."""
RECORD = MEASURED_OF | {
    "key": NAME, "model": NAME, "family": str, "world?": str, "stack": str,
    "methods": [{"name": str, "knobs": dict, "label?": str}], "status": str, "reason": str,
    "traceback?": str,
    "run": {
        "num_samples?": COUNT, "batch_size?": COUNT, "rounds?": COUNT, "seed?": int, "device?": str,
        "dtype?": str, "weights?": str, "prompts?": str, "requests_sha256?": str,
        "model_sha256?": str,
    },
    "settings?": dict, "depends_on?": dict, "environments?": Values(ENVIRONMENT),
    "host?": ([HOST], MAYBE), "schedule?": (dict, MAYBE), "seconds?": AMOUNT,
}  # fmt: skip
ROUND = {"status": str, "reason": str, "round?": COUNT, "seconds?": AMOUNT}
FIRST_ROUND = ROUND | MEASURED_OF | {"round": COUNT, "seconds": AMOUNT, "host?": HOST}
"""The first round of a cell, where it was measured."""
LATER_ROUND = {
    f"{name}?" if name in ("memory", "flops") else name: shape
    for name, shape in FIRST_ROUND.items()
}
"""Another round, or its time again: memory and FLOPs are those of the first."""
SHARD = {"status": str, "reason": str}
MADE_SHARD = SHARD | {
    "requests": [COUNT], "sample_files": SAMPLE_FILES, "requests_sha256": str, "model_sha256": str,
    "session": str, "seconds": AMOUNT, "environment": ENVIRONMENT,
}  # fmt: skip
"""A shard of a cell's samples that was made."""
SCHEDULE = {"sublayers": [str], "keep": [[NUMBER]], "skipped?": [[int]]}
CUT = Values({"cut": COUNT, "of": COUNT, "reads": COUNT})
SAMPLED = {
    "steps": COUNT, "guidance": NUMBER, "height": COUNT, "width": COUNT, "frames": COUNT,
}  # fmt: skip
SPEC = {
    "cells?": [NAME], "labels?": Names(str), "settings?": dict, "files?": Values(str),
    "spec?": {
        "margins?": (Values(NUMBER), MAYBE), "plugins?": [str], "references?": [str], "threads?": int,
        "num_samples?": int, "batch_size?": int,
    },
}  # fmt: skip
REQUESTS = [
    {
        "id": str, "seed": int, "prompt?": (str, MAYBE), "label?": (int, MAYBE),
        "truth?": (dict, MAYBE), "entry?": (int, MAYBE),
    }
]  # fmt: skip
REFERENCES = Values(Values({"path": str, "sha256": str}))
SCORES = {
    "samples_sha256": str, "reasons?": Values(str), "fingerprints?": Values(str),
    "owned?": Values([str]), "statistics?": Values(str), "unread?": Values(str),
}  # fmt: skip


def wrong(value: Any, shape: Any, at: str = "") -> str:
    """The first field of a document that is missing or not of its shape, by its path
    (`timing[3].call_s`); "" where there is none. The document itself is "it"."""
    if isinstance(shape, tuple):
        plain = tuple(kind for kind in shape if isinstance(kind, type))
        rest = [kind for kind in shape if not isinstance(kind, type)]
        if any(not wrong(value, kind, at) for kind in rest):
            return ""
        return "" if _is(value, plain) else wrong(value, rest[0], at) if rest else at or "it"
    if isinstance(shape, type):
        return "" if _is(value, (shape,)) else at or "it"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return at or "it"
        entries = (wrong(entry, shape[0], f"{at}[{i}]") for i, entry in enumerate(value))
        return next(filter(None, entries), "")
    if not isinstance(value, dict):
        return at or "it"
    dot = f"{at}." if at else ""
    if isinstance(shape, Values):
        if isinstance(shape, Names) and (other := next((n for n in value if not is_name(n)), None)):
            return f"{dot}{one_line(other, 80)}"
        if isinstance(shape, Matching):
            others = (name for name in value if not re.fullmatch(shape.names, name))
            if (other := next(others, None)) is not None:
                return f"{dot}{one_line(other, 80)}"
        entries = (wrong(entry, shape.of, f"{dot}{name}") for name, entry in value.items())
        return next(filter(None, entries), "")
    for name, kind in shape.items():
        field = name.removesuffix("?")
        if field in value:
            if inner := wrong(value[field], kind, f"{dot}{field}"):
                return inner
        elif field == name:
            return f"{dot}{field}"
    return ""


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, (int, float)):
        if AMOUNT in kinds and 0 <= value <= LARGEST:  # which NaN is not
            return True
        if isinstance(value, float):
            return float in kinds and abs(value) <= LARGEST
        if COUNT in kinds and 0 <= value < WHOLE:
            return True
        return int in kinds and abs(value) < (LARGEST if float in kinds else WHOLE)
    return isinstance(value, kinds) or (NAME in kinds and is_name(value))


def is_name(text: Any) -> bool:
    """Whether it is the name of one file on every system: no path, nothing unprintable, and short
    enough with an ending."""
    return (
        isinstance(text, str)
        and 0 < len(text.encode(errors="replace")) <= 200
        and text.isprintable()
        and not set(text) & set("/\\")
        and text.strip(". ") != ""
    )


def check(value: Any, shape: Any, place: str) -> Any:
    """The document; ValueError names `place`, its file, and the field that is wrong."""
    if field := wrong(value, shape):
        if field == "it":
            kind = "list" if isinstance(shape, list) else "object"
            raise ValueError(f"{place} is damaged (not a JSON {kind})")
        raise ValueError(f"{place} is damaged ({field} is missing or of the wrong type)")
    return value


def read_requests(path: Path) -> list[dict[str, Any]]:
    """What a model was asked for, in sample order; ValueError names the file and the field."""
    requests: list[dict[str, Any]] = check(read_json(path, path.parents[1]), REQUESTS, str(path))
    return requests


def read_references(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Path and sha256 of references by model and extractor, none where the file is not there;
    ValueError as `read_requests`."""
    pointers: dict[str, dict[str, dict[str, str]]] = {}
    with suppress(FileNotFoundError):
        pointers = check(read_json(path, path.parent), REFERENCES, str(path))
    return pointers
