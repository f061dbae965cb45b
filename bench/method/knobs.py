"""Knobs: the fields of a method, with their types and ranges, checked with one sentence when wrong.
Never imports torch."""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ditbench.suggest import suggest


@dataclass(frozen=True, kw_only=True)
class Knob:
    """What a method's field looks like from outside."""

    name: str
    kind: str
    """Its type, as written: `int`, `float | None`."""
    default: Any
    """`...` when it must be given."""
    span: str
    """Its range in words, such as `at least 1`; empty when any value of the type will do."""
    doc: str


def knob(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Callable[[], Iterable[str]] | None = None,
) -> Any:
    """A field with a range: `low` and `high` belong to it, `above` and `below` do not. `choices`
    gives the texts it may be, looked up when a method is made: plug-ins may add to them."""
    span = {"at least": low, "above": above, "at most": high, "below": below}
    return field(
        default=default,
        metadata={
            "span": {word: bound for word, bound in span.items() if bound is not None},
            "choices": choices,
        },
    )


def knobs(cls: type) -> list[Knob]:
    """The knobs of a method class, in the order they are written."""
    docs = _docs(cls)
    hints = get_type_hints(cls)
    return [
        Knob(
            name=f.name,
            kind=_kind_text(hints[f.name]),
            default=... if f.default is MISSING else f.default,
            span=_span_text(f),
            doc=docs.get(f.name, ""),
        )
        for f in fields(cls)
    ]


def values(method: Any) -> dict[str, Any]:
    """All knobs of a method, defaults included, as JSON can hold them (tuples as lists)."""
    return {f.name: _jsonable(getattr(method, f.name)) for f in fields(method)}


def build(cls: Any, given: Mapping[str, Any]) -> Any:
    """A method from knob values, such as `values` gives; ValueError for an unknown, missing,
    mistyped or out-of-range knob."""
    known = {f.name: f for f in fields(cls)}
    for name in given:
        if name not in known:
            if not known:
                raise ValueError(f"{cls.name} has no knobs, but was given {name!r}")
            raise ValueError(f"{cls.name} has no knob {name!r}; {suggest(name, known)}")
    for name, f in known.items():
        if f.default is MISSING and name not in given:
            raise ValueError(f"{cls.name} needs its knob {name!r}")
    return cls(**given)


def check(method: Any) -> None:
    """Check every knob of a new method against its type and range, and settle it (an int given for
    a float becomes one).

    Raises ValueError with one sentence.
    """
    hints = get_type_hints(type(method))
    for f in fields(method):
        value = getattr(method, f.name)
        try:
            value = _fit(value, hints[f.name])
        except TypeError:
            expected = _kind_text(hints[f.name])
            raise ValueError(f"{method.name}: {f.name} must be {expected}, not {value!r}") from None
        if value is not None and not _within(value, f.metadata.get("span", {})):
            raise ValueError(f"{method.name}: {f.name} must be {_span_text(f)}, not {value!r}")
        if (choices := f.metadata.get("choices")) and value not in (names := list(choices())):
            raise ValueError(f"{method.name}: no {f.name} {value!r}; {suggest(value, names)}")
        # frozen: this is the one place that settles a value
        object.__setattr__(method, f.name, value)


def _fit(value: Any, kind: Any) -> Any:
    """The value as `kind` wants it; TypeError when it does not fit."""
    if kind is Any:
        return value
    if get_origin(kind) in (Union, types.UnionType):
        exact = [k for k in get_args(kind) if type(value) is k]
        for k in exact or get_args(kind):
            try:
                return _fit(value, k)
            except TypeError:
                continue
    elif get_origin(kind) is Literal:
        if any(value == choice and type(value) is type(choice) for choice in get_args(kind)):
            return value
    elif get_origin(kind) is tuple or kind is tuple:
        if isinstance(value, tuple | list):
            inner = get_args(kind) or (Any, ...)
            if len(inner) == 2 and inner[1] is ...:
                return tuple(_fit(v, inner[0]) for v in value)
            if len(inner) == len(value):
                return tuple(_fit(v, k) for v, k in zip(value, inner, strict=True))
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif type(value) is kind:  # True is no int here
        return value
    raise TypeError


def _within(value: Any, span: Mapping[str, float]) -> bool:
    tests = {"at least": "__ge__", "at most": "__le__", "above": "__gt__", "below": "__lt__"}
    return all(getattr(float(value), tests[word])(float(bound)) for word, bound in span.items())


def _kind_text(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_kind_text(k) for k in get_args(kind))
    if kind is type(None):
        return "None"
    return (
        kind.__name__
        if isinstance(kind, type) and not get_args(kind)
        else str(kind).removeprefix("typing.")
    )


def _span_text(f: Field[Any]) -> str:
    return " and ".join(f"{word} {bound:g}" for word, bound in f.metadata.get("span", {}).items())


def _jsonable(value: Any) -> Any:
    return [_jsonable(v) for v in value] if isinstance(value, tuple) else value


def _docs(cls: type) -> dict[str, str]:
    """The string written under each field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for one, two in zip(body.body, body.body[1:], strict=False):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            is_text = (
                isinstance(two, ast.Expr)
                and isinstance(two.value, ast.Constant)
                and isinstance(two.value.value, str)
            )
            if is_text:
                docs[one.target.id] = " ".join(two.value.value.split())  # type: ignore[attr-defined]
    return docs
