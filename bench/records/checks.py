"""What the JSON documents of a run folder look like, and what is wrong with one that does not: a
file may be whole JSON and still have lost a field, or a digit. No torch.

A shape is a type or several (`NUMBER`: a finite number, no truth value), a list of one shape
(`[TEXT]`), a mapping with the shapes of its fields (`{"round": int}`; a name with a question mark
may be missing; others may be there), or `Values(shape)`: a mapping whose every value has the shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditbench.records.files import read_json

NUMBER = (int, float)
MAYBE = type(None)


@dataclass(frozen=True)
class Values:
    """A mapping of whatever names to values of one shape."""

    of: Any


CALL = {
    "session?": str, "round": int, "batch": int, "size": int, "call_s": NUMBER, "text_s": NUMBER,
    "denoise_s": NUMBER, "decode_s": NUMBER,
}  # fmt: skip
HOST = {
    "session?": str, "round?": int, "dtype?": str, "probe?": (dict, MAYBE),
    "before?": (dict, MAYBE), "after?": (dict, MAYBE),
}  # fmt: skip
ENVIRONMENT = {
    "device?": str, "processor?": str, "cores?": (int, MAYBE), "threads?": (int, MAYBE),
    "packages?": Values((str, MAYBE)), "variables?": Values(str),
}  # fmt: skip
SAMPLING = {
    "steps?": int, "guidance?": NUMBER, "height?": int, "width?": int, "frames?": int,
    "text_tokens?": int, "calls?": int, "scheduler?": str,
}  # fmt: skip
SIZES = ("weights", "cache", "peak", "before", "reserved")
COUNTS = (
    "flops", "linear_macs", "attention_macs", "conv_macs", "text_flops", "decoder_flops",
    "forwards", "passes",
)  # fmt: skip
MEASURED_OF = {
    "sampling": SAMPLING, "environment": ENVIRONMENT, "timing": [CALL],
    "memory": {f"{name}_bytes?": (*NUMBER, MAYBE) for name in SIZES},
    "flops": {f"{name}?": (*NUMBER, MAYBE) for name in COUNTS}, "counters": Values(NUMBER),
    "notes?": dict, "artifacts?": Values({"key?": str, "below?": str}),
    "prompts_cut?": (dict, MAYBE), "load_s?": (*NUMBER, MAYBE), "first_call_s?": (*NUMBER, MAYBE),
    "left_behind?": [str],
}  # fmt: skip
"""What a round that ran to the end and a record share."""
RECORD = MEASURED_OF | {
    "key": str, "model": str, "family": str, "world?": str, "stack": str,
    "methods": [{"name": str, "knobs": dict, "label?": str}], "status": str, "reason": str,
    "traceback?": str,
    "run": {
        "num_samples?": int, "batch_size?": int, "rounds?": int, "seed?": int, "device?": str,
        "dtype?": str, "weights?": str, "prompts?": str, "requests_sha256?": str,
        "model_sha256?": str,
    },
    "settings?": dict, "depends_on?": dict, "environments?": Values(ENVIRONMENT),
    "host?": ([HOST], MAYBE), "schedule?": (dict, MAYBE), "seconds?": NUMBER,
}  # fmt: skip
ROUND = {"status": str, "reason": str, "round?": int, "seconds?": NUMBER}
FIRST_ROUND = ROUND | MEASURED_OF | {"round": int, "seconds": NUMBER, "host?": HOST}
"""The first round of a cell, where it was measured."""
LATER_ROUND = {
    f"{name}?" if name in ("memory", "flops") else name: shape
    for name, shape in FIRST_ROUND.items()
}
"""Another round, or its time again: memory and FLOPs are those of the first."""
SCHEDULE = {"sublayers": [str], "keep": [[NUMBER]], "skipped?": [[int]]}
CUT = Values({"cut": int, "of": int, "reads": int})
SAMPLED = {"steps": int, "guidance": NUMBER, "height": int, "width": int, "frames": int}
SPEC = {
    "cells?": [str], "labels?": Values(str), "settings?": dict, "files?": Values(str),
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
    if isinstance(value, float):
        return float in kinds and math.isfinite(value)
    return isinstance(value, kinds)


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
    requests: list[dict[str, Any]] = check(read_json(path), REQUESTS, str(path))
    return requests


def read_references(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Path and sha256 of references by model and extractor, none where the file is not there;
    ValueError as `read_requests`."""
    if not path.is_file():
        return {}
    pointers: dict[str, dict[str, dict[str, str]]]
    pointers = check(read_json(path), REFERENCES, str(path))
    return pointers
