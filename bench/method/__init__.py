"""What a method is written with: all that a plug-in needs.

A method is a class of knobs with `attach(pipeline, at)`, declared with `@method(...)`. Everything
it changes it changes through `at`, which takes it back, last in first out, also after a failure
half way: there is no detach to write. Never imports torch.
"""

from ditbench.method.attachment import Attachment
from ditbench.method.generation import Now
from ditbench.method.knobs import build, knob, knobs, values
from ditbench.method.registry import METHODS, Method, find, method, names
from ditbench.method.stack import Stack
from ditbench.method.traits import CLAIMS, Stage, Traits

__all__ = [
    "CLAIMS",
    "METHODS",
    "Attachment",
    "Method",
    "Now",
    "Stack",
    "Stage",
    "Traits",
    "build",
    "find",
    "knob",
    "knobs",
    "method",
    "names",
    "values",
]
