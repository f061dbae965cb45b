"""Whether the dial of a method can be turned: from one end of its range to the other."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from ditbench.method.dial import turned
from ditbench.method.stack import Stack
from ditbench.testing.subjects import Subject


def turns(stack: Stack, subject: Subject) -> tuple[bool, str]:
    """Whether each method of a stack can be made, written, read back and run at both ends of its
    dial and in the middle, and a note. What would have to be prepared anew is not run; an end may
    be refused in a sentence, as a single step is by some samplers."""
    notes = []
    for m in stack.methods:
        if not m.dial:
            continue
        name, low, high = m.dial
        if not hasattr(m, name):
            return False, f"the dial of {m.name} is {name!r}, which is none of its knobs"
        notes.append(f"{name} from {low:g} to {high:g}")
        for value in (low, (low + high) / 2, high):
            at_value = Stack.of(_turned(m, value))
            if Stack.parse(str(at_value)) != at_value:
                return False, f"{at_value} reads back as another stack"
            try:
                _run(at_value, subject)
            except ValueError as refusal:
                if value not in (low, high):
                    raise
                notes.append(f"{at_value} is refused: {refusal}")
    return True, ", ".join(notes) or "no dial"


def _turned(m: Any, value: float) -> Any:
    """The method with its dial at a value; with all other knobs at their defaults where those it has
    exclude the dial."""
    try:
        return turned(m, value)
    except ValueError:
        if any(f.default is MISSING for f in fields(m)) or m == type(m)():
            raise
        return turned(type(m)(), value)


def _run(stack: Stack, subject: Subject) -> None:
    (m,) = stack.methods
    if m.recipe() is not None or stack.refusal(subject.pipeline):
        return
    sampling: Any = stack.adapt(subject.sampling)
    with stack.attached(subject.pipeline) as attached:
        attached.start(sampling.steps, 1)
        subject.generate(sampling, [0])
