"""Which methods of combinations were not run alone: without them nothing says whether they stack.
No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Described = Sequence[Mapping[str, Any]]
"""The methods of a stack as a record holds them."""


def identity(method: Mapping[str, Any]) -> str:
    """A described method without what it was tuned for."""
    return json.dumps(
        [method["name"], {k: v for k, v in method["knobs"].items() if k != "tuned"}], sort_keys=True
    )


def not_alone(methods_of: Mapping[str, Described]) -> dict[str, list[str]]:
    """The methods that each combination lacks alone among the stacks, as one types them; only
    combinations that lack some and have some. `methods_of`: of each stack, by its text."""
    alone = {identity(methods[0]) for methods in methods_of.values() if len(methods) == 1}
    missing = {}
    for text, methods in methods_of.items():
        parts = re.split(r"\+(?![^()]*\))", text)
        if len(methods) < 2 or len(parts) != len(methods):
            continue
        absent = [
            re.sub(r"(, )?tuned='alone'", "", part).replace("(, ", "(").replace("()", "")
            for part, method in zip(parts, methods, strict=True)
            if identity(method) not in alone
        ]
        if 0 < len(absent) < len(parts):
            missing[text] = absent
    return missing


def sentences(missing: Mapping[str, Sequence[str]]) -> list[str]:
    """What `not_alone` gives, in words: a sentence for each combination."""
    return [
        f"whether {stack} stacks is not judged without {' and '.join(parts)} alone"
        for stack, parts in missing.items()
    ]
